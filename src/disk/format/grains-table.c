/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The tables of a GrainMap: loading, looking up, changing, bringing them into the file. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/grains.h"

#include <errno.h>
#include <string.h>

#define RUN_MAX    (1u << 16) /* grains that one look-up goes over */
#define LOAD_BYTES KIB(64)    /* of the directory, at a time */
#define NO_TABLE   UINT64_MAX

static uint32_t table_bytes(const GrainMap *m)
{
    return m->entries * m->entry_bytes;
}

static guint resident_max(const GrainMap *m)
{
    return (guint)MAX(GRAINS_CACHE_BYTES / table_bytes(m), 4);
}

static bool read_directory(GrainMap *m, uint64_t at, uint64_t *where, GError **err)
{
    uint64_t bytes = m->tables * m->table_entry_bytes;
    g_autofree uint8_t *raw = g_malloc(LOAD_BYTES);
    for (uint64_t done = 0; done < bytes; done += LOAD_BYTES) {
        uint64_t part = MIN(LOAD_BYTES, bytes - done);
        int result = block_file_read(m->file, at + done, raw, part);
        if (result < 0)
            return lodge_fail_errno(err, -result, "%s: cannot read its grain directory",
                                    m->file->path);
        uint64_t first = done / m->table_entry_bytes;
        for (uint64_t i = 0; i * m->table_entry_bytes < part; i++) {
            if (!m->ops->table_decode(m, raw + i * m->table_entry_bytes, &where[first + i]))
                where[first + i] = NO_TABLE;
        }
    }
    return true;
}

static void reserve_range(GArray *list, uint64_t start, uint64_t end)
{
    uint64_t range[2] = {start, end};
    g_array_append_val(list, range);
}

static int by_start(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Tables that lie on each other, on the header or outside of the file cannot be written. */
static bool note_reserved(GrainMap *m, uint64_t file_size, GError **err)
{
    uint64_t bytes = m->tables * m->table_entry_bytes;
    m->reserved = g_array_new(FALSE, FALSE, 2 * sizeof(uint64_t));
    reserve_range(m->reserved, 0, m->header);
    reserve_range(m->reserved, m->directory, m->directory + bytes);
    if (m->mirror)
        reserve_range(m->reserved, m->mirror, m->mirror + bytes);
    for (uint64_t i = 0; i < m->tables; i++) {
        uint64_t tables[] = {m->where[i], m->mirrored ? m->mirrored[i] : 0};
        for (size_t k = 0; k < G_N_ELEMENTS(tables); k++) {
            if (tables[k] && !range_within(tables[k], table_bytes(m), file_size))
                return lodge_fail(err, LODGE_ERROR_CORRUPT,
                                  "%s: grain table %" G_GUINT64_FORMAT " is not within the file; "
                                  "the image can be opened read-only",
                                  m->file->path, i);
            if (tables[k])
                reserve_range(m->reserved, tables[k], tables[k] + table_bytes(m));
        }
    }
    g_array_sort(m->reserved, by_start);
    const uint64_t *r = (const uint64_t *)m->reserved->data;
    for (guint i = 1; i < m->reserved->len; i++) {
        if (r[2 * i] < r[2 * i - 1])
            return lodge_fail(err, LODGE_ERROR_CORRUPT,
                              "%s: its tables overlap at 0x%" G_GINT64_MODIFIER
                              "x; the image can be opened read-only",
                              m->file->path, r[2 * i]);
    }
    return true;
}

bool grains_writable(const GrainMap *m, uint64_t host, uint64_t length)
{
    const uint64_t *r = (const uint64_t *)m->reserved->data;
    guint low = 0, high = m->reserved->len; /* the first range that ends after host */
    while (low < high) {
        guint middle = (low + high) / 2;
        if (r[2 * middle + 1] <= host)
            low = middle + 1;
        else
            high = middle;
    }
    return !g_atomic_int_get(&m->suspect) && (low == m->reserved->len || r[2 * low] >= host + length);
}

static bool allocate(GrainMap *m, GError **err)
{
    m->where = g_try_new0(uint64_t, m->tables + 1);
    m->mirrored = m->mirror ? g_try_new0(uint64_t, m->tables + 1) : NULL;
    m->loaded = g_try_new0(GrainTable *, m->tables + 1);
    m->seen = g_try_malloc0(m->tables / 8 + 1);
    if (!m->where || (m->mirror && !m->mirrored) || !m->loaded || !m->seen)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its grain directory",
                          m->file->path);
    return true;
}

