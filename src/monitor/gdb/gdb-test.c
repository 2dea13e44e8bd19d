/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The GDB stub: packets, registers, memory through page tables, and sessions on the software CPU. */
#include <string.h>

#include "machine/machine-internal.h"
#include "monitor/gdb/registers.h"
#include "monitor/gdb/session.h"

/* ---- packets ---- */

static GdbInput push(GdbReader *r, const char *bytes, size_t size)
{
    GdbInput last = GDB_INPUT_NOTHING;
    for (size_t i = 0; i < size; i++)
        last = gdb_reader_push(r, (uint8_t)bytes[i]);
    return last;
}

static void test_packets(void)
{
    GdbReader r;
    gdb_reader_init(&r);
    g_assert_cmpint(push(&r, "+", 1), ==, GDB_INPUT_ACK);
    g_assert_cmpint(push(&r, "-", 1), ==, GDB_INPUT_NAK);
    g_assert_cmpint(push(&r, "\x03", 1), ==, GDB_INPUT_INTERRUPT);
    g_assert_cmpint(push(&r, "noise$g#67", 10), ==, GDB_INPUT_PACKET);
    g_assert_cmpstr((const char *)r.data->data, ==, "g");
    g_assert_cmpint(push(&r, "$g#68", 5), ==, GDB_INPUT_BAD);
    g_assert_cmpint(push(&r, "$g#6z", 5), ==, GDB_INPUT_BAD);
    /* The end of a packet was lost; an escaped byte; 3 within a packet is no interrupt. */
    g_assert_cmpint(push(&r, "$lost$X}\x03\x03#db", 13), ==, GDB_INPUT_PACKET);
    g_assert_cmpmem(r.data->data, r.data->len, "X#\x03", 3);
    gdb_reader_clear(&r);
}

static void test_long_packet(void)
{
    GdbReader r;
    g_autofree char *contents = g_strnfill(GDB_PACKET_MAX + 1, 'a');
    gdb_reader_init(&r);
    for (unsigned excess = 0; excess < 2; excess++) {
        g_autoptr(GString) packet = gdb_packet_encode(contents, GDB_PACKET_MAX + excess);
        g_assert_cmpint(push(&r, packet->str, packet->len), ==,
                        excess ? GDB_INPUT_BAD : GDB_INPUT_PACKET);
        g_assert_cmpuint(r.data->len, <=, GDB_PACKET_MAX + 1);
    }
    gdb_reader_clear(&r);
}

static void test_encoding(void)
{
    g_autoptr(GString) packet = gdb_packet_encode("a}#$*", 5);
    g_assert_cmpstr(packet->str, ==, "$a}]}\x03}\x04}\x0a#c3");
    const char *at = "12ab,ffffffffffffffff:1ffffffffffffffff";
    uint64_t v;
    g_assert_true(gdb_parse_hex_then(&at, ',', &v));
    g_assert_cmphex(v, ==, 0x12ab);
    g_assert_true(gdb_parse_hex_then(&at, ':', &v));
    g_assert_cmphex(v, ==, UINT64_MAX);
    g_assert_false(gdb_parse_hex(&at, &v)); /* 17 digits */
    uint8_t bytes[2];
    g_assert_true(gdb_parse_bytes("0aFf", bytes, 2));
    g_assert_cmpmem(bytes, 2, "\x0a\xff", 2);
    g_assert_false(gdb_parse_bytes("0aF", bytes, 2));
    g_assert_false(gdb_parse_bytes("0aFx", bytes, 2));
}

/* ---- registers ---- */

static unsigned number_of(const char *name)
{
    g_autofree char *xml = gdb_target_description();
    g_autofree char *wanted = g_strdup_printf("<reg name=\"%s\" ", name);
    const char *at = strstr(xml, wanted);
    g_assert_nonnull(at);
    return (unsigned)g_ascii_strtoull(strstr(at, "regnum=\"") + 8, NULL, 10);
}

