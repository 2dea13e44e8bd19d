/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest RAM, one memfd in one mapping, and ROMs. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine/board/layout.h"
#include "machine/machine-internal.h"

enum { SLOT_LOW, SLOT_HIGH, SLOT_ROM };

static bool check_size(uint64_t size, GError **err)
{
    if (size < MACHINE_MEMORY_MIN || size > MACHINE_MEMORY_MAX || size % MIB(1))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "guest memory of %" G_GUINT64_FORMAT
                          " bytes: must be a multiple of 1 MiB, from 1 MiB to %" G_GUINT64_FORMAT
                          " GiB",
                          size, (uint64_t)(MACHINE_MEMORY_MAX / GIB(1)));
    return true;
}

bool machine_memory_init(Machine *m, GError **err)
{
    uint64_t size = m->config->memory_size;
    if (!check_size(size, err))
        return false;
    m->low_ram = MIN(size, (uint64_t)LAYOUT_LOW_RAM_MAX);
    m->ram_fd = memfd_create("lodge-guest-ram", MFD_CLOEXEC);
    if (m->ram_fd < 0)
        return lodge_fail_errno(err, errno, "cannot create guest memory");
    if (ftruncate(m->ram_fd, (off_t)size) < 0)
        return lodge_fail_errno(err, errno, "cannot size guest memory to %" G_GUINT64_FORMAT " MiB",
                                size / MIB(1));
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, m->ram_fd, 0);
    if (p == MAP_FAILED)
        return lodge_fail_errno(err, errno, "cannot map %" G_GUINT64_FORMAT " MiB of guest memory",
                                size / MIB(1));
    m->ram = p;
    return true;
}

void machine_memory_free(Machine *m)
{
    if (m->ram)
        munmap(m->ram, m->config->memory_size);
    m->ram = NULL;
    if (m->ram_fd >= 0)
        close(m->ram_fd);
    m->ram_fd = -1;
    for (unsigned i = 0; i < m->n_roms; i++)
        munmap(m->rom[i].data, m->rom[i].size);
    m->n_roms = 0;
}

static bool attach(Machine *m, unsigned slot, uint64_t gpa, uint64_t size, uint8_t *hva,
                   bool readonly, GError **err)
{
    VcpuRamSlot ram = {.gpa = gpa, .size = size, .hva = hva, .readonly = readonly};
    return m->engine->set_ram(m->vm, slot, &ram, err);
}

bool machine_memory_attach(Machine *m, GError **err)
{
    if (!attach(m, SLOT_LOW, 0, m->low_ram, m->ram, false, err))
        return false;
    uint64_t high = m->config->memory_size - m->low_ram;
    return !high || attach(m, SLOT_HIGH, LAYOUT_HIGH_RAM, high, m->ram + m->low_ram, false, err);
}

static bool overlaps(uint64_t a, uint64_t a_size, uint64_t b, uint64_t b_size)
{
    return a < b + b_size && b < a + a_size;
}

bool machine_add_rom(Machine *m, uint64_t gpa, const void *data, uint64_t size, GError **err)
{
    if (!size || size > MACHINE_ROM_SIZE_MAX || size % 4096 || gpa % 4096 ||
        gpa > UINT64_MAX - size)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a ROM of %" G_GUINT64_FORMAT " bytes at 0x%" G_GINT64_MODIFIER
                          "x: size and address must be multiples of 4096, at most 64 MiB",
                          size, gpa);
    if (m->n_roms == MACHINE_ROMS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "more than %d ROMs", MACHINE_ROMS_MAX);
    bool taken = overlaps(gpa, size, 0, m->low_ram) ||
                 overlaps(gpa, size, LAYOUT_HIGH_RAM, m->config->memory_size - m->low_ram);
    for (unsigned i = 0; i < m->n_roms; i++)
        taken |= overlaps(gpa, size, m->rom[i].gpa, m->rom[i].size);
    if (taken)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "a ROM at 0x%" G_GINT64_MODIFIER "x overlaps memory", gpa);
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return lodge_fail_errno(err, errno, "cannot map a ROM");
    memcpy(p, data, size);
    if (!attach(m, SLOT_ROM + m->n_roms, gpa, size, p, true, err)) {
        munmap(p, size);
        return false;
    }
    m->rom[m->n_roms++] = (MachineRom){gpa, size, p};
    return true;
}

void *machine_ram(Machine *m, uint64_t gpa, uint64_t length)
{
    if (range_within(gpa, length, m->low_ram))
        return m->ram + gpa;
    if (gpa >= LAYOUT_HIGH_RAM &&
        range_within(gpa - LAYOUT_HIGH_RAM, length, m->config->memory_size - m->low_ram))
        return m->ram + m->low_ram + (gpa - LAYOUT_HIGH_RAM);
    return NULL;
}

void machine_ram_dirty(Machine *m, uint64_t gpa, uint64_t length)
{
    if (m->engine->ram_dirty && length)
        m->engine->ram_dirty(m->vm, gpa, length);
}

bool machine_dma_read(Machine *m, uint64_t gpa, void *to, uint64_t length)
{
    const void *p = machine_ram(m, gpa, length);
    for (unsigned i = 0; !p && i < m->n_roms; i++)
        if (gpa >= m->rom[i].gpa && range_within(gpa - m->rom[i].gpa, length, m->rom[i].size))
            p = m->rom[i].data + (gpa - m->rom[i].gpa);
    if (!p)
        return false;
    memcpy(to, p, length);
    return true;
}

bool machine_dma_write(Machine *m, uint64_t gpa, const void *from, uint64_t length)
{
    void *p = machine_ram(m, gpa, length);
    if (!p)
        return false;
    memcpy(p, from, length);
    machine_ram_dirty(m, gpa, length);
    return true;
}

uint64_t machine_low_ram(Machine *m)
{
    return m->low_ram;
}
