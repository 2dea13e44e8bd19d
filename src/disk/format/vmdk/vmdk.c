/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VMware's disk images: a descriptor, and extents of the disk in files of their own or in the same
 * one. "Virtual Disk Format 5.0", VMware, 2011. docs/format/vmdk.md
 */
#include "disk/format/vmdk/vmdk.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/iov.h"

#include <errno.h>
#include <string.h>

static bool vmdk_probe(const uint8_t *head, size_t length)
{
    bool cowd;
    return length >= VMDK_SECTOR &&
           (vmdk_magic(head, &cowd) || vmdk_descriptor_probe((const char *)head, length));
}

static bool type_supported(const char *type)
{
    static const char *const types[] = {"monolithicFlat",       "vmfs",
                                        "vmfsSparse",           "seSparse",
                                        "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"};
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        if (!strcmp(types[i], type))
            return true;
    }
    return false;
}

/* An extent whose own first bytes say of which kind it is. */
static bool add_by_magic(Vmdk *v, BlockFile *file, bool owns, const VmdkExtentLine *line,
                         GError **err)
{
    uint8_t head[4];
    bool cowd;
    int result = block_file_read(file, 0, head, sizeof(head));
    if (result < 0 || !vmdk_magic(head, &cowd)) {
        if (owns)
            block_file_close(file);
        return result < 0 ? lodge_fail_errno(err, -result, "Could not read from file")
                          : lodge_fail(err, LODGE_ERROR_CORRUPT, "Image not in VMDK format");
    }
    return cowd ? vmdk_extent_add_cowd(v, file, owns, line, err)
                : vmdk_extent_add_sparse(v, file, owns, line, err);
}

static bool open_extents(Vmdk *v, const BlockOpen *how, const VmdkDescriptor *d, GError **err)
{
    BlockNode *node = v->node;
    for (guint i = 0; i < d->extents->len; i++) {
        const VmdkExtentLine *line = &g_array_index(d->extents, VmdkExtentLine, i);
        g_autofree char *role = g_strdup_printf("extents.%u", i);
        if (g_str_has_prefix(node->file->path, "json:") && !g_path_is_absolute(line->name))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Cannot use relative paths with VMDK descriptor file '%s'",
                              node->path);
        BlockFile *file = block_reference_open(node, how, role, line->name, !node->read_only, err);
        if (!file)
            return false;
        bool good = line->type == VMDK_FLAT || line->type == VMDK_VMFS
                        ? vmdk_extent_add_flat(v, file, line, err)
                    : line->type == VMDK_SESPARSE ? vmdk_extent_add_sesparse(v, file, line, err)
                                                  : add_by_magic(v, file, true, line, err);
        if (!good)
            return false;
    }
    return true;
}

/* @at: of the descriptor in the node's file; *length bytes at most. */
static bool read_descriptor(Vmdk *v, uint64_t at, uint64_t length, VmdkDescriptor *d, GError **err)
{
    uint64_t size;
    int result = v->node->file->ops->size(v->node->file, &size);
    length = at < size ? MIN(length, size - at) : 0;
    g_autofree char *text = g_try_malloc(length + 1);
    if (!text)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: no memory for its descriptor",
                          v->node->path);
    if (result == 0 && length)
        result = block_file_read(v->node->file, at, text, length);
    if (result < 0)
        return lodge_fail_errno(err, -result, "Could not read from file");
    if (!vmdk_descriptor_parse(d, text, length, err))
        return false;
    v->cid = d->cid;
    v->parent_cid = d->parent_cid;
    v->cid_at = at + d->cid_at;
    v->cid_digits = d->cid_digits;
    if (d->parent) {
        v->node->backing_path = g_strdup(d->parent);
        v->node->backing_format = g_strdup("vmdk");
    }
    return true;
}

static bool open_described(Vmdk *v, const BlockOpen *how, uint64_t at, GError **err)
{
    VmdkDescriptor d;
    bool good = read_descriptor(v, at, VMDK_DESCRIPTOR_MAX - 1, &d, err);
    if (good && !d.create_type)
        good = lodge_fail(err, LODGE_ERROR_CORRUPT, "invalid VMDK image descriptor");
    if (good && !type_supported(d.create_type))
        good = lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unsupported image type '%s'",
                          d.create_type);
    if (good) {
        v->create_type = g_strdup(d.create_type);
        good = open_extents(v, how, &d, err);
    }
    vmdk_descriptor_clear(&d);
    return good;
}

