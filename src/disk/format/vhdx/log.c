/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The log (section 2.3): changes of the block allocation table are written there first.
 *
 * We write entries one behind the other from the log's start; where the next does not fit, the
 * log gets a new GUID, which makes everything in it void, and begins again. So an entry never
 * overwrites an older one that is still valid, and whoever replays the log gets our entries in
 * their order and ends with the newest. Each entry comes after a flush that made all that the ones
 * before it had changed in the table durable.
 */
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "disk/format/vhdx/vhdx.h"

#include <errno.h>

#define SECTOR           VHDX_LOG_SECTOR
#define DESCRIPTOR_BYTES 32u
#define FIRST_DESCRIPTOR 64u /* behind the entry's header */
#define DATA_MAX         126u /* sectors in an entry of ours: as many as its first sector describes */

/* Byte offsets in the header of an entry (2.3.1.1). */
enum {
    ENTRY_SIGNATURE = 0, /* "loge" */
    ENTRY_CHECKSUM = 4,
    ENTRY_LENGTH = 8,
    ENTRY_TAIL = 12,
    ENTRY_SEQUENCE = 16,
    ENTRY_DESCRIPTORS = 24,
    ENTRY_GUID = 32,
    ENTRY_FLUSHED_END = 48,
    ENTRY_LAST_END = 56,
};

/* ---- replaying */

typedef struct Log {
    const uint8_t *bytes, *guid;
    uint32_t length;
    uint8_t *sector; /* where what wraps around is put together */
    uint64_t budget; /* bytes of checksums until the log is refused as contrived */
} Log;

/* Entries wrap around at the end of the log, at a multiple of 4 KiB. */
static const uint8_t *sector_at(const Log *log, uint64_t at)
{
    return log->bytes + at % log->length;
}

static uint64_t sequence_of(const uint8_t *entry)
{
    return le64_get(entry + ENTRY_SEQUENCE);
}

/* Sectors that the header and @count descriptors take (2.3.1). */
static uint64_t descriptor_sectors(uint32_t count)
{
    return (FIRST_DESCRIPTOR + (uint64_t)count * DESCRIPTOR_BYTES + SECTOR - 1) / SECTOR;
}

static const uint8_t *descriptor_at(const Log *log, uint32_t entry, uint32_t i)
{
    uint64_t at = FIRST_DESCRIPTOR + (uint64_t)i * DESCRIPTOR_BYTES;
    return sector_at(log, entry + align_down(at, SECTOR)) + at % SECTOR;
}

static bool checksum_right(Log *log, uint32_t at, uint32_t length)
{
    static const uint8_t none[4];
    const uint8_t *entry = sector_at(log, at);
    log->budget -= MIN(log->budget, length);
    uint32_t crc = crc32c(crc32c(0, entry, ENTRY_CHECKSUM), none, 4);
    crc = crc32c(crc, entry + ENTRY_LENGTH, SECTOR - ENTRY_LENGTH);
    for (uint32_t done = SECTOR; done < length; done += SECTOR)
        crc = crc32c(crc, sector_at(log, (uint64_t)at + done), SECTOR);
    return crc == le32_get(entry + ENTRY_CHECKSUM);
}

static bool descriptors_valid(const Log *log, uint32_t at)
{
    const uint8_t *entry = sector_at(log, at);
    uint32_t count = le32_get(entry + ENTRY_DESCRIPTORS), length = le32_get(entry + ENTRY_LENGTH);
    uint64_t sequence = sequence_of(entry), data = descriptor_sectors(count);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *d = descriptor_at(log, at, i);
        if (le64_get(d + 24) != sequence || le64_get(d + 16) % SECTOR)
            return false;
        if (!memcmp(d, "zero", 4)) {
            if (le64_get(d + 8) % SECTOR)
                return false;
            continue;
        }
        const uint8_t *sector = sector_at(log, at + data * SECTOR);
        data++;
        if (memcmp(d, "desc", 4) || data * SECTOR > length || memcmp(sector, "data", 4) ||
            le32_get(sector + 4) != sequence >> 32 ||
            le32_get(sector + SECTOR - 4) != (uint32_t)sequence)
            return false;
    }
    return true;
}

