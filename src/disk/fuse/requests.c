/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file system's requests. Either its root is the disk, or a folder with the disk as its only
 * file. Everything a user asks for is checked against the disk's size under the lock `resize`.
 */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/fuse/private.h"
#include "disk/node.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define ROOT    FUSE_ROOT_ID
#define FILE_ID (FUSE_ROOT_ID + 1)
/* Nobody else changes what is here. */
#define KEEP_SECONDS 3600.0
#define READ_MAX     MIB(1)
#define ALIGNMENT    4096u
#define BACKGROUND   64u

static DiskMount *mount_of(fuse_req_t request, const FuseLibrary **fuse)
{
    *fuse = fuse_library(NULL); /* loaded long ago */
    return (*fuse)->req_userdata(request);
}

static bool is_file(const DiskMount *m, fuse_ino_t inode)
{
    return inode == (m->folder ? FILE_ID : ROOT);
}

static void describe(DiskMount *m, fuse_ino_t inode, struct stat *st)
{
    uint64_t used = 0;
    g_mutex_lock(&m->lock);
    *st = m->attributes;
    g_mutex_unlock(&m->lock);
    st->st_ino = inode;
    if (!is_file(m, inode)) {
        /* Who may read the file may look for it. */
        st->st_mode = S_IFDIR | (st->st_mode & 0444) | (st->st_mode & 0444) >> 2;
        st->st_nlink = 2;
        return;
    }
    g_rw_lock_reader_lock(&m->resize);
    st->st_size = (off_t)block_size(m->node);
    const BlockFileOps *ops = m->node->file->ops;
    if (!ops->allocated || ops->allocated(m->node->file, &used) < 0)
        used = (uint64_t)st->st_size;
    g_rw_lock_reader_unlock(&m->resize);
    st->st_nlink = 1;
    st->st_blocks = (blkcnt_t)((used + 511) / 512);
    st->st_blksize = ALIGNMENT;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    /* The size changes by our own requests only, which the kernel knows of. */
    conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    /* An open that truncates asks for it first, by setattr: refusing that refuses the open. */
    conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
    conn->max_background = BACKGROUND;
    conn->congestion_threshold = BACKGROUND * 3 / 4;
    conn->max_readahead = MIN(conn->max_readahead, (unsigned)READ_MAX);
}

static void op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    struct fuse_entry_param entry = {
        .ino = FILE_ID, .attr_timeout = 0, .entry_timeout = KEEP_SECONDS};
    if (!m->folder || parent != ROOT || strcmp(name, m->name)) {
        fuse->reply_err(request, ENOENT);
        return;
    }
    describe(m, FILE_ID, &entry.attr);
    fuse->reply_entry(request, &entry);
}

static void op_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    struct stat st;
    describe(m, inode, &st);
    fuse->reply_attr(request, &st, 0);
}

/* ---- sizes */

static int errno_of(const GError *error)
{
    return error->code == LODGE_ERROR_UNSUPPORTED ? -EOPNOTSUPP
           : error->code == LODGE_ERROR_LIMIT     ? -EFBIG
                                                  : -EIO;
}

/* Within m->resize as its writer. Formats with sectors get whole ones. */
static int set_size(DiskMount *m, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    BlockResize resize = {.size = size, .shrink = true};
    if (size == block_size(m->node))
        return 0;
    if (m->read_only)
        return -EROFS;
    if (!m->growable)
        return -EPERM;
    if (strcmp(block_format(m->node), "raw") != 0)
        resize.size = align_up(size, 512);
    if (block_resize(m->node, &resize, &error))
        return 0;
    if (m->log)
        m->log(m->opaque, error->message);
    return errno_of(error);
}

/* Begins a request for [@offset, @offset + @length) as a reader; growing the disk where it may. */
static int begin_write(DiskMount *m, uint64_t offset, uint64_t length)
{
    if (m->read_only)
        return -EROFS;
    if (offset > INT64_MAX || length > INT64_MAX - offset)
        return -EFBIG;
    for (;;) {
        g_rw_lock_reader_lock(&m->resize);
        bool inside = offset + length <= block_size(m->node);
        if (inside)
            return 0;
        g_rw_lock_reader_unlock(&m->resize);
        if (!m->growable)
            return -ENOSPC;
        g_rw_lock_writer_lock(&m->resize);
        int result = offset + length <= block_size(m->node) ? 0 : set_size(m, offset + length);
        g_rw_lock_writer_unlock(&m->resize);
        if (result < 0)
            return result;
    }
}