/* One file with everything; a header without a capacity stands before a descriptor of others. */
static bool open_monolithic(Vmdk *v, const BlockOpen *how, const uint8_t *h, GError **err)
{
    VmdkDescriptor d;
    uint64_t at = le64_get(h + VMDK_DESC_OFFSET), sectors = le64_get(h + VMDK_DESC_SIZE);
    bool cowd;
    vmdk_magic(h, &cowd);
    if (cowd)
        at = VMDK_DESC_SECTOR, sectors = VMDK_DESC_SECTORS;
    if (at == 0 || at > INT64_MAX / VMDK_SECTOR / 2)
        at = VMDK_DESC_SECTOR;
    if (!cowd && le64_get(h + VMDK_CAPACITY) == 0 && le64_get(h + VMDK_DESC_OFFSET))
        return open_described(v, how, at * VMDK_SECTOR, err);
    if (!add_by_magic(v, v->node->file, false, NULL, err))
        return false;
    sectors = MIN(sectors ? sectors : VMDK_DESC_SECTORS, VMDK_DESCRIPTOR_MAX / VMDK_SECTOR);
    bool good = read_descriptor(v, at * VMDK_SECTOR, sectors * VMDK_SECTOR, &d, err);
    vmdk_descriptor_clear(&d);
    return good;
}

static bool vmdk_open(BlockNode *node, const BlockOpen *how, GError **err)
{
    uint8_t h[VMDK_HEADER_BYTES];
    bool cowd;
    uint64_t size;
    Vmdk *v = g_new0(Vmdk, 1);
    node->state = v;
    v->node = node;
    v->extents = g_ptr_array_new_with_free_func(vmdk_extent_free);
    g_mutex_init(&v->cid_lock);
    int result = node->file->ops->size(node->file, &size);
    if (result == 0 && size < 4)
        return lodge_fail(err, LODGE_ERROR_CORRUPT, "File is too small, not a valid image");
    if (result == 0)
        result = block_file_read(node->file, 0, h, sizeof(h));
    if (result < 0)
        return lodge_fail_errno(err, -result, "Could not read from file");
    return vmdk_magic(h, &cowd) ? open_monolithic(v, how, h, err) : open_described(v, how, 0, err);
}

bool vmdk_cid_of(const BlockNode *node, uint32_t *cid)
{
    if (node->format != &block_format_vmdk)
        return false;
    *cid = ((const Vmdk *)node->state)->cid;
    return true;
}

/* A parent that was written to since is not what this image's grains were made against. */
static bool vmdk_activate(BlockNode *node, GError **err)
{
    Vmdk *v = node->state;
    uint32_t cid;
    bool bad = node->backing && (!vmdk_cid_of(node->backing, &cid) || cid != v->parent_cid);
    for (guint i = 0; i < v->extents->len; i++)
        ((VmdkExtent *)v->extents->pdata[i])->map.bad_backing = bad;
    return true;
}

static int vmdk_flush(BlockNode *node)
{
    Vmdk *v = node->state;
    bool own = false;
    int result = 0;
    for (guint i = 0; i < v->extents->len && result == 0; i++) {
        VmdkExtent *e = v->extents->pdata[i];
        own = own || e->file == node->file;
        if (!e->flat)
            result = grains_flush(&e->map);
        else if (!node->no_flush)
            result = e->file->ops->flush(e->file);
    }
    return result < 0 || own ? result : block_node_sync(node); /* where the CID is */
}

static void vmdk_close(BlockNode *node)
{
    Vmdk *v = node->state;
    if (!v)
        return;
    if (!node->read_only)
        vmdk_flush(node);
    g_ptr_array_unref(v->extents);
    g_mutex_clear(&v->cid_lock);
    g_free(v->create_type);
    g_free(v);
    node->state = NULL;
}

/*
 * Before the first write: another CID, so that children of what the disk was notice. As many digits
 * as were there, in place: no more of the text is touched than they.
 */
static int change_cid(Vmdk *v)
{
    int result = 0;
    if (g_atomic_int_get(&v->cid_written))
        return 0;
    g_mutex_lock(&v->cid_lock);
    if (!v->cid_written) {
        uint32_t mask = v->cid_digits < 8 ? (1u << (4 * v->cid_digits)) - 1 : UINT32_MAX;
        uint32_t cid = g_random_int() & mask;
        if (cid == v->cid || cid == VMDK_CID_NONE)
            cid ^= 1;
        g_autofree char *text = g_strdup_printf("%0*x", (int)v->cid_digits, cid);
        result = block_file_write(v->node->file, v->cid_at, text, v->cid_digits);
        if (result == 0) {
            v->cid = cid;
            g_atomic_int_set(&v->cid_written, 1);
        }
    }
    g_mutex_unlock(&v->cid_lock);
    return result;
}

