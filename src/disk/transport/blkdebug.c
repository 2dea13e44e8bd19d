/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file that fails or waits when it is told to: QEMU's driver blkdebug, for tests of what is above
 * it. The events that come are read_aio and write_aio (the disk is read or written),
 * flush_to_disk, pwritev, pwritev_done and pwritev_rmw_* (of unaligned writes); rules for the
 * insides of QEMU's formats are accepted and never apply.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/range.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RULES_MAX  64u
#define BOUNCE_MAX MIB(64) /* of one unaligned request */
#define SECTOR     512

typedef enum IoType { IO_READ, IO_WRITE, IO_ZERO, IO_DISCARD, IO_FLUSH, IO_STATUS, IO_ANY } IoType;

typedef struct Rule {
    const char *event; /* interned; NULL: none, it always applies */
    IoType type;
    bool once, by_sector, set_state, spent;
    bool armed; /* its event has come */
    uint64_t state, new_state, sector, error;
} Rule;

/* Who does @event waits until it is resumed. */
typedef struct Breakpoint {
    char *event, *tag;
    bool hit; /* somebody waits */
} Breakpoint;

typedef struct Debug {
    BlockFile file; /* first */
    BlockFile *below;
    uint64_t max_transfer;
    GMutex lock; /* of what follows */
    Rule rules[RULES_MAX];
    unsigned n_rules;
    uint64_t state;
    GPtrArray *breakpoints; /* Breakpoint, those that are not resumed yet */
    GCond changed;
    BlockRangeList writes; /* in flight; those that read before they write are exclusive */
} Debug;

static Debug *debug_of(BlockFile *file)
{
    return (Debug *)file;
}

/* ---- rules */

/* @event happens: arms rules of the present state, and moves to another state. */
static void happen(Debug *d, const char *event)
{
    uint64_t next = d->state;
    for (unsigned i = 0; i < d->n_rules; i++) {
        Rule *r = &d->rules[i];
        if (g_strcmp0(r->event, event) || (r->state && r->state != d->state))
            continue;
        if (r->set_state)
            next = r->new_state;
        else
            r->armed = true;
    }
    d->state = next;
}

static Breakpoint *find_breakpoint(Debug *d, const char *event, const char *tag)
{
    for (guint i = 0; i < d->breakpoints->len; i++) {
        Breakpoint *b = g_ptr_array_index(d->breakpoints, i);
        if (event ? !b->hit && !strcmp(b->event, event) : !g_strcmp0(b->tag, tag))
            return b;
    }
    return NULL;
}

static void breakpoint_free(void *opaque)
{
    Breakpoint *b = opaque;
    g_free(b->event);
    g_free(b->tag);
    g_free(b);
}

static bool still_there(Debug *d, const Breakpoint *b)
{
    return g_ptr_array_find(d->breakpoints, b, NULL);
}

static void debug_event(BlockFile *file, const char *event)
{
    Debug *d = debug_of(file);
    g_mutex_lock(&d->lock);
    Breakpoint *b = find_breakpoint(d, event, NULL);
    if (b) {
        b->hit = true;
        g_cond_broadcast(&d->changed);
        while (still_there(d, b))
            g_cond_wait(&d->changed, &d->lock);
    }
    happen(d, event);
    g_mutex_unlock(&d->lock);
}

static int debug_break(BlockFile *file, BlockBreak what, const char *event, const char *tag)
{
    Debug *d = debug_of(file);
    int result = 0;
    g_mutex_lock(&d->lock);
    Breakpoint *b = what == BLOCK_BREAK_SET ? NULL : find_breakpoint(d, NULL, tag);
    if (what == BLOCK_BREAK_SET) {
        b = g_new0(Breakpoint, 1);
        b->event = g_strdup(event);
        b->tag = g_strdup(tag);
        g_ptr_array_add(d->breakpoints, b);
    } else if (!b || (what == BLOCK_BREAK_RESUME && !b->hit)) {
        result = -ENOENT;
    } else if (what == BLOCK_BREAK_WAIT) {
        while (still_there(d, b) && !b->hit)
            g_cond_wait(&d->changed, &d->lock);
    } else {
        g_ptr_array_remove(d->breakpoints, b);
        g_cond_broadcast(&d->changed);
    }
    g_mutex_unlock(&d->lock);
    return result;
}

