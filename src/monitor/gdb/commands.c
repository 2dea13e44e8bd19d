/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The packets that are understood: GDB manual, appendix E.2 and E.4. Others get an empty answer. */
#include <string.h>

#include "base/bytes.h"
#include "monitor/gdb/registers.h"
#include "monitor/gdb/session-internal.h"
#include "monitor/qmp-session.h"

#define CONSOLE_PIECE 0x800u /* bytes of text in one packet */

/* Error numbers, as the other stubs have them: no meaning is fixed, but people know these. */
#define ERROR_FAULT   "E14"
#define ERROR_INVALID "E22"

typedef struct Command {
    const char *prefix;
    bool exact;  /* nothing may follow it */
    bool silent; /* the answer is the stop reply, when its time has come */
    /* @args: what follows the prefix, with a NUL after @size bytes; false: invalid. */
    bool (*run)(GdbSession *s, const char *args, size_t size);
} Command;

static bool say(GdbSession *s, const char *text)
{
    g_string_assign(s->reply, text);
    return true;
}

static bool load_state(GdbSession *s)
{
    return gdb_state_get(s, s->vcpu, &s->state);
}

/* ---- threads ---- */

static bool parse_thread(GdbSession *s, const char **at, unsigned *vcpu)
{
    uint64_t id;
    if (!gdb_parse_hex(at, &id) || id > machine_vcpu_count(s->machine))
        return false;
    if (id) /* 0: any */
        *vcpu = (unsigned)id - 1;
    return true;
}

static bool select_thread(GdbSession *s, unsigned *vcpu, const char *args)
{
    if (strcmp(args, "-1") == 0)
        return say(s, "OK");
    return parse_thread(s, &args, vcpu) && !*args && say(s, "OK");
}

static bool select_general(GdbSession *s, const char *args, size_t size)
{
    return select_thread(s, &s->vcpu, args);
}

static bool select_step(GdbSession *s, const char *args, size_t size)
{
    return select_thread(s, &s->step_vcpu, args);
}

static bool thread_alive(GdbSession *s, const char *args, size_t size)
{
    unsigned vcpu = VCPU_COUNT_MAX;
    return parse_thread(s, &args, &vcpu) && !*args && vcpu != VCPU_COUNT_MAX && say(s, "OK");
}

static bool first_threads(GdbSession *s, const char *args, size_t size)
{
    g_string_assign(s->reply, "m");
    for (unsigned i = 0; i < machine_vcpu_count(s->machine); i++)
        g_string_append_printf(s->reply, "%s%x", i ? "," : "", i + 1);
    return true;
}

static bool more_threads(GdbSession *s, const char *args, size_t size)
{
    return say(s, "l");
}

static bool current_thread(GdbSession *s, const char *args, size_t size)
{
    g_string_printf(s->reply, "QC%x", s->vcpu + 1);
    return true;
}

static bool thread_extra(GdbSession *s, const char *args, size_t size)
{
    static const char *const names[] = {
        [VCPU_RUNNING] = "running", [VCPU_HALTED] = "halted", [VCPU_WAIT_FOR_SIPI] = "waits for SIPI"};
    unsigned vcpu = s->vcpu;
    if (!parse_thread(s, &args, &vcpu) || *args || !gdb_state_get(s, vcpu, &s->state))
        return false;
    g_autofree char *text = g_strdup_printf("CPU#%u [%s]", vcpu, names[s->state.activity]);
    gdb_append_bytes(s->reply, (const uint8_t *)text, strlen(text));
    return true;
}

/* ---- registers ---- */

static bool read_registers(GdbSession *s, const char *args, size_t size)
{
    uint8_t value[GDB_REGISTER_BYTES_MAX];
    if (!load_state(s))
        return false;
    for (unsigned i = 0; i < gdb_register_count(); i++) {
        gdb_register_get(&s->state, i, value);
        gdb_append_bytes(s->reply, value, gdb_register_size(i));
    }
    return true;
}