bool grains_init(GrainMap *m, GError **err)
{
    uint64_t file_size, covers = m->grain * m->entries;
    g_mutex_init(&m->commit);
    g_mutex_init(&m->lock);
    g_mutex_init(&m->cache_lock);
    g_cond_init(&m->ranges.changed);
    m->set_up = true;
    m->resident = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    m->tables = m->size / covers + (m->size % covers != 0);
    if (m->tables > GRAINS_TABLES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: a grain directory of %" G_GUINT64_FORMAT
                          " entries; at most %u are supported",
                          m->file->path, m->tables, GRAINS_TABLES_MAX);
    int result = m->file->ops->size(m->file, &file_size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", m->file->path);
    uint64_t bytes = m->tables * m->table_entry_bytes;
    if (!range_within(m->directory, bytes, file_size) ||
        (m->mirror && !range_within(m->mirror, bytes, file_size)))
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "%s: the grain directory (%" G_GUINT64_FORMAT " entries at 0x%"
                          G_GINT64_MODIFIER "x) is not within the file",
                          m->file->path, m->tables, m->directory);
    m->end = m->first_end = align_up(file_size, m->alignment);
    if (!allocate(m, err) || !read_directory(m, m->directory, m->where, err) ||
        (m->mirror && !read_directory(m, m->mirror, m->mirrored, err)))
        return false;
    return m->read_only || note_reserved(m, file_size, err);
}

static void free_table(GrainTable *t)
{
    if (t)
        g_free(t->bytes);
    g_free(t);
}

void grains_clear(GrainMap *m)
{
    if (!m->set_up)
        return;
    for (guint i = 0; i < m->resident->len; i++)
        free_table(m->loaded[g_array_index(m->resident, uint64_t, i)]);
    g_array_unref(m->resident);
    if (m->reserved)
        g_array_unref(m->reserved);
    g_free(m->where);
    g_free(m->mirrored);
    g_free(m->loaded);
    g_free(m->seen);
    g_free(m->cache);
    g_mutex_clear(&m->commit);
    g_mutex_clear(&m->lock);
    g_mutex_clear(&m->cache_lock);
    g_cond_clear(&m->ranges.changed);
    m->set_up = false;
}

/* Makes room for one more table when there are too many; those that wait for a commit stay. */
static void evict(GrainMap *m)
{
    guint tries = m->resident->len;
    while (m->resident->len >= resident_max(m) && tries-- > 0) {
        m->hand = m->hand + 1 < m->resident->len ? m->hand + 1 : 0;
        uint64_t index = g_array_index(m->resident, uint64_t, m->hand);
        GrainTable *t = m->loaded[index];
        if (t->dirty_to > t->dirty_from || t->fresh || t->busy)
            continue;
        m->loaded[index] = NULL;
        free_table(t);
        g_array_remove_index_fast(m->resident, m->hand);
    }
}

/* What a file brings along must not lead to where new grains go. */
static void look_over(GrainMap *m, uint64_t index, const GrainTable *t)
{
    if (m->read_only || (m->seen[index / 8] & (1u << (index % 8))))
        return;
    m->seen[index / 8] |= (uint8_t)(1u << (index % 8));
    for (uint32_t i = 0; i < m->entries; i++) {
        Grain g;
        if (m->ops->decode(m, t->bytes + (size_t)i * m->entry_bytes, &g) && g.kind == GRAIN_DATA &&
            !range_within(g.offset, m->grain, m->first_end))
            g_atomic_int_set(&m->suspect, 1);
    }
}

