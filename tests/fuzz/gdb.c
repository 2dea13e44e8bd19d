/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A debugger's bytes against a whole session on a software CPU that stands still. Bit 0 of the first
 * byte: the rest is the stream itself; else each line of it is a packet, whose checksum is made here. The
 * other bits choose how the stream is cut, and bit 1 a guest with paging on.
 */
#include <string.h>

#include "machine/machine-internal.h"
#include "monitor/gdb/session.h"

#define TABLES 0x1000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Acknowledgements, and packets whose checksum is right. */
static void check_output(void *opaque, const char *data, size_t size)
{
    GdbReader reader;
    gdb_reader_init(&reader);
    GdbInput last = GDB_INPUT_NOTHING;
    for (size_t i = 0; i < size; i++)
        last = gdb_reader_push(&reader, (uint8_t)data[i]);
    g_assert_true(last == GDB_INPUT_PACKET || last == GDB_INPUT_ACK || last == GDB_INPUT_NAK);
    gdb_reader_clear(&reader);
}

static Machine *machine(void)
{
    g_autoptr(MachineConfig) config = machine_config_new();
    g_autoptr(GError) error = NULL;
    config->memory_size = MIB(1);
    config->n_vcpus = 2;
    config->sockets = 2;
    Machine *m = machine_new_bare(config, &vcpu_engine_soft, &error);
    g_assert_no_error(error);
    return m;
}

/* Page tables whose every entry points at a page of them, so that all addresses lead somewhere odd. */
static void paging_on(Machine *m)
{
    g_autofree VcpuState *state = g_new0(VcpuState, 1);
    uint64_t *table = machine_ram(m, TABLES, 4096);
    for (unsigned i = 0; i < 512; i++)
        table[i] = (TABLES + (uint64_t)(i % 3) * 0x7f000) | 3 | (i % 5 == 0 ? 0x80 : 0);
    const VcpuEngine *engine = m->engine;
    g_assert_true(engine->get_state(machine_vcpu(m, 0), state, NULL));
    state->cr3 = TABLES;
    state->cr4 = 0x20;
    state->cr0 = 0x80000031;
    state->efer = 0x500;
    state->seg[SEG_CS].attr = 0xa09b;
    g_assert_true(engine->set_state(machine_vcpu(m, 0), state, NULL));
}

static void feed(GdbSession *s, const uint8_t *data, size_t size, size_t piece)
{
    for (size_t at = 0; at < size; at += piece)
        if (!gdb_session_input(s, data + at, MIN(piece, size - at)))
            return;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    Machine *m = machine();
    if (data[0] & 2)
        paging_on(m);
    machine_lock(m);
    GdbSession *s = gdb_session_new(m, check_output, NULL);
    size_t piece = 1 + (data[0] >> 2) * 5u;
    const uint8_t *at = data + 1, *end = data + size;
    if (data[0] & 1)
        feed(s, at, (size_t)(end - at), piece);
    while (!(data[0] & 1) && at < end) {
        const uint8_t *line = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((line ? line : end) - at);
        g_autoptr(GString) packet = gdb_packet_encode((const char *)at, length);
        feed(s, (const uint8_t *)packet->str, packet->len, piece);
        at += length + 1;
    }
    const MachineEvent event = {.type = MACHINE_EVENT_RESET, .cause = MACHINE_CAUSE_GUEST_RESET};
    gdb_session_event(s, &event);
    gdb_session_free(s);
    machine_unlock(m);
    while (g_main_context_iteration(m->context, FALSE))
        ;
    machine_free(m);
    return 0;
}
