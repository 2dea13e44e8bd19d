/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The guest's clusters: in the image's own file, or at their own offsets in a data file. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"
#include "disk/transport/transport.h"

/* As QEMU, a relative name in the header is meant from the current folder. */
static char *absolute(const char *name)
{
    const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
    if (*name == '/' || (colon && (!slash || colon < slash)))
        return g_strdup(name);
    return g_canonicalize_filename(name, NULL);
}

bool qcow2_data_open(Qcow2 *q, const BlockOpen *options, GError **err)
{
    BlockNode *node = q->node;
    bool given = block_option_given(options->options, "data-file");
    q->data = q->file;
    q->external = q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE;
    q->raw = q->header.autoclear & QCOW2_AUTOCLEAR_RAW;
    if (!q->external) {
        if (given)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "'data-file' can only be set for images with an external data file");
        return !q->raw ||
               lodge_fail(err, LODGE_ERROR_CORRUPT, "data-file-raw requires a data file");
    }
    if (!given && !q->header.data_file)
        return lodge_fail(err, LODGE_ERROR_INVALID, "'data-file' is required for this image");
    g_autofree char *name = q->header.data_file ? absolute(q->header.data_file) : NULL;
    BlockFile *data =
        block_reference_open(node, options, "data-file", name, !node->read_only, err);
    if (!data)
        return false;
    q->data = data;
    return true;
}

void qcow2_data_close(Qcow2 *q)
{
    if (q->data && q->data != q->file)
        block_file_close(q->data);
    q->data = NULL;
    g_clear_pointer(&q->header.data_file, g_free);
}

int qcow2_data_alloc(Qcow2 *q, uint64_t guest, uint64_t want, uint64_t *offset, uint64_t *got,
                     bool *fresh)
{
    if (!q->external)
        return qcow2_alloc(q, want, offset, got, fresh);
    *offset = align_down(guest, q->cluster_size);
    *got = want;
    *fresh = false; /* it may hold what was there before a discard */
    return 0;
}

void qcow2_data_unalloc(Qcow2 *q, uint64_t offset, uint64_t clusters)
{
    if (!q->external)
        qcow2_refcount_add(q, offset, clusters << q->cluster_bits, -1);
}

int qcow2_data_read(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                    uint64_t skip, uint64_t length)
{
    return q->encrypted ? qcow2_crypt_transfer(q, false, guest, host, iov, n, skip, length)
                        : block_file_readv(q->data, host, iov, n, skip, length);
}

int qcow2_data_write(Qcow2 *q, uint64_t guest, uint64_t host, const struct iovec *iov, int n,
                     uint64_t skip, uint64_t length)
{
    return q->encrypted ? qcow2_crypt_transfer(q, true, guest, host, iov, n, skip, length)
                        : block_file_writev(q->data, host, iov, n, skip, length);
}

bool qcow2_data_overlaps(const Qcow2 *q, uint64_t offset, uint64_t length)
{
    return !q->external && qcow2_overlaps(q, offset, length);
}

int qcow2_sync(Qcow2 *q)
{
    if (q->external && !q->node->no_flush && !q->node->read_only) {
        int result = q->data->ops->flush(q->data);
        if (result < 0)
            return result;
    }
    return block_node_sync(q->node);
}

bool qcow2_data_create(const BlockCreate *c, BlockPreallocation mode, GError **err)
{
    const char *name = block_option_string(c->options, NULL, "data_file");
    g_autoptr(BlockFile) file = block_transport_create(name, c->size, c->objects, err);
    if (!file)
        return false;
    int result = 0;
    if (mode >= BLOCK_PREALLOCATE_FALLOC)
        result = block_file_preallocate(file, 0, c->size, mode == BLOCK_PREALLOCATE_FULL);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot preallocate", name);
}