static GrainTable *new_table(GrainMap *m, uint64_t index)
{
    GrainTable *t = g_try_new0(GrainTable, 1);
    evict(m);
    if (t)
        t->bytes = g_try_malloc0(table_bytes(m));
    if (!t || !t->bytes) {
        free_table(t);
        return NULL;
    }
    m->loaded[index] = t;
    g_array_append_val(m->resident, index);
    return t;
}

/* *table is NULL where there is none. `lock` is held, also while the file is read. */
static int get_table(GrainMap *m, uint64_t index, bool may_load, GrainTable **table)
{
    *table = m->loaded[index];
    if (*table || m->where[index] == 0)
        return 0;
    if (m->where[index] == NO_TABLE)
        return -EIO;
    if (!may_load)
        return -EAGAIN;
    GrainTable *t = new_table(m, index);
    if (!t)
        return -ENOMEM;
    int result = block_file_read(m->file, m->where[index], t->bytes, table_bytes(m));
    if (result < 0) {
        m->loaded[index] = NULL;
        g_array_set_size(m->resident, m->resident->len - 1);
        free_table(t);
        return result;
    }
    look_over(m, index, t);
    *table = t;
    return 0;
}

static int get_entry(GrainMap *m, uint64_t index, bool may_load, Grain *grain)
{
    GrainTable *t;
    int result = get_table(m, index / m->entries, may_load, &t);
    *grain = (Grain){.kind = GRAIN_NONE};
    if (result < 0 || !t)
        return result;
    return m->ops->decode(m, t->bytes + index % m->entries * m->entry_bytes, grain) ? 0 : -EIO;
}

/* `lock` is held. */
static int look_up(GrainMap *m, uint64_t offset, uint64_t length, bool may_load, GrainRun *run)
{
    uint64_t index = offset / m->grain, within = offset % m->grain;
    uint64_t last = (offset + length - 1) / m->grain, next = index + 1;
    int result = get_entry(m, index, may_load, &run->grain);
    if (result < 0)
        return result;
    if (run->grain.kind != GRAIN_PACKED)
        last = MIN(last, index + RUN_MAX);
    else
        last = index;
    while (next <= last) {
        Grain g;
        if (get_entry(m, next, may_load, &g) < 0 || g.kind != run->grain.kind)
            break;
        if (g.kind == GRAIN_DATA && g.offset != run->grain.offset + (next - index) * m->grain)
            break;
        next++;
    }
    run->host = run->grain.offset + within;
    run->length = MIN(length, (next - index) * m->grain - within);
    return 0;
}

int grains_find(GrainMap *m, uint64_t offset, uint64_t length, GrainRun *run)
{
    g_mutex_lock(&m->lock);
    int result = look_up(m, offset, length, true, run);
    g_mutex_unlock(&m->lock);
    return result;
}

bool grains_fast_begin(GrainMap *m, bool write, uint64_t offset, uint64_t length, BlockFast *fast)
{
    GrainRun run;
    if (m->cipher || !g_mutex_trylock(&m->lock))
        return false;
    int result = look_up(m, offset, length, false, &run);
    g_mutex_unlock(&m->lock);
    if (result < 0 || run.grain.kind != GRAIN_DATA || run.length != length ||
        (write && !grains_writable(m, run.host, length)))
        return false;
    fast->file = m->file;
    fast->file_offset = run.host;
    return true;
}

/* `lock` is held. */
static int reserve(GrainMap *m, uint64_t bytes, uint64_t alignment, uint64_t *at)
{
    uint64_t start = align_up(m->end, alignment);
    if (m->file->block_device)
        return -ENOSPC; /* where the image ends on a device is not written down */
    if (!range_within(start, bytes, m->file_max))
        return -EFBIG;
    if (start < m->stale) {
        int result = m->file->ops->zero(m->file, start, MIN(bytes, m->stale - start), true);
        if (result < 0)
            return result;
    }
    m->end = start + bytes;
    *at = start;
    return 0;
}

int grains_reserve(GrainMap *m, uint64_t bytes, uint64_t alignment, bool grow, uint64_t *at)
{
    g_mutex_lock(&m->lock);
    int result = reserve(m, bytes, alignment, at);
    if (result == 0 && grow) {
        /* Nobody has been given room behind this yet: nothing is cut off. */
        result = m->file->ops->truncate(m->file, m->end);
        if (result < 0)
            m->end = *at;
    }
    g_mutex_unlock(&m->lock);
    return result;
}

