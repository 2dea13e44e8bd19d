/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Any file as a kernel: found out, then loaded into 32 MiB beside an initrd. Nothing outside RAM is
 * touched, and an entry that is accepted lies in RAM. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/boot/boot.h"

#define RAM_SIZE MIB(32)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t *ram;
static int kernel_fd = -1, initrd_fd;

static uint8_t *pointer(void *opaque, uint64_t gpa, uint64_t length)
{
    return range_within(gpa, length, RAM_SIZE) ? ram + gpa : NULL;
}

static void dirty(void *opaque, uint64_t gpa, uint64_t length)
{
    g_assert_true(range_within(gpa, length, RAM_SIZE));
}

static void set_up(void)
{
    kernel_fd = memfd_create("kernel", MFD_CLOEXEC);
    initrd_fd = memfd_create("initrd", MFD_CLOEXEC);
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert_true(ram != MAP_FAILED && ftruncate(initrd_fd, 5000) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (kernel_fd < 0)
        set_up();
    g_assert_cmpint(ftruncate(kernel_fd, 0), ==, 0);
    g_assert_cmpint(pwrite(kernel_fd, data, size, 0), ==, (gssize)size);
    const BootImage image = {
        .kernel = {kernel_fd, size, (char *)"kernel"},
        .initrd = {initrd_fd, 5000, (char *)"initrd"},
        .cmdline = "quiet",
        .memory = {NULL, pointer, dirty, RAM_SIZE, RAM_SIZE},
    };
    g_autoptr(GError) error = NULL;
    VcpuState bsp;
    memset(&bsp, 0, sizeof(bsp));
    const BootProtocol *protocol = boot_protocol_find(&image, &error);
    bool ok = protocol && protocol->load(&image, &bsp, &error);
    g_assert_true(ok == !error);
    if (ok)
        g_assert_true(range_within(bsp.rip, 1, RAM_SIZE) && bsp.rip >= BOOT_LOW_KERNEL);
    return 0;
}
