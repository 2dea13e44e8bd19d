/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file on an NFS server (version 3), with libnfs. A context of the library is for one thread, so that there
 * are several, each with the file open; a thread takes one.
 */
#include <sys/time.h> /* which libnfs.h forgets */

#include <nfsc/libnfs.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/transport/module.h"

#define SESSIONS_MAX 8u
#define PIECE        ((size_t)KIB(256)) /* of one call */

typedef struct Session Session;
struct Session {
    Session *next;
    struct nfs_context *context;
    struct nfsfh *file;
    uint8_t *piece;
};

typedef struct Nfs {
    BlockFile file; /* first */
    char *host, *folder, *name;
    bool has_user, has_group;
    uint64_t user, group, syn_count, readahead, debug;
    GMutex lock; /* of all below */
    GCond given;
    Session *idle;
    unsigned n_sessions;
} Nfs;

/* ---- sessions */

static void session_free(Session *s)
{
    if (s->file)
        nfs_close(s->context, s->file);
    if (s->context)
        nfs_destroy_context(s->context);
    g_free(s->piece);
    g_free(s);
}

static bool nfs_failed(GError **err, const Session *s, int result, const char *what)
{
    const char *why = s->context ? nfs_get_error(s->context) : NULL;
    LodgeErrorCode code = result == -ENOENT   ? LODGE_ERROR_NOT_FOUND
                          : result == -EACCES ? LODGE_ERROR_DENIED
                                              : LODGE_ERROR_IO;
    return lodge_fail(err, code, "%s: %s", what, why ? why : g_strerror(result ? -result : EIO));
}

static void apply_options(const Nfs *f, Session *s)
{
    if (f->has_user)
        nfs_set_uid(s->context, (int)f->user);
    if (f->has_group)
        nfs_set_gid(s->context, (int)f->group);
    if (f->syn_count)
        nfs_set_tcp_syncnt(s->context, (int)f->syn_count);
    if (f->readahead)
        nfs_set_readahead(s->context, (uint32_t)f->readahead);
    if (f->debug)
        nfs_set_debug(s->context, (int)f->debug);
}

static bool connect_session(const Nfs *f, Session *s, bool create, GError **err)
{
    if (!s->context || !s->piece)
        return nfs_failed(err, s, -ENOMEM, "Failed to init NFS context");
    apply_options(f, s);
    int result = nfs_mount(s->context, f->host, f->folder);
    if (result < 0)
        return nfs_failed(err, s, result, "Failed to mount nfs share");
    int flags = f->file.read_only ? O_RDONLY : O_RDWR;
    result = create ? nfs_open2(s->context, f->name, O_RDWR | O_CREAT | O_TRUNC, 0644, &s->file)
                    : nfs_open(s->context, f->name, flags, &s->file);
    return result == 0 || nfs_failed(err, s, result,
                                     create ? "Failed to create file" : "Failed to open file");
}

static Session *session_new(const Nfs *f, bool create, GError **err)
{
    Session *s = g_new0(Session, 1);
    s->context = nfs_init_context();
    s->piece = g_try_malloc(PIECE);
    if (connect_session(f, s, create, err))
        return s;
    session_free(s);
    return NULL;
}

/* The first idle one; NULL when there is none and there shall be none. With the lock held. */
static Session *take_idle(Nfs *f, unsigned at_least)
{
    while (!f->idle && f->n_sessions >= at_least)
        g_cond_wait(&f->given, &f->lock);
    Session *s = f->idle;
    if (s)
        f->idle = s->next;
    return s;
}

static Session *take(Nfs *f)
{
    g_mutex_lock(&f->lock);
    Session *s = take_idle(f, SESSIONS_MAX);
    f->n_sessions += !s;
    g_mutex_unlock(&f->lock);
    if (s)
        return s;
    s = session_new(f, false, NULL);
    if (s)
        return s;
    g_mutex_lock(&f->lock); /* the server allows no more: wait for one that there is */
    f->n_sessions--;
    s = take_idle(f, 1);
    g_mutex_unlock(&f->lock);
    return s;
}