static VmdkExtent *extent_at(const Vmdk *v, uint64_t offset)
{
    guint low = 0, high = v->extents->len;
    while (high - low > 1) {
        guint middle = (low + high) / 2;
        if (((VmdkExtent *)v->extents->pdata[middle])->start <= offset)
            low = middle;
        else
            high = middle;
    }
    return v->extents->pdata[low];
}

/* The part of [offset, offset + *length) that one extent has; returns where it is in it. */
static uint64_t within(const VmdkExtent *e, uint64_t offset, uint64_t *length)
{
    uint64_t at = offset - e->start;
    *length = MIN(*length, e->size - at);
    return at;
}

static int vmdk_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Vmdk *v = node->state;
    uint64_t total = block_iov_length(iov, n);
    for (uint64_t done = 0, part; done < total; done += part) {
        VmdkExtent *e = extent_at(v, offset + done);
        part = total - done;
        uint64_t at = within(e, offset + done, &part);
        int result = e->flat ? block_file_readv(e->file, e->flat_offset + at, iov, n, done, part)
                             : grains_readv(&e->map, at, iov, n, done, part);
        if (result < 0)
            return result;
    }
    return 0;
}

static int vmdk_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    Vmdk *v = node->state;
    uint64_t total = block_iov_length(iov, n);
    int result = change_cid(v);
    for (uint64_t done = 0, part; done < total && result == 0; done += part) {
        VmdkExtent *e = extent_at(v, offset + done);
        part = total - done;
        uint64_t at = within(e, offset + done, &part);
        result = e->flat ? block_file_writev(e->file, e->flat_offset + at, iov, n, done, part)
                         : grains_writev(&e->map, at, iov, n, done, part);
    }
    return result;
}

static int vmdk_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, bool unmap)
{
    Vmdk *v = node->state;
    int result = change_cid(v);
    for (uint64_t part; length > 0 && result == 0; offset += part, length -= part) {
        VmdkExtent *e = extent_at(v, offset);
        part = length;
        uint64_t at = within(e, offset, &part);
        result = e->flat ? e->file->ops->zero(e->file, e->flat_offset + at, part, unmap)
                         : grains_write_zeroes(&e->map, at, part, unmap);
    }
    return result;
}

static int vmdk_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    Vmdk *v = node->state;
    int result = change_cid(v);
    for (uint64_t part; length > 0 && result == 0; offset += part, length -= part) {
        VmdkExtent *e = extent_at(v, offset);
        part = length;
        uint64_t at = within(e, offset, &part);
        result = e->flat ? e->file->ops->discard(e->file, e->flat_offset + at, part)
                         : grains_discard(&e->map, at, part);
    }
    return result;
}

/* Where extents have no compressed grains, as it is: what qemu-img's `convert -c` gets, too. */
static int vmdk_write_compressed(BlockNode *node, uint64_t offset, const void *grain, size_t length)
{
    Vmdk *v = node->state;
    VmdkExtent *e = extent_at(v, offset);
    uint64_t part = length, at = within(e, offset, &part);
    struct iovec iov = {(void *)grain, length};
    if (!e->compressed)
        return vmdk_writev(node, offset, &iov, 1);
    if (part < length)
        return -EINVAL;
    int result = change_cid(v);
    return result < 0 ? result : grains_write_packed(&e->map, at, grain, length);
}

static bool vmdk_only_compressed(BlockNode *node)
{
    const Vmdk *v = node->state;
    const VmdkExtent *e = v->extents->len ? v->extents->pdata[0] : NULL;
    return e && e->compressed;
}

static int flat_status(const VmdkExtent *e, uint64_t at, uint64_t length, BlockExtent *extent)
{
    bool data = true;
    uint64_t same = length, host = e->flat_offset + at;
    int result = 0;
    if (e->file->ops->status)
        result = e->file->ops->status(e->file, host, length, &data, &same);
    *extent = (BlockExtent){.length = same, .present = true, .data = true, .zero = !data,
                            .has_offset = true, .file_offset = host};
    return result;
}

static int vmdk_status(BlockNode *node, uint64_t offset, uint64_t length, BlockExtent *extent)
{
    const Vmdk *v = node->state;
    VmdkExtent *e = extent_at(v, offset);
    uint64_t at = within(e, offset, &length);
    int result = e->flat ? flat_status(e, at, length, extent)
                         : grains_status(&e->map, at, length, extent);
    if (result == 0 && e->file != node->file)
        extent->in_file = e->file->path;
    return result;
}

