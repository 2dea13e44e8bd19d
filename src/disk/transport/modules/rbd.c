/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A block image in a Ceph cluster, with librbd, whose calls on one image any thread may make at
 * the same time. Which parts hold data is not asked: rbd_diff_iterate2 of releases before 2022
 * answers wrongly for ranges that are not of whole objects.
 */
#include <rados/librados.h>
#include <rbd/librbd.h>

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/transport/module.h"

#define PIECE        ((uint64_t)MIB(4)) /* of one call: an object, by default */
#define OBJECT_ORDER 22                 /* new images: objects of 4 MiB */

typedef struct Ceph {
    BlockFile file; /* first */
    rados_t cluster;
    rados_ioctx_t pool;
    rbd_image_t image;
} Ceph;

static Ceph *ceph_of(BlockFile *file)
{
    return (Ceph *)file;
}

/* ---- bytes */

static int ceph_size(BlockFile *file, uint64_t *size)
{
    return rbd_get_size(ceph_of(file)->image, size);
}

/* One entry of a list; what is behind the image's end reads as zero. */
static int read_entry(Ceph *c, uint64_t offset, uint8_t *bytes, size_t length, uint64_t size)
{
    size_t inside = offset < size ? MIN(length, size - offset) : 0;
    memset(bytes + inside, 0, length - inside);
    for (size_t done = 0; done < inside;) {
        ssize_t got = rbd_read(c->image, offset + done, MIN(inside - done, PIECE),
                               (char *)bytes + done);
        if (got <= 0)
            return got < 0 ? (int)got : -EIO;
        done += (size_t)got;
    }
    return 0;
}

static int ceph_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t size = 0;
    int result = ceph_size(file, &size);
    for (int i = 0; i < n && result == 0; offset += iov[i++].iov_len)
        result = read_entry(ceph_of(file), offset, iov[i].iov_base, iov[i].iov_len, size);
    return result;
}

/* Grows the image for a write past its end. */
static int reach(BlockFile *file, uint64_t offset, uint64_t length)
{
    uint64_t size = 0;
    if (file->read_only)
        return -EROFS;
    if (!range_within(offset, length, INT64_MAX))
        return -EFBIG;
    g_mutex_lock(&file->rmw); /* two that grow it must not shrink it */
    int result = ceph_size(file, &size);
    if (result == 0 && offset + length > size)
        result = rbd_resize(ceph_of(file)->image, offset + length);
    g_mutex_unlock(&file->rmw);
    return result;
}

static int write_entry(Ceph *c, uint64_t offset, const uint8_t *bytes, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t put = rbd_write(c->image, offset + done, MIN(length - done, PIECE),
                                (const char *)bytes + done);
        if (put <= 0)
            return put < 0 ? (int)put : -EIO;
        done += (size_t)put;
    }
    return 0;
}

static int ceph_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    int result = reach(file, offset, block_iov_length(iov, n));
    for (int i = 0; i < n && result == 0; offset += iov[i++].iov_len)
        result = write_entry(ceph_of(file), offset, iov[i].iov_base, iov[i].iov_len);
    return result;
}

static int ceph_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    int result = reach(file, offset, length);
    int flags = unmap ? 0 : RBD_WRITE_ZEROES_FLAG_THICK_PROVISION;
    for (uint64_t done = 0; done < length && result == 0; done += MIN(length - done, GIB(1))) {
        ssize_t put = rbd_write_zeroes(ceph_of(file)->image, offset + done,
                                       MIN(length - done, GIB(1)), flags, 0);
        result = put < 0 ? (int)put : 0;
    }
    return result;
}

static int ceph_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    uint64_t size = 0;
    int result = file->read_only ? -EROFS : ceph_size(file, &size);
    if (result < 0 || offset >= size)
        return result;
    return rbd_discard(ceph_of(file)->image, offset, MIN(length, size - offset));
}

static int ceph_flush(BlockFile *file)
{
    return file->read_only ? 0 : rbd_flush(ceph_of(file)->image);
}

static int ceph_truncate(BlockFile *file, uint64_t size)
{
    if (file->read_only)
        return -EROFS;
    g_mutex_lock(&file->rmw);
    int result = rbd_resize(ceph_of(file)->image, size);
    g_mutex_unlock(&file->rmw);
    return result;
}

static void ceph_close(BlockFile *file)
{
    Ceph *c = ceph_of(file);
    if (c->image)
        rbd_close(c->image);
    if (c->pool)
        rados_ioctx_destroy(c->pool);
    if (c->cluster)
        rados_shutdown(c->cluster);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(c);
}

static const BlockFileOps ceph_ops = {
    .name = "rbd",
    .readv = ceph_readv,
    .writev = ceph_writev,
    .zero = ceph_zero,
    .discard = ceph_discard,
    .flush = ceph_flush,
    .truncate = ceph_truncate,
    .size = ceph_size,
    .close = ceph_close,
};

