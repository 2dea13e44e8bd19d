/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/backup/overlay.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define STEP   MIB(1) /* read and compared at once */
#define UNIT   65536u /* the smallest piece that is copied: the overlay's cluster */

typedef struct Overlay {
    const BackupOverlay *what;
    BlockNode *target, *base;
    uint64_t size;
    uint8_t *now, *before;
} Overlay;

static bool failed(BlockNode *node, const char *what, uint64_t offset, int result, GError **err)
{
    return lodge_fail_errno(err, -result, "%s: cannot %s at byte %" G_GUINT64_FORMAT,
                            block_path(node), what, offset);
}

/* What a chain reads, zeroes past its end. */
static int read_padded(BlockNode *node, uint64_t offset, uint8_t *to, uint64_t length)
{
    uint64_t size = block_size(node), inside = offset < size ? MIN(length, size - offset) : 0;
    struct iovec iov = {to, inside};
    memset(to + inside, 0, length - inside);
    return inside ? block_readv(node, offset, &iov, 1) : 0;
}

static bool put(Overlay *o, uint64_t offset, uint8_t *bytes, uint64_t length, GError **err)
{
    bool zero = bytes[0] == 0 && !memcmp(bytes, bytes + 1, length - 1);
    struct iovec iov = {bytes, length};
    int result = zero ? block_write_zeroes(o->target, offset, length, 0)
                      : block_writev(o->target, offset, &iov, 1, 0);
    return result == 0 || failed(o->target, "write", offset, result, err);
}

/* @differs: known to; else the two are compared. */
static bool copy_step(Overlay *o, uint64_t offset, uint64_t length, bool differs, GError **err)
{
    int result = read_padded(o->what->source, offset, o->now, length);
    if (result < 0)
        return failed(o->what->source, "read", offset, result, err);
    if (!differs) {
        result = read_padded(o->base, offset, o->before, length);
        if (result < 0)
            return failed(o->base, "read", offset, result, err);
    }
    for (uint64_t at = 0; at < length; at += UNIT) {
        uint64_t part = MIN(UNIT, length - at);
        if ((differs || memcmp(o->now + at, o->before + at, part)) &&
            !put(o, offset + at, o->now + at, part, err))
            return false;
    }
    return true;
}

/* Zero in both, without reading? *length is how far the answer holds. */
static bool zero_in_both(Overlay *o, uint64_t offset, uint64_t *length)
{
    BlockNode *nodes[] = {o->what->source, o->base};
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        BlockExtent extent = {0};
        unsigned depth;
        if (offset >= block_size(nodes[i]))
            continue;
        uint64_t most = MIN(*length, block_size(nodes[i]) - offset);
        if (block_status_chain(nodes[i], offset, most, &extent, &depth) < 0 || !extent.zero)
            return false;
        if (extent.length < most || offset + most < block_size(nodes[i]))
            *length = MIN(*length, extent.length);
    }
    return true;
}

static bool copy_all(Overlay *o, GError **err)
{
    const BlockProgress *p = &o->what->progress;
    for (uint64_t at = 0; at < o->size;) {
        uint64_t same = o->size - at;
        bool dirty = false, skip;
        if (o->what->bitmap) {
            int result =
                block_bitmap_next(o->what->source, o->what->bitmap, at, same, &dirty, &same);
            if (result < 0)
                return failed(o->what->source, "look at the bitmap", at, result, err);
            skip = !dirty;
        } else {
            skip = zero_in_both(o, at, &same);
        }
        uint64_t part = skip ? same : MIN(same, STEP);
        if (!skip && !o->what->bitmap)
            part = MIN(STEP, o->size - at);
        if (!skip && !copy_step(o, at, part, dirty, err))
            return false;
        at += part;
        if (p->step && !p->step(p->opaque, at, o->size))
            return lodge_fail(err, LODGE_ERROR_CANCELLED, "cancelled");
    }
    int result = block_flush(o->target);
    return result == 0 || failed(o->target, "flush", 0, result, err);
}

static bool fill(Overlay *o, const char *partial, GError **err)
{
    BlockOpen how = {.path = partial, .format = "qcow2"};
    o->target = block_open(&how, err);
    if (!o->target)
        return false;
    o->base = block_backing(o->target);
    o->now = g_malloc(STEP);
    o->before = g_malloc(STEP);
    bool ok = copy_all(o, err);
    g_free(o->now);
    g_free(o->before);
    block_unref(o->target);
    return ok;
}

bool backup_overlay(const BackupOverlay *what, GError **err)
{
    g_autofree char *partial = g_strconcat(what->target, ".partial", NULL);
    Overlay o = {.what = what, .size = block_size(what->source)};
    if (g_file_test(what->target, G_FILE_TEST_EXISTS))
        return lodge_fail(err, LODGE_ERROR_EXISTS, "%s: is there already", what->target);
    if (what->bitmap && !block_bitmap_check(what->source, what->bitmap, err))
        return false;
    BlockCreate create = {.path = partial, .format = "qcow2", .size = o.size,
                          .backing = what->base, .backing_format = what->base_format};
    if (!block_create(&create, err))
        return false;
    bool ok = fill(&o, partial, err);
    if (ok && rename(partial, what->target) < 0)
        ok = lodge_fail_errno(err, errno, "%s: cannot give it its name", what->target);
    if (!ok)
        unlink(partial);
    return ok;
}
