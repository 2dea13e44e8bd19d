/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/bitmap-internal.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/image.h"

#include <errno.h>
#include <string.h>

BlockBitmap *block_bitmap_new(const char *name, uint64_t size, unsigned granularity_bits,
                              GError **err)
{
    uint64_t n = size ? ((size - 1) >> granularity_bits) + 1 : 0, words = n / 64 + 1;
    uint64_t *memory = words * 8 > BLOCK_BITMAP_BYTES_MAX ? NULL : g_try_new0(uint64_t, words);
    if (!memory) {
        lodge_fail(err, LODGE_ERROR_LIMIT,
                   "Bitmap '%s' would need %" G_GUINT64_FORMAT " bytes of memory; choose a larger "
                   "granularity",
                   name, words * 8);
        return NULL;
    }
    BlockBitmap *b = g_new0(BlockBitmap, 1);
    b->name = g_strdup(name);
    b->granularity_bits = granularity_bits;
    b->size = size;
    b->n = n;
    b->words = memory;
    return b;
}

void block_bitmap_free(BlockBitmap *b)
{
    if (!b)
        return;
    g_free(b->name);
    g_free(b->words);
    g_free(b);
}

/* Bits [first, end), all of them in the bitmap. */
static void set_bits(BlockBitmap *b, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t word = first / 64, upto = MIN(end, (word + 1) * 64);
        uint64_t low = ~0ull << (first % 64);
        uint64_t high = upto % 64 ? ~0ull >> (64 - upto % 64) : ~0ull;
        b->words[word] |= low & high;
        first = upto;
    }
}

void block_bitmap_set(BlockBitmap *b, uint64_t offset, uint64_t length)
{
    if (offset >= b->size || length == 0)
        return;
    uint64_t last = MIN(offset + length, b->size) - 1;
    set_bits(b, offset >> b->granularity_bits, (last >> b->granularity_bits) + 1);
}

static bool get_bit(const BlockBitmap *b, uint64_t i)
{
    return b->words[i / 64] >> (i % 64) & 1;
}

/* The first bit at or after @from that is not @value; at most @end. */
static uint64_t run_end(const BlockBitmap *b, uint64_t from, uint64_t end, bool value)
{
    while (from < end) {
        uint64_t word = b->words[from / 64];
        if (value)
            word = ~word;
        word &= ~0ull << (from % 64);
        if (word)
            return MIN(end, (from & ~63ull) + (uint64_t)__builtin_ctzll(word));
        from = (from | 63) + 1;
    }
    return end;
}

static uint64_t count_bytes(const BlockBitmap *b)
{
    uint64_t bits = 0;
    for (uint64_t i = 0; i <= b->n / 64; i++)
        bits += (uint64_t)__builtin_popcountll(b->words[i]);
    return bits << b->granularity_bits;
}

/* ---- the node's; bitmaps_lock is held */

static BlockBitmap *find(BlockNode *node, const char *name)
{
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        if (!strcmp(b->name, name))
            return b;
    }
    return NULL;
}

static void count_recording(BlockNode *node)
{
    int recording = 0;
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        const BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        recording += b->enabled && !b->inconsistent;
    }
    g_atomic_int_set(&node->bitmaps_recording, recording);
}

static BlockBitmap *need(BlockNode *node, const char *name, bool usable, GError **err)
{
    BlockBitmap *b = find(node, name);
    if (!b)
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Dirty bitmap '%s' not found", name);
    else if (usable && b->inconsistent)
        lodge_fail(err, LODGE_ERROR_STATE,
                   "Bitmap '%s' is inconsistent and cannot be used\n"
                   "Try block-dirty-bitmap-remove to delete this bitmap from disk",
                   name);
    else
        return b;
    return NULL;
}

static int compare_bitmaps(gconstpointer a, gconstpointer b)
{
    return strcmp((*(BlockBitmap *const *)a)->name, (*(BlockBitmap *const *)b)->name);
}

void block_bitmap_attach(BlockNode *node, BlockBitmap *bitmap)
{
    g_mutex_lock(&node->bitmaps_lock);
    if (!node->bitmaps)
        node->bitmaps = g_ptr_array_new_with_free_func((GDestroyNotify)block_bitmap_free);
    g_ptr_array_add(node->bitmaps, bitmap);
    g_ptr_array_sort(node->bitmaps, compare_bitmaps);
    count_recording(node);
    g_mutex_unlock(&node->bitmaps_lock);
}