static void test_registers(void)
{
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    uint8_t in[GDB_REGISTER_BYTES_MAX], out[GDB_REGISTER_BYTES_MAX];
    s->xcr0 = 7;
    s->n_msr = 1;
    s->msr[0].index = 0xc0000102;
    for (unsigned i = 0; i < gdb_register_count(); i++) {
        unsigned size = gdb_register_size(i);
        memset(in, 0, sizeof(in));
        in[0] = (uint8_t)(i + 1);
        if (size > 4)
            in[size - 1] = (uint8_t)(0x80 + i);
        if (i == number_of("ftag"))
            in[0] = in[1] = 0xff; /* all empty: others follow from the registers */
        g_assert_true(gdb_register_set(s, i, in));
        memset(out, 0, sizeof(out));
        gdb_register_get(s, i, out);
        g_assert_cmpmem(in, size, out, size);
    }
    g_assert_cmphex(s->gpr[GPR_RAX], ==, 0x8000000000000001);
    g_assert_cmphex(s->xsave[160], ==, number_of("xmm0") + 1);
    g_assert_cmphex(s->xsave[576], ==, number_of("ymm0h") + 1);
    g_assert_cmphex(s->xsave[512], ==, 7); /* XSTATE_BV: in use */
    g_assert_cmphex(s->msr[0].value & 0xff, ==, number_of("k_gs_base") + 1);
    g_assert_cmphex(s->seg[SEG_FS].base & 0xff, ==, number_of("fs_base") + 1);
}

static void test_register_refusals(void)
{
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    uint8_t ones[GDB_REGISTER_BYTES_MAX];
    memset(ones, 0xff, sizeof(ones));
    s->cr0 = 1;
    static const char *const names[] = {"cs", "ymm3h", "mxcsr", "ftag", "fctrl", "k_gs_base"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        g_assert_false(gdb_register_set(s, number_of(names[i]), ones));
}

/* 1.0, 0.0 and infinity in ST(0) to ST(2): valid, zero, special; the others are empty. */
static void test_tags(void)
{
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    uint8_t tags[4];
    le16_put(s->xsave + 2, 5 << 11); /* TOP = 5 */
    s->xsave[4] = 0xe0;
    le64_put(s->xsave + 32, 1ull << 63);
    le16_put(s->xsave + 40, 0x3fff);
    le64_put(s->xsave + 64, 1ull << 63);
    le16_put(s->xsave + 72, 0x7fff);
    gdb_register_get(s, number_of("ftag"), tags);
    g_assert_cmphex(le32_get(tags), ==, 0x93ff); /* R7 special, R6 zero, R5 valid */
    le32_put(tags, 0x3fff);
    g_assert_true(gdb_register_set(s, number_of("ftag"), tags));
    g_assert_cmphex(s->xsave[4], ==, 0x80);
}

/* ---- a machine with vCPUs that wait to be told what to do ---- */

#define CODE 0x1000u

typedef struct Bench {
    Machine *m;
    GdbSession *session;
    GString *output;
    const uint8_t *code;
    size_t code_size;
} Bench;

static void take_output(void *opaque, const char *data, size_t size)
{
    g_string_append_len(((Bench *)opaque)->output, data, (gssize)size);
}

/* Real mode at CODE, on every vCPU. */
static bool put_code(void *opaque, GError **err)
{
    Bench *b = opaque;
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    g_assert_true(machine_dma_write(b->m, CODE, b->code, b->code_size));
    for (unsigned i = 0; i < b->m->n_vcpus; i++) {
        g_assert_true(b->m->engine->get_state(machine_vcpu(b->m, i), s, err));
        s->seg[SEG_CS].base = 0;
        s->seg[SEG_CS].selector = 0;
        s->rip = CODE;
        s->activity = VCPU_RUNNING;
        g_assert_true(b->m->engine->set_state(machine_vcpu(b->m, i), s, err));
    }
    return true;
}

static void on_event(void *opaque, const MachineEvent *event)
{
    Bench *b = opaque;
    if (b->session)
        gdb_session_event(b->session, event);
}

static void bench_new(Bench *b, unsigned n_vcpus, const uint8_t *code, size_t size)
{
    g_autoptr(MachineConfig) config = machine_config_new();
    g_autoptr(GError) error = NULL;
    config->memory_size = MIB(1);
    config->n_vcpus = config->sockets = n_vcpus;
    config->start_paused = true;
    *b = (Bench){.output = g_string_new(NULL), .code = code, .code_size = size};
    b->m = machine_new_bare(config, &vcpu_engine_soft, &error);
    g_assert_no_error(error);
    machine_add_reset_hook(b->m, put_code, b);
    machine_add_event_handler(b->m, on_event, b);
    g_assert_true(machine_start(b->m, &error));
    machine_lock(b->m);
    b->session = gdb_session_new(b->m, take_output, b);
    machine_unlock(b->m);
}

static void bench_free(Bench *b)
{
    machine_lock(b->m);
    gdb_session_free(b->session);
    b->session = NULL;
    machine_unlock(b->m);
    machine_free(b->m);
    g_string_free(b->output, TRUE);
}

static void send(Bench *b, const char *contents)
{
    g_autoptr(GString) packet = gdb_packet_encode(contents, strlen(contents));
    g_string_truncate(b->output, 0);
    machine_lock(b->m);
    gdb_session_input(b->session, (const uint8_t *)packet->str, packet->len);
    machine_unlock(b->m);
}

/* The next packet that comes, waiting for it. Owned by the caller. */
static char *answer(Bench *b)
{
    gint64 deadline = g_get_monotonic_time() + 10 * G_USEC_PER_SEC;
    const char *start, *end;
    while (!(start = strchr(b->output->str, '$')) || !(end = strchr(start, '#')) || !end[1] || !end[2]) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
        if (!g_main_context_iteration(b->m->context, FALSE))
            g_usleep(100);
    }
    char *contents = g_strndup(start + 1, (gsize)(end - start - 1));
    g_string_erase(b->output, 0, end + 3 - b->output->str);
    return contents;
}

