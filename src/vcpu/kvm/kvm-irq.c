/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The in-kernel interrupt controllers, MSI routes, irqfd and ioeventfd. api.rst 4.24
 * (CREATE_IRQCHIP), 4.52 (SET_GSI_ROUTING), 4.75 (IRQFD), 4.59 (IOEVENTFD), 4.70 (SIGNAL_MSI).
 */
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/error.h"
#include "vcpu/kvm/kvm-private.h"

#define PIC_PINS 8u

/* Pages that Intel hosts need for real mode; below the BIOS area, outside RAM and BARs. */
#define KVM_IDENTITY_MAP_ADDRESS 0xfeffc000ull
#define KVM_TSS_ADDRESS          0xfeffd000ull

static void route_pin(struct kvm_irq_routing *table, unsigned gsi, unsigned chip, unsigned pin)
{
    table->entries[table->nr++] = (struct kvm_irq_routing_entry){
        .gsi = gsi,
        .type = KVM_IRQ_ROUTING_IRQCHIP,
        .u.irqchip = {.irqchip = chip, .pin = pin},
    };
}

/* Called with routes_lock held. */
static bool routes_commit(KvmVm *kvm, GError **err)
{
    size_t most = 2 * PIC_PINS + KVM_GSI_COUNT + KVM_MSI_ROUTES_MAX;
    g_autofree struct kvm_irq_routing *table =
        g_malloc0(sizeof(*table) + most * sizeof(table->entries[0]));
    for (unsigned i = 0; i < 2 * PIC_PINS; i++)
        if (i != 2) /* the cascade */
            route_pin(table, i, i < PIC_PINS ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE,
                      i % PIC_PINS);
    for (unsigned i = 0; i < KVM_GSI_COUNT; i++)
        if (i != 2) /* GSI 0 (the PIT) arrives at pin 2, as the MADT's override says */
            route_pin(table, i, KVM_IRQCHIP_IOAPIC, i == 0 ? 2 : i);
    for (unsigned i = 0; i < KVM_MSI_ROUTES_MAX; i++) {
        const KvmMsiRoute *route = &kvm->routes[i];
        if (!route->used)
            continue;
        table->entries[table->nr++] = (struct kvm_irq_routing_entry){
            .gsi = KVM_GSI_COUNT + i,
            .type = KVM_IRQ_ROUTING_MSI,
            .u.msi = {.address_lo = (uint32_t)route->address,
                      .address_hi = (uint32_t)(route->address >> 32),
                      .data = route->data},
        };
    }
    if (ioctl(kvm->fd, KVM_SET_GSI_ROUTING, table) < 0)
        return lodge_fail_errno(err, errno, "KVM interrupt routes");
    return true;
}

bool kvm_irqchip_create(KvmVm *kvm, GError **err)
{
    uint64_t identity = KVM_IDENTITY_MAP_ADDRESS;
    if (ioctl(kvm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0)
        return lodge_fail_errno(err, errno, "KVM identity map page");
    if (ioctl(kvm->fd, KVM_SET_TSS_ADDR, KVM_TSS_ADDRESS) < 0)
        return lodge_fail_errno(err, errno, "KVM TSS pages");
    if (ioctl(kvm->fd, KVM_CREATE_IRQCHIP, 0) < 0)
        return lodge_fail_errno(err, errno, "KVM interrupt controllers");
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    if (ioctl(kvm->fd, KVM_CREATE_PIT2, &pit) < 0)
        return lodge_fail_errno(err, errno, "KVM interval timer");
    pthread_mutex_lock(&kvm->routes_lock);
    bool ok = routes_commit(kvm, err);
    pthread_mutex_unlock(&kvm->routes_lock);
    return ok;
}

bool kvm_set_gsi(VcpuVm *vm, unsigned gsi, bool level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    return ioctl(((KvmVm *)vm)->fd, KVM_IRQ_LINE, &line) >= 0;
}

bool kvm_send_msi(VcpuVm *vm, uint64_t address, uint32_t data)
{
    struct kvm_msi msi = {
        .address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    return ioctl(((KvmVm *)vm)->fd, KVM_SIGNAL_MSI, &msi) >= 0;
}

static bool ioeventfd(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, uint32_t flags, GError **err)
{
    struct kvm_ioeventfd event = {.addr = gpa, .len = size, .fd = fd, .flags = flags};
    if (ioctl(((KvmVm *)vm)->fd, KVM_IOEVENTFD, &event) < 0)
        return lodge_fail_errno(err, errno, "KVM doorbell at 0x%" G_GINT64_MODIFIER "x", gpa);
    return true;
}

bool kvm_add_ioeventfd(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err)
{
    return ioeventfd(vm, gpa, size, fd, 0, err);
}

bool kvm_del_ioeventfd(VcpuVm *vm, uint64_t gpa, unsigned size, int fd, GError **err)
{
    return ioeventfd(vm, gpa, size, fd, KVM_IOEVENTFD_FLAG_DEASSIGN, err);
}

static bool irqfd(KvmVm *kvm, int fd, unsigned route, uint32_t flags, GError **err)
{
    struct kvm_irqfd irq = {.fd = (uint32_t)fd, .gsi = KVM_GSI_COUNT + route, .flags = flags};
    if (ioctl(kvm->fd, KVM_IRQFD, &irq) < 0)
        return lodge_fail_errno(err, errno, "KVM interrupt descriptor");
    return true;
}

bool kvm_add_irqfd(VcpuVm *vm, int fd, uint64_t address, uint32_t data, unsigned *route,
                   GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    pthread_mutex_lock(&kvm->routes_lock);
    unsigned free_route = 0;
    while (free_route < KVM_MSI_ROUTES_MAX && kvm->routes[free_route].used)
        free_route++;
    bool ok = free_route < KVM_MSI_ROUTES_MAX;
    if (!ok) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "all %d KVM interrupt routes are in use",
                   KVM_MSI_ROUTES_MAX);
    } else {
        kvm->routes[free_route] = (KvmMsiRoute){.used = true, .address = address, .data = data};
        ok = routes_commit(kvm, err) && irqfd(kvm, fd, free_route, 0, err);
        if (ok)
            *route = free_route;
        else
            kvm->routes[free_route].used = false;
    }
    pthread_mutex_unlock(&kvm->routes_lock);
    return ok;
}

bool kvm_del_irqfd(VcpuVm *vm, int fd, unsigned route, GError **err)
{
    KvmVm *kvm = (KvmVm *)vm;
    if (route >= KVM_MSI_ROUTES_MAX || !kvm->routes[route].used)
        return lodge_fail(err, LODGE_ERROR_INVALID, "KVM interrupt route %u is not in use", route);
    pthread_mutex_lock(&kvm->routes_lock);
    bool ok = irqfd(kvm, fd, route, KVM_IRQFD_FLAG_DEASSIGN, err);
    kvm->routes[route].used = false;
    ok = routes_commit(kvm, ok ? err : NULL) && ok;
    pthread_mutex_unlock(&kvm->routes_lock);
    return ok;
}