static void touched(DiskMount *m)
{
    g_mutex_lock(&m->lock);
    clock_gettime(CLOCK_REALTIME, &m->attributes.st_mtim);
    m->attributes.st_ctim = m->attributes.st_mtim;
    g_mutex_unlock(&m->lock);
}

static void set_attributes(DiskMount *m, const struct stat *want, int what)
{
    g_mutex_lock(&m->lock);
    clock_gettime(CLOCK_REALTIME, &m->attributes.st_ctim);
    if (what & FUSE_SET_ATTR_MODE)
        m->attributes.st_mode = S_IFREG | (want->st_mode & 0777);
    if (what & FUSE_SET_ATTR_UID)
        m->attributes.st_uid = want->st_uid;
    if (what & FUSE_SET_ATTR_GID)
        m->attributes.st_gid = want->st_gid;
    if (what & FUSE_SET_ATTR_ATIME)
        m->attributes.st_atim =
            what & FUSE_SET_ATTR_ATIME_NOW ? m->attributes.st_ctim : want->st_atim;
    if (what & FUSE_SET_ATTR_MTIME)
        m->attributes.st_mtim =
            what & FUSE_SET_ATTR_MTIME_NOW ? m->attributes.st_ctim : want->st_mtim;
    g_mutex_unlock(&m->lock);
}

static void op_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *want, int what,
                       struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    struct stat st;
    int result = is_file(m, inode) ? 0 : -EPERM;
    if (result == 0 && what & FUSE_SET_ATTR_MODE && m->read_only && want->st_mode & 0222)
        result = -EROFS;
    if (result == 0 && what & FUSE_SET_ATTR_SIZE) {
        g_rw_lock_writer_lock(&m->resize);
        result = want->st_size < 0 ? -EINVAL : set_size(m, (uint64_t)want->st_size);
        g_rw_lock_writer_unlock(&m->resize);
    }
    if (result < 0) {
        fuse->reply_err(request, -result);
        return;
    }
    set_attributes(m, want, what);
    describe(m, inode, &st);
    fuse->reply_attr(request, &st, 0);
}

/* ---- data */

static void op_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    if (!is_file(m, inode)) {
        fuse->reply_err(request, EISDIR);
    } else if (m->read_only && (info->flags & O_ACCMODE) != O_RDONLY) {
        fuse->reply_err(request, EROFS);
    } else {
        info->keep_cache = 1;
        fuse->reply_open(request, info);
    }
}

static void op_read(fuse_req_t request, fuse_ino_t inode, size_t length, off_t offset,
                    struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    void *buffer = NULL;
    length = MIN(length, READ_MAX);
    if (posix_memalign(&buffer, ALIGNMENT, MAX(length, 1)) != 0) {
        fuse->reply_err(request, ENOMEM);
        return;
    }
    g_rw_lock_reader_lock(&m->resize);
    uint64_t size = block_size(m->node), at = (uint64_t)offset;
    struct iovec iov = {buffer, at < size ? MIN(length, size - at) : 0};
    int result = iov.iov_len ? block_readv(m->node, at, &iov, 1) : 0;
    g_rw_lock_reader_unlock(&m->resize);
    if (result < 0)
        fuse->reply_err(request, -result);
    else
        fuse->reply_buf(request, buffer, iov.iov_len);
    free(buffer);
}

static void op_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t length,
                     off_t offset, struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    struct iovec iov = {(void *)data, length};
    int result = begin_write(m, (uint64_t)offset, length);
    if (result == 0) {
        result = block_writev(m->node, (uint64_t)offset, &iov, 1, 0);
        g_rw_lock_reader_unlock(&m->resize);
        touched(m);
    }
    if (result < 0)
        fuse->reply_err(request, -result);
    else
        fuse->reply_write(request, length);
}

static int flush(DiskMount *m)
{
    g_rw_lock_reader_lock(&m->resize);
    int result = m->read_only ? 0 : block_flush(m->node);
    g_rw_lock_reader_unlock(&m->resize);
    return result;
}

static void op_fsync(fuse_req_t request, fuse_ino_t inode, int data_only,
                     struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    fuse->reply_err(request, -flush(m));
}

/* A descriptor is closed: what was written through it reaches the image's file. */
static void op_flush(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    op_fsync(request, inode, 0, info);
}