static bool entry_valid(Log *log, uint32_t at)
{
    const uint8_t *entry = sector_at(log, at);
    uint32_t length = le32_get(entry + ENTRY_LENGTH);
    return !memcmp(entry, "loge", 4) && length >= SECTOR && length % SECTOR == 0 &&
           length <= log->length && sequence_of(entry) != 0 &&
           !memcmp(entry + ENTRY_GUID, log->guid, 16) &&
           descriptor_sectors(le32_get(entry + ENTRY_DESCRIPTORS)) * SECTOR <= length &&
           checksum_right(log, at, length) && descriptors_valid(log, at);
}

/* Entries with consecutive numbers, one behind the other. */
typedef struct Sequence {
    uint32_t first, last;
    uint64_t number, bytes; /* of the last; of all together. 0: there is none */
    bool whole;             /* it holds all that its last entry says is needed */
} Sequence;

/* The sequence that begins at @first (2.3.2). */
static Sequence follow(Log *log, uint32_t first)
{
    Sequence s = {.first = first};
    uint32_t at = first;
    while (s.bytes < log->length && entry_valid(log, at)) {
        const uint8_t *entry = sector_at(log, at);
        if (s.bytes && sequence_of(entry) != s.number + 1)
            break;
        s.number = sequence_of(entry);
        s.last = at;
        s.bytes += le32_get(entry + ENTRY_LENGTH);
        at = (uint32_t)(((uint64_t)at + le32_get(entry + ENTRY_LENGTH)) % log->length);
    }
    if (!s.bytes)
        return s;
    uint32_t tail = le32_get(sector_at(log, s.last) + ENTRY_TAIL);
    for (uint64_t done = 0; done < s.bytes && !s.whole;) {
        at = (uint32_t)((s.first + done) % log->length);
        done += le32_get(sector_at(log, at) + ENTRY_LENGTH);
        s.whole = at == tail;
    }
    if (s.whole) {
        s.bytes -= ((uint64_t)tail + log->length - s.first) % log->length;
        s.first = tail;
    }
    return s;
}

/* The active one: whole, with the highest number. */
static Sequence find_active(Log *log)
{
    Sequence active = {0};
    uint64_t at = 0;
    while (at < log->length && log->budget > 0) {
        Sequence s = follow(log, (uint32_t)at);
        if (s.whole && (!active.bytes || s.number > active.number))
            active = s;
        at += s.bytes && s.whole ? s.bytes + (s.first + (uint64_t)log->length - at) % log->length
                                 : SECTOR;
    }
    return active;
}

/* Does what one entry says; *end: how long the file must be at least. */
static int apply(BlockNode *node, const Log *log, uint32_t at)
{
    const uint8_t *entry = sector_at(log, at);
    uint32_t count = le32_get(entry + ENTRY_DESCRIPTORS);
    uint64_t data = descriptor_sectors(count), size, end = le64_get(entry + ENTRY_LAST_END);
    int result = node->file->ops->size(node->file, &size);
    /* A file that is shorter than it was when the entry was written has been cut. */
    if (result == 0 && (le64_get(entry + ENTRY_FLUSHED_END) > size || end > INT64_MAX))
        result = -EINVAL;
    if (result == 0 && end > size)
        result = node->file->ops->truncate(node->file, align_up(end, VHDX_ALIGNMENT));
    for (uint32_t i = 0; i < count && result == 0; i++) {
        const uint8_t *d = descriptor_at(log, at, i);
        uint64_t place = le64_get(d + 16), length = le64_get(d + 8);
        if (!memcmp(d, "zero", 4)) {
            if (!range_within(place, length, MAX(align_up(end, VHDX_ALIGNMENT), size)))
                result = -EINVAL;
            else if (length)
                result = node->file->ops->zero(node->file, place, length, true);
            continue;
        }
        uint8_t sector[SECTOR];
        memcpy(sector, sector_at(log, at + data * SECTOR), SECTOR);
        data++;
        memcpy(sector, d + 8, 8);
        memcpy(sector + SECTOR - 4, d + 4, 4);
        result = place > INT64_MAX - SECTOR ? -EINVAL
                                            : block_file_write(node->file, place, sector, SECTOR);
    }
    return result;
}