void grains_unreserve(GrainMap *m, uint64_t at, uint64_t bytes)
{
    g_mutex_lock(&m->lock);
    m->stale = MAX(m->stale, at + bytes);
    if (m->end == at + bytes)
        m->end = at;
    g_mutex_unlock(&m->lock);
}

static void mark(GrainMap *m, GrainTable *t, uint32_t from, uint32_t to)
{
    bool clean = t->dirty_to <= t->dirty_from;
    t->dirty_from = clean ? from : MIN(t->dirty_from, from);
    t->dirty_to = clean ? to : MAX(t->dirty_to, to);
    m->dirty += clean;
    m->uncommitted = true;
}

/* The table of entry @index, made if there is none. `lock` is held. */
static int table_for(GrainMap *m, uint64_t index, GrainTable **table)
{
    uint64_t number = index / m->entries, at;
    int result = get_table(m, number, true, table);
    if (result < 0 || *table)
        return result;
    uint32_t bytes = table_bytes(m);
    result = reserve(m, m->mirror ? 2ull * bytes : bytes, m->alignment, &at);
    if (result < 0)
        return result;
    GrainTable *t = new_table(m, number);
    if (!t)
        return -ENOMEM;
    t->fresh = true;
    m->where[number] = at;
    if (m->mirror)
        m->mirrored[number] = at + bytes;
    m->seen[number / 8] |= (uint8_t)(1u << (number % 8));
    mark(m, t, 0, bytes);
    *table = t;
    return 0;
}

int grains_publish(GrainMap *m, uint64_t index, uint64_t count, const Grain *first)
{
    Grain g = *first;
    int result = 0;
    g_mutex_lock(&m->lock);
    for (uint64_t i = 0; i < count && result == 0; i++) {
        GrainTable *t;
        result = table_for(m, index + i, &t);
        if (result < 0)
            break;
        uint32_t at = (uint32_t)((index + i) % m->entries) * m->entry_bytes;
        m->ops->encode(m, t->bytes + at, &g);
        mark(m, t, at, at + m->entry_bytes);
        g.offset += m->grain;
    }
    g_mutex_unlock(&m->lock);
    return result;
}

bool grains_commit_is_due(GrainMap *m)
{
    g_mutex_lock(&m->lock);
    bool due = m->dirty >= resident_max(m) / 2;
    g_mutex_unlock(&m->lock);
    return due;
}

/* A table's changes on their way into the file. */
typedef struct Piece {
    uint64_t table;
    uint32_t from, to;
    bool fresh;
    uint8_t *bytes;
} Piece;

static void clear_piece(gpointer p)
{
    g_free(((Piece *)p)->bytes);
}

static int by_table(gconstpointer a, gconstpointer b)
{
    uint64_t x = ((const Piece *)a)->table, y = ((const Piece *)b)->table;
    return x < y ? -1 : x > y;
}

/* Whole sectors, so that none is read first and the two parts of a torn write are both valid. */
static GArray *collect(GrainMap *m)
{
    GArray *pieces = g_array_new(FALSE, FALSE, sizeof(Piece));
    g_array_set_clear_func(pieces, clear_piece);
    g_mutex_lock(&m->lock);
    for (guint i = 0; i < m->resident->len; i++) {
        uint64_t index = g_array_index(m->resident, uint64_t, i);
        GrainTable *t = m->loaded[index];
        if (t->dirty_to <= t->dirty_from)
            continue;
        Piece p = {.table = index, .from = (uint32_t)align_down(t->dirty_from, 512),
                   .to = (uint32_t)MIN(align_up(t->dirty_to, 512), table_bytes(m)),
                   .fresh = t->fresh};
        p.bytes = g_memdup2(t->bytes + p.from, p.to - p.from);
        t->dirty_from = t->dirty_to = 0;
        t->busy = true;
        g_array_append_val(pieces, p);
    }
    m->dirty = 0;
    g_mutex_unlock(&m->lock);
    g_array_sort(pieces, by_table);
    return pieces;
}

