/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images that an NBD server has. docs/nbd.md */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/image.h"
#include "disk/iov.h"
#include "disk/nbd/client.h"
#include "disk/nbd/wire.h"
#include "disk/transport/nbd-name.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <string.h>

/* Connections to one server that says that they see each other's writes. */
#define LINKS_MAX 4u
/* Zeroes and discards carry no data; still not for minutes at a time. */
#define NO_DATA_MAX GIB(1)
/* Between two attempts to connect. */
#define RETRY_FIRST_US 100000
#define RETRY_MOST_US  1000000
#define WAIT_MAX       (24u * 3600u)
/* What is written where a server has no zeroes of its own. */
#define ZEROES_PIECE KIB(64)
#define BOUNCE_PIECE KIB(512)

typedef struct NbdFile {
    BlockFile file; /* first */
    char *path, *host, *port, *export, *context, *hostname;
    NbdTls *tls;
    NbdClientConfig config;   /* of the strings above */
    NbdClientExport first;    /* as it was when the image was opened */
    uint64_t reconnect_delay; /* seconds */
    GRWLock blocks;           /* a writer changes a part of one */
    GMutex lock;              /* for what follows */
    GCond changed;
    NbdLink *links[LINKS_MAX];
    unsigned n_links;
    bool connecting, closing;
    GThread *helper; /* makes the second connection and more; NULL: not needed */
} NbdFile;

static NbdFile *nbd_of(BlockFile *file)
{
    return (NbdFile *)file;
}

/* ---- connections */

static NbdLink *connect_once(NbdFile *f, GError **err)
{
    NbdClientExport export;
    int fd = nbd_client_connect(&f->config, err);
    if (fd < 0)
        return NULL;
    g_autoptr(NbdChannel) channel = nbd_channel_new(fd);
    if (!nbd_client_negotiate(channel, &f->config, &export, err))
        return NULL;
    return nbd_link_new(g_steal_pointer(&channel), &export);
}

/* Another server than the one that the image was opened on is no continuation of it. */
static bool same_export(const NbdFile *f, const NbdLink *link)
{
    const NbdClientExport *now = nbd_link_export(link);
    return now->size == f->first.size && now->min_block <= MAX(f->first.min_block, 1) &&
           (now->max_block == 0 || now->max_block >= f->first.max_block) &&
           !(f->first.flags & ~now->flags & ~(unsigned)NBD_FLAG_MULTI_CONN) &&
           (f->file.read_only || !(now->flags & NBD_FLAG_READ_ONLY)) &&
           now->has_context == f->first.has_context;
}

static void add_link_locked(NbdFile *f, NbdLink *link)
{
    f->links[f->n_links++] = link;
    g_cond_broadcast(&f->changed);
}

static gpointer helper_main(gpointer data)
{
    NbdFile *f = data;
    g_mutex_lock(&f->lock);
    while (!f->closing && f->n_links > 0 && f->n_links < LINKS_MAX) {
        g_mutex_unlock(&f->lock);
        NbdLink *link = connect_once(f, NULL);
        bool good = link && same_export(f, link);
        g_mutex_lock(&f->lock);
        if (!good || f->closing || f->n_links == LINKS_MAX) {
            g_mutex_unlock(&f->lock);
            nbd_link_unref(link);
            return NULL;
        }
        add_link_locked(f, link);
    }
    g_mutex_unlock(&f->lock);
    return NULL;
}

static void drop_lost_locked(NbdFile *f)
{
    for (unsigned i = 0; i < f->n_links;) {
        if (nbd_link_lost(f->links[i])) {
            nbd_link_unref(f->links[i]);
            f->links[i] = f->links[--f->n_links];
        } else {
            i++;
        }
    }
}

/* Connects again until @until; other threads wait meanwhile. */
static bool reconnect_locked(NbdFile *f, gint64 until)
{
    gint64 pause = RETRY_FIRST_US;
    f->connecting = true;
    for (;;) {
        g_mutex_unlock(&f->lock);
        NbdLink *link = connect_once(f, NULL);
        if (link && !same_export(f, link))
            g_clear_pointer(&link, nbd_link_unref);
        g_mutex_lock(&f->lock);
        if (link)
            add_link_locked(f, link);
        if (link || g_get_monotonic_time() + pause >= until)
            break;
        g_cond_wait_until(&f->changed, &f->lock, g_get_monotonic_time() + pause);
        pause = MIN(pause * 2, RETRY_MOST_US);
    }
    f->connecting = false;
    g_cond_broadcast(&f->changed);
    return f->n_links > 0;
}

