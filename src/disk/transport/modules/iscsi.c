/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A logical unit of an iSCSI target, with libiscsi. A session of the library is for one thread, so
 * that there are several, each a connection with one command at a time; a thread takes one.
 */
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/transport/module.h"

#define SESSIONS_MAX 8u
#define PIECE        ((uint64_t)MIB(1)) /* of one command */
#define ZERO_BLOCKS  32768u             /* of one WRITE SAME or UNMAP */
#define BLOCK_MAX    4096u
#define ATTEMPTS     5u /* of a command that the unit was not ready for */

typedef struct Session Session;
struct Session {
    Session *next;
    struct iscsi_context *context;
    uint8_t *piece;
};

typedef struct Unit {
    BlockFile file; /* first */
    char *portal, *target, *user, *password, *initiator;
    enum iscsi_header_digest digest;
    int lun, timeout_s;
    uint64_t blocks;
    unsigned block; /* bytes */
    bool unmap, unmap_by_write_same;
    int no_write_same; /* atomic: the unit refused */
    GMutex lock;       /* of all below */
    GCond given;
    Session *idle;
    unsigned n_sessions;
} Unit;

/* ---- sessions */

static void session_free(Session *s)
{
    if (s->context) {
        iscsi_logout_sync(s->context);
        iscsi_destroy_context(s->context);
    }
    g_free(s->piece);
    g_free(s);
}

static bool log_in(const Unit *u, struct iscsi_context *context)
{
    iscsi_set_timeout(context, u->timeout_s);
    return iscsi_set_targetname(context, u->target) == 0 &&
           iscsi_set_session_type(context, ISCSI_SESSION_NORMAL) == 0 &&
           iscsi_set_header_digest(context, u->digest) == 0 &&
           (!u->user || iscsi_set_initiator_username_pwd(context, u->user,
                                                         u->password ? u->password : "") == 0) &&
           iscsi_full_connect_sync(context, u->portal, u->lun) == 0;
}

static Session *session_new(const Unit *u, GError **err)
{
    Session *s = g_new0(Session, 1);
    s->context = iscsi_create_context(u->initiator);
    s->piece = g_try_malloc(PIECE);
    if (s->context && s->piece && log_in(u, s->context))
        return s;
    lodge_fail(err, LODGE_ERROR_IO, "iSCSI: Failed to connect to LUN : %s",
               s->context ? iscsi_get_error(s->context) : "no memory");
    session_free(s);
    return NULL;
}

static Session *take(Unit *u)
{
    g_mutex_lock(&u->lock);
    while (!u->idle && u->n_sessions >= SESSIONS_MAX)
        g_cond_wait(&u->given, &u->lock);
    Session *s = u->idle;
    if (s)
        u->idle = s->next;
    else
        u->n_sessions++;
    g_mutex_unlock(&u->lock);
    if (s)
        return s;
    s = session_new(u, NULL);
    if (!s) { /* the target allows no more: wait for one that there is */
        g_mutex_lock(&u->lock);
        u->n_sessions--;
        while (!u->idle && u->n_sessions > 0)
            g_cond_wait(&u->given, &u->lock);
        s = u->idle;
        if (s)
            u->idle = s->next;
        g_mutex_unlock(&u->lock);
    }
    return s;
}

static void give(Unit *u, Session *s)
{
    g_mutex_lock(&u->lock);
    s->next = u->idle;
    u->idle = s;
    g_cond_signal(&u->given);
    g_mutex_unlock(&u->lock);
}

/* ---- commands */

/* 0 or -errno; -EAGAIN: it may be tried again. */
static int result_of(const struct scsi_task *task)
{
    if (!task || (task->status != SCSI_STATUS_GOOD && task->status == SCSI_STATUS_TIMEOUT))
        return task ? -ETIMEDOUT : -EIO;
    switch (task->status) {
    case SCSI_STATUS_GOOD:
        return 0;
    case SCSI_STATUS_BUSY:
    case SCSI_STATUS_TASK_SET_FULL:
        return -EAGAIN;
    case SCSI_STATUS_RESERVATION_CONFLICT:
        return -EBUSY;
    case SCSI_STATUS_CHECK_CONDITION:
        break;
    default:
        return -EIO;
    }
    switch (task->sense.key) {
    case SCSI_SENSE_UNIT_ATTENTION:
        return -EAGAIN;
    case SCSI_SENSE_DATA_PROTECTION:
        return task->sense.ascq == SCSI_SENSE_ASCQ_WRITE_PROTECTED ? -EROFS : -ENOSPC;
    case SCSI_SENSE_ILLEGAL_REQUEST:
        return task->sense.ascq == SCSI_SENSE_ASCQ_LBA_OUT_OF_RANGE ? -EINVAL : -ENOTSUP;
    default:
        return -EIO;
    }
}