static bool vmdk_fast_begin(BlockNode *node, bool write, uint64_t offset, uint64_t length,
                            BlockFast *fast)
{
    Vmdk *v = node->state;
    VmdkExtent *e = extent_at(v, offset);
    uint64_t part = length, at = within(e, offset, &part);
    if (part < length || (write && !g_atomic_int_get(&v->cid_written)))
        return false;
    if (!e->flat)
        return grains_fast_begin(&e->map, write, at, length, fast);
    fast->file = e->file;
    fast->file_offset = e->flat_offset + at;
    return true;
}

static void vmdk_fast_end(BlockNode *node, BlockFast *fast)
{
}

/* The queue would flush the node's file only. */
static bool vmdk_flush_is_plain(BlockNode *node)
{
    const Vmdk *v = node->state;
    for (guint i = 0; i < v->extents->len; i++) {
        VmdkExtent *e = v->extents->pdata[i];
        if (e->file != node->file || (!e->flat && !grains_flush_is_plain(&e->map)))
            return false;
    }
    return true;
}

static json_t *describe_extent(const VmdkExtent *e)
{
    json_t *o = json_object();
    if (e->compressed)
        json_object_set_new(o, "compressed", json_true());
    json_object_set_new(o, "virtual-size", json_integer((json_int_t)e->size));
    json_object_set_new(o, "filename", json_string(e->file->path));
    if (!e->flat)
        json_object_set_new(o, "cluster-size", json_integer((json_int_t)e->map.grain));
    json_object_set_new(o, "format", json_string(e->named ? vmdk_extent_types[e->type] : ""));
    return o;
}

/* The extents agree in what a tool asks of the whole image. */
static bool alike(const VmdkExtent *a, const VmdkExtent *b)
{
    return a->flat == b->flat && a->compressed == b->compressed &&
           (a->flat || a->map.grain == b->map.grain);
}

static void vmdk_info(BlockNode *node, BlockInfo *info)
{
    const Vmdk *v = node->state;
    bool same = v->extents->len > 0;
    json_t *extents = json_array();
    for (guint i = 0; i < v->extents->len; i++) {
        const VmdkExtent *e = v->extents->pdata[i];
        uint64_t bytes;
        same = same && alike(v->extents->pdata[0], e);
        json_array_append_new(extents, describe_extent(e));
        if (e->owns_file && e->file->ops->allocated &&
            e->file->ops->allocated(e->file, &bytes) == 0)
            info->actual_size += bytes;
    }
    if (same && !((const VmdkExtent *)v->extents->pdata[0])->flat)
        info->cluster_size = ((const VmdkExtent *)v->extents->pdata[0])->map.grain;
    info->specific_type = "vmdk";
    info->specific = json_object();
    json_object_set_new(info->specific, "cid", json_integer(v->cid));
    json_object_set_new(info->specific, "parent-cid", json_integer(v->parent_cid));
    json_object_set_new(info->specific, "create-type", json_string(v->create_type));
    json_object_set_new(info->specific, "extents", extents);
}

/* Nothing is repaired: what a crash leaves are unused grains, which no reader minds. */
static bool vmdk_check(BlockNode *node, BlockCheck *check, GError **err)
{
    Vmdk *v = node->state;
    if (check->repair != BLOCK_REPAIR_NONE)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "This image format does not support checks");
    for (guint i = 0; i < v->extents->len; i++) {
        VmdkExtent *e = v->extents->pdata[i];
        if (!e->flat && !grains_check(&e->map, check, err))
            return false;
    }
    return true;
}

const BlockFormat block_format_vmdk = {
    .name = "vmdk",
    .probe = vmdk_probe,
    .open = vmdk_open,
    .activate = vmdk_activate,
    .close = vmdk_close,
    .readv = vmdk_readv,
    .writev = vmdk_writev,
    .write_zeroes = vmdk_write_zeroes,
    .discard = vmdk_discard,
    .flush = vmdk_flush,
    .status = vmdk_status,
    .fast_begin = vmdk_fast_begin,
    .fast_end = vmdk_fast_end,
    .flush_is_plain = vmdk_flush_is_plain,
    .create_options = vmdk_create_options,
    .create_check = vmdk_create_check,
    .create = vmdk_create,
    .info = vmdk_info,
    .check = vmdk_check,
    .write_compressed = vmdk_write_compressed,
    .only_compressed = vmdk_only_compressed,
};