static void expect(Bench *b, const char *packet, const char *wanted)
{
    send(b, packet);
    g_autofree char *got = answer(b);
    g_assert_cmpstr(got, ==, wanted);
}

static void run_for(Bench *b, unsigned ms)
{
    gint64 until = g_get_monotonic_time() + ms * 1000;
    while (g_get_monotonic_time() < until)
        if (!g_main_context_iteration(b->m->context, FALSE))
            g_usleep(100);
}

static uint32_t memory32(Bench *b, uint64_t gpa)
{
    uint32_t v;
    g_assert_true(machine_dma_read(b->m, gpa, &v, sizeof(v)));
    return v;
}

/* 1000: incl %ds:0x2000; 1005: nop; 1006: mov 0x2100,%al; 1009: jmp 1000 */
static const uint8_t counting[] = {0x66, 0xff, 0x06, 0x00, 0x20, 0x90, 0xa0, 0x00, 0x21, 0xeb, 0xf5};

static void test_breakpoints(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    expect(&b, "qSupported:swbreak+;hwbreak+",
           "PacketSize=4000;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+");
    expect(&b, "?", "T05thread:1;");
    expect(&b, "Z0,1005,1", "OK");
    expect(&b, "Z0,1005,1", "OK"); /* there already */
    expect(&b, "vCont;c", "T05thread:1;swbreak:;");
    expect(&b, "p10", "0510000000000000");
    g_assert_cmpuint(memory32(&b, 0x2000), ==, 1);
    expect(&b, "vCont;c", "T05thread:1;swbreak:;"); /* does not stay where it is */
    g_assert_cmpuint(memory32(&b, 0x2000), ==, 2);
    expect(&b, "z0,1005,1", "OK");
    expect(&b, "Z1,1006,1", "OK");
    expect(&b, "vCont;c", "T05thread:1;hwbreak:;");
    expect(&b, "vCont;s:1", "T05thread:1;");
    expect(&b, "p10", "0910000000000000");
    expect(&b, "s", "T05thread:1;");
    expect(&b, "p10", "0010000000000000");
    g_assert_cmpint(machine_status(b.m), ==, MACHINE_PAUSED);
    expect(&b, "P10=0510000000000000", "OK");
    expect(&b, "c", "T05thread:1;hwbreak:;");
    g_assert_cmpuint(memory32(&b, 0x2000), ==, 2);
    bench_free(&b);
}