typedef enum Verb { UNIT_READ, UNIT_WRITE, UNIT_SAME, UNIT_SAME_UNMAP, UNIT_UNMAP, UNIT_SYNC } Verb;

static struct scsi_task *send(const Unit *u, Session *s, Verb verb, uint64_t lba, uint32_t count)
{
    struct unmap_list list = {.lba = lba, .num = count};
    uint32_t bytes = count * u->block;
    int size = (int)u->block;
    switch (verb) {
    case UNIT_READ:
        return iscsi_read16_sync(s->context, u->lun, lba, bytes, size, 0, 0, 0, 0, 0);
    case UNIT_WRITE:
        return iscsi_write16_sync(s->context, u->lun, lba, s->piece, bytes, size, 0, 0, 0, 0, 0);
    case UNIT_SAME:
    case UNIT_SAME_UNMAP:
        memset(s->piece, 0, u->block);
        return iscsi_writesame16_sync(s->context, u->lun, lba, s->piece, u->block, count, 0,
                                      verb == UNIT_SAME_UNMAP, 0, 0);
    case UNIT_UNMAP:
        return iscsi_unmap_sync(s->context, u->lun, 0, 0, &list, 1);
    case UNIT_SYNC:
        return iscsi_synchronizecache16_sync(s->context, u->lun, 0, 0, 0, 0);
    }
    return NULL;
}

/* Reads and writes: from or to s->piece. */
static int command(const Unit *u, Session *s, Verb verb, uint64_t lba, uint32_t count)
{
    int result = -EAGAIN;
    for (unsigned attempt = 0; attempt < ATTEMPTS && result == -EAGAIN; attempt++) {
        if (attempt > 0)
            g_usleep((10u << attempt) * 1000u);
        struct scsi_task *task = send(u, s, verb, lba, count);
        result = result_of(task);
        if (result == 0 && verb == UNIT_READ) {
            if ((uint32_t)task->datain.size < count * u->block)
                result = -EIO;
            else
                memcpy(s->piece, task->datain.data, (size_t)count * u->block);
        }
        if (task)
            scsi_free_scsi_task(task);
    }
    return result == -EAGAIN ? -EBUSY : result;
}

/* ---- bytes; a command has whole blocks */

static Unit *unit_of(BlockFile *file)
{
    return (Unit *)file;
}

static uint64_t size_of(const Unit *u)
{
    return u->blocks * u->block;
}

/* The blocks that hold [offset, offset + length), which a piece has room for. */
static void cover(const Unit *u, uint64_t offset, uint64_t length, uint64_t *lba, uint32_t *count,
                  uint64_t *within)
{
    *lba = offset / u->block;
    *within = offset % u->block;
    *count = (uint32_t)((*within + length + u->block - 1) / u->block);
}

/* How much of @left one command takes at @offset. */
static uint64_t step_at(const Unit *u, uint64_t offset, uint64_t left)
{
    return MIN(left, PIECE - offset % u->block);
}

static int iscsi_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    Unit *u = unit_of(file);
    uint64_t length = block_iov_length(iov, n), size = size_of(u);
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    block_iov_zero(iov, n, inside, length - inside);
    Session *s = inside ? take(u) : NULL;
    int result = inside && !s ? -EIO : 0;
    for (uint64_t done = 0, step; done < inside && result == 0; done += step) {
        uint64_t lba, within;
        uint32_t count;
        step = step_at(u, offset + done, inside - done);
        cover(u, offset + done, step, &lba, &count, &within);
        result = command(u, s, UNIT_READ, lba, count);
        if (result == 0)
            block_iov_from(iov, n, done, s->piece + within, step);
    }
    if (s)
        give(u, s);
    return result;
}

/* One command; blocks that are written in part are read first, while nobody else does that. */
static int write_piece(Unit *u, Session *s, uint64_t offset, const struct iovec *iov, int n,
                       uint64_t skip, uint64_t length)
{
    uint64_t lba, within;
    uint32_t count;
    cover(u, offset, length, &lba, &count, &within);
    bool whole = within == 0 && length % u->block == 0;
    if (!whole)
        g_mutex_lock(&u->file.rmw);
    int result = whole ? 0 : command(u, s, UNIT_READ, lba, count);
    if (result == 0) {
        if (iov)
            block_iov_to(s->piece + within, iov, n, skip, length);
        else
            memset(s->piece + within, 0, length);
        result = command(u, s, UNIT_WRITE, lba, count);
    }
    if (!whole)
        g_mutex_unlock(&u->file.rmw);
    return result;
}