static bool concerns(const Rule *r, IoType type, uint64_t offset, uint64_t length)
{
    uint64_t at = r->sector * SECTOR;
    if (r->set_state || r->spent || !(r->armed || !r->event))
        return false;
    if (r->type == IO_ANY ? type == IO_STATUS : r->type != type)
        return false;
    return !r->by_sector || (offset <= at && at < offset + length);
}

/* What a request shall end with: 0 or -errno. */
static int verdict(Debug *d, IoType type, uint64_t offset, uint64_t length)
{
    int result = 0;
    g_mutex_lock(&d->lock);
    for (unsigned i = 0; i < d->n_rules && result == 0; i++) {
        Rule *r = &d->rules[i];
        if (!concerns(r, type, offset, length))
            continue;
        result = -(int)r->error;
        r->spent = r->once;
    }
    g_mutex_unlock(&d->lock);
    return result;
}

/* ---- the file */

static int pass(Debug *d, bool write, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t length = block_iov_length(iov, n), step = d->max_transfer;
    if (step == 0 || length <= step)
        return write ? d->below->ops->writev(d->below, offset, iov, n)
                     : d->below->ops->readv(d->below, offset, iov, n);
    for (uint64_t done = 0; done < length;) {
        uint64_t part = MIN(step, length - done);
        int result = write ? block_file_writev(d->below, offset + done, iov, n, done, part)
                           : block_file_readv(d->below, offset + done, iov, n, done, part);
        if (result < 0)
            return result;
        done += part;
    }
    return 0;
}

static int write_below(Debug *d, uint64_t offset, const struct iovec *iov, int n)
{
    debug_event(&d->file, "pwritev");
    int result = verdict(d, IO_WRITE, offset, block_iov_length(iov, n));
    return result < 0 ? result : pass(d, true, offset, iov, n);
}

/* Of the whole units in @bytes, what the request or the file reaches. */
static int write_units(Debug *d, uint64_t start, uint8_t *bytes, uint64_t end, uint64_t request_end)
{
    uint64_t size = 0;
    struct iovec whole = {bytes, end - start};
    if (d->below->ops->size(d->below, &size) == 0)
        whole.iov_len = MIN(end, MAX(size, request_end)) - start;
    return write_below(d, start, &whole, 1);
}

static int write_range(Debug *d, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t unit = d->file.alignment, length = block_iov_length(iov, n);
    uint64_t start = align_down(offset, unit), end = align_up(offset + length, unit);
    bool head = start != offset, tail = end != offset + length;
    if (!head && !tail)
        return write_below(d, offset, iov, n);
    g_autofree uint8_t *bytes = end - start <= BOUNCE_MAX ? g_try_malloc(end - start) : NULL;
    struct iovec whole = {bytes, end - start};
    if (!bytes)
        return -ENOMEM;
    if (head)
        debug_event(&d->file, "pwritev_rmw_head");
    if (tail)
        debug_event(&d->file, "pwritev_rmw_tail");
    int result = pass(d, false, start, &whole, 1);
    if (head)
        debug_event(&d->file, "pwritev_rmw_after_head");
    if (tail)
        debug_event(&d->file, "pwritev_rmw_after_tail");
    if (result < 0)
        return result;
    block_iov_to(bytes + (offset - start), iov, n, 0, length);
    return write_units(d, start, bytes, end, offset + length);
}

/*
 * With an alignment, requests below are whole units, as a disk of such sectors would see them.
 * A unit that is read, changed and written must not be written by another meanwhile; other
 * units may, also while a breakpoint holds this request.
 */
