/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Chunks in packs: packs/NNNNNNNN.pack holds records, packs/NNNNNNNN.idx says where they are. A
 * pack without an index file was being written when its writer stopped: its records are read and
 * hashed, and what is whole is kept.
 *
 * Record: "LCHK", flags (bit 0: zstd), bytes stored, bytes of content (u32 each, little-endian),
 * SHA-256 of the content, stored bytes. Index: 48 bytes a record: SHA-256, offset of the stored
 * bytes, bytes stored, bytes of content, flags; at the end the SHA-256 of all of them.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/backup/internal.h"
#include "disk/crypto/gcrypt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define RECORD_MAGIC 0x4b48434cu /* "LCHK" */
#define RECORD_HEAD  48u
#define PACK_ENTRY   48u
#define PACKS_MAX    1000000u
#define ENTRIES_MAX  (BACKUP_PACK_MAX / RECORD_HEAD + 1)
#define FLAG_ZSTD    1u

enum { ENTRY_HASH = 0, ENTRY_OFFSET = 32, ENTRY_STORED = 36, ENTRY_LENGTH = 40, ENTRY_FLAGS = 44 };

void backup_hash(const void *data, size_t length, uint8_t *hash)
{
    block_gcrypt_init();
    gcry_md_hash_buffer(GCRY_MD_SHA256, hash, data, length);
}

static const uint8_t *entry_of(const BackupPack *pack, uint32_t slot)
{
    return pack->entries + (size_t)slot * PACK_ENTRY;
}

const uint8_t *backup_pack_hash(const BackupPack *pack, uint32_t slot)
{
    return entry_of(pack, slot) + ENTRY_HASH;
}

void backup_pack_free(BackupPack *pack)
{
    if (pack->mapped)
        munmap(pack->mapped, pack->mapped_length);
    else
        g_free(pack->entries);
    if (pack->fd >= 0)
        close(pack->fd);
    g_free(pack);
}

/* ---- the table of all chunks */

static uint64_t home(const BackupStore *store, const uint8_t *hash)
{
    return le64_get(hash) & (store->table_size - 1);
}

static BackupPlace *find_place(const BackupStore *store, const uint8_t *hash)
{
    for (uint64_t i = home(store, hash);; i = (i + 1) & (store->table_size - 1)) {
        BackupPlace *p = &store->table[i];
        if (p->slot == UINT32_MAX)
            return p;
        const BackupPack *pack = g_ptr_array_index(store->packs, p->pack);
        if (!memcmp(backup_pack_hash(pack, p->slot), hash, BACKUP_HASH))
            return p;
    }
}

bool backup_chunk_find(const BackupStore *store, const uint8_t *hash, BackupPlace *place)
{
    if (store->used == 0)
        return false;
    *place = *find_place(store, hash);
    return place->slot != UINT32_MAX;
}

static bool table_grow(BackupStore *store, GError **err)
{
    BackupPlace *old = store->table;
    uint64_t old_size = store->table_size;
    if (store->used * 2 < old_size)
        return true;
    store->table_size = old_size ? old_size * 2 : 1024;
    store->table = g_try_new(BackupPlace, store->table_size);
    if (!store->table) {
        store->table = old;
        store->table_size = old_size;
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for the table of %" G_GUINT64_FORMAT
                          " chunks", store->path, store->used);
    }
    memset(store->table, 0xff, store->table_size * sizeof(BackupPlace));
    for (uint64_t i = 0; i < old_size; i++) {
        if (old[i].slot != UINT32_MAX) {
            const BackupPack *pack = g_ptr_array_index(store->packs, old[i].pack);
            *find_place(store, backup_pack_hash(pack, old[i].slot)) = old[i];
        }
    }
    g_free(old);
    return true;
}

static bool table_add(BackupStore *store, uint32_t pack, uint32_t slot, GError **err)
{
    if (!table_grow(store, err))
        return false;
    BackupPlace *p =
        find_place(store, backup_pack_hash(g_ptr_array_index(store->packs, pack), slot));
    if (p->slot == UINT32_MAX) {
        *p = (BackupPlace){pack, slot};
        store->used++;
    }
    return true;
}