/* The connection with the least to do; NULL: none, and none to be had until @until. */
static NbdLink *take_link(NbdFile *f, gint64 until)
{
    NbdLink *best = NULL;
    unsigned least = UINT_MAX;
    g_mutex_lock(&f->lock);
    drop_lost_locked(f);
    while (f->n_links == 0) {
        if (f->connecting)
            g_cond_wait(&f->changed, &f->lock);
        else if (!reconnect_locked(f, until))
            break;
    }
    for (unsigned i = 0; i < f->n_links; i++) {
        unsigned busy = nbd_link_busy(f->links[i]);
        if (busy < least) {
            least = busy;
            best = f->links[i];
        }
    }
    if (best)
        nbd_link_ref(best);
    /* In the background: a server that is full lets us wait. */
    if (best && least > 0 && !f->helper && (f->first.flags & NBD_FLAG_MULTI_CONN))
        f->helper = g_thread_try_new("nbd-connect", helper_main, f, NULL);
    g_mutex_unlock(&f->lock);
    return best;
}

/* All requests can be done twice, so one whose reply was lost is sent again. */
static int call(NbdFile *f, NbdCall *request)
{
    gint64 until = 0;
    for (;;) {
        NbdLink *link = take_link(f, until);
        if (!link)
            return -EIO;
        int result = nbd_link_call(link, request);
        nbd_link_unref(link);
        if (result != -ENOLINK)
            return result;
        gint64 now = g_get_monotonic_time();
        if (until == 0)
            until = now + (gint64)f->reconnect_delay * G_USEC_PER_SEC;
        if (now >= until)
            return -EIO;
    }
}

/* ---- requests */

static uint64_t data_max(const NbdFile *f)
{
    uint64_t most = f->first.max_block ? f->first.max_block : NBD_REQUEST_MAX;
    return align_down(MIN(most, NBD_REQUEST_MAX), MAX(f->first.min_block, 1));
}

/* In pieces that the server takes. */
static int transfer(NbdFile *f, uint16_t type, uint16_t flags, uint64_t offset,
                    const struct iovec *iov, int n, uint64_t length)
{
    uint64_t most = iov ? data_max(f) : NO_DATA_MAX;
    for (uint64_t done = 0; done < length;) {
        NbdCall request = {.type = type,
                           .flags = flags,
                           .offset = offset + done,
                           .length = (uint32_t)MIN(length - done, most),
                           .iov = iov,
                           .n = n,
                           .skip = done};
        int result = call(f, &request);
        if (result < 0)
            return result;
        done += request.length;
    }
    return 0;
}

static bool aligned(const NbdFile *f, uint64_t offset, uint64_t length)
{
    uint64_t block = MAX(f->first.min_block, 1);
    return (offset | length) % block == 0;
}

/*
 * A server with blocks gets whole ones: what is around the range is read first and, @write, goes
 * back with it. A piece at a time.
 */
static int bounce(NbdFile *f, bool write, uint64_t offset, const struct iovec *iov, int n,
                  uint64_t length)
{
    uint64_t block = f->first.min_block;
    g_autofree uint8_t *buffer = g_try_malloc(BOUNCE_PIECE + 2 * block);
    int result = buffer ? 0 : -ENOMEM;
    for (uint64_t done = 0; result == 0 && done < length;) {
        uint64_t part = MIN(length - done, BOUNCE_PIECE), at = offset + done;
        uint64_t start = align_down(at, block), end = align_up(at + part, block);
        struct iovec whole = {buffer, end - start};
        if (write)
            g_rw_lock_writer_lock(&f->blocks);
        result = transfer(f, NBD_CMD_READ, 0, start, &whole, 1, end - start);
        if (result == 0 && write) {
            block_iov_to(buffer + (at - start), iov, n, done, part);
            result = transfer(f, NBD_CMD_WRITE, 0, start, &whole, 1, end - start);
        }
        if (write)
            g_rw_lock_writer_unlock(&f->blocks);
        if (result == 0 && !write)
            block_iov_from(iov, n, done, buffer + (at - start), part);
        done += part;
    }
    return result;
}

