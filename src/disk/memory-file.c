/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/memory-file.h"

#include "base/bytes.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>

#define SECTOR 512

static MemoryFile *memory(BlockFile *file)
{
    return (MemoryFile *)file;
}

static void grow(GByteArray *bytes, uint64_t size)
{
    guint old = bytes->len;
    if (size <= old)
        return;
    g_byte_array_set_size(bytes, (guint)size);
    memset(bytes->data + old, 0, size - old);
}

void memory_entry_apply(const MemoryEntry *e, GByteArray *bytes, bool (*keep)(void *opaque),
                        void *opaque)
{
    if (e->op == MEMORY_FLUSH || (e->op == MEMORY_TRUNCATE && keep && !keep(opaque)))
        return;
    if (e->op == MEMORY_TRUNCATE) {
        if (e->length < bytes->len)
            g_byte_array_set_size(bytes, (guint)e->length);
        grow(bytes, e->length);
        return;
    }
    for (uint64_t at = 0; at < e->length;) {
        uint64_t offset = e->offset + at;
        uint64_t part = MIN(e->length - at, SECTOR - offset % SECTOR);
        if (!keep || keep(opaque)) {
            grow(bytes, offset + part);
            if (e->data)
                memcpy(bytes->data + offset, e->data + at, part);
            else
                memset(bytes->data + offset, 0, part);
        }
        at += part;
    }
}

static void perform(MemoryFile *m, MemoryEntry *entry)
{
    memory_entry_apply(entry, m->bytes, NULL, NULL);
    if (m->log)
        g_array_append_val(m->log, *entry);
    else
        g_free(entry->data);
}

/* The Nth operation fails; which N is up to the test. */
static bool failing(MemoryFile *m)
{
    g_mutex_lock(&m->lock);
    uint64_t number = m->operations++;
    bool fails = number >= m->fail_from && number < m->fail_until;
    g_mutex_unlock(&m->lock);
    return fails;
}

static int memory_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    MemoryFile *m = memory(file);
    uint64_t length = block_iov_length(iov, n);
    if (failing(m))
        return -EIO;
    g_mutex_lock(&m->lock);
    uint64_t inside = offset < m->bytes->len ? MIN(length, m->bytes->len - offset) : 0;
    if (inside)
        block_iov_from(iov, n, 0, m->bytes->data + offset, inside);
    block_iov_zero(iov, n, inside, length - inside);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    MemoryFile *m = memory(file);
    uint64_t length = block_iov_length(iov, n);
    if (!range_within(offset, length, m->limit))
        return -ENOSPC;
    if (failing(m))
        return -EIO;
    MemoryEntry entry = {MEMORY_WRITE, offset, length, g_malloc(length + 1)};
    block_iov_to(entry.data, iov, n, 0, length);
    g_mutex_lock(&m->lock);
    perform(m, &entry);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    MemoryFile *m = memory(file);
    MemoryEntry entry = {MEMORY_ZERO, offset, length, NULL};
    if (!range_within(offset, length, m->limit))
        return -ENOSPC;
    if (failing(m))
        return -EIO;
    g_mutex_lock(&m->lock);
    perform(m, &entry);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    MemoryFile *m = memory(file);
    MemoryEntry entry = {MEMORY_ZERO, offset, length, NULL};
    g_mutex_lock(&m->lock);
    if (range_within(offset, length, m->bytes->len))
        perform(m, &entry);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_flush(BlockFile *file)
{
    MemoryFile *m = memory(file);
    MemoryEntry entry = {.op = MEMORY_FLUSH};
    if (failing(m))
        return -EIO;
    g_mutex_lock(&m->lock);
    perform(m, &entry);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_truncate(BlockFile *file, uint64_t size)
{
    MemoryFile *m = memory(file);
    MemoryEntry entry = {MEMORY_TRUNCATE, 0, size, NULL};
    if (size > m->limit)
        return -ENOSPC;
    g_mutex_lock(&m->lock);
    perform(m, &entry);
    g_mutex_unlock(&m->lock);
    return 0;
}

static int memory_size(BlockFile *file, uint64_t *size)
{
    MemoryFile *m = memory(file);
    g_mutex_lock(&m->lock);
    *size = m->bytes->len;
    g_mutex_unlock(&m->lock);
    return 0;
}

static void memory_close(BlockFile *file)
{
    MemoryFile *m = memory(file);
    g_byte_array_unref(m->bytes);
    g_mutex_clear(&m->lock);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(m);
}

static const BlockFileOps memory_ops = {
    .name = "memory",
    .readv = memory_readv,
    .writev = memory_writev,
    .zero = memory_zero,
    .discard = memory_discard,
    .flush = memory_flush,
    .truncate = memory_truncate,
    .size = memory_size,
    .close = memory_close,
};

MemoryFile *memory_file_new(GByteArray *bytes, uint64_t limit, GArray *log)
{
    MemoryFile *m = g_new0(MemoryFile, 1);
    m->file.ops = &memory_ops;
    m->file.path = g_strdup("memory");
    m->file.fd = -1;
    m->file.alignment = 1;
    m->bytes = g_byte_array_ref(bytes);
    m->limit = limit;
    m->log = log;
    g_mutex_init(&m->lock);
    g_mutex_init(&m->file.rmw);
    return m;
}

void memory_log_free(GArray *log)
{
    for (guint i = 0; i < log->len; i++)
        g_free(g_array_index(log, MemoryEntry, i).data);
    g_array_unref(log);
}
