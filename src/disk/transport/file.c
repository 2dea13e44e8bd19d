/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/transport/file.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/lock.h"
#include "disk/node.h"
#include "disk/options.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOUNCE_MAX  MIB(1)
#define DIRECT_UNIT 4096u /* used when nothing smaller was proven to work */

typedef ssize_t (*VectorCall)(int fd, const struct iovec *iov, int n, off_t offset);

/* Moves all of @iov; a read that meets the end of the file fills the rest with zeroes. */
static int transfer(BlockFile *file, bool write, uint64_t offset, const struct iovec *iov, int n)
{
    VectorCall call = write ? pwritev : preadv;
    struct iovec part[64];
    uint64_t total = block_iov_length(iov, n), done = 0;
    if (!range_within(offset, total, INT64_MAX))
        return -EINVAL;
    while (done < total) {
        const struct iovec *list = iov;
        int entries = n;
        uint64_t covered;
        if (done > 0 || n > BLOCK_IOV_MAX) {
            entries = block_iov_slice(part, G_N_ELEMENTS(part), iov, n, done, total - done, &covered);
            list = part;
        }
        ssize_t moved = call(file->fd, list, entries, (off_t)(offset + done));
        if (moved < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (moved < 0)
            return -errno;
        if (moved == 0 && write)
            return -EIO;
        if (moved == 0) {
            block_iov_zero(iov, n, done, total - done);
            return 0;
        }
        done += (uint64_t)moved;
    }
    return 0;
}

/* An O_DIRECT transfer whose memory or range is not aligned: through an aligned buffer. */
static int transfer_bounced(BlockFile *file, bool write, uint64_t offset, const struct iovec *iov,
                            int n)
{
    uint64_t total = block_iov_length(iov, n), done = 0;
    uint64_t unit = file->alignment;
    int result = 0;
    if (!range_within(offset, total, INT64_MAX - BOUNCE_MAX))
        return -EINVAL;
    size_t room = MIN(BOUNCE_MAX, align_up(total + 2 * unit, unit));
    void *buffer = NULL;
    if (posix_memalign(&buffer, MAX(unit, 4096), room))
        return -ENOMEM;
    if (write)
        g_mutex_lock(&file->rmw);
    while (done < total && result == 0) {
        uint64_t at = offset + done, start = align_down(at, unit);
        uint64_t take = MIN(total - done, room - (at - start));
        uint64_t end = align_up(at + take, unit);
        struct iovec whole = {buffer, end - start};
        bool partial = start != at || end != at + take;
        if (!write || partial)
            result = transfer(file, false, start, &whole, 1);
        if (result == 0 && write) {
            block_iov_to((char *)buffer + (at - start), iov, n, done, take);
            result = transfer(file, true, start, &whole, 1);
        } else if (result == 0) {
            block_iov_from(iov, n, done, (char *)buffer + (at - start), take);
        }
        done += take;
    }
    if (write)
        g_mutex_unlock(&file->rmw);
    free(buffer);
    return result;
}

static bool must_bounce(const BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return file->alignment > 1 && (offset % file->alignment != 0 ||
                                   !block_iov_aligned(iov, n, file->alignment));
}

static int host_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    if (must_bounce(file, offset, iov, n))
        return transfer_bounced(file, false, offset, iov, n);
    return transfer(file, false, offset, iov, n);
}

static int host_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    if (must_bounce(file, offset, iov, n))
        return transfer_bounced(file, true, offset, iov, n);
    return transfer(file, true, offset, iov, n);
}

static bool call_refused(int error)
{
    return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENODEV ||
           error == EPERM || error == ENOTTY;
}

static int host_size(BlockFile *file, uint64_t *size)
{
    if (file->block_device) {
        uint64_t bytes;
        if (ioctl(file->fd, BLKGETSIZE64, &bytes) < 0)
            return -errno;
        *size = bytes;
        return 0;
    }
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return -errno;
    *size = (uint64_t)st.st_size;
    return 0;
}

static int write_zero_bytes(BlockFile *file, uint64_t offset, uint64_t length)
{
    static const char zeroes[65536] __attribute__((aligned(4096)));
    while (length > 0) {
        struct iovec part[16];
        int n = 0;
        uint64_t covered = 0;
        for (; n < 16 && covered < length; n++) {
            part[n].iov_base = (void *)zeroes;
            part[n].iov_len = MIN(sizeof(zeroes), length - covered);
            covered += part[n].iov_len;
        }
        int result = host_writev(file, offset, part, n);
        if (result < 0)
            return result;
        offset += covered;
        length -= covered;
    }
    return 0;
}