static int write_aligned(Debug *d, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t unit = d->file.alignment, length = block_iov_length(iov, n);
    uint64_t start = align_down(offset, unit), end = align_up(offset + length, unit);
    BlockRange range;
    g_mutex_lock(&d->lock);
    /* Who waits is in nobody's way, so that a test can hold several requests at once. */
    while (!block_range_try(&d->writes, &range, start, end,
                            start != offset || end != offset + length))
        g_cond_wait(&d->changed, &d->lock);
    g_mutex_unlock(&d->lock);
    int result = write_range(d, offset, iov, n);
    debug_event(&d->file, "pwritev_done");
    g_mutex_lock(&d->lock);
    block_range_release(&d->writes, &range);
    g_cond_broadcast(&d->changed);
    g_mutex_unlock(&d->lock);
    return result;
}

static int read_aligned(Debug *d, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t unit = d->file.alignment, length = block_iov_length(iov, n);
    uint64_t start = align_down(offset, unit), end = align_up(offset + length, unit);
    if (start == offset && end == offset + length)
        return pass(d, false, offset, iov, n);
    g_autofree uint8_t *bytes = end - start <= BOUNCE_MAX ? g_try_malloc(end - start) : NULL;
    struct iovec whole = {bytes, end - start};
    if (!bytes)
        return -ENOMEM;
    int result = pass(d, false, start, &whole, 1);
    if (result == 0)
        block_iov_from(iov, n, 0, bytes + (offset - start), length);
    return result;
}

static int debug_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    int result = verdict(debug_of(file), IO_READ, offset, block_iov_length(iov, n));
    return result < 0 ? result : read_aligned(debug_of(file), offset, iov, n);
}

static int debug_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return write_aligned(debug_of(file), offset, iov, n);
}

static int debug_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    Debug *d = debug_of(file);
    int result = verdict(d, IO_ZERO, offset, length);
    return result < 0 ? result : d->below->ops->zero(d->below, offset, length, unmap);
}

static int debug_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    Debug *d = debug_of(file);
    int result = verdict(d, IO_DISCARD, offset, length);
    return result < 0 ? result : d->below->ops->discard(d->below, offset, length);
}

static int debug_flush(BlockFile *file)
{
    Debug *d = debug_of(file);
    int result = verdict(d, IO_FLUSH, 0, 0);
    return result < 0 ? result : d->below->ops->flush(d->below);
}

static int debug_truncate(BlockFile *file, uint64_t size)
{
    return debug_of(file)->below->ops->truncate(debug_of(file)->below, size);
}

static int debug_size(BlockFile *file, uint64_t *size)
{
    return debug_of(file)->below->ops->size(debug_of(file)->below, size);
}

static int debug_status(BlockFile *file, uint64_t offset, uint64_t length, bool *data,
                        uint64_t *same)
{
    Debug *d = debug_of(file);
    int result = verdict(d, IO_STATUS, offset, length);
    if (result < 0)
        return result;
    if (d->below->ops->status)
        return d->below->ops->status(d->below, offset, length, data, same);
    *data = true;
    *same = length;
    return 0;
}

static int debug_allocated(BlockFile *file, uint64_t *bytes)
{
    BlockFile *below = debug_of(file)->below;
    return below->ops->allocated ? below->ops->allocated(below, bytes) : -ENOTSUP;
}

static void debug_close(BlockFile *file)
{
    Debug *d = debug_of(file);
    block_file_close(d->below);
    g_ptr_array_unref(d->breakpoints);
    g_cond_clear(&d->changed);
    g_mutex_clear(&d->lock);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(d);
}

static const BlockFileOps debug_ops = {
    .name = "blkdebug",
    .readv = debug_readv,
    .writev = debug_writev,
    .zero = debug_zero,
    .discard = debug_discard,
    .flush = debug_flush,
    .truncate = debug_truncate,
    .size = debug_size,
    .status = debug_status,
    .allocated = debug_allocated,
    .event = debug_event,
    .breakpoint = debug_break,
    .close = debug_close,
};

/* ---- options */

