/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files that are nowhere: writes are forgotten, reads say nothing. For tests and measurements. */
#include "base/error.h"
#include "disk/iov.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <string.h>

#define SIZE_FALLBACK "1073741824" /* QEMU's */

typedef struct NullFile {
    BlockFile file; /* first */
    uint64_t size, latency_ns;
    bool read_zeroes;
} NullFile;

static NullFile *null_of(BlockFile *file)
{
    return (NullFile *)file;
}

static int delay(BlockFile *file)
{
    if (null_of(file)->latency_ns)
        g_usleep((gulong)(null_of(file)->latency_ns / 1000));
    return 0;
}

static int null_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    if (null_of(file)->read_zeroes)
        block_iov_zero(iov, n, 0, block_iov_length(iov, n));
    return delay(file);
}

static int null_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return delay(file);
}

static int null_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    return delay(file);
}

static int null_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    return delay(file);
}

static int null_truncate(BlockFile *file, uint64_t size)
{
    return -ENOTSUP;
}

static int null_size(BlockFile *file, uint64_t *size)
{
    *size = null_of(file)->size;
    return 0;
}

static int null_status(BlockFile *file, uint64_t offset, uint64_t length, bool *data,
                       uint64_t *same)
{
    *data = !null_of(file)->read_zeroes;
    *same = length;
    return 0;
}

static int null_allocated(BlockFile *file, uint64_t *bytes)
{
    *bytes = 0;
    return 0;
}

static void null_close(BlockFile *file)
{
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(file);
}

static const BlockFileOps null_ops = {
    .name = "null-co",
    .readv = null_readv,
    .writev = null_writev,
    .zero = null_zero,
    .discard = null_discard,
    .flush = delay,
    .truncate = null_truncate,
    .size = null_size,
    .status = null_status,
    .allocated = null_allocated,
    .close = null_close,
};

static const BlockOption options[] = {
    {"size", BLOCK_OPTION_SIZE, "bytes it seems to have", SIZE_FALLBACK},
    {"latency-ns", BLOCK_OPTION_NUMBER, "how long a request takes", "0"},
    {"read-zeroes", BLOCK_OPTION_BOOL, "reads give zeroes, else nothing at all", "off"},
    {NULL, 0, NULL, NULL},
};

static bool null_parse(const char *uri, json_t *into, GError **err)
{
    const char *colon = strchr(uri, ':');
    if (!g_strcmp0(colon, "://"))
        return true;
    return lodge_fail(err, LODGE_ERROR_INVALID,
                      "The only allowed filename for this driver is '%.*s://'", (int)(colon - uri),
                      uri);
}

static BlockFile *null_open(const BlockOpen *how, const json_t *given, GError **err)
{
    NullFile *null = g_new0(NullFile, 1);
    g_mutex_init(&null->file.rmw);
    null->file.ops = &null_ops;
    null->file.path = g_strdup("null-co://");
    null->file.fd = -1;
    null->file.alignment = 1;
    null->file.read_only = how->read_only;
    if (!block_option_size(given, options, "size", &null->size, err) ||
        !block_option_number(given, options, "latency-ns", &null->latency_ns, err) ||
        !block_option_bool(given, options, "read-zeroes", &null->read_zeroes, err)) {
        null_close(&null->file);
        return NULL;
    }
    return &null->file;
}

static const char *const co_schemes[] = {"null-co", NULL};
static const char *const aio_schemes[] = {"null-aio", NULL};

const BlockTransport block_transport_null_co = {
    .name = "null-co",
    .schemes = co_schemes,
    .options = options,
    .parse = null_parse,
    .open = null_open,
};

const BlockTransport block_transport_null_aio = {
    .name = "null-aio",
    .schemes = aio_schemes,
    .options = options,
    .parse = null_parse,
    .open = null_open,
};