/* FALLOC_FL_PUNCH_HOLE does not grow a file, so a range past the end needs ZERO_RANGE. */
static int host_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    uint64_t size;
    if (length == 0)
        return 0;
    if (!range_within(offset, length, INT64_MAX))
        return -EINVAL;
    if (unmap && !g_atomic_int_get(&file->no_punch) && host_size(file, &size) == 0 &&
        range_within(offset, length, size)) {
        if (fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                      (off_t)length) == 0)
            return 0;
        if (!call_refused(errno))
            return -errno;
        g_atomic_int_set(&file->no_punch, 1);
    }
    if (!g_atomic_int_get(&file->no_zero_range)) {
        if (fallocate(file->fd, FALLOC_FL_ZERO_RANGE, (off_t)offset, (off_t)length) == 0)
            return 0;
        if (!call_refused(errno))
            return -errno;
        g_atomic_int_set(&file->no_zero_range, 1);
    }
    return write_zero_bytes(file, offset, length);
}

static int host_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    if (length == 0 || g_atomic_int_get(&file->no_punch))
        return 0;
    int result;
    if (file->block_device) {
        uint64_t range[2] = {offset, length};
        result = ioctl(file->fd, BLKDISCARD, range);
    } else {
        result = fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                           (off_t)length);
    }
    if (result == 0)
        return 0;
    if (!call_refused(errno))
        return -errno;
    g_atomic_int_set(&file->no_punch, 1);
    return 0;
}

static int host_flush(BlockFile *file)
{
    return fdatasync(file->fd) < 0 ? -errno : 0;
}

static int host_truncate(BlockFile *file, uint64_t size)
{
    if (file->block_device)
        return -ENOTSUP;
    return ftruncate(file->fd, (off_t)size) < 0 ? -errno : 0;
}

static int host_status(BlockFile *file, uint64_t offset, uint64_t length, bool *data,
                       uint64_t *same)
{
    off_t at = lseek(file->fd, (off_t)offset, SEEK_DATA);
    if (at < 0 && errno == ENXIO) { /* nothing but a hole up to the end */
        *data = false;
        *same = length;
        return 0;
    }
    if (at < 0 || (uint64_t)at == offset) {
        off_t hole = at < 0 ? -1 : lseek(file->fd, (off_t)offset, SEEK_HOLE);
        *data = true;
        *same = hole < 0 ? length : MIN(length, (uint64_t)hole - offset);
        return 0;
    }
    *data = false;
    *same = MIN(length, (uint64_t)at - offset);
    return 0;
}

static int host_allocated(BlockFile *file, uint64_t *bytes)
{
    struct stat st;
    if (fstat(file->fd, &st) < 0)
        return -errno;
    *bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}

static void host_close(BlockFile *file)
{
    if (file->fd >= 0)
        close(file->fd);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(file);
}

static const BlockFileOps host_ops = {
    .name = "file",
    .readv = host_readv,
    .writev = host_writev,
    .zero = host_zero,
    .discard = host_discard,
    .flush = host_flush,
    .truncate = host_truncate,
    .size = host_size,
    .status = host_status,
    .allocated = host_allocated,
    .close = host_close,
};

/* The smallest unit O_DIRECT reads work with here. */
static unsigned find_alignment(int fd)
{
    void *buffer = NULL;
    unsigned found = DIRECT_UNIT;
    if (posix_memalign(&buffer, 8192, 8192))
        return found;
    for (unsigned unit = 512; unit < DIRECT_UNIT; unit *= 2) {
        if (pread(fd, (char *)buffer + unit, unit, unit) >= 0) {
            found = unit;
            break;
        }
    }
    free(buffer);
    return found;
}

/* "host_device" or "host_cdrom" if that is what @options name; NULL: any file will do. */
static const char *device_driver(const BlockOpen *options)
{
    const char *driver = options ? block_option_string(options->options, NULL, "driver") : NULL;
    return driver && g_str_has_prefix(driver, "host_") ? driver : NULL;
}

/* @options: how the file was opened; NULL: it is new. */
static BlockFile *wrap_fd(int fd, const char *path, const BlockOpen *options, GError **err)
{
    bool read_only = options && options->read_only, direct = options && options->direct;
    struct stat st;
    if (fstat(fd, &st) < 0) {
        lodge_fail_errno(err, errno, "%s: cannot look at the file", path);
        close(fd);
        return NULL;
    }
    const char *device = device_driver(options);
    if (device ? !S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode)
               : !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        lodge_fail(err, LODGE_ERROR_INVALID, "'%s' driver requires '%s' to be %s",
                   device ? device : "file", path,
                   device ? "either a character or block device" : "a regular file");
        close(fd);
        return NULL;
    }
    BlockFile *file = g_new0(BlockFile, 1);
    file->ops = &host_ops;
    file->path = g_strdup(path);
    file->fd = fd;
    file->read_only = read_only;
    file->block_device = S_ISBLK(st.st_mode);
    file->device = st.st_dev;
    file->inode = st.st_ino;
    file->alignment = direct ? find_alignment(fd) : 1;
    g_mutex_init(&file->rmw);
    return file;
}