static void give(Nfs *f, Session *s)
{
    g_mutex_lock(&f->lock);
    s->next = f->idle;
    f->idle = s;
    g_cond_signal(&f->given);
    g_mutex_unlock(&f->lock);
}

/* ---- bytes */

static Nfs *nfs_of(BlockFile *file)
{
    return (Nfs *)file;
}

/* Up to the file's end; what is behind reads as zero. */
static int read_piece(Session *s, uint64_t offset, size_t length)
{
    for (size_t done = 0; done < length;) {
        int got = nfs_pread(s->context, s->file, offset + done, length - done, s->piece + done);
        if (got < 0)
            return got;
        if (got == 0) {
            memset(s->piece + done, 0, length - done);
            break;
        }
        done += (size_t)got;
    }
    return 0;
}

static int write_piece(Session *s, uint64_t offset, size_t length)
{
    for (size_t done = 0; done < length;) {
        int put = nfs_pwrite(s->context, s->file, offset + done, length - done, s->piece + done);
        if (put <= 0)
            return put < 0 ? put : -EIO;
        done += (size_t)put;
    }
    return 0;
}

/* @iov NULL: zeroes are written. */
static int transfer(BlockFile *file, bool write, uint64_t offset, const struct iovec *iov, int n,
                    uint64_t length)
{
    Nfs *f = nfs_of(file);
    if (write && file->read_only)
        return -EROFS;
    if (!range_within(offset, length, INT64_MAX))
        return -EFBIG;
    Session *s = take(f);
    if (!s)
        return -EIO;
    int result = 0;
    for (uint64_t done = 0, step; done < length && result == 0; done += step) {
        step = MIN(length - done, PIECE);
        if (write && iov)
            block_iov_to(s->piece, iov, n, done, step);
        else if (write)
            memset(s->piece, 0, step);
        result = write ? write_piece(s, offset + done, step) : read_piece(s, offset + done, step);
        if (!write && result == 0)
            block_iov_from(iov, n, done, s->piece, step);
    }
    give(f, s);
    return result;
}

static int nfs_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return transfer(file, false, offset, iov, n, block_iov_length(iov, n));
}

static int nfs_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return transfer(file, true, offset, iov, n, block_iov_length(iov, n));
}

typedef enum Verb { NFS_FLUSH, NFS_TRUNCATE, NFS_STAT } Verb;

static int call(BlockFile *file, Verb verb, uint64_t size, struct nfs_stat_64 *st)
{
    Nfs *f = nfs_of(file);
    Session *s = take(f);
    if (!s)
        return -EIO;
    /* COMMIT is about the file: it covers what other sessions wrote. RFC 1813 section 3.3.21. */
    int result = verb == NFS_FLUSH      ? nfs_fsync(s->context, s->file)
                 : verb == NFS_TRUNCATE ? nfs_ftruncate(s->context, s->file, size)
                                        : nfs_fstat64(s->context, s->file, st);
    give(f, s);
    return result;
}

static int nfs_size_of(BlockFile *file, uint64_t *size)
{
    struct nfs_stat_64 st;
    int result = call(file, NFS_STAT, 0, &st);
    if (result == 0)
        *size = st.nfs_size;
    return result;
}

/* Behind the end a longer file does it; there is no hole to be punched within. */
static int nfs_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    uint64_t size = 0;
    int result = nfs_size_of(file, &size);
    if (result < 0)
        return result;
    if (file->read_only)
        return -EROFS;
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    if (inside > 0)
        result = transfer(file, true, offset, NULL, 0, inside);
    if (result == 0 && inside < length)
        result = call(file, NFS_TRUNCATE, offset + length, NULL);
    return result;
}

static int nfs_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    return 0;
}

static int nfs_flush(BlockFile *file)
{
    return file->read_only ? 0 : call(file, NFS_FLUSH, 0, NULL);
}

static int nfs_truncate_to(BlockFile *file, uint64_t size)
{
    return file->read_only ? -EROFS : call(file, NFS_TRUNCATE, size, NULL);
}