void block_bitmaps_free(BlockNode *node)
{
    g_clear_pointer(&node->bitmaps, g_ptr_array_unref);
}

void block_bitmaps_record(BlockNode *node, uint64_t offset, uint64_t length)
{
    g_mutex_lock(&node->bitmaps_lock);
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len; i++) {
        BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        if (b->enabled && !b->inconsistent)
            block_bitmap_set(b, offset, length);
    }
    g_mutex_unlock(&node->bitmaps_lock);
}

bool block_bitmaps_resize(BlockNode *node, uint64_t size, GError **err)
{
    bool ok = true;
    g_mutex_lock(&node->bitmaps_lock);
    for (guint i = 0; node->bitmaps && i < node->bitmaps->len && ok; i++) {
        BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        BlockBitmap *other = block_bitmap_new(b->name, size, b->granularity_bits, err);
        ok = other != NULL;
        if (!ok)
            break;
        uint64_t kept = MIN(b->n, other->n);
        for (uint64_t bit = 0; bit < kept;) {
            uint64_t end = run_end(b, bit, kept, get_bit(b, bit));
            if (get_bit(b, bit))
                set_bits(other, bit, end);
            bit = end;
        }
        b->size = other->size;
        b->n = other->n;
        uint64_t *words = b->words;
        b->words = other->words;
        other->words = words;
        block_bitmap_free(other);
    }
    g_mutex_unlock(&node->bitmaps_lock);
    return ok;
}

/* ---- what tools do */

BlockBitmapInfo *block_bitmap_list(BlockNode *node, unsigned *n)
{
    g_mutex_lock(&node->bitmaps_lock);
    *n = node->bitmaps ? node->bitmaps->len : 0;
    BlockBitmapInfo *list = g_new0(BlockBitmapInfo, *n + 1);
    for (unsigned i = 0; i < *n; i++) {
        const BlockBitmap *b = g_ptr_array_index(node->bitmaps, i);
        list[i] = (BlockBitmapInfo){.name = g_strdup(b->name),
                                    .granularity = 1ull << b->granularity_bits,
                                    .count = count_bytes(b),
                                    .recording = b->enabled && !b->inconsistent,
                                    .persistent = b->persistent,
                                    .inconsistent = b->inconsistent};
    }
    g_mutex_unlock(&node->bitmaps_lock);
    return list;
}

void block_bitmap_list_free(BlockBitmapInfo *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        g_free(list[i].name);
    g_free(list);
}