static bool apply_all(BlockNode *node, const Log *log, const Sequence *s, GError **err)
{
    static const uint8_t none[16];
    Vhdx *v = vhdx_of(node);
    int result = 0;
    for (uint64_t done = 0; done < s->bytes && result == 0;) {
        uint32_t at = (uint32_t)((s->first + done) % log->length);
        result = apply(node, log, at);
        done += le32_get(sector_at(log, at) + ENTRY_LENGTH);
    }
    if (result == 0)
        result = block_node_sync(node);
    if (result == 0)
        result = vhdx_write_headers(v, none, false);
    v->replayed = result == 0;
    return result == 0 ||
           lodge_fail_errno(err, -result, "%s: cannot replay its VHDX log", node->path);
}

bool vhdx_replay(BlockNode *node, GError **err)
{
    Vhdx *v = vhdx_of(node);
    uint64_t size;
    if (vhdx_guid_none(v->header + VHDX_HEADER_LOG_GUID) || v->log_length == 0)
        return true;
    int result = node->file->ops->size(node->file, &size);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot find its size", node->path);
    if (v->log_length > VHDX_LOG_REPLAY_MAX || !range_within(v->log_offset, v->log_length, size))
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: a VHDX log of %u bytes to be replayed; it must be within the file "
                          "and at most 256 MiB",
                          node->path, v->log_length);
    g_autofree uint8_t *bytes = g_try_malloc(v->log_length);
    if (!bytes)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its log", node->path);
    result = block_file_read(node->file, v->log_offset, bytes, v->log_length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read its log", node->path);
    uint8_t guid[16];
    memcpy(guid, v->header + VHDX_HEADER_LOG_GUID, 16);
    Log log = {
        .bytes = bytes, .guid = guid, .length = v->log_length, .budget = 8ull * v->log_length};
    Sequence active = find_active(&log);
    if (log.budget == 0)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "%s: its VHDX log has entries within entries",
                          node->path);
    if (!active.bytes)
        return true;
    if (node->read_only)
        return lodge_fail(err, LODGE_ERROR_DENIED,
                          "VHDX image file '%s' opened read-only, but contains a log that needs to "
                          "be replayed\nTo replay the log, run:\nqemu-img check -r all '%s'",
                          node->path, node->path);
    return apply_all(node, &log, &active, err);
}

/* ---- writing */

int vhdx_begin_writing(BlockNode *node)
{
    Vhdx *v = vhdx_of(node);
    uint8_t guid[16];
    int result = 0;
    g_mutex_lock(&v->map.change);
    if (!g_atomic_int_get(&v->writing)) {
        result = vhdx_guid_new(guid) ? vhdx_write_headers(v, guid, true) : -EIO;
        v->log_at = 0;
        if (result == 0)
            g_atomic_int_set(&v->writing, 1);
    }
    g_mutex_unlock(&v->map.change);
    return result;
}

void vhdx_end_writing(BlockNode *node)
{
    static const uint8_t none[16];
    Vhdx *v = vhdx_of(node);
    if (g_atomic_int_get(&v->writing) && blockmap_flush(&v->map) == 0 && block_node_sync(node) == 0)
        vhdx_write_headers(v, none, false);
}

/* The sector @number of the table as it shall be: entries for sector bitmaps stay as they are. */
static int make_sector(Vhdx *v, uint64_t number, uint8_t *sector)
{
    const BlockMap *m = &v->map;
    int result = block_file_read(m->node->file, v->bat_at + number * SECTOR, sector, SECTOR);
    for (uint64_t i = 0; i < SECTOR / 8 && result == 0; i++) {
        uint64_t raw = number * (SECTOR / 8) + i, within = raw % (v->chunk + 1);
        uint64_t index = raw / (v->chunk + 1) * v->chunk + within;
        if (within == v->chunk || index >= m->blocks || m->table[index] >= VHDX_BAD)
            continue;
        le64_put(sector + i * 8, (uint64_t)m->table[index] << VHDX_PLACE_SHIFT | VHDX_PRESENT);
    }
    return result;
}