static const BlockOption rule_options[] = {
    {"event", BLOCK_OPTION_STRING, NULL, "none"},
    {"state", BLOCK_OPTION_NUMBER, NULL, "0"},
    {"new_state", BLOCK_OPTION_NUMBER, NULL, "0"},
    {"iotype", BLOCK_OPTION_STRING, NULL, NULL},
    {"errno", BLOCK_OPTION_NUMBER, NULL, "5"},
    {"sector", BLOCK_OPTION_NUMBER, NULL, NULL},
    {"once", BLOCK_OPTION_BOOL, NULL, "off"},
    {"immediately", BLOCK_OPTION_BOOL, NULL, "off"},
    {NULL, 0, NULL, NULL},
};

static bool type_of(const char *name, IoType *type, GError **err)
{
    static const char *const names[] = {"read",    "write", "write-zeroes",
                                        "discard", "flush", "block-status"};
    *type = IO_ANY;
    for (unsigned i = 0; name && i < G_N_ELEMENTS(names); i++) {
        if (!strcmp(names[i], name))
            *type = (IoType)i;
    }
    return !name || *type != IO_ANY ||
           lodge_fail(err, LODGE_ERROR_INVALID, "Invalid parameter '%s'", name);
}

static bool add_rule(Debug *d, const json_t *given, bool set_state, GError **err)
{
    if (d->n_rules == RULES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "blkdebug: more than %u rules", RULES_MAX);
    Rule *r = &d->rules[d->n_rules];
    r->set_state = set_state;
    const char *event = block_option_string(given, rule_options, "event");
    r->event = !strcmp(event, "none") ? NULL : g_intern_string(event);
    r->by_sector = block_option_given(given, "sector") &&
                   g_strcmp0(block_option_string(given, NULL, "sector"), "-1");
    if (!block_options_known(given, rule_options, NULL, "blkdebug", err) ||
        !type_of(block_option_string(given, NULL, "iotype"), &r->type, err) ||
        !block_option_number(given, rule_options, "state", &r->state, err) ||
        !block_option_number(given, rule_options, "new_state", &r->new_state, err) ||
        !block_option_number(given, rule_options, "errno", &r->error, err) ||
        (r->by_sector && !block_option_number(given, NULL, "sector", &r->sector, err)) ||
        !block_option_bool(given, rule_options, "once", &r->once, err))
        return false;
    d->n_rules++;
    return true;
}

/* One rule, or a list of them. */
static bool add_rules(Debug *d, const json_t *given, bool set_state, GError **err)
{
    size_t i;
    json_t *one;
    if (json_is_object(given))
        return add_rule(d, given, set_state, err);
    json_array_foreach((json_t *)given, i, one)
    {
        if (!add_rule(d, one, set_state, err))
            return false;
    }
    return true;
}

/* '[inject-error]' and, below, 'name = "value"' */
static bool read_config(Debug *d, const char *path, GError **err)
{
    g_autofree char *text = NULL;
    json_auto_t *rule = NULL;
    bool set_state = false, ok = true;
    g_autoptr(GError) cause = NULL;
    if (!*path)
        return true;
    if (!g_file_get_contents(path, &text, NULL, &cause))
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Could not open blkdebug config file: %s",
                          cause->message);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line && ok; line++) {
        char *at = g_strstrip(*line), *equals = strchr(at, '=');
        if (*at == '[') {
            ok = !rule || add_rule(d, rule, set_state, err);
            json_decref(rule);
            rule = json_object();
            set_state = g_str_has_prefix(at, "[set-state]");
        } else if (*at && *at != '#' && equals && rule) {
            *equals = '\0';
            char *value = g_strstrip(equals + 1);
            size_t length = strlen(value);
            if (length >= 2 && *value == '"') {
                value[length - 1] = '\0';
                value++;
            }
            json_object_set_new(rule, g_strstrip(at), json_string(value));
        }
    }
    return ok && (!rule || add_rule(d, rule, set_state, err));
}