static bool set_register(GdbSession *s, unsigned number, const char *digits, size_t n_digits)
{
    uint8_t value[GDB_REGISTER_BYTES_MAX];
    char text[2 * GDB_REGISTER_BYTES_MAX + 1];
    if (n_digits != 2u * gdb_register_size(number))
        return false;
    memcpy(text, digits, n_digits);
    text[n_digits] = '\0';
    return gdb_parse_bytes(text, value, n_digits / 2) &&
           gdb_register_set(&s->state, number, value);
}

/* All of them, or the first ones. */
static bool write_registers(GdbSession *s, const char *args, size_t size)
{
    if (!load_state(s))
        return false;
    for (unsigned i = 0; i < gdb_register_count() && size; i++) {
        size_t n = 2u * gdb_register_size(i);
        if (size < n || !set_register(s, i, args, n))
            return false;
        args += n;
        size -= n;
    }
    return !size && gdb_state_set(s, s->vcpu, &s->state) && say(s, "OK");
}

static bool read_register(GdbSession *s, const char *args, size_t size)
{
    uint64_t n;
    uint8_t value[GDB_REGISTER_BYTES_MAX];
    if (!gdb_parse_hex(&args, &n) || *args || n >= gdb_register_count() || !load_state(s))
        return false;
    gdb_register_get(&s->state, (unsigned)n, value);
    gdb_append_bytes(s->reply, value, gdb_register_size((unsigned)n));
    return true;
}

static bool write_register(GdbSession *s, const char *args, size_t size)
{
    uint64_t n;
    return gdb_parse_hex_then(&args, '=', &n) && n < gdb_register_count() && load_state(s) &&
           set_register(s, (unsigned)n, args, strlen(args)) &&
           gdb_state_set(s, s->vcpu, &s->state) && say(s, "OK");
}

/* ---- memory ---- */

static bool read_memory(GdbSession *s, const char *args, size_t size)
{
    uint64_t at, length;
    uint8_t data[GDB_PACKET_MAX / 2];
    if (!gdb_parse_hex_then(&args, ',', &at) || !gdb_parse_hex(&args, &length) || *args ||
        !load_state(s))
        return false;
    size_t got = gdb_memory_read(s->machine, &s->state, at, data, MIN(length, sizeof(data)));
    if (!got && length)
        return say(s, ERROR_FAULT);
    gdb_append_bytes(s->reply, data, got);
    return true;
}

static bool store(GdbSession *s, uint64_t at, const uint8_t *data, size_t size)
{
    if (!load_state(s))
        return false;
    return say(s, gdb_memory_write(s->machine, &s->state, at, data, size) == size ? "OK"
                                                                                  : ERROR_FAULT);
}

static bool write_memory(GdbSession *s, const char *args, size_t size)
{
    uint64_t at, length;
    uint8_t data[GDB_PACKET_MAX / 2];
    return gdb_parse_hex_then(&args, ',', &at) && gdb_parse_hex_then(&args, ':', &length) &&
           length <= sizeof(data) && gdb_parse_bytes(args, data, length) &&
           store(s, at, data, length);
}

static bool write_binary(GdbSession *s, const char *args, size_t size)
{
    const char *end = args + size;
    uint64_t at, length;
    return gdb_parse_hex_then(&args, ',', &at) && gdb_parse_hex_then(&args, ':', &length) &&
           length == (size_t)(end - args) && store(s, at, (const uint8_t *)args, length);
}

/* ---- breakpoints ---- */

static bool parse_breakpoint(const char *args, VcpuBreakpoint *b)
{
    static const VcpuBreakKind kinds[] = {VCPU_BREAK_SOFTWARE, VCPU_BREAK_HARDWARE, VCPU_BREAK_WRITE,
                                          VCPU_BREAK_READ, VCPU_BREAK_ACCESS};
    uint64_t type;
    if (!gdb_parse_hex_then(&args, ',', &type) || type >= G_N_ELEMENTS(kinds) ||
        !gdb_parse_hex_then(&args, ',', &b->address) || !gdb_parse_hex(&args, &b->length) || *args)
        return false;
    b->kind = kinds[type];
    if (type < 2) /* what follows is the kind of the instruction */
        b->length = 1;
    return true;
}