/* Makes and writes the log entry for @count sectors of the table. */
static int write_entry(Vhdx *v, const uint64_t *sectors, uint32_t count, uint8_t *entry)
{
    BlockFile *file = v->map.node->file;
    uint32_t length = (1 + count) * SECTOR;
    uint64_t size;
    int result = file->ops->size(file, &size);
    memset(entry, 0, SECTOR);
    memcpy(entry, "loge", 4);
    le32_put(entry + ENTRY_LENGTH, length);
    le32_put(entry + ENTRY_TAIL, v->log_at);
    le64_put(entry + ENTRY_SEQUENCE, v->log_sequence);
    le32_put(entry + ENTRY_DESCRIPTORS, count);
    memcpy(entry + ENTRY_GUID, v->header + VHDX_HEADER_LOG_GUID, 16);
    le64_put(entry + ENTRY_FLUSHED_END, result == 0 ? size : 0);
    le64_put(entry + ENTRY_LAST_END, result == 0 ? size : 0);
    for (uint32_t i = 0; i < count && result == 0; i++) {
        uint8_t *d = entry + FIRST_DESCRIPTOR + i * DESCRIPTOR_BYTES;
        uint8_t *data = entry + (size_t)(1 + i) * SECTOR;
        result = make_sector(v, sectors[i], data);
        memcpy(d, "desc", 4);
        memcpy(d + 4, data + SECTOR - 4, 4);
        memcpy(d + 8, data, 8);
        le64_put(d + 16, v->bat_at + sectors[i] * SECTOR);
        le64_put(d + 24, v->log_sequence);
        memcpy(data, "data", 4);
        le32_put(data + 4, (uint32_t)(v->log_sequence >> 32));
        le32_put(data + SECTOR - 4, (uint32_t)v->log_sequence);
    }
    vhdx_seal(entry, length, ENTRY_CHECKSUM);
    return result == 0 ? block_file_write(file, v->log_offset + v->log_at, entry, length) : result;
}

static int write_sectors(Vhdx *v, const uint64_t *sectors, uint32_t count, uint8_t *entry)
{
    BlockNode *node = v->map.node;
    uint32_t length = (1 + count) * SECTOR;
    uint8_t guid[16];
    int result = 0;
    if (v->log_length - v->log_at < length) {
        result = vhdx_guid_new(guid) ? vhdx_write_headers(v, guid, false) : -EIO;
        if (result == 0)
            v->log_at = 0;
    }
    if (result == 0)
        result = write_entry(v, sectors, count, entry);
    if (result == 0)
        result = block_node_sync(node);
    if (result < 0)
        return result;
    v->log_at += length;
    v->log_sequence++;
    for (uint32_t i = 0; i < count && result == 0; i++) { /* the entry's memory serves again */
        result = make_sector(v, sectors[i], entry);
        if (result == 0)
            result = block_file_write(node->file, v->bat_at + sectors[i] * SECTOR, entry, SECTOR);
    }
    return result;
}

/* The sectors of the table that piece @piece lies in. */
static void sectors_of(const Vhdx *v, uint64_t piece, uint64_t *from, uint64_t *to)
{
    uint64_t first = piece * BLOCKMAP_PIECE;
    uint64_t last = MIN(first + BLOCKMAP_PIECE, v->map.blocks) - 1;
    *from = (first + first / v->chunk) * 8 / SECTOR;
    *to = (last + last / v->chunk) * 8 / SECTOR;
}

int vhdx_write_table(BlockMap *m)
{
    Vhdx *v = m->node->state;
    uint64_t sectors[DATA_MAX], pieces = blockmap_pieces(m), done = 0, i = 0;
    g_autofree uint8_t *entry = g_try_malloc((DATA_MAX + 1) * SECTOR);
    int result = entry ? 0 : -ENOMEM;
    while (result == 0 && i < pieces) {
        uint32_t count = 0;
        for (; i < pieces; i++) {
            uint64_t from, to;
            if (!m->dirty[i])
                continue;
            sectors_of(v, i, &from, &to);
            if (count && sectors[count - 1] >= from)
                from = sectors[count - 1] + 1;
            if (count + 2 > DATA_MAX)
                break;
            for (; from <= to; from++)
                sectors[count++] = from;
        }
        if (count && done) /* what the entry before this one changed, before it is overtaken */
            result = block_node_sync(m->node);
        if (result == 0 && count)
            result = write_sectors(v, sectors, count, entry);
        done += count;
    }
    if (result == 0)
        memset(m->dirty, 0, pieces);
    return result;
}
