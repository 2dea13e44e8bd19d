/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The loaders, applied to a machine. */
#include "base/error.h"
#include "machine/board/board.h"
#include "machine/board/memory-map.h"
#include "machine/boot/boot.h"

struct BoardBoot {
    Machine *machine;
    BootImage image;
    const BootProtocol *protocol;
};

static uint8_t *machine_pointer(void *opaque, uint64_t gpa, uint64_t length)
{
    return machine_ram(opaque, gpa, length);
}

static void machine_pointer_dirty(void *opaque, uint64_t gpa, uint64_t length)
{
    machine_ram_dirty(opaque, gpa, length);
}

BoardBoot *board_boot_open(Machine *m, GError **err)
{
    const MachineConfig *config = machine_config(m);
    if (!config->kernel) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                   "no kernel was given: booting from a disk needs firmware, which Lodge does not "
                   "have yet; name a kernel (--kernel FILE, and --initrd FILE)");
        return NULL;
    }
    BoardBoot *boot = g_new0(BoardBoot, 1);
    boot->machine = m;
    boot->image = (BootImage){
        .kernel = {.fd = -1},
        .initrd = {.fd = -1},
        .cmdline = config->cmdline,
        .memory = {m, machine_pointer, machine_pointer_dirty, config->memory_size,
                   machine_low_ram(m)},
    };
    bool ok =
        boot_file_open(&boot->image.kernel, "kernel", config->kernel, BOOT_KERNEL_SIZE_MAX, err);
    if (ok && config->initrd)
        ok = boot_file_open(&boot->image.initrd, "initrd", config->initrd, BOOT_INITRD_SIZE_MAX,
                            err);
    if (ok)
        boot->protocol = boot_protocol_find(&boot->image, err);
    if (!boot->protocol)
        g_clear_pointer(&boot, board_boot_free);
    return boot;
}

bool board_boot_load(BoardBoot *boot, VcpuState *bsp, GError **err)
{
    if (boot->image.memory.low_ram < MEMORY_MAP_MIN)
        return lodge_fail(err, LODGE_ERROR_INVALID, "the machine has too little memory to boot");
    return boot->protocol->load(&boot->image, bsp, err);
}

void board_boot_free(BoardBoot *boot)
{
    if (!boot)
        return;
    boot_file_close(&boot->image.kernel);
    boot_file_close(&boot->image.initrd);
    g_free(boot);
}