static void test_watchpoints(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    expect(&b, "Z2,2002,1", "OK");
    expect(&b, "vCont;c", "T05thread:1;watch:2002;");
    expect(&b, "p10", "0510000000000000"); /* right after the instruction */
    expect(&b, "m2000,4", "01000000");
    expect(&b, "z2,2002,1", "OK");
    expect(&b, "Z3,20f0,100", "OK");
    expect(&b, "vCont;c", "T05thread:1;rwatch:2100;");
    expect(&b, "p10", "0910000000000000");
    expect(&b, "z3,20f0,100", "OK");
    expect(&b, "Z4,2000,4", "OK");
    expect(&b, "vCont;c", "T05thread:1;awatch:2000;");
    expect(&b, "p10", "0510000000000000");
    expect(&b, "z4,2000,4", "OK");
    expect(&b, "Z2,1fff,1", "OK"); /* beside it */
    expect(&b, "Z2,2004,1", "OK");
    send(&b, "vCont;c");
    run_for(&b, 20);
    g_assert_null(strchr(b.output->str, '$'));
    g_assert_cmpuint(memory32(&b, 0x2000), >, 2);
    machine_lock(b.m);
    gdb_session_input(b.session, (const uint8_t *)"\x03", 1);
    machine_unlock(b.m);
    g_autofree char *stop = answer(&b);
    g_assert_cmpstr(stop, ==, "T02thread:1;");
    bench_free(&b);
}

/* Both reach the breakpoint; each is reported, and none twice. */
static void test_threads(void)
{
    Bench b;
    bench_new(&b, 2, counting, sizeof(counting));
    expect(&b, "qfThreadInfo", "m1,2");
    expect(&b, "qsThreadInfo", "l");
    expect(&b, "T2", "OK");
    expect(&b, "T3", "E22");
    expect(&b, "Z0,1006,1", "OK");
    unsigned hits[2] = {0};
    for (unsigned i = 0; i < 6; i++) {
        send(&b, "vCont;c");
        g_autofree char *stop = answer(&b);
        g_assert_true(g_str_has_prefix(stop, "T05thread:"));
        hits[stop[10] - '1']++;
    }
    g_assert_cmpuint(hits[0], >, 0);
    g_assert_cmpuint(hits[1], >, 0);
    expect(&b, "z0,1006,1", "OK");
    /* Thread 2 alone: the other one stays where it is. */
    expect(&b, "Hg1", "OK");
    expect(&b, "P10=0510000000000000", "OK");
    expect(&b, "Z1,1000,1", "OK");
    expect(&b, "vCont;c:2", "T05thread:2;");
    expect(&b, "Hg1", "OK");
    expect(&b, "p10", "0510000000000000");
    expect(&b, "vCont;s:1", "T05thread:1;");
    expect(&b, "p10", "0610000000000000");
    bench_free(&b);
}

static void test_stop_and_cont_by_others(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    send(&b, "vCont;c");
    run_for(&b, 5);
    machine_stop(b.m);
    g_autofree char *stop = answer(&b);
    g_assert_cmpstr(stop, ==, "T02thread:1;");
    uint32_t before = memory32(&b, 0x2000);
    machine_cont(b.m);
    run_for(&b, 5);
    g_assert_cmpuint(memory32(&b, 0x2000), !=, before);
    expect(&b, "p2", "0000000000000000"); /* also while it runs */
    expect(&b, "Z1,1006,1", "OK");
    expect(&b, "vCont;c", "T05thread:1;");
    /* What gdb took away meanwhile stops nobody, whoever sets the guest going; nor does a step. */
    expect(&b, "z1,1006,1", "OK");
    before = memory32(&b, 0x2000);
    machine_cont(b.m);
    run_for(&b, 5);
    g_assert_cmpuint(memory32(&b, 0x2000), >, before + 1);
    machine_stop(b.m);
    expect(&b, "vCont;s:1", "T05thread:1;");
    before = memory32(&b, 0x2000);
    machine_cont(b.m);
    run_for(&b, 5);
    g_assert_cmpuint(memory32(&b, 0x2000), >, before + 1);
    bench_free(&b);
}

static void test_detach(void)
{
    for (unsigned lost = 0; lost < 2; lost++) {
        Bench b;
        bench_new(&b, 1, counting, sizeof(counting));
        expect(&b, "Z0,1006,1", "OK");
        expect(&b, "vCont;c", "T05thread:1;");
        if (!lost)
            expect(&b, "D", "OK");
        machine_lock(b.m);
        gdb_session_free(b.session);
        b.session = NULL;
        machine_unlock(b.m);
        g_assert_cmpint(machine_status(b.m), ==, MACHINE_RUNNING);
        uint32_t before = memory32(&b, 0x2000);
        run_for(&b, 20);
        g_assert_cmpuint(memory32(&b, 0x2000), >, before + 1);
        bench_free(&b);
    }
}

