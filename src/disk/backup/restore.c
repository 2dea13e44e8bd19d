/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Restoring a backup, looking whether it can be, and giving back what no backup needs. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/backup/internal.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define WIPE_MAX MIB(64) /* zeroes written between two looks at the progress */

static bool step(const BlockProgress *p, uint64_t done, uint64_t total, GError **err)
{
    return !p || !p->step || p->step(p->opaque, done, total) ||
           lodge_fail(err, LODGE_ERROR_CANCELLED, "cancelled");
}

static bool chunk_content(BackupStore *store, const BackupManifest *m, uint64_t index,
                          const uint8_t *hash, uint8_t *buffer, GError **err)
{
    BackupPlace place;
    uint32_t length;
    uint64_t offset = index * store->chunk, want = MIN(store->chunk, m->info.size - offset);
    if (!backup_chunk_find(store, hash, &place))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the chunk of '%s' for byte %" G_GUINT64_FORMAT " is missing",
                          store->path, m->info.name, offset);
    int result = backup_chunk_read(store, &place, buffer, &length);
    if (result == -EBADMSG || (result == 0 && length != want))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the chunk of '%s' for byte %" G_GUINT64_FORMAT " is damaged",
                          store->path, m->info.name, offset);
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: cannot read the chunk of '%s' for byte %"
                            G_GUINT64_FORMAT, store->path, m->info.name, offset);
}

static bool wipe(BlockNode *target, uint64_t from, uint64_t to, bool blank,
                 const BlockProgress *progress, uint64_t total, GError **err)
{
    while (!blank && from < to) {
        uint64_t part = MIN(WIPE_MAX, to - from);
        int result = block_write_zeroes(target, from, part, BLOCK_UNMAP);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write at byte %" G_GUINT64_FORMAT,
                                    block_path(target), from);
        from += part;
        if (!step(progress, MIN(from, total), total, err))
            return false;
    }
    return true;
}

bool backup_restore(BackupStore *store, const char *name, BlockNode *target, bool blank,
                    const BlockProgress *progress, GError **err)
{
    g_autoptr(BackupManifest) m = backup_manifest_open(store, name, err);
    if (!m)
        return false;
    uint64_t size = m->info.size, at = 0, index;
    if (block_size(target) < size)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "%s: %" G_GUINT64_FORMAT " bytes are too few for the backup '%s' of %"
                          G_GUINT64_FORMAT,
                          block_path(target), block_size(target), name, size);
    g_autofree uint8_t *buffer = g_malloc(store->chunk);
    const uint8_t *hash;
    int result;
    while ((result = backup_manifest_next(m, &index, &hash)) == 1) {
        uint64_t offset = index * store->chunk;
        struct iovec iov = {buffer, MIN(store->chunk, size - offset)};
        if (!wipe(target, at, offset, blank, progress, size, err) ||
            !chunk_content(store, m, index, hash, buffer, err))
            return false;
        result = block_writev(target, offset, &iov, 1, 0);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot write at byte %" G_GUINT64_FORMAT,
                                    block_path(target), offset);
        at = offset + iov.iov_len;
        if (!step(progress, at, size, err))
            return false;
    }
    if (result < 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the manifest of '%s' is damaged",
                          store->path, name);
    if (!wipe(target, at, block_size(target), blank, progress, size, err))
        return false;
    result = block_flush(target);
    return (result == 0 ||
            lodge_fail_errno(err, -result, "%s: cannot flush", block_path(target))) &&
           step(progress, size, size, err);
}

static void say(BackupVerify *verify, const char *text)
{
    verify->damaged++;
    if (verify->message)
        verify->message(verify->opaque, text);
}

static bool verify_one(BackupStore *store, const char *name, BackupVerify *verify,
                       const BlockProgress *progress, GError **err)
{
    g_autoptr(GError) problem = NULL;
    g_autoptr(BackupManifest) m = backup_manifest_open(store, name, &problem);
    g_autofree uint8_t *buffer = g_malloc(store->chunk);
    uint64_t index;
    const uint8_t *hash;
    int result = 0;
    if (!m && !g_error_matches(problem, LODGE_ERROR, LODGE_ERROR_CORRUPT)) {
        g_propagate_error(err, g_steal_pointer(&problem));
        return false;
    }
    if (!m)
        say(verify, problem->message);
    while (m && (result = backup_manifest_next(m, &index, &hash)) == 1) {
        g_clear_error(&problem);
        verify->chunks++;
        if (!chunk_content(store, m, index, hash, buffer, &problem))
            say(verify, problem->message);
        if (!step(progress, MIN((index + 1) * store->chunk, m->info.size), m->info.size, err))
            return false;
    }
    if (result < 0) {
        g_autofree char *text = g_strdup_printf("%s: the manifest of '%s' is damaged", store->path, name);
        say(verify, text);
    }
    return !m || step(progress, m->info.size, m->info.size, err);
}

bool backup_verify(BackupStore *store, const char *name, BackupVerify *verify,
                   const BlockProgress *progress, GError **err)
{
    verify->chunks = verify->damaged = 0;
    if (name)
        return verify_one(store, name, verify, progress, err);
    g_autoptr(GPtrArray) names = backup_list(store, err);
    for (guint i = 0; names && i < names->len; i++) {
        if (!verify_one(store, g_ptr_array_index(names, i), verify, progress, err))
            return false;
    }
    return names != NULL;
}

/* Marks the packs that backup @name needs. */
static bool mark(BackupStore *store, const char *name, bool *needed, GError **err)
{
    g_autoptr(BackupManifest) m = backup_manifest_open(store, name, err);
    uint64_t index;
    const uint8_t *hash;
    int result;
    if (!m)
        return false;
    while ((result = backup_manifest_next(m, &index, &hash)) == 1) {
        BackupPlace place;
        if (backup_chunk_find(store, hash, &place))
            needed[place.pack] = true;
    }
    return result == 0 || lodge_fail(err, LODGE_ERROR_CORRUPT,
                                     "%s: the manifest of '%s' is damaged; nothing is given back",
                                     store->path, name);
}

bool backup_prune(BackupStore *store, uint64_t *freed, GError **err)
{
    g_autoptr(GPtrArray) names = backup_list(store, err);
    g_autofree bool *needed = g_new0(bool, store->packs->len + 1);
    *freed = 0;
    if (!names)
        return false;
    for (guint i = 0; i < names->len; i++) {
        if (!mark(store, g_ptr_array_index(names, i), needed, err))
            return false;
    }
    for (guint i = 0; i < store->packs->len; i++) {
        const BackupPack *pack = g_ptr_array_index(store->packs, i);
        if (needed[i])
            continue;
        g_autofree char *index = g_strdup_printf("packs/%08u.idx", pack->number);
        g_autofree char *data = g_strdup_printf("packs/%08u.pack", pack->number);
        if (unlinkat(store->folder, data, 0) < 0 ||
            (unlinkat(store->folder, index, 0) < 0 && errno != ENOENT))
            return lodge_fail_errno(err, errno, "%s: cannot remove %s", store->path, data);
        *freed += pack->end;
    }
    return true;
}