/* ---- loading */

static bool pack_entry_valid(const BackupStore *store, const BackupPack *pack, const uint8_t *e)
{
    uint32_t length = le32_get(e + ENTRY_LENGTH), stored = le32_get(e + ENTRY_STORED);
    return length > 0 && length <= store->chunk && stored > 0 && stored <= length &&
           le32_get(e + ENTRY_OFFSET) >= RECORD_HEAD &&
           range_within(le32_get(e + ENTRY_OFFSET), stored, pack->end);
}

static bool entries_reserve(BackupPack *pack)
{
    if (pack->n < pack->room)
        return true;
    uint32_t room = pack->room ? pack->room * 2 : 256;
    uint8_t *more = g_try_realloc(pack->entries, (size_t)room * PACK_ENTRY);
    if (!more)
        return false;
    pack->entries = more;
    pack->room = room;
    return true;
}

/* The index file, if it is whole and true of the pack's length. */
static bool load_index(BackupStore *store, BackupPack *pack)
{
    g_autofree char *name = g_strdup_printf("packs/%08u.idx", pack->number);
    int fd = openat(store->folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    uint8_t hash[BACKUP_HASH];
    if (fd < 0)
        return false;
    bool ok = fstat(fd, &st) == 0 && st.st_size >= (off_t)BACKUP_HASH &&
              (st.st_size - BACKUP_HASH) % PACK_ENTRY == 0 &&
              (st.st_size - BACKUP_HASH) / PACK_ENTRY <= ENTRIES_MAX;
    if (ok) {
        pack->mapped_length = (size_t)st.st_size;
        pack->mapped = mmap(NULL, pack->mapped_length, PROT_READ, MAP_PRIVATE, fd, 0);
        if (pack->mapped == MAP_FAILED)
            pack->mapped = NULL;
    }
    close(fd);
    if (!pack->mapped)
        return false;
    pack->entries = pack->mapped;
    pack->n = (uint32_t)((pack->mapped_length - BACKUP_HASH) / PACK_ENTRY);
    backup_hash(pack->entries, (size_t)pack->n * PACK_ENTRY, hash);
    ok = !memcmp(hash, entry_of(pack, pack->n), BACKUP_HASH);
    for (uint32_t i = 0; i < pack->n && ok; i++)
        ok = pack_entry_valid(store, pack, entry_of(pack, i));
    if (!ok) {
        munmap(pack->mapped, pack->mapped_length);
        pack->mapped = NULL;
        pack->entries = NULL;
        pack->n = 0;
    }
    pack->finished = ok;
    return ok;
}

static bool content_of(const BackupStore *store, const uint8_t *e, const uint8_t *stored,
                       uint8_t *buffer)
{
    uint32_t length = le32_get(e + ENTRY_LENGTH), n = le32_get(e + ENTRY_STORED);
    uint8_t hash[BACKUP_HASH];
    if (le32_get(e + ENTRY_FLAGS) & FLAG_ZSTD) {
        if (ZSTD_decompress(buffer, store->chunk, stored, n) != length)
            return false;
    } else if (n != length) {
        return false;
    } else {
        memcpy(buffer, stored, n);
    }
    backup_hash(buffer, length, hash);
    return !memcmp(hash, e + ENTRY_HASH, BACKUP_HASH);
}

/* Reads an unfinished pack; its end is where the last whole record ends. */
static bool salvage(BackupStore *store, BackupPack *pack, GError **err)
{
    uint64_t size = pack->end, at = 0;
    g_autofree uint8_t *record = g_try_malloc(RECORD_HEAD + store->chunk);
    g_autofree uint8_t *buffer = g_try_malloc(store->chunk);
    if (!record || !buffer)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for a chunk", store->path);
    while (pack->n < ENTRIES_MAX && range_within(at, RECORD_HEAD, size)) {
        uint8_t e[PACK_ENTRY];
        if (pread(pack->fd, record, RECORD_HEAD, (off_t)at) != RECORD_HEAD ||
            le32_get(record) != RECORD_MAGIC || at > UINT32_MAX - RECORD_HEAD)
            break;
        memcpy(e + ENTRY_HASH, record + 16, BACKUP_HASH);
        le32_put(e + ENTRY_OFFSET, (uint32_t)at + RECORD_HEAD);
        le32_put(e + ENTRY_STORED, le32_get(record + 8));
        le32_put(e + ENTRY_LENGTH, le32_get(record + 12));
        le32_put(e + ENTRY_FLAGS, le32_get(record + 4));
        uint32_t stored = le32_get(e + ENTRY_STORED);
        if (!pack_entry_valid(store, pack, e) ||
            pread(pack->fd, record, stored, (off_t)(at + RECORD_HEAD)) != (ssize_t)stored ||
            !content_of(store, e, record, buffer))
            break;
        if (!entries_reserve(pack))
            return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for an index", store->path);
        memcpy(pack->entries + (size_t)pack->n++ * PACK_ENTRY, e, PACK_ENTRY);
        at += RECORD_HEAD + stored;
    }
    pack->end = at;
    return true;
}

static BackupPack *load_pack(BackupStore *store, uint32_t number, GError **err)
{
    g_autofree char *name = g_strdup_printf("packs/%08u.pack", number);
    BackupPack *pack = g_new0(BackupPack, 1);
    struct stat st;
    pack->number = number;
    pack->fd = openat(store->folder, name,
                      (store->write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW);
    if (pack->fd < 0 || fstat(pack->fd, &st) < 0) {
        lodge_fail_errno(err, errno, "%s: cannot open %s", store->path, name);
        backup_pack_free(pack);
        return NULL;
    }
    pack->end = (uint64_t)st.st_size;
    if (!load_index(store, pack) && !salvage(store, pack, err)) {
        backup_pack_free(pack);
        return NULL;
    }
    return pack;
}

static bool finish_pack(BackupStore *store, BackupPack *pack, GError **err)
{
    g_autofree char *name = g_strdup_printf("packs/%08u.idx", pack->number);
    size_t length = (size_t)pack->n * PACK_ENTRY;
    g_autofree uint8_t *index = g_try_malloc(length + BACKUP_HASH);
    if (!index)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for an index", store->path);
    if (fdatasync(pack->fd) < 0)
        return lodge_fail_errno(err, errno, "%s: cannot write a pack", store->path);
    if (pack->n)
        memcpy(index, pack->entries, length);
    backup_hash(index, length, index + length);
    pack->finished = backup_write_file(store, name, index, length + BACKUP_HASH, err);
    return pack->finished;
}

static int compare_numbers(gconstpointer a, gconstpointer b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

bool backup_packs_load(BackupStore *store, GError **err)
{
    g_autofree char *path = g_build_filename(store->path, "packs", NULL);
    g_autoptr(GDir) folder = g_dir_open(path, 0, NULL);
    g_autoptr(GArray) numbers = g_array_new(FALSE, FALSE, sizeof(uint32_t));
    const char *file;
    if (!folder)
        return lodge_fail_errno(err, errno, "%s: cannot read its packs", store->path);
    while ((file = g_dir_read_name(folder))) {
        char *end;
        guint64 number = g_ascii_strtoull(file, &end, 10);
        if (end == file + 8 && !strcmp(end, ".pack") && number < PACKS_MAX) {
            uint32_t n = (uint32_t)number;
            g_array_append_val(numbers, n);
        }
    }
    g_array_sort(numbers, compare_numbers);
    for (guint i = 0; i < numbers->len; i++) {
        BackupPack *pack = load_pack(store, g_array_index(numbers, uint32_t, i), err);
        if (!pack)
            return false;
        g_ptr_array_add(store->packs, pack);
        /* An index that was lost, of a pack that others follow. */
        if (store->write && !pack->finished && i + 1 < numbers->len &&
            !finish_pack(store, pack, err))
            return false;
        for (uint32_t slot = 0; slot < pack->n; slot++) {
            if (!table_add(store, i, slot, err))
                return false;
        }
    }
    return true;
}

/* ---- writing */

/* The pack to add to: the last one, if it is neither finished nor full. */
static BackupPack *current_pack(BackupStore *store, uint32_t need, GError **err)
{
    BackupPack *last =
        store->packs->len ? g_ptr_array_index(store->packs, store->packs->len - 1) : NULL;
    if (last && !last->finished && last->end + RECORD_HEAD + need <= BACKUP_PACK_MAX)
        return last;
    if (last && !last->finished && !finish_pack(store, last, err))
        return NULL;
    BackupPack *pack = g_new0(BackupPack, 1);
    pack->number = last ? last->number + 1 : 0;
    g_autofree char *name = g_strdup_printf("packs/%08u.pack", pack->number);
    pack->fd = openat(store->folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (pack->fd < 0 || pack->number >= PACKS_MAX) {
        lodge_fail_errno(err, pack->fd < 0 ? errno : ENOSPC, "%s: cannot create %s", store->path,
                         name);
        backup_pack_free(pack);
        return NULL;
    }
    g_ptr_array_add(store->packs, pack);
    return pack;
}

bool backup_chunk_add(BackupStore *store, const uint8_t *hash, const void *packed,
                      uint32_t packed_length, uint32_t length, bool compressed, GError **err)
{
    BackupPack *pack = current_pack(store, packed_length, err);
    if (!pack)
        return false;
    uint8_t head[RECORD_HEAD];
    le32_put(head, RECORD_MAGIC);
    le32_put(head + 4, compressed ? FLAG_ZSTD : 0);
    le32_put(head + 8, packed_length);
    le32_put(head + 12, length);
    memcpy(head + 16, hash, BACKUP_HASH);
    struct iovec iov[2] = {{head, sizeof(head)}, {(void *)packed, packed_length}};
    ssize_t want = (ssize_t)(RECORD_HEAD + packed_length);
    ssize_t written = pwritev(pack->fd, iov, 2, (off_t)pack->end);
    if (written != want)
        return lodge_fail_errno(err, written < 0 ? errno : ENOSPC, "%s: cannot write a chunk",
                                store->path);
    if (!entries_reserve(pack))
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for an index", store->path);
    uint8_t *e = pack->entries + (size_t)pack->n * PACK_ENTRY;
    memcpy(e + ENTRY_HASH, hash, BACKUP_HASH);
    le32_put(e + ENTRY_OFFSET, (uint32_t)pack->end + RECORD_HEAD);
    le32_put(e + ENTRY_STORED, packed_length);
    le32_put(e + ENTRY_LENGTH, length);
    le32_put(e + ENTRY_FLAGS, compressed ? FLAG_ZSTD : 0);
    pack->end += (uint64_t)want;
    return table_add(store, store->packs->len - 1, pack->n++, err);
}

bool backup_packs_sync(BackupStore *store, GError **err)
{
    BackupPack *last =
        store->packs->len ? g_ptr_array_index(store->packs, store->packs->len - 1) : NULL;
    if (!last || last->finished)
        return true;
    return fdatasync(last->fd) == 0 ||
           lodge_fail_errno(err, errno, "%s: cannot write a pack", store->path);
}

/* ---- reading */

int backup_chunk_read(const BackupStore *store, const BackupPlace *place, void *buffer,
                      uint32_t *length)
{
    const BackupPack *pack = g_ptr_array_index(store->packs, place->pack);
    const uint8_t *e = entry_of(pack, place->slot);
    uint32_t stored = le32_get(e + ENTRY_STORED);
    g_autofree uint8_t *bytes = g_try_malloc(stored);
    *length = le32_get(e + ENTRY_LENGTH);
    if (!bytes)
        return -ENOMEM;
    ssize_t got = pread(pack->fd, bytes, stored, (off_t)le32_get(e + ENTRY_OFFSET));
    if (got < 0)
        return -errno;
    return got == (ssize_t)stored && content_of(store, e, bytes, buffer) ? 0 : -EBADMSG;
}