static void test_kill(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    expect(&b, "vKill;1", "OK");
    run_for(&b, 5);
    g_assert_cmpint(machine_status(b.m), ==, MACHINE_SHUTDOWN);
    bench_free(&b);
}

/* As KVM has it: INT3 in memory, and four debug registers. */
static void test_patches(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    VcpuEngine engine = vcpu_engine_soft;
    engine.debug_patches = true;
    engine.debug_registers = 4;
    machine_vcpu(b.m, 0)->engine = &engine;
    expect(&b, "Z0,1005,1", "OK");
    g_assert_cmphex(memory32(&b, 0x1005) & 0xff, ==, 0xcc);
    expect(&b, "Z0,fffffff0,1", "E22"); /* no RAM */
    expect(&b, "Z3,2000,4", "");
    expect(&b, "Z2,2001,4", "E22");
    expect(&b, "Z2,2000,3", "E22");
    expect(&b, "Z2,2000,10", "E22");
    expect(&b, "Z2,2000,8", "OK");
    expect(&b, "Z4,2010,1", "OK");
    expect(&b, "Z1,3000,1", "OK");
    expect(&b, "Z1,3001,1", "OK");
    expect(&b, "Z1,3002,1", "E22");
    expect(&b, "z0,1005,1", "OK");
    g_assert_cmphex(memory32(&b, 0x1005) & 0xff, ==, 0x90);
    expect(&b, "Z0,1005,1", "OK");
    expect(&b, "D", "OK");
    g_assert_cmphex(memory32(&b, 0x1005) & 0xff, ==, 0x90);
    machine_vcpu(b.m, 0)->engine = &vcpu_engine_soft;
    bench_free(&b);
}

static void test_memory_packets(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    expect(&b, "M3000,4:0102fffe", "OK");
    expect(&b, "m3000,5", "0102fffe00");
    expect(&b, "X3000,2:zz", "OK");
    expect(&b, "m3000,2", "7a7a");
    expect(&b, "X3000,0:", "OK");
    expect(&b, "mfffff,2", "00"); /* up to the end of RAM */
    expect(&b, "m100000,2", "E14");
    expect(&b, "Mfffff,2:0000", "E14");
    expect(&b, "m100000000,1", "E14"); /* not an address of this mode */
    expect(&b, "M3000,4:01", "E22");
    expect(&b, "vMustReplyEmpty", "");
    expect(&b, "QStartNoAckMode", "OK");
    expect(&b, "Z2,3000,0", "E22");
    expect(&b, "Z2,ffffffffffffffff,2", "E22");
    /* Code that was executed already, changed by the debugger: incl becomes decl. */
    expect(&b, "Z0,1005,1", "OK");
    expect(&b, "vCont;c", "T05thread:1;");
    expect(&b, "M1002,1:0e", "OK");
    expect(&b, "vCont;c", "T05thread:1;");
    g_assert_cmpuint(memory32(&b, 0x2000), ==, 0);
    bench_free(&b);
}

/* ---- page tables ---- */

static void put_entry(Machine *m, uint64_t gpa, uint64_t value, unsigned size)
{
    g_assert_true(machine_dma_write(m, gpa, &value, size));
}

static void check(Machine *m, const VcpuState *s, uint64_t linear, uint64_t wanted)
{
    uint64_t gpa = 0;
    bool found = gdb_translate(m, s, linear, &gpa);
    g_assert_cmpint(found, ==, wanted != UINT64_MAX);
    if (found)
        g_assert_cmphex(gpa, ==, wanted);
}