/* Of whole blocks, at any time but while a part of one is being changed. */
static int change(NbdFile *f, uint16_t type, uint16_t flags, uint64_t offset,
                  const struct iovec *iov, int n, uint64_t length)
{
    if (f->first.min_block <= 1)
        return transfer(f, type, flags, offset, iov, n, length);
    g_rw_lock_reader_lock(&f->blocks);
    int result = transfer(f, type, flags, offset, iov, n, length);
    g_rw_lock_reader_unlock(&f->blocks);
    return result;
}

static int nbd_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    NbdFile *f = nbd_of(file);
    uint64_t length = block_iov_length(iov, n), size = f->first.size;
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    block_iov_zero(iov, n, inside, length - inside);
    if (!aligned(f, offset, inside))
        return bounce(f, false, offset, iov, n, inside);
    return transfer(f, NBD_CMD_READ, 0, offset, iov, n, inside);
}

/* An export does not grow: what is past its end can only be zero. */
static bool zero_past(const struct iovec *iov, int n, uint64_t skip, uint64_t length)
{
    uint8_t tail[512];
    if (length > sizeof(tail))
        return false;
    block_iov_to(tail, iov, n, skip, length);
    for (uint64_t i = 0; i < length; i++) {
        if (tail[i])
            return false;
    }
    return true;
}

static int nbd_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    NbdFile *f = nbd_of(file);
    uint64_t length = block_iov_length(iov, n), size = f->first.size;
    uint64_t inside = offset < size ? MIN(length, size - offset) : 0;
    if (file->read_only)
        return -EROFS;
    if (inside < length && !zero_past(iov, n, inside, length - inside))
        return -ENOSPC;
    if (!aligned(f, offset, inside))
        return bounce(f, true, offset, iov, n, inside);
    return change(f, NBD_CMD_WRITE, 0, offset, iov, n, inside);
}

static int write_zeroes(NbdFile *f, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *zeroes = g_malloc0(ZEROES_PIECE);
    for (uint64_t done = 0; done < length;) {
        struct iovec iov = {zeroes, MIN(length - done, ZEROES_PIECE)};
        int result = nbd_writev(&f->file, offset + done, &iov, 1);
        if (result < 0)
            return result;
        done += iov.iov_len;
    }
    return 0;
}

static int nbd_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    NbdFile *f = nbd_of(file);
    uint64_t size = f->first.size, inside = offset < size ? MIN(length, size - offset) : 0;
    if (file->read_only)
        return -EROFS;
    if (length - inside > 512)
        return -ENOSPC;
    if (!(f->first.flags & NBD_FLAG_WRITE_ZEROES) || !aligned(f, offset, inside))
        return write_zeroes(f, offset, inside);
    return change(f, NBD_CMD_WRITE_ZEROES, unmap ? 0 : NBD_CMD_FLAG_NO_HOLE, offset, NULL, 0,
                  inside);
}

static int nbd_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    NbdFile *f = nbd_of(file);
    uint64_t block = MAX(f->first.min_block, 1), size = f->first.size;
    uint64_t start = align_up(offset, block);
    uint64_t end = align_down(offset < size ? MIN(offset + length, size) : start, block);
    if (file->read_only)
        return -EROFS;
    if (!(f->first.flags & NBD_FLAG_TRIM) || start >= end)
        return 0;
    return change(f, NBD_CMD_TRIM, 0, start, NULL, 0, end - start);
}

static int nbd_flush(BlockFile *file)
{
    NbdFile *f = nbd_of(file);
    NbdCall request = {.type = NBD_CMD_FLUSH};
    return f->first.flags & NBD_FLAG_FLUSH ? call(f, &request) : 0;
}

static int nbd_truncate(BlockFile *file, uint64_t size)
{
    return size == nbd_of(file)->first.size ? 0 : -ENOTSUP;
}

static int nbd_size(BlockFile *file, uint64_t *size)
{
    *size = nbd_of(file)->first.size;
    return 0;
}

