/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whether KVM really works here. A /dev/kvm that opens is not enough: some hosts offer one without
 * hardware virtualization behind it, which emulates the guest's kernel mode instruction by
 * instruction, thousands of times too slow and incompletely. With the CPU's VMX or SVM flag KVM is
 * taken at once; without it a guest of a few instructions is timed.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "vcpu/kvm/kvm-private.h"

#define PROBE_ITERATIONS 1000u
#define PROBE_TRIES      3u     /* the best counts: a busy host may interrupt one */
#define PROBE_LIMIT_NS   200000 /* hardware needs about 0.03 ms, instruction emulation over 1 */
#define PROBE_PAGE       4096u
#define CR4_OSFXSR       0x200u

static bool host_has_virtualization(void)
{
    unsigned a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) && c & (1u << 5)) /* VMX */
        return true;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & (1u << 2); /* SVM */
}

/* Runs until HLT without an irqchip; a vector move first, as every kernel uses them. */
static const uint8_t probe_code[] = {
    0x0f,
    0x28,
    0xc1, /* movaps xmm0, xmm1 */
    0xb9,
    PROBE_ITERATIONS & 0xff,
    PROBE_ITERATIONS >> 8, /* mov cx, iterations */
    0x40,                  /* 1: inc ax */
    0xe2,
    0xfd, /* loop 1b */
    0xf4, /* hlt */
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Runs the probe's code once; *took_ns is how long. Returns NULL, or why it does not run. */
static char *run_once(int vcpu_fd, const struct kvm_run *run, int64_t *took_ns)
{
    struct kvm_regs regs = {.rip = 0, .rflags = 2};
    if (ioctl(vcpu_fd, KVM_SET_REGS, &regs) < 0)
        return g_strdup_printf("its registers cannot be set (%s)", g_strerror(errno));
    int64_t start = now_ns();
    if (ioctl(vcpu_fd, KVM_RUN, 0) < 0)
        return g_strdup_printf("a guest of five instructions does not run (%s)", g_strerror(errno));
    *took_ns = now_ns() - start;
    if (run->exit_reason != KVM_EXIT_HLT)
        return g_strdup_printf("a guest of five instructions ends with exit reason %u",
                               run->exit_reason);
    return NULL;
}

static char *run_probe(int vcpu_fd, const struct kvm_run *run)
{
    struct kvm_sregs sregs;
    if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
        return g_strdup_printf("its registers cannot be read (%s)", g_strerror(errno));
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.cr4 |= CR4_OSFXSR;
    if (ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) < 0)
        return g_strdup_printf("its registers cannot be set (%s)", g_strerror(errno));
    int64_t best = INT64_MAX;
    for (unsigned i = 0; i < PROBE_TRIES && best > PROBE_LIMIT_NS; i++) {
        int64_t took = 0;
        char *why = run_once(vcpu_fd, run, &took);
        if (why)
            return why;
        best = MIN(best, took);
    }
    if (best > PROBE_LIMIT_NS)
        return g_strdup_printf("the host CPU has no VMX or SVM, and %u loops took %.1f ms",
                               PROBE_ITERATIONS, (double)best / 1e6);
    return NULL;
}

static char *probe_vm(int dev_fd)
{
    char *why = NULL;
    int vcpu_fd = -1;
    void *page = MAP_FAILED, *run = MAP_FAILED;
    int run_size = ioctl(dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    int vm_fd = ioctl(dev_fd, KVM_CREATE_VM, 0);
    if (vm_fd < 0 || run_size < 0) {
        why = g_strdup_printf("no VM can be made (%s)", g_strerror(errno));
        goto out;
    }
    page = mmap(NULL, PROBE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        goto system_error;
    memcpy(page, probe_code, sizeof(probe_code));
    struct kvm_userspace_memory_region region = {.memory_size = PROBE_PAGE,
                                                 .userspace_addr = (uintptr_t)page};
    vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
    if (vcpu_fd < 0 || ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) < 0)
        goto system_error;
    run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
    if (run == MAP_FAILED)
        goto system_error;
    why = run_probe(vcpu_fd, run);
    goto out;
system_error:
    why = g_strdup_printf("no guest can be made (%s)", g_strerror(errno));
out:
    if (run != MAP_FAILED)
        munmap(run, (size_t)run_size);
    if (vcpu_fd >= 0)
        close(vcpu_fd);
    if (vm_fd >= 0)
        close(vm_fd);
    if (page != MAP_FAILED)
        munmap(page, PROBE_PAGE);
    return why;
}

bool kvm_probe(char **why)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        *why = g_strdup_printf("/dev/kvm: %s", g_strerror(errno));
        return false;
    }
    char *reason = NULL;
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        reason = g_strdup_printf("/dev/kvm has API version %d, not %d", version, KVM_API_VERSION);
    else if (!host_has_virtualization())
        reason = probe_vm(fd);
    close(fd);
    if (reason)
        *why = reason;
    return reason == NULL;
}