static void test_long_mode_tables(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    s->cr0 = 0x80000001;
    s->cr4 = 0x20;
    s->cr3 = 0x10008; /* flags are no part of the address */
    s->efer = 0x500;
    put_entry(b.m, 0x10000, 0x11001, 8);
    put_entry(b.m, 0x10000 + 511 * 8, 0x8000000000011001, 8);
    put_entry(b.m, 0x11000, 0x12001, 8);
    put_entry(b.m, 0x11008, 0x40000081, 8); /* 1 GiB */
    put_entry(b.m, 0x12000, 0x13001, 8);
    put_entry(b.m, 0x12008, 0x800081, 8); /* 2 MiB */
    put_entry(b.m, 0x13008, 0x3001, 8);
    put_entry(b.m, 0x13010, 0x4000, 8); /* not present */
    put_entry(b.m, 0x13018, 0xfffffffff001, 8);
    check(b.m, s, 0x1234, 0x3234);
    check(b.m, s, 0x2000, UINT64_MAX);
    check(b.m, s, 0x201234, 0x801234);
    check(b.m, s, 0x40123456, 0x40123456);
    check(b.m, s, 0xffffff8000001000, 0x3000);
    check(b.m, s, 0x0000800000000000, UINT64_MAX);
    check(b.m, s, 0x8000001000, UINT64_MAX); /* PML4 entry 1 is empty */
    /* Reading crosses into a page that is not there; the tables are as they were. */
    uint8_t data[32];
    g_assert_cmpuint(gdb_memory_read(b.m, s, 0x1ff0, data, sizeof(data)), ==, 16);
    g_assert_cmpuint(gdb_memory_read(b.m, s, 0x3000, data, 1), ==, 0);
    g_assert_cmpuint(gdb_memory_write(b.m, s, 0x1ff0, data, sizeof(data)), ==, 16);
    g_assert_cmphex(memory32(&b, 0x13008), ==, 0x3001);
    bench_free(&b);
}

static void test_legacy_tables(void)
{
    Bench b;
    bench_new(&b, 1, counting, sizeof(counting));
    g_autofree VcpuState *s = g_new0(VcpuState, 1);
    check(b.m, s, 0x12345678, 0x12345678); /* no paging */
    s->cr0 = 0x80000001;
    s->cr3 = 0x10018;
    put_entry(b.m, 0x10000, 0x11001, 4);
    put_entry(b.m, 0x11004, 0x3001, 4);
    put_entry(b.m, 0x10004, 0x00802081, 4); /* 4 MiB at 1_0080_0000 with PSE-36 */
    check(b.m, s, 0x1234, 0x3234);
    check(b.m, s, 0x2000, UINT64_MAX);
    s->cr4 = 0x10;
    check(b.m, s, 0x412345, 0x100812345);
    s->cr4 = 0x20; /* PAE: four pointers at 32 bytes' alignment */
    s->cr3 = 0x20020;
    put_entry(b.m, 0x20020 + 3 * 8, 0x21001, 8);
    put_entry(b.m, 0x21000, 0x22001, 8);
    put_entry(b.m, 0x21008, 0x600081, 8);
    put_entry(b.m, 0x22008, 0x5001, 8);
    check(b.m, s, 0xc0001234, 0x5234);
    check(b.m, s, 0xc0234567, 0x634567);
    check(b.m, s, 0x1234, UINT64_MAX);
    check(b.m, s, 0x1c0001234, UINT64_MAX);
    bench_free(&b);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/gdb/packets", test_packets);
    g_test_add_func("/gdb/long-packet", test_long_packet);
    g_test_add_func("/gdb/encoding", test_encoding);
    g_test_add_func("/gdb/registers", test_registers);
    g_test_add_func("/gdb/register-refusals", test_register_refusals);
    g_test_add_func("/gdb/tags", test_tags);
    g_test_add_func("/gdb/breakpoints", test_breakpoints);
    g_test_add_func("/gdb/watchpoints", test_watchpoints);
    g_test_add_func("/gdb/threads", test_threads);
    g_test_add_func("/gdb/stop-and-cont-by-others", test_stop_and_cont_by_others);
    g_test_add_func("/gdb/detach", test_detach);
    g_test_add_func("/gdb/kill", test_kill);
    g_test_add_func("/gdb/patches", test_patches);
    g_test_add_func("/gdb/memory-packets", test_memory_packets);
    g_test_add_func("/gdb/long-mode-tables", test_long_mode_tables);
    g_test_add_func("/gdb/legacy-tables", test_legacy_tables);
    return g_test_run();
}