/* ---- open */

/* Settings that came with the name: a JSON object as text. */
static bool apply_settings(Ceph *c, const char *text, GError **err)
{
    json_auto_t *settings = text ? json_loads(text, 0, NULL) : NULL;
    const char *name;
    json_t *value;
    json_object_foreach(settings, name, value)
    {
        const char *given = json_string_value(value);
        if (!given || rados_conf_set(c->cluster, name, given) < 0)
            return lodge_fail(err, LODGE_ERROR_INVALID, "invalid conf option %s", name);
    }
    return true;
}

static bool set_key(Ceph *c, const BlockModuleOpen *how, GError **err)
{
    char *key;
    if (!how->secret(how, "key-secret", &key, err))
        return false;
    int result = key ? rados_conf_set(c->cluster, "key", key) : 0;
    if (key)
        explicit_bzero(key, strlen(key));
    g_free(key);
    return result == 0 || lodge_fail_errno(err, -result, "could not set the key");
}

static bool set_auth(Ceph *c, const BlockModuleOpen *how, GError **err)
{
    json_t *list = json_object_get(how->options, "auth-client-required"), *value;
    g_autoptr(GString) text = g_string_new(NULL);
    size_t i;
    if (!list)
        return true;
    json_array_foreach(list, i, value)
        g_string_append_printf(text, "%s%s", i ? ";" : "", json_string_value(value));
    int result = rados_conf_set(c->cluster, "auth_client_required", text->str);
    return result == 0 || lodge_fail_errno(err, -result, "could not set auth_client_required");
}

static bool connect_cluster(Ceph *c, const BlockModuleOpen *how, GError **err)
{
    const json_t *o = how->options;
    const char *conf = block_option_string(o, NULL, "conf");
    int result = rados_create(&c->cluster, block_option_string(o, NULL, "user"));
    if (result < 0)
        return lodge_fail_errno(err, -result, "error initializing");
    result = rados_conf_read_file(c->cluster, conf);
    if (result < 0 && (conf || result != -ENOENT))
        return lodge_fail_errno(err, -result, "error reading conf file %s", conf ? conf : "");
    if (!apply_settings(c, block_option_string(o, NULL, "keyvalue"), err) ||
        !set_key(c, how, err) || !set_auth(c, how, err))
        return false;
    result = rados_connect(c->cluster);
    return result == 0 || lodge_fail_errno(err, -result, "error connecting");
}

static bool open_image(Ceph *c, const BlockModuleOpen *how, GError **err)
{
    const json_t *o = how->options;
    const char *pool = block_option_string(o, NULL, "pool");
    const char *name = block_option_string(o, NULL, "image");
    const char *space = block_option_string(o, NULL, "namespace");
    const char *snapshot = block_option_string(o, NULL, "snapshot");
    int order = OBJECT_ORDER;
    int result = rados_ioctx_create(c->cluster, pool, &c->pool);
    if (result < 0)
        return lodge_fail_errno(err, -result, "error opening pool %s", pool);
    if (space)
        rados_ioctx_set_namespace(c->pool, space);
    result = how->create ? rbd_create(c->pool, name, how->size, &order) : 0;
    if (result < 0)
        return lodge_fail_errno(err, -result, "error rbd create");
    result = c->file.read_only ? rbd_open_read_only(c->pool, name, &c->image, snapshot)
                               : rbd_open(c->pool, name, &c->image, snapshot);
    return result == 0 ||
           lodge_fail_errno(err, -result, "error reading header from %s", name);
}

static bool check_names(const BlockModuleOpen *how, GError **err)
{
    static const char *const required[] = {"pool", "image"};
    for (size_t i = 0; i < G_N_ELEMENTS(required); i++) {
        if (!block_option_string(how->options, NULL, required[i]))
            return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' is missing", required[i]);
    }
    return how->read_only || !block_option_given(how->options, "snapshot") ||
           lodge_fail(err, LODGE_ERROR_DENIED, "rbd snapshots are read-only");
}

static BlockFile *ceph_open(const BlockModuleOpen *how, GError **err)
{
    if (!check_names(how, err))
        return NULL;
    Ceph *c = g_new0(Ceph, 1);
    c->file = (BlockFile){
        .ops = &ceph_ops, .fd = -1, .read_only = how->read_only && !how->create, .alignment = 1};
    c->file.path = g_strdup_printf("rbd:%s/%s", block_option_string(how->options, NULL, "pool"),
                                   block_option_string(how->options, NULL, "image"));
    g_mutex_init(&c->file.rmw);
    if (connect_cluster(c, how, err) && open_image(c, how, err))
        return &c->file;
    ceph_close(&c->file);
    return NULL;
}

__attribute__((visibility("default"))) extern const BlockModule lodge_disk_module;
const BlockModule lodge_disk_module = {
    .version = LODGE_VERSION, .open_size = sizeof(BlockModuleOpen), .open = ceph_open};