static int may_write(const Unit *u, uint64_t offset, uint64_t length)
{
    if (u->file.read_only)
        return -EROFS;
    return range_within(offset, length, size_of(u)) ? 0 : -ENOSPC;
}

/* @iov NULL: zeroes. */
static int write_all(Unit *u, Session *s, uint64_t offset, const struct iovec *iov, int n,
                     uint64_t length)
{
    int result = 0;
    for (uint64_t done = 0, step; done < length && result == 0; done += step) {
        step = step_at(u, offset + done, length - done);
        if (step > u->block && (offset + done + step) % u->block) /* the last part alone */
            step -= (offset + done + step) % u->block;
        result = write_piece(u, s, offset + done, iov, n, done, step);
    }
    return result;
}

static int iscsi_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    Unit *u = unit_of(file);
    uint64_t length = block_iov_length(iov, n);
    int result = may_write(u, offset, length);
    if (result < 0 || length == 0)
        return result;
    Session *s = take(u);
    if (!s)
        return -EIO;
    result = write_all(u, s, offset, iov, n, length);
    give(u, s);
    return result;
}

/* The same command for many blocks, in turns. */
static int many(const Unit *u, Session *s, Verb verb, uint64_t lba, uint64_t count)
{
    int result = 0;
    for (uint64_t done = 0, step; done < count && result == 0; done += step) {
        step = MIN(count - done, ZERO_BLOCKS);
        result = command(u, s, verb, lba + done, (uint32_t)step);
    }
    return result;
}

static int iscsi_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    Unit *u = unit_of(file);
    int result = may_write(u, offset, length);
    if (result < 0 || length == 0)
        return result;
    Session *s = take(u);
    if (!s)
        return -EIO;
    bool whole = (offset | length) % u->block == 0;
    result = -ENOTSUP;
    if (whole && !g_atomic_int_get(&u->no_write_same)) {
        Verb verb = unmap && u->unmap_by_write_same ? UNIT_SAME_UNMAP : UNIT_SAME;
        result = many(u, s, verb, offset / u->block, length / u->block);
        if (result == -ENOTSUP)
            g_atomic_int_set(&u->no_write_same, 1);
    }
    if (result == -ENOTSUP)
        result = write_all(u, s, offset, NULL, 0, length);
    give(u, s);
    return result;
}

/* A hint: the blocks that are whole in the range. */
static int iscsi_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    Unit *u = unit_of(file);
    if (u->file.read_only)
        return -EROFS;
    uint64_t end = MIN(offset + length, size_of(u)) / u->block;
    uint64_t start = (offset + u->block - 1) / u->block;
    Session *s = u->unmap && start < end ? take(u) : NULL;
    if (!s)
        return 0;
    int result = many(u, s, UNIT_UNMAP, start, end - start);
    give(u, s);
    return result == -ENOTSUP ? 0 : result;
}

static int iscsi_flush(BlockFile *file)
{
    Unit *u = unit_of(file);
    Session *s = take(u);
    if (!s)
        return -EIO;
    int result = command(u, s, UNIT_SYNC, 0, 0);
    give(u, s);
    return result == -ENOTSUP ? 0 : result; /* no cache, no command for it */
}

static int iscsi_truncate(BlockFile *file, uint64_t size)
{
    return size <= size_of(unit_of(file)) ? 0 : -ENOSPC;
}

static int iscsi_size(BlockFile *file, uint64_t *size)
{
    *size = size_of(unit_of(file));
    return 0;
}

static void iscsi_close(BlockFile *file)
{
    Unit *u = unit_of(file);
    while (u->idle) {
        Session *s = u->idle;
        u->idle = s->next;
        session_free(s);
    }
    if (u->password)
        explicit_bzero(u->password, strlen(u->password));
    g_free(u->password);
    g_free(u->portal);
    g_free(u->target);
    g_free(u->user);
    g_free(u->initiator);
    g_mutex_clear(&u->lock);
    g_cond_clear(&u->given);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(u);
}

static const BlockFileOps iscsi_ops = {
    .name = "iscsi",
    .readv = iscsi_readv,
    .writev = iscsi_writev,
    .zero = iscsi_zero,
    .discard = iscsi_discard,
    .flush = iscsi_flush,
    .truncate = iscsi_truncate,
    .size = iscsi_size,
    .close = iscsi_close,
};

/* ---- open */

static bool choose_digest(Unit *u, const char *name, GError **err)
{
    static const struct {
        const char *name;
        enum iscsi_header_digest digest;
    } digests[] = {
        {"crc32c", ISCSI_HEADER_DIGEST_CRC32C},
        {"none", ISCSI_HEADER_DIGEST_NONE},
        {"crc32c-none", ISCSI_HEADER_DIGEST_CRC32C_NONE},
        {"none-crc32c", ISCSI_HEADER_DIGEST_NONE_CRC32C},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(digests); i++) {
        if (!g_ascii_strcasecmp(digests[i].name, name)) {
            u->digest = digests[i].digest;
            return true;
        }
    }
    return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid header-digest setting : %s", name);
}

