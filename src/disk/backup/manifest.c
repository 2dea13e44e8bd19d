/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * backups/NAME.backup: "LODGEBK1", length of a JSON object (u32, little-endian), the object, runs
 * of chunks, an empty run, and the SHA-256 of all that came before. A run: index of its first
 * chunk, their number (u64 each), their hashes.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/backup/internal.h"
#include "disk/crypto/gcrypt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC      "LODGEBK1"
#define HEAD_BYTES 12u
#define RUN_HEAD   16u
#define RUN_MAX    2048u /* hashes of a run as we write them, and of those read at once */

void backup_info_clear(BackupInfo *info)
{
    g_clear_pointer(&info->name, g_free);
    g_clear_pointer(&info->source, g_free);
    g_clear_pointer(&info->parent, g_free);
}

/* ---- reading */

void backup_manifest_free(BackupManifest *m)
{
    if (!m)
        return;
    if (m->fd >= 0)
        close(m->fd);
    backup_info_clear(&m->info);
    g_free(m->block);
    g_free(m->path);
    g_free(m);
}

static bool read_at(int fd, uint64_t at, void *to, size_t length)
{
    return pread(fd, to, length, (off_t)at) == (ssize_t)length;
}

static bool damaged(const BackupManifest *m, const char *what, GError **err)
{
    return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: the backup's manifest is damaged: %s", m->path,
                      what);
}

static bool read_info(BackupManifest *m, const char *name, uint64_t file_size, GError **err)
{
    uint8_t head[HEAD_BYTES];
    if (!read_at(m->fd, 0, head, sizeof(head)) || memcmp(head, MAGIC, 8))
        return damaged(m, "no manifest", err);
    uint32_t length = le32_get(head + 8);
    if (length == 0 || length > BACKUP_TEXT_MAX ||
        !range_within(HEAD_BYTES, length + RUN_HEAD + BACKUP_HASH, file_size))
        return damaged(m, "its description is longer than it may be", err);
    g_autofree char *text = g_malloc(length);
    if (!read_at(m->fd, HEAD_BYTES, text, length))
        return damaged(m, "it cannot be read", err);
    json_auto_t *o = json_loadb(text, length, 0, NULL);
    json_int_t size = json_integer_value(json_object_get(o, "size"));
    if (!o || size < 0)
        return damaged(m, "its description cannot be understood", err);
    if (json_integer_value(json_object_get(o, "chunk-size")) != (json_int_t)m->chunk)
        return damaged(m, "its chunks are of another size than the store's", err);
    m->info = (BackupInfo){
        .name = g_strdup(name),
        .source = g_strdup(json_string_value(json_object_get(o, "source"))),
        .parent = g_strdup(json_string_value(json_object_get(o, "parent"))),
        .size = (uint64_t)size,
        .time = json_integer_value(json_object_get(o, "time")),
    };
    m->runs_at = m->at = HEAD_BYTES + length;
    m->runs_end = file_size - BACKUP_HASH;
    return true;
}

/* Is the file what its last 32 bytes say? */
static bool check_hash(BackupManifest *m, GError **err)
{
    uint8_t want[BACKUP_HASH];
    g_autofree uint8_t *buffer = g_malloc(MIB(1));
    gcry_md_hd_t md;
    block_gcrypt_init();
    if (gcry_md_open(&md, GCRY_MD_SHA256, 0))
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "SHA-256 is not available");
    bool ok = true;
    for (uint64_t at = 0; at < m->runs_end && ok; at += MIB(1)) {
        size_t part = (size_t)MIN(MIB(1), m->runs_end - at);
        ok = read_at(m->fd, at, buffer, part);
        gcry_md_write(md, buffer, part);
    }
    ok = ok && read_at(m->fd, m->runs_end, want, sizeof(want)) &&
         !memcmp(gcry_md_read(md, GCRY_MD_SHA256), want, sizeof(want));
    gcry_md_close(md);
    return ok || damaged(m, "its checksum is wrong", err);
}