/* The flags of the context as they are, for who asked for another than base:allocation. */
static int nbd_describe(BlockFile *file, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    NbdFile *f = nbd_of(file);
    uint64_t block = MAX(f->first.min_block, 1), size = f->first.size;
    uint64_t start = align_down(offset, block);
    *extent = (BlockExtent){
        .length = length, .present = true, .data = true, .has_offset = true, .file_offset = offset};
    if (offset >= size || !f->first.has_context) {
        extent->zero = offset >= size;
        extent->data = !extent->zero;
        return 0;
    }
    NbdCall request = {
        .type = NBD_CMD_BLOCK_STATUS,
        .flags = NBD_CMD_FLAG_REQ_ONE,
        .offset = start,
        .length = (uint32_t)MIN(align_up(MIN(length, NO_DATA_MAX) + (offset - start), block),
                                size - start)};
    int result = call(f, &request);
    if (result < 0)
        return result;
    if (request.extent_length <= offset - start)
        return -EIO;
    extent->length = MIN(length, request.extent_length - (offset - start));
    extent->data = !(request.extent_flags & NBD_STATE_HOLE);
    extent->zero = request.extent_flags & NBD_STATE_ZERO;
    extent->present = extent->has_offset = extent->data || extent->zero;
    extent->unknown = !extent->present; /* as QEMU's client has it: how dirty bitmaps are shown */
    return 0;
}

static int nbd_status(BlockFile *file, uint64_t offset, uint64_t length, bool *data, uint64_t *same)
{
    BlockExtent extent;
    int result = nbd_describe(file, offset, length, &extent);
    *data = !extent.zero;
    *same = extent.length;
    return result;
}

static void nbd_close(BlockFile *file)
{
    NbdFile *f = nbd_of(file);
    g_mutex_lock(&f->lock);
    f->closing = true;
    GThread *helper = f->helper;
    g_mutex_unlock(&f->lock);
    if (helper)
        g_thread_join(helper);
    for (unsigned i = 0; i < f->n_links; i++)
        nbd_link_unref(f->links[i]);
    nbd_tls_free(f->tls);
    g_free(f->path);
    g_free(f->host);
    g_free(f->port);
    g_free(f->export);
    g_free(f->context);
    g_free(f->hostname);
    g_mutex_clear(&f->lock);
    g_cond_clear(&f->changed);
    g_mutex_clear(&f->file.rmw);
    g_rw_lock_clear(&f->blocks);
    g_free(f->file.path);
    g_free(f);
}

static const BlockFileOps nbd_ops = {
    .name = "nbd",
    .readv = nbd_readv,
    .writev = nbd_writev,
    .zero = nbd_zero,
    .discard = nbd_discard,
    .flush = nbd_flush,
    .truncate = nbd_truncate,
    .size = nbd_size,
    .status = nbd_status,
    .describe = nbd_describe,
    .close = nbd_close,
};

/* ---- opening */

static const BlockOption nbd_options[] = {
    {"server", BLOCK_OPTION_TREE,
     "server.type=inet,server.host=,server.port= or unix,server.path=", NULL},
    {"path", BLOCK_OPTION_STRING, "the server's UNIX socket", NULL},
    {"host", BLOCK_OPTION_STRING, "the server's host", NULL},
    {"port", BLOCK_OPTION_STRING, "its port", NBD_PORT},
    {"export", BLOCK_OPTION_STRING, "the export's name", ""},
    {"tls-creds", BLOCK_OPTION_STRING, "id of the object with TLS credentials", NULL},
    {"tls-hostname", BLOCK_OPTION_STRING, "the name in the server's certificate", NULL},
    {"x-dirty-bitmap", BLOCK_OPTION_STRING, "ask about this context instead of base:allocation",
     NULL},
    {"reconnect-delay", BLOCK_OPTION_NUMBER, "seconds that requests wait for a lost server", "0"},
    {"open-timeout", BLOCK_OPTION_NUMBER, "seconds that opening waits for a server", "0"},
    {NULL, 0, NULL, NULL},
};

static bool take_address(NbdFile *f, const json_t *options, GError **err)
{
    const json_t *server = json_object_get(options, "server");
    const char *type = server ? block_option_string(server, NULL, "type") : NULL;
    const json_t *from = server ? server : options;
    const char *path = block_option_string(from, NULL, "path");
    const char *host = block_option_string(from, NULL, "host");
    const char *port = block_option_string(from, NULL, "port");
    if (server && (!type || (strcmp(type, "unix") && strcmp(type, "inet"))))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          type ? "Parameter 'server.type' does not accept value '%s'"
                               : "Parameter 'server.type' is missing",
                          type);
    if (path && host)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "path and host may not be used at the same time");
    if (!path && !host)
        return lodge_fail(err, LODGE_ERROR_INVALID, "NBD server address missing");
    f->path = g_strdup(path);
    f->host = g_strdup(host);
    f->port = g_strdup(port ? port : NBD_PORT);
    return true;
}