static int sync_file(GrainMap *m)
{
    return m->node->no_flush ? 0 : m->file->ops->flush(m->file);
}

static int write_tables(GrainMap *m, const GArray *pieces)
{
    int result = 0;
    for (guint i = 0; i < pieces->len && result == 0; i++) {
        const Piece *p = &g_array_index(pieces, Piece, i);
        size_t length = p->to - p->from;
        result = block_file_write(m->file, m->where[p->table] + p->from, p->bytes, length);
        if (result == 0 && m->mirrored && m->mirrored[p->table])
            result = block_file_write(m->file, m->mirrored[p->table] + p->from, p->bytes, length);
    }
    return result;
}

/* New tables are in the file now: the directory may say so. */
static int write_directory(GrainMap *m, const GArray *pieces)
{
    bool any = false;
    int result = 0;
    for (guint i = 0; i < pieces->len && result == 0; i++) {
        const Piece *p = &g_array_index(pieces, Piece, i);
        uint8_t entry[8];
        if (!p->fresh)
            continue;
        uint64_t at = p->table * m->table_entry_bytes;
        m->ops->table_encode(m, entry, m->where[p->table]);
        result = block_file_write(m->file, m->directory + at, entry, m->table_entry_bytes);
        if (result == 0 && m->mirror) {
            m->ops->table_encode(m, entry, m->mirrored[p->table]);
            result = block_file_write(m->file, m->mirror + at, entry, m->table_entry_bytes);
        }
        any = true;
    }
    return result == 0 && any ? sync_file(m) : result;
}

static void settle(GrainMap *m, const GArray *pieces, bool done)
{
    g_mutex_lock(&m->lock);
    for (guint i = 0; i < pieces->len; i++) {
        const Piece *p = &g_array_index(pieces, Piece, i);
        GrainTable *t = m->loaded[p->table];
        t->busy = false;
        if (done)
            t->fresh = false;
        else
            mark(m, t, p->from, p->to);
    }
    m->uncommitted = m->dirty > 0;
    g_mutex_unlock(&m->lock);
}

int grains_flush(GrainMap *m)
{
    if (grains_flush_is_plain(m))
        return sync_file(m);
    g_mutex_lock(&m->commit);
    g_autoptr(GArray) pieces = collect(m);
    int result = sync_file(m); /* the grains, before what refers to them */
    if (result == 0)
        result = write_tables(m, pieces);
    if (result == 0)
        result = sync_file(m);
    if (result == 0)
        result = write_directory(m, pieces);
    settle(m, pieces, result == 0);
    g_mutex_unlock(&m->commit);
    return result;
}

bool grains_flush_is_plain(GrainMap *m)
{
    g_mutex_lock(&m->lock);
    bool plain = !m->uncommitted;
    g_mutex_unlock(&m->lock);
    return plain;
}

int grains_make_empty(GrainMap *m)
{
    uint64_t bytes = m->tables * m->table_entry_bytes;
    g_mutex_lock(&m->commit);
    g_mutex_lock(&m->lock);
    int result = m->file->ops->zero(m->file, m->directory, bytes, false);
    if (result == 0)
        result = sync_file(m);
    if (result == 0)
        result = m->file->ops->truncate(m->file, MAX(m->directory + bytes, m->header));
    if (result == 0) {
        for (guint i = 0; i < m->resident->len; i++) {
            uint64_t index = g_array_index(m->resident, uint64_t, i);
            free_table(m->loaded[index]);
            m->loaded[index] = NULL;
        }
        g_array_set_size(m->resident, 0);
        memset(m->where, 0, m->tables * sizeof(uint64_t));
        g_mutex_lock(&m->cache_lock);
        m->cache_offset = 0;
        g_mutex_unlock(&m->cache_lock);
        m->end = align_up(MAX(m->directory + bytes, m->header), m->alignment);
        m->stale = m->end;
        m->dirty = 0;
        m->uncommitted = false;
    }
    g_mutex_unlock(&m->lock);
    g_mutex_unlock(&m->commit);
    return result;
}