BackupManifest *backup_manifest_open(BackupStore *store, const char *name, GError **err)
{
    struct stat st;
    if (!backup_name_valid(name, err))
        return NULL;
    g_autoptr(BackupManifest) m = g_new0(BackupManifest, 1);
    g_autofree char *file = g_strdup_printf("backups/%s.backup", name);
    m->path = g_build_filename(store->path, file, NULL);
    m->chunk = store->chunk;
    m->fd = openat(store->folder, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (m->fd < 0 || fstat(m->fd, &st) < 0) {
        lodge_fail_errno(err, errno, "%s: there is no backup '%s'", store->path, name);
        return NULL;
    }
    if (!read_info(m, name, (uint64_t)st.st_size, err) || !check_hash(m, err))
        return NULL;
    m->block = g_malloc(RUN_MAX * BACKUP_HASH);
    return g_steal_pointer(&m);
}

static int next_run(BackupManifest *m)
{
    uint8_t head[RUN_HEAD];
    uint64_t chunks = (m->info.size + m->chunk - 1) / m->chunk;
    uint64_t least = m->first + m->count;
    if (!range_within(m->at, RUN_HEAD, m->runs_end) || !read_at(m->fd, m->at, head, RUN_HEAD))
        return -EBADMSG;
    m->first = le64_get(head);
    m->count = le64_get(head + 8);
    m->taken = m->block_first = m->block_count = 0;
    m->hashes_at = m->at + RUN_HEAD;
    if (m->count == 0)
        return 0;
    if (m->first < least || !range_within(m->first, m->count, chunks) ||
        m->count > (m->runs_end - m->hashes_at) / BACKUP_HASH)
        return -EBADMSG;
    m->at = m->hashes_at + m->count * BACKUP_HASH;
    return 1;
}

int backup_manifest_next(BackupManifest *m, uint64_t *index, const uint8_t **hash)
{
    if (m->taken == m->count) {
        int result = next_run(m);
        if (result <= 0)
            return result;
    }
    if (m->taken == m->block_first + m->block_count) {
        m->block_first = m->taken;
        m->block_count = MIN(RUN_MAX, m->count - m->taken);
        if (!read_at(m->fd, m->hashes_at + m->taken * BACKUP_HASH, m->block,
                     m->block_count * BACKUP_HASH))
            return -EIO;
    }
    *index = m->first + m->taken;
    *hash = m->block + (m->taken - m->block_first) * BACKUP_HASH;
    m->taken++;
    return 1;
}

bool backup_describe(BackupStore *store, const char *name, BackupInfo *info, GError **err)
{
    g_autoptr(BackupManifest) m = backup_manifest_open(store, name, err);
    int result = 1;
    if (!m)
        return false;
    while ((result = next_run(m)) == 1)
        m->info.data += m->count * store->chunk;
    if (result < 0)
        return damaged(m, "its runs contradict each other", err);
    m->info.data = MIN(m->info.data, m->info.size);
    *info = m->info;
    m->info = (BackupInfo){0};
    return true;
}

/* ---- writing */

struct BackupWriter {
    BackupStore *store;
    char *temporary, *file;
    FILE *stream;
    gcry_md_hd_t md;
    uint64_t first, count;
    uint8_t hashes[RUN_MAX * BACKUP_HASH];
};

void backup_writer_free(BackupWriter *w)
{
    if (!w)
        return;
    if (w->stream)
        fclose(w->stream);
    if (w->temporary)
        unlinkat(w->store->folder, w->temporary, 0);
    if (w->md)
        gcry_md_close(w->md);
    g_free(w->temporary);
    g_free(w->file);
    g_free(w);
}

static bool put(BackupWriter *w, const void *data, size_t length, GError **err)
{
    gcry_md_write(w->md, data, length);
    return fwrite(data, 1, length, w->stream) == length ||
           lodge_fail_errno(err, errno, "%s: cannot write the manifest", w->store->path);
}

BackupWriter *backup_writer_new(BackupStore *store, const BackupInfo *info, GError **err)
{
    g_autoptr(BackupWriter) w = g_new0(BackupWriter, 1);
    w->store = store;
    w->file = g_strdup_printf("backups/%s.backup", info->name);
    w->temporary = g_strdup_printf("backups/%s.tmp", info->name);
    block_gcrypt_init();
    if (gcry_md_open(&w->md, GCRY_MD_SHA256, 0)) {
        w->md = NULL;
        lodge_fail(err, LODGE_ERROR_INTERNAL, "SHA-256 is not available");
        return NULL;
    }
    int fd = openat(store->folder, w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    w->stream = fd < 0 ? NULL : fdopen(fd, "w");
    if (!w->stream) {
        lodge_fail_errno(err, errno, "%s: cannot create %s", store->path, w->temporary);
        return NULL;
    }
    json_auto_t *o = json_pack("{s:I, s:I, s:I, s:s, s:s*}", "size", (json_int_t)info->size,
                               "chunk-size", (json_int_t)store->chunk, "time",
                               (json_int_t)info->time, "source", info->source, "parent",
                               info->parent);
    g_autofree char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    size_t length = text ? strlen(text) : 0;
    uint8_t head[HEAD_BYTES] = MAGIC;
    if (length == 0 || length > BACKUP_TEXT_MAX) {
        lodge_fail(err, LODGE_ERROR_INVALID, "%s: its source's name cannot be written down",
                   info->name);
        return NULL;
    }
    le32_put(head + 8, (uint32_t)length);
    if (!put(w, head, sizeof(head), err) || !put(w, text, length, err))
        return NULL;
    return g_steal_pointer(&w);
}

static bool put_run(BackupWriter *w, GError **err)
{
    uint8_t head[RUN_HEAD];
    le64_put(head, w->first);
    le64_put(head + 8, w->count);
    bool ok = put(w, head, sizeof(head), err) &&
              put(w, w->hashes, (size_t)w->count * BACKUP_HASH, err);
    w->count = 0;
    return ok;
}

bool backup_writer_add(BackupWriter *w, uint64_t index, const uint8_t *hash, GError **err)
{
    if (w->count > 0 && (index != w->first + w->count || w->count == RUN_MAX) && !put_run(w, err))
        return false;
    if (w->count == 0)
        w->first = index;
    memcpy(w->hashes + w->count++ * BACKUP_HASH, hash, BACKUP_HASH);
    return true;
}

bool backup_writer_finish(BackupWriter *taken, GError **err)
{
    g_autoptr(BackupWriter) w = taken;
    if (w->count > 0 && !put_run(w, err))
        return false;
    if (!put_run(w, err))
        return false;
    uint8_t hash[BACKUP_HASH];
    memcpy(hash, gcry_md_read(w->md, GCRY_MD_SHA256), sizeof(hash));
    bool ok = fwrite(hash, 1, sizeof(hash), w->stream) == sizeof(hash) && fflush(w->stream) == 0 &&
              fsync(fileno(w->stream)) == 0 &&
              renameat(w->store->folder, w->temporary, w->store->folder, w->file) == 0;
    if (!ok)
        return lodge_fail_errno(err, errno, "%s: cannot write %s", w->store->path, w->file);
    g_clear_pointer(&w->temporary, g_free);
    g_autofree char *folder = g_build_filename(w->store->path, "backups", NULL);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ok = fd >= 0 && fsync(fd) == 0;
    int problem = errno;
    if (fd >= 0)
        close(fd);
    return ok || lodge_fail_errno(err, problem, "%s: cannot write its list of backups",
                                  w->store->path);
}