static bool read_options(Unit *u, const BlockModuleOpen *how, GError **err)
{
    const json_t *o = how->options;
    const BlockOption *t = how->table;
    uint64_t lun = 0, timeout = 0;
    const char *transport = block_option_string(o, t, "transport");
    if (strcmp(transport, "tcp"))
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown transport: %s; \"tcp\" is supported",
                          transport);
    u->portal = g_strdup(block_option_string(o, NULL, "portal"));
    u->target = g_strdup(block_option_string(o, NULL, "target"));
    u->user = g_strdup(block_option_string(o, NULL, "user"));
    u->initiator = g_strdup(block_option_string(o, t, "initiator-name"));
    if (!u->portal || !u->target)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Need all of transport, portal and target options");
    if (!choose_digest(u, block_option_string(o, t, "header-digest"), err) ||
        !block_option_number(o, t, "lun", &lun, err) ||
        !block_option_number(o, t, "timeout", &timeout, err) ||
        !how->secret(how, "password-secret", &u->password, err))
        return false;
    if (lun > 0x3fff || timeout > 86400)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "lun %" G_GUINT64_FORMAT ", timeout %" G_GUINT64_FORMAT
                          ": at most 16383 and 86400", lun, timeout);
    const char *password = block_option_string(o, NULL, "password");
    if (password && !u->password)
        u->password = g_strdup(password);
    u->lun = (int)lun;
    u->timeout_s = (int)timeout;
    return true;
}

static bool find_capacity(Unit *u, Session *s, GError **err)
{
    struct scsi_task *task = NULL;
    int result = -EAGAIN;
    for (unsigned attempt = 0; attempt < ATTEMPTS && result == -EAGAIN; attempt++) {
        if (task)
            scsi_free_scsi_task(task);
        task = iscsi_readcapacity16_sync(s->context, u->lun);
        result = result_of(task);
    }
    const struct scsi_readcapacity16 *c = result == 0 ? scsi_datain_unmarshall(task) : NULL;
    if (c) {
        u->blocks = c->returned_lba + 1;
        u->block = c->block_length;
        u->unmap = c->lbpme;
    }
    if (task)
        scsi_free_scsi_task(task);
    if (!c)
        return lodge_fail(err, LODGE_ERROR_IO, "iSCSI: failed to send readcapacity16 command: %s",
                          iscsi_get_error(s->context));
    if (u->block < 512 || u->block > BLOCK_MAX || (u->block & (u->block - 1)) ||
        u->blocks > INT64_MAX / u->block)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "iSCSI: %" G_GUINT64_FORMAT " blocks of %u bytes are not supported",
                          u->blocks, u->block);
    return true;
}

/* The page about provisioning (VPD 0xb2) is there when the unit unmaps. */
static void find_provisioning(Unit *u, Session *s)
{
    struct scsi_task *task =
        u->unmap ? iscsi_inquiry_sync(s->context, u->lun, 1,
                                      SCSI_INQUIRY_PAGECODE_LOGICAL_BLOCK_PROVISIONING, 255)
                 : NULL;
    const struct scsi_inquiry_logical_block_provisioning *page =
        task && task->status == SCSI_STATUS_GOOD ? scsi_datain_unmarshall(task) : NULL;
    u->unmap_by_write_same = page && page->lbpws && page->lbprz;
    u->unmap = page && page->lbpu;
    if (task)
        scsi_free_scsi_task(task);
}

static BlockFile *iscsi_open(const BlockModuleOpen *how, GError **err)
{
    Unit *u = g_new0(Unit, 1);
    u->file = (BlockFile){.ops = &iscsi_ops, .fd = -1, .read_only = how->read_only,
                          .alignment = 1, .block_device = true};
    g_mutex_init(&u->file.rmw);
    g_mutex_init(&u->lock);
    g_cond_init(&u->given);
    Session *s = read_options(u, how, err) ? session_new(u, err) : NULL;
    if (s) {
        u->n_sessions = 1;
        u->idle = s;
        u->file.path = g_strdup_printf("iscsi://%s/%s/%d", u->portal, u->target, u->lun);
        if (find_capacity(u, s, err)) {
            find_provisioning(u, s);
            return &u->file;
        }
    }
    iscsi_close(&u->file);
    return NULL;
}

__attribute__((visibility("default"))) extern const BlockModule lodge_disk_module;
const BlockModule lodge_disk_module = {
    .version = LODGE_VERSION, .open_size = sizeof(BlockModuleOpen), .open = iscsi_open};