bool block_bitmap_add(BlockNode *node, const char *name, uint64_t granularity, bool enabled,
                      bool persistent, GError **err)
{
    if (granularity == 0) {
        uint64_t cluster = block_cluster_size(node);
        granularity = cluster ? CLAMP(cluster, 4096, 65536) : 65536;
    }
    if (granularity < BLOCK_BITMAP_GRANULARITY_MIN || granularity > BLOCK_BITMAP_GRANULARITY_MAX ||
        (granularity & (granularity - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          granularity & (granularity - 1) ? "Granularity must be power of 2"
                                                          : "Granularity must be at least 512");
    if (!*name)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Bitmap name cannot be empty");
    if (strlen(name) > BLOCK_BITMAP_NAME_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Bitmap name too long");
    unsigned bits = (unsigned)__builtin_ctzll(granularity);
    g_mutex_lock(&node->bitmaps_lock);
    bool there = find(node, name) != NULL;
    g_mutex_unlock(&node->bitmaps_lock);
    if (there)
        return lodge_fail(err, LODGE_ERROR_EXISTS, "Bitmap already exists: %s", name);
    if (persistent && node->read_only)
        return lodge_fail(err, LODGE_ERROR_DENIED, "%s: the image is open read-only", node->path);
    if (persistent && (!node->format->bitmap_can_store ||
                       !node->format->bitmap_can_store(node, name, bits, err))) {
        if (!node->format->bitmap_can_store)
            lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                       "Cannot store dirty bitmaps in file '%s'", node->path);
        return false;
    }
    BlockBitmap *b = block_bitmap_new(name, node->size, bits, err);
    if (!b)
        return false;
    b->enabled = enabled;
    b->persistent = persistent;
    block_bitmap_attach(node, b);
    return true;
}

/* Changes of persistent bitmaps are written by the format when it flushes or closes. */
static bool may_change(BlockNode *node, const BlockBitmap *b, GError **err)
{
    return !b->persistent || !node->read_only ||
           lodge_fail(err, LODGE_ERROR_DENIED, "Bitmap '%s' is readonly and cannot be modified",
                      b->name);
}

bool block_bitmap_remove(BlockNode *node, const char *name, GError **err)
{
    g_mutex_lock(&node->bitmaps_lock);
    BlockBitmap *b = need(node, name, false, err);
    bool ok = b && may_change(node, b, err);
    bool stored = ok && b->stored;
    g_mutex_unlock(&node->bitmaps_lock);
    if (!ok || (stored && !node->format->bitmap_remove(node, name, err)))
        return false;
    g_mutex_lock(&node->bitmaps_lock);
    b = find(node, name);
    if (b)
        g_ptr_array_remove(node->bitmaps, b);
    count_recording(node);
    g_mutex_unlock(&node->bitmaps_lock);
    return true;
}

bool block_bitmap_clear(BlockNode *node, const char *name, GError **err)
{
    g_mutex_lock(&node->bitmaps_lock);
    BlockBitmap *b = need(node, name, true, err);
    bool ok = b && may_change(node, b, err);
    if (ok)
        memset(b->words, 0, (b->n / 64 + 1) * 8);
    g_mutex_unlock(&node->bitmaps_lock);
    return ok;
}

bool block_bitmap_enable(BlockNode *node, const char *name, bool enabled, GError **err)
{
    g_mutex_lock(&node->bitmaps_lock);
    BlockBitmap *b = need(node, name, true, err);
    bool ok = b && may_change(node, b, err);
    if (ok)
        b->enabled = enabled;
    count_recording(node);
    g_mutex_unlock(&node->bitmaps_lock);
    return ok;
}

bool block_bitmap_check(BlockNode *node, const char *name, GError **err)
{
    g_mutex_lock(&node->bitmaps_lock);
    bool ok = need(node, name, true, err) != NULL;
    g_mutex_unlock(&node->bitmaps_lock);
    return ok;
}

bool block_bitmap_merge(BlockNode *node, const char *target, BlockNode *from, const char *source,
                        GError **err)
{
    g_mutex_lock(&node->bitmaps_lock);
    BlockBitmap *b = need(node, target, true, err);
    bool ok = b && may_change(node, b, err);
    g_mutex_unlock(&node->bitmaps_lock);
    if (!ok || !block_bitmap_check(from, source, err))
        return false;
    if (from->size != node->size)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Bitmaps are of different sizes (destination size is %" G_GUINT64_FORMAT
                          ", source size is %" G_GUINT64_FORMAT ") and can't be merged",
                          node->size, from->size);
    for (uint64_t at = 0; at < from->size;) {
        bool dirty;
        uint64_t same;
        int result = block_bitmap_next(from, source, at, from->size - at, &dirty, &same);
        if (result == 0 && dirty)
            result = block_bitmap_mark(node, target, at, same);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot merge bitmap '%s'", node->path,
                                    source);
        at += same;
    }
    return true;
}

int block_bitmap_next(BlockNode *node, const char *name, uint64_t offset, uint64_t length,
                      bool *dirty, uint64_t *same)
{
    int result = -ENOENT;
    g_mutex_lock(&node->bitmaps_lock);
    const BlockBitmap *b = find(node, name);
    if (b)
        result = b->inconsistent || length == 0 || !range_within(offset, length, b->size) ? -EINVAL
                                                                                          : 0;
    if (result == 0) {
        uint64_t bit = offset >> b->granularity_bits;
        *dirty = get_bit(b, bit);
        uint64_t end = run_end(b, bit, b->n, *dirty);
        *same = MIN(length, (end << b->granularity_bits) - offset);
    }
    g_mutex_unlock(&node->bitmaps_lock);
    return result;
}

int block_bitmap_mark(BlockNode *node, const char *name, uint64_t offset, uint64_t length)
{
    g_mutex_lock(&node->bitmaps_lock);
    BlockBitmap *b = find(node, name);
    if (b)
        block_bitmap_set(b, offset, length);
    g_mutex_unlock(&node->bitmaps_lock);
    return b ? 0 : -ENOENT;
}