static bool insert_breakpoint(GdbSession *s, const char *args, size_t size)
{
    VcpuBreakpoint b;
    if (*args > '4')
        return true; /* a type that came later */
    if (!parse_breakpoint(args, &b) || !load_state(s))
        return false;
    switch (gdb_breakpoint_add(s->breakpoints, s->machine, &s->state, &b)) {
    case GDB_BREAK_DONE:
        return say(s, "OK");
    case GDB_BREAK_UNSUPPORTED:
        return true;
    default:
        return false;
    }
}

static bool remove_breakpoint(GdbSession *s, const char *args, size_t size)
{
    VcpuBreakpoint b;
    if (*args > '4')
        return true;
    if (!parse_breakpoint(args, &b))
        return false;
    gdb_breakpoint_remove(s->breakpoints, s->machine, &b);
    return say(s, "OK");
}

/* ---- running ---- */

static bool why_stopped(GdbSession *s, const char *args, size_t size)
{
    return say(s, s->report->str);
}

static bool parse_signal(const char **at)
{
    uint64_t signal;
    return gdb_parse_hex(at, &signal) && signal <= 0xff; /* none is delivered to a guest */
}

/* ";c", ";s", ";C05", ";S05", each with ":THREAD" or for all that have no action yet. */
static bool parse_action(GdbSession *s, const char **at, uint8_t *action)
{
    unsigned n = machine_vcpu_count(s->machine), vcpu = n;
    char kind = **at;
    if (!kind || !strchr("csCS", kind))
        return false;
    ++*at;
    if (g_ascii_isupper(kind) && !parse_signal(at))
        return false;
    if (g_str_has_prefix(*at, ":-1")) {
        *at += 3;
    } else if (**at == ':') {
        ++*at;
        if (!parse_thread(s, at, &vcpu))
            return false;
    }
    for (unsigned i = 0; i < n; i++)
        if ((vcpu == n || vcpu == i) && action[i] == GDB_HOLD)
            action[i] = g_ascii_tolower(kind) == 's' ? GDB_STEP : GDB_CONTINUE;
    return true;
}

static bool resume(GdbSession *s, const char *args, size_t size)
{
    uint8_t action[VCPU_COUNT_MAX] = {GDB_HOLD};
    while (*args == ';') {
        args++;
        if (!parse_action(s, &args, action))
            return false;
    }
    if (*args)
        return false;
    gdb_control_resume(s, action);
    return true;
}

static bool resume_query(GdbSession *s, const char *args, size_t size)
{
    return say(s, "vCont;c;C;s;S");
}

/* The older packets: no address may follow. */
static bool resume_all(GdbSession *s, bool step)
{
    uint8_t action[VCPU_COUNT_MAX];
    memset(action, GDB_CONTINUE, sizeof(action));
    if (step)
        action[s->step_vcpu] = GDB_STEP;
    gdb_control_resume(s, action);
    return true;
}

static bool continue_all(GdbSession *s, const char *args, size_t size)
{
    return !*args && resume_all(s, false);
}

static bool step_one(GdbSession *s, const char *args, size_t size)
{
    return !*args && resume_all(s, true);
}

static bool continue_signal(GdbSession *s, const char *args, size_t size)
{
    return parse_signal(&args) && !*args && resume_all(s, false);
}

static bool step_signal(GdbSession *s, const char *args, size_t size)
{
    return parse_signal(&args) && !*args && resume_all(s, true);
}

static bool detach(GdbSession *s, const char *args, size_t size)
{
    gdb_control_release(s, true);
    s->over = true;
    return say(s, "OK");
}

static bool kill_machine(GdbSession *s, const char *args, size_t size)
{
    gdb_control_release(s, false);
    s->over = true;
    machine_shutdown(s->machine, MACHINE_CAUSE_HOST_SIGNAL);
    return say(s, "OK");
}

/* ---- what is agreed on ---- */

static bool supported(GdbSession *s, const char *args, size_t size)
{
    g_auto(GStrv) features = g_strsplit(*args == ':' ? args + 1 : args, ";", -1);
    s->swbreak = g_strv_contains((const char *const *)features, "swbreak+");
    s->hwbreak = g_strv_contains((const char *const *)features, "hwbreak+");
    g_string_printf(s->reply,
                    "PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+%s%s",
                    GDB_PACKET_MAX, s->swbreak ? ";swbreak+" : "", s->hwbreak ? ";hwbreak+" : "");
    return true;
}