BlockFile *block_file_open(const BlockOpen *options, GError **err)
{
    int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK |
                (options->direct ? O_DIRECT : 0);
    int fd = options->opener ? options->opener(options->opener_opaque, options->path, flags)
                             : open(options->path, flags);
    if (fd < 0) {
        int error = options->opener ? -fd : errno;
        if (error == EINVAL && options->direct)
            lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                       "%s: the file system does not support O_DIRECT (cache mode 'none')",
                       options->path);
        else
            lodge_fail_errno(err, error, "Could not open '%s'", options->path);
        return NULL;
    }
    g_autoptr(BlockFile) file =
        wrap_fd(fd, options->path, options, err);
    if (!file || !block_reference_allowed(options, fd, err))
        return NULL;
    unsigned used = BLOCK_LOCK_CONSISTENT_READ;
    if (!options->read_only)
        used |= BLOCK_LOCK_WRITE | BLOCK_LOCK_RESIZE;
    if (!options->shared &&
        !block_lock(fd, options->path, used, BLOCK_LOCK_WRITE | BLOCK_LOCK_RESIZE, err))
        return NULL;
    return g_steal_pointer(&file);
}

BlockFile *block_file_create(const char *path, uint64_t size, GError **err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    if (fd < 0) {
        lodge_fail_errno(err, errno, "Could not create '%s'", path);
        return NULL;
    }
    g_autoptr(BlockFile) file = wrap_fd(fd, path, NULL, err);
    if (!file ||
        !block_lock(fd, path, BLOCK_LOCK_CONSISTENT_READ | BLOCK_LOCK_WRITE | BLOCK_LOCK_RESIZE,
                    BLOCK_LOCK_WRITE | BLOCK_LOCK_RESIZE, err))
        return NULL;
    uint64_t have;
    if (file->block_device) {
        if (host_size(file, &have) < 0 || have < size) {
            lodge_fail(err, LODGE_ERROR_INVALID, "%s: the device is smaller than the image", path);
            return NULL;
        }
        return g_steal_pointer(&file);
    }
    if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0) {
        lodge_fail_errno(err, errno, "%s: cannot make the file %" G_GUINT64_FORMAT " bytes long",
                         path, size);
        return NULL;
    }
    return g_steal_pointer(&file);
}

bool block_file_prepare(const char *path, const json_t *options, GError **err)
{
    uint64_t hint = 0;
    bool no_cow = false;
    if (!block_option_size(options, NULL, "extent_size_hint", &hint, err) ||
        !block_option_bool(options, NULL, "nocow", &no_cow, err))
        return false;
    if (hint > UINT32_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "Extent size hint is too large");
    if (!hint && !no_cow)
        return true;
    if (g_str_has_prefix(path, "file:"))
        path += strlen("file:");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0644);
    if (fd < 0)
        return lodge_fail_errno(err, errno, "Could not create '%s'", path);
    struct fsxattr attributes;
    if (hint && ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attributes.fsx_extsize = (uint32_t)hint;
        ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
    int flags;
    if (no_cow && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    close(fd);
    return true;
}

void block_file_close(BlockFile *file)
{
    if (file)
        file->ops->close(file);
}

int block_file_read(BlockFile *file, uint64_t offset, void *buffer, size_t length)
{
    struct iovec iov = {buffer, length};
    return file->ops->readv(file, offset, &iov, 1);
}

int block_file_write(BlockFile *file, uint64_t offset, const void *buffer, size_t length)
{
    struct iovec iov = {(void *)buffer, length};
    return file->ops->writev(file, offset, &iov, 1);
}

static int file_vector(BlockFile *file, bool write, uint64_t offset, const struct iovec *iov,
                       int n, uint64_t skip, uint64_t length)
{
    struct iovec part[64];
    while (length > 0) {
        uint64_t covered;
        int entries = block_iov_slice(part, G_N_ELEMENTS(part), iov, n, skip, length, &covered);
        if (covered == 0)
            return -EINVAL;
        int result = write ? file->ops->writev(file, offset, part, entries)
                           : file->ops->readv(file, offset, part, entries);
        if (result < 0)
            return result;
        offset += covered;
        skip += covered;
        length -= covered;
    }
    return 0;
}

int block_file_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n,
                     uint64_t skip, uint64_t length)
{
    return file_vector(file, false, offset, iov, n, skip, length);
}

int block_file_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n,
                      uint64_t skip, uint64_t length)
{
    return file_vector(file, true, offset, iov, n, skip, length);
}

int block_file_preallocate(BlockFile *file, uint64_t start, uint64_t end, bool full)
{
    static const uint8_t zeroes[65536];
    if (start >= end)
        return 0;
    if (!full && file->fd >= 0 && !file->block_device)
        return -posix_fallocate(file->fd, (off_t)start, (off_t)(end - start));
    for (uint64_t part; start < end; start += part) {
        part = MIN(sizeof(zeroes), end - start);
        int result = block_file_write(file, start, zeroes, part);
        if (result < 0)
            return result;
    }
    return 0;
}