static const BlockOption options[] = {
    {"image", BLOCK_OPTION_TREE, "the file below", NULL},
    {"x-image", BLOCK_OPTION_STRING, "the file below, by name", NULL},
    {"config", BLOCK_OPTION_STRING, "a file with rules", NULL},
    {"inject-error", BLOCK_OPTION_TREE, "rules: which requests fail", NULL},
    {"set-state", BLOCK_OPTION_TREE, "rules: which event leads to which state", NULL},
    {"align", BLOCK_OPTION_SIZE, "requests below are multiples of this", NULL},
    {"max-transfer", BLOCK_OPTION_SIZE, "the longest request below", NULL},
    {"opt-write-zero", BLOCK_OPTION_SIZE, "accepted: a hint", NULL},
    {"max-write-zero", BLOCK_OPTION_SIZE, "accepted: a hint", NULL},
    {"opt-discard", BLOCK_OPTION_SIZE, "accepted: a hint", NULL},
    {"max-discard", BLOCK_OPTION_SIZE, "accepted: a hint", NULL},
    {NULL, 0, NULL, NULL},
};

/* "blkdebug:CONFIG:FILE", or any other name: the file below. */
static bool debug_parse(const char *uri, json_t *into, GError **err)
{
    if (!g_str_has_prefix(uri, "blkdebug:")) {
        json_object_set_new(into, "x-image", json_string(uri));
        return true;
    }
    const char *config = uri + strlen("blkdebug:"), *colon = strchr(config, ':');
    if (!colon)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "blkdebug requires both config file and image path");
    if (colon != config)
        json_object_set_new(into, "config", json_stringn(config, (size_t)(colon - config)));
    json_object_set_new(into, "x-image", json_string(colon + 1));
    return true;
}

static bool check_limits(Debug *d, const json_t *given, GError **err)
{
    uint64_t align = 0;
    if (!block_option_size(given, NULL, "align", &align, err) ||
        !block_option_size(given, NULL, "max-transfer", &d->max_transfer, err))
        return false;
    if (align >= INT32_MAX || (align & (align - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Cannot meet constraints with align %" G_GUINT64_FORMAT, align);
    d->file.alignment = align ? (unsigned)align : 1;
    return true;
}

static BlockFile *open_below(const BlockOpen *how, const json_t *given, GError **err)
{
    const json_t *image = json_object_get(given, "image");
    BlockOpen below = *how;
    below.options = NULL;
    below.format = NULL;
    below.path = block_option_string(given, NULL, "x-image");
    if (json_is_object(image) || below.path)
        return block_transport_open(&below, json_is_object(image) ? image : NULL, err);
    lodge_fail(err, LODGE_ERROR_INVALID, "A block device must be specified for \"image\"");
    return NULL;
}

static BlockFile *debug_open(const BlockOpen *how, const json_t *given, GError **err)
{
    const char *config = block_option_string(given, NULL, "config");
    Debug *d = g_new0(Debug, 1);
    g_autoptr(BlockFile) file = &d->file;
    g_mutex_init(&d->lock);
    g_mutex_init(&d->file.rmw);
    g_cond_init(&d->changed);
    d->breakpoints = g_ptr_array_new_with_free_func(breakpoint_free);
    d->file.ops = &debug_ops;
    d->file.fd = -1;
    d->file.path = g_strdup(how->path ? how->path : "blkdebug");
    d->file.read_only = how->read_only;
    d->state = 1;
    if ((config && !read_config(d, config, err)) ||
        !add_rules(d, json_object_get(given, "inject-error"), false, err) ||
        !add_rules(d, json_object_get(given, "set-state"), true, err))
        return NULL;
    d->below = open_below(how, given, err);
    if (!d->below || !check_limits(d, given, err))
        return NULL;
    g_free(d->file.path);
    d->file.path = g_strdup(d->below->path);
    d->file.device = d->below->device;
    d->file.inode = d->below->inode;
    return g_steal_pointer(&file);
}

static const char *const schemes[] = {"blkdebug", NULL};

const BlockTransport block_transport_blkdebug = {
    .name = "blkdebug",
    .schemes = schemes,
    .options = options,
    .parse = debug_parse,
    .open = debug_open,
};