static bool no_ack(GdbSession *s, const char *args, size_t size)
{
    s->no_ack = true;
    return say(s, "OK");
}

static bool attached(GdbSession *s, const char *args, size_t size)
{
    return say(s, "1"); /* so that leaving the debugger detaches, and does not kill */
}

static bool read_target(GdbSession *s, const char *args, size_t size)
{
    uint64_t offset, length;
    if (!g_str_has_prefix(args, "target.xml:"))
        return say(s, "E00");
    args += strlen("target.xml:");
    if (!gdb_parse_hex_then(&args, ',', &offset) || !gdb_parse_hex(&args, &length) || *args)
        return false;
    g_autofree char *text = gdb_target_description();
    size_t all = strlen(text);
    if (offset > all)
        return false;
    length = MIN(length, GDB_PACKET_MAX / 2);
    bool last = length >= all - offset;
    g_string_assign(s->reply, last ? "l" : "m");
    g_string_append_len(s->reply, text + offset, last ? all - offset : length);
    return true;
}

/* "monitor COMMAND": text goes out in pieces, then OK. */
static bool monitor_command(GdbSession *s, const char *args, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint8_t *line = g_malloc0(size / 2 + 1);
    if (!gdb_parse_bytes(args, line, size / 2) || memchr(line, 0, size / 2))
        return false;
    g_autofree char *text = hmp_run(s->machine, (const char *)line, s->vcpu, &error);
    g_auto(GStrv) lines = g_strsplit(text ? text : error->message, "\r\n", -1);
    g_autofree char *plain = g_strjoinv("\n", lines);
    for (size_t at = 0, all = strlen(plain); at < all; at += CONSOLE_PIECE) {
        g_autoptr(GString) piece = g_string_new("O");
        gdb_append_bytes(piece, (const uint8_t *)plain + at, MIN(CONSOLE_PIECE, all - at));
        gdb_send_packet(s, piece->str, piece->len);
    }
    if (!text)
        gdb_send_packet(s, "O0a", 3);
    return say(s, "OK");
}

/* ---- the table: a longer prefix comes before a shorter one ---- */

static const Command commands[] = {
    {"?", true, false, why_stopped},
    {"c", false, true, continue_all},
    {"C", false, true, continue_signal},
    {"D", false, false, detach},
    {"g", true, false, read_registers},
    {"G", false, false, write_registers},
    {"Hc", false, false, select_step},
    {"Hg", false, false, select_general},
    {"k", true, false, kill_machine},
    {"m", false, false, read_memory},
    {"M", false, false, write_memory},
    {"p", false, false, read_register},
    {"P", false, false, write_register},
    {"qAttached", false, false, attached},
    {"qC", true, false, current_thread},
    {"qfThreadInfo", true, false, first_threads},
    {"qsThreadInfo", true, false, more_threads},
    {"qRcmd,", false, false, monitor_command},
    {"qSupported", false, false, supported},
    {"QStartNoAckMode", true, false, no_ack},
    {"qThreadExtraInfo,", false, false, thread_extra},
    {"qXfer:features:read:", false, false, read_target},
    {"s", false, true, step_one},
    {"S", false, true, step_signal},
    {"T", false, false, thread_alive},
    {"vCont?", true, false, resume_query},
    {"vCont", false, true, resume},
    {"vKill", false, false, kill_machine},
    {"X", false, false, write_binary},
    {"z", false, false, remove_breakpoint},
    {"Z", false, false, insert_breakpoint},
};

void gdb_command(GdbSession *s, const char *packet, size_t size, bool *no_reply)
{
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        const Command *c = &commands[i];
        size_t length = strlen(c->prefix);
        if (strncmp(packet, c->prefix, length) != 0 || (c->exact && size != length))
            continue;
        bool ok = c->run(s, packet + length, size - length);
        if (!ok)
            say(s, ERROR_INVALID);
        *no_reply = ok && c->silent;
        return;
    }
}
