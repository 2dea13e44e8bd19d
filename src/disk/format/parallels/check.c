/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What qemu-img's check of parallels images finds, in its words. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/parallels/parallels.h"

#include <errno.h>

static void say(BlockCheck *check, char *text)
{
    if (check->message)
        check->message(check->opaque, text);
    g_free(text);
}

static const char *doing(bool fix)
{
    return fix ? "Repairing" : "ERROR";
}

static void count_corruption(BlockCheck *check, bool fix)
{
    if (fix)
        check->corruptions_fixed++;
    else
        check->corruptions++;
}

/* The end of the last cluster that is in use; entries that lead outside are cleared by a repair. */
static uint64_t walk(BlockNode *node, BlockCheck *check, uint64_t size, bool fix, bool *cleared)
{
    Parallels *p = parallels_of(node);
    BlockMap *m = &p->map;
    uint64_t end = MAX(p->data, p->extension_end), previous = 0;
    for (uint64_t i = 0; i < m->blocks; i++) {
        uint64_t offset = blockmap_offset(m, m->table[i]);
        if (m->table[i] == PARALLELS_NONE) {
            previous = 0;
            continue;
        }
        if (offset >= size || offset < p->data) {
            say(check, g_strdup_printf("%s cluster %" G_GUINT64_FORMAT " is outside image",
                                       doing(fix), i));
            count_corruption(check, fix);
            if (fix) {
                m->table[i] = PARALLELS_NONE;
                m->dirty[i / BLOCKMAP_PIECE] = 1;
                m->uncommitted = *cleared = true;
                previous = 0;
                continue;
            }
        }
        check->allocated_clusters++;
        check->fragmented_clusters += previous && previous + m->block != offset;
        previous = offset;
        if (offset < size)
            end = MAX(end, offset + m->block);
    }
    return end;
}

static bool fix_leaks(BlockNode *node, BlockCheck *check, uint64_t leaked, GError **err)
{
    Parallels *p = parallels_of(node);
    int result = node->file->block_device ? -ENOTSUP
                                          : node->file->ops->truncate(node->file, check->image_end);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot shorten it", node->path);
    check->leaks_fixed += leaked;
    p->next = p->file_end = p->stale = check->image_end;
    p->map.limit = check->image_end;
    return true;
}

bool parallels_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Parallels *p = parallels_of(node);
    bool errors = check->repair == BLOCK_REPAIR_ALL, cleared = false;
    uint64_t size;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    if (p->unclean) {
        say(check, g_strdup_printf("%s image was not closed correctly", doing(errors)));
        count_corruption(check, errors);
        if (errors) {
            p->unclean = false;
            g_atomic_int_set(&p->writing, 1); /* the header says so already, until we close it */
        }
    }
    check->total_clusters = p->map.blocks;
    check->image_end = walk(node, check, size, errors, &cleared);
    if (cleared) {
        result = blockmap_flush(&p->map);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write its table", node->path);
    }
    /* While we write, room was made ahead; it goes when the image is closed. */
    if (size <= check->image_end ||
        (check->repair == BLOCK_REPAIR_NONE && g_atomic_int_get(&p->writing)))
        return true;
    bool fix = check->repair != BLOCK_REPAIR_NONE;
    uint64_t leaked = (size - check->image_end + p->map.block - 1) / p->map.block;
    say(check, g_strdup_printf("%s space leaked at the end of the image %" G_GUINT64_FORMAT,
                               doing(fix), size - check->image_end));
    if (fix)
        return fix_leaks(node, check, leaked, err);
    check->leaks += leaked;
    return true;
}