static int zero(DiskMount *m, int mode, uint64_t offset, uint64_t length)
{
    bool punch = mode & FALLOC_FL_PUNCH_HOLE, keep = mode & FALLOC_FL_KEEP_SIZE;
    if (keep) { /* what is past the end stays as it is: not there */
        g_rw_lock_reader_lock(&m->resize);
        uint64_t size = block_size(m->node);
        g_rw_lock_reader_unlock(&m->resize);
        if (offset >= size)
            return 0;
        length = MIN(length, size - offset);
    }
    int result = begin_write(m, offset, length);
    if (result < 0)
        return result;
    result = block_write_zeroes(m->node, offset, length, punch ? BLOCK_UNMAP : 0);
    g_rw_lock_reader_unlock(&m->resize);
    touched(m);
    return result;
}

static int allocate(DiskMount *m, int mode, off_t offset, off_t length)
{
    const int known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
    if (m->read_only)
        return -EROFS;
    if (offset < 0 || length <= 0)
        return -EINVAL;
    if (mode & ~known)
        return -EOPNOTSUPP;
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        return zero(m, mode, (uint64_t)offset, (uint64_t)length);
    /* Storage for later writes: only the disk's end can be promised, the C library writes else. */
    g_rw_lock_reader_lock(&m->resize);
    uint64_t size = block_size(m->node);
    g_rw_lock_reader_unlock(&m->resize);
    if (mode & FALLOC_FL_KEEP_SIZE || (uint64_t)offset < size)
        return -EOPNOTSUPP;
    int result = begin_write(m, (uint64_t)offset, (uint64_t)length);
    if (result == 0)
        g_rw_lock_reader_unlock(&m->resize);
    return result;
}

static void op_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length,
                         struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    fuse->reply_err(request, -allocate(m, mode, offset, length));
}

/* Where the next data (or hole) is; the end of the file is a hole. */
static int64_t seek(DiskMount *m, uint64_t offset, bool hole)
{
    uint64_t size = block_size(m->node);
    if (offset >= size)
        return -ENXIO;
    while (offset < size) {
        BlockExtent extent;
        unsigned depth;
        int result = block_status_chain(m->node, offset, size - offset, &extent, &depth);
        if (result < 0)
            return result;
        if (extent.zero == hole)
            return (int64_t)offset;
        offset += MAX(extent.length, 1);
    }
    return hole ? (int64_t)size : -ENXIO;
}

static void op_lseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence,
                     struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    int64_t result = -EINVAL;
    if (offset >= 0 && (whence == SEEK_DATA || whence == SEEK_HOLE)) {
        g_rw_lock_reader_lock(&m->resize);
        result = seek(m, (uint64_t)offset, whence == SEEK_HOLE);
        g_rw_lock_reader_unlock(&m->resize);
    }
    if (result < 0)
        fuse->reply_err(request, (int)-result);
    else
        fuse->reply_lseek(request, result);
}

/* ---- the folder */

static void op_readdir(fuse_req_t request, fuse_ino_t inode, size_t length, off_t offset,
                       struct fuse_file_info *info)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    const char *const names[] = {".", "..", m->name};
    g_autofree char *buffer = g_malloc(MIN(length, READ_MAX));
    size_t used = 0;
    if (!m->folder || inode != ROOT) {
        fuse->reply_err(request, ENOTDIR);
        return;
    }
    length = MIN(length, READ_MAX);
    for (off_t i = MAX(offset, 0); i < (off_t)G_N_ELEMENTS(names); i++) {
        struct stat st = {.st_ino = i == 2 ? FILE_ID : ROOT, .st_mode = i == 2 ? S_IFREG : S_IFDIR};
        size_t entry =
            fuse->add_direntry(request, buffer + used, length - used, names[i], &st, i + 1);
        if (entry > length - used)
            break;
        used += entry;
    }
    fuse->reply_buf(request, buffer, used);
}

static void op_statfs(fuse_req_t request, fuse_ino_t inode)
{
    const FuseLibrary *fuse;
    DiskMount *m = mount_of(request, &fuse);
    struct stat st;
    describe(m, m->folder ? FILE_ID : ROOT, &st);
    struct statvfs fs = {.f_bsize = ALIGNMENT,
                         .f_frsize = 512,
                         .f_blocks = (fsblkcnt_t)(st.st_size + 511) / 512,
                         .f_files = 1,
                         .f_namemax = 255};
    fuse->reply_statfs(request, &fs);
}

const struct fuse_lowlevel_ops disk_mount_operations = {
    .init = op_init,
    .lookup = op_lookup,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .flush = op_flush,
    .fsync = op_fsync,
    .fallocate = op_fallocate,
    .lseek = op_lseek,
    .readdir = op_readdir,
    .statfs = op_statfs,
};