static int nfs_allocated(BlockFile *file, uint64_t *bytes)
{
    struct nfs_stat_64 st;
    int result = call(file, NFS_STAT, 0, &st);
    if (result == 0)
        *bytes = st.nfs_used ? st.nfs_used : st.nfs_blocks * 512;
    return result;
}

static void nfs_close_file(BlockFile *file)
{
    Nfs *f = nfs_of(file);
    while (f->idle) {
        Session *s = f->idle;
        f->idle = s->next;
        session_free(s);
    }
    g_free(f->host);
    g_free(f->folder);
    g_free(f->name);
    g_mutex_clear(&f->lock);
    g_cond_clear(&f->given);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(f);
}

static const BlockFileOps nfs_ops = {
    .name = "nfs",
    .readv = nfs_readv,
    .writev = nfs_writev,
    .zero = nfs_zero,
    .discard = nfs_discard,
    .flush = nfs_flush,
    .truncate = nfs_truncate_to,
    .size = nfs_size_of,
    .allocated = nfs_allocated,
    .close = nfs_close_file,
};

/* ---- open */

static bool place(Nfs *f, const BlockModuleOpen *how, GError **err)
{
    const json_t *server = json_object_get(how->options, "server");
    const char *host = block_option_string(server, NULL, "host");
    const char *type = block_option_string(server, NULL, "type");
    const char *path = block_option_string(how->options, NULL, "path");
    const char *slash = path ? strrchr(path, '/') : NULL;
    if (!host || !path)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' is missing",
                          host ? "path" : "server.host");
    if (type && strcmp(type, "inet"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'server.type' does not accept value '%s'", type);
    if (!slash || !slash[1])
        return lodge_fail(err, LODGE_ERROR_INVALID, "Invalid path specified: %s", path);
    f->host = g_strdup(host);
    f->folder = slash == path ? g_strdup("/") : g_strndup(path, (gsize)(slash - path));
    f->name = g_strdup(slash);
    f->file.path = g_strdup_printf("nfs://%s%s%s", host, *path == '/' ? "" : "/", path);
    return true;
}

static bool read_options(Nfs *f, const BlockModuleOpen *how, GError **err)
{
    const json_t *o = how->options;
    if (!place(f, how, err) ||
        !block_option_number(o, NULL, "user", &f->user, err) ||
        !block_option_number(o, NULL, "group", &f->group, err) ||
        !block_option_number(o, NULL, "tcp-syn-count", &f->syn_count, err) ||
        !block_option_size(o, NULL, "readahead-size", &f->readahead, err) ||
        !block_option_number(o, NULL, "debug", &f->debug, err))
        return false;
    f->has_user = block_option_given(o, "user");
    f->has_group = block_option_given(o, "group");
    if (MAX(f->user, f->group) > INT32_MAX || f->syn_count > 127 || f->readahead > MIB(1) ||
        f->debug > 2)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "nfs: at most %d for user and group, 127 for tcp-syn-count, 1M for "
                          "readahead-size, 2 for debug",
                          INT32_MAX);
    if (f->readahead && !f->file.read_only)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "nfs: readahead-size is for images that are opened read-only");
    return true;
}

static BlockFile *nfs_open_file(const BlockModuleOpen *how, GError **err)
{
    Nfs *f = g_new0(Nfs, 1);
    f->file = (BlockFile){
        .ops = &nfs_ops, .fd = -1, .read_only = how->read_only && !how->create, .alignment = 1};
    g_mutex_init(&f->file.rmw);
    g_mutex_init(&f->lock);
    g_cond_init(&f->given);
    Session *s = read_options(f, how, err) ? session_new(f, how->create, err) : NULL;
    if (s) {
        f->n_sessions = 1;
        f->idle = s;
        int result = how->create ? nfs_truncate_to(&f->file, how->size) : 0;
        if (result == 0)
            return &f->file;
        lodge_fail_errno(err, -result, "%s: cannot set its size", f->file.path);
    }
    nfs_close_file(&f->file);
    return NULL;
}

__attribute__((visibility("default"))) extern const BlockModule lodge_disk_module;
const BlockModule lodge_disk_module = {
    .version = LODGE_VERSION, .open_size = sizeof(BlockModuleOpen), .open = nfs_open_file};