static bool take_tls(NbdFile *f, const BlockOpen *how, const json_t *options, GError **err)
{
    const char *id = block_option_string(options, NULL, "tls-creds");
    const char *name = block_option_string(options, NULL, "tls-hostname");
    if (!id)
        return !name || lodge_fail(err, LODGE_ERROR_INVALID, "tls-hostname needs tls-creds");
    const BlockTlsCredentials *found = block_objects_tls(how->objects, id, err);
    if (!found)
        return false;
    if (found->server)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Expecting TLS credentials with a client endpoint");
    f->hostname = g_strdup(name ? name : f->host);
    f->tls = nbd_tls_new(found, how->objects, err);
    return f->tls != NULL;
}

static bool take_options(NbdFile *f, const BlockOpen *how, const json_t *options,
                         uint64_t *open_timeout, GError **err)
{
    const char *context = block_option_string(options, NULL, "x-dirty-bitmap");
    if (!take_address(f, options, err) || !take_tls(f, how, options, err) ||
        !block_option_number(options, nbd_options, "reconnect-delay", &f->reconnect_delay, err) ||
        !block_option_number(options, nbd_options, "open-timeout", open_timeout, err))
        return false;
    f->reconnect_delay = MIN(f->reconnect_delay, WAIT_MAX);
    *open_timeout = MIN(*open_timeout, WAIT_MAX);
    f->export = g_strdup(block_option_string(options, nbd_options, "export"));
    f->context = g_strdup(context ? context : NBD_CONTEXT_ALLOCATION);
    f->config =
        (NbdClientConfig){f->path, f->host, f->port, f->export, f->context, f->tls, f->hostname};
    f->file.path = nbd_name_of(f->path, f->host, f->port, f->export);
    return true;
}

/* The first connection; with a timeout the server may be still on its way. */
static NbdLink *connect_first(NbdFile *f, uint64_t timeout, GError **err)
{
    gint64 until = g_get_monotonic_time() + (gint64)timeout * G_USEC_PER_SEC;
    for (;;) {
        g_autoptr(GError) problem = NULL;
        NbdLink *link = connect_once(f, &problem);
        if (link || g_get_monotonic_time() + RETRY_FIRST_US >= until) {
            if (!link)
                g_propagate_error(err, g_steal_pointer(&problem));
            return link;
        }
        g_usleep(RETRY_FIRST_US);
    }
}

static bool check_first(NbdFile *f, const json_t *options, GError **err)
{
    f->first = *nbd_link_export(f->links[0]);
    if (!f->file.read_only && (f->first.flags & NBD_FLAG_READ_ONLY))
        return lodge_fail(err, LODGE_ERROR_DENIED,
                          "request on write denied without write permission");
    if (block_option_given(options, "x-dirty-bitmap") && !f->first.has_context)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "requested x-dirty-bitmap %s not found",
                          f->context);
    return true;
}

static BlockFile *nbd_open(const BlockOpen *how, const json_t *options, GError **err)
{
    NbdFile *f = g_new0(NbdFile, 1);
    uint64_t timeout = 0;
    f->file.ops = &nbd_ops;
    f->file.fd = -1;
    f->file.alignment = 1;
    f->file.read_only = how->read_only;
    g_mutex_init(&f->file.rmw);
    g_rw_lock_init(&f->blocks);
    g_mutex_init(&f->lock);
    g_cond_init(&f->changed);
    if (take_options(f, how, options, &timeout, err)) {
        NbdLink *link = connect_first(f, timeout, err);
        if (link) {
            add_link_locked(f, link);
            if (check_first(f, options, err))
                return &f->file;
        }
    }
    nbd_close(&f->file);
    return NULL;
}

static const char *const nbd_schemes[] = {"nbd", "nbd+tcp", "nbd+unix", NULL};

const BlockTransport block_transport_nbd = {
    .name = "nbd",
    .schemes = nbd_schemes,
    .options = nbd_options,
    .parse = nbd_name_parse,
    .open = nbd_open,
};
