/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening images and their chains, and the checked way into a format's data path. */
#include "disk/block.h"

#include "base/bytes.h"
#include "base/error.h"
#include "disk/bitmap-internal.h"
#include "disk/iov.h"
#include "disk/json-text.h"
#include "disk/format/formats.h"
#include "disk/node.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The longest chain of backing images; each costs a descriptor and a look-up a read. */
#define BLOCK_CHAIN_MAX 128
#define PROBE_BYTES     2048

typedef struct Visited {
    uint64_t device, inode;
} Visited;

const BlockOption block_node_options[] = {
    {"driver", BLOCK_OPTION_STRING, "the format or transport", NULL},
    {"node-name", BLOCK_OPTION_STRING, "accepted for QEMU's sake", NULL},
    {"file", BLOCK_OPTION_TREE, "the node below", NULL},
    {"filename", BLOCK_OPTION_STRING, "the file below, by name", NULL},
    {"backing", BLOCK_OPTION_TREE, "the backing image; null: none", NULL},
    {"read-only", BLOCK_OPTION_BOOL, "open for reading only", NULL},
    {"auto-read-only", BLOCK_OPTION_BOOL, "accepted for QEMU's sake", NULL},
    {"force-share", BLOCK_OPTION_BOOL, "take no locks", NULL},
    {"discard", BLOCK_OPTION_STRING, "ignore (off), unmap (on)", NULL},
    {"detect-zeroes", BLOCK_OPTION_STRING, "off, on, unmap", NULL},
    {"cache", BLOCK_OPTION_TREE, "direct, no-flush", NULL},
    {"snapshot", BLOCK_OPTION_TREE, "snapshot.id, snapshot.name", NULL},
    {NULL, 0, NULL, NULL},
};

static BlockNode *open_one(BlockFile *taken, const BlockOpen *options, GError **err);

char *block_reference_path(const char *image_path, const char *written)
{
    const char *colon = strchr(written, ':'), *slash = strchr(written, '/');
    if (g_path_is_absolute(written) || (colon && (!slash || colon < slash)))
        return g_strdup(g_str_has_prefix(written, "file:") ? written + strlen("file:") : written);
    if (g_str_has_prefix(image_path, "json:"))
        return g_strdup(written);
    const char *last = strrchr(image_path, '/');
    if (!last)
        return g_strdup(written);
    return g_strdup_printf("%.*s/%s", (int)(last - image_path), image_path, written);
}

/* Where relative names are meant from: what is opened by options is where its file is. */
static const char *base_path(const BlockNode *node)
{
    return node->file && g_str_has_prefix(node->path, "json:") ? node->file->path : node->path;
}

char *block_backing_full_path(const BlockNode *node)
{
    return node->backing_path ? block_reference_path(base_path(node), node->backing_path) : NULL;
}

bool block_reference_allowed(const BlockOpen *how, int fd, GError **err)
{
    static const char *const folders[] = {"/etc/", "/proc/", "/sys/", "/run/secrets/"};
    static const char *const inside[] = {"/.ssh/", "/.gnupg/", "/.aws/", "/.kube/", "/.pki/"};
    if (!how->referenced || how->trust_references || how->opener)
        return true;
    g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *real = g_file_read_link(link, NULL);
    const char *closed = NULL;
    for (size_t i = 0; real && i < G_N_ELEMENTS(folders); i++) {
        if (g_str_has_prefix(real, folders[i]))
            closed = folders[i];
    }
    for (size_t i = 0; real && i < G_N_ELEMENTS(inside); i++) {
        if (strstr(real, inside[i]))
            closed = inside[i];
    }
    return !closed || lodge_fail(err, LODGE_ERROR_DENIED,
                                 "%s: an image refers to this file, and images do not get to read "
                                 "what is in %s (LODGE_IMAGE_REFERENCES=any in the environment "
                                 "allows it)",
                                 how->path, closed);
}

/* What @how says about the node under @role; NULL: nothing. */
static const json_t *role_options(const BlockOpen *how, const char *role)
{
    return how->options ? json_object_get(how->options, role) : NULL;
}

/* For a node or file below: its part of the tree, or the path that the image gives. */
static BlockOpen below_of(const BlockNode *node, const BlockOpen *how, const json_t *own,
                          const char *path)
{
    BlockOpen below = *how;
    below.options = own;
    below.format = NULL;
    below.snapshot = NULL;
    below.path = path;
    below.direct = node->direct;
    below.no_flush = node->no_flush;
    below.read_only = node->read_only;
    if (!own || (!json_object_get(own, "file") && !json_object_get(own, "filename")))
        below.referenced = true;
    else
        below.path = NULL;
    return below;
}

BlockFile *block_reference_open(BlockNode *node, const BlockOpen *how, const char *role,
                                const char *written, bool write, GError **err)
{
    const json_t *own = role_options(how, role);
    g_autofree char *path = written ? block_reference_path(base_path(node), written) : NULL;
    BlockOpen below = below_of(node, how, own, path);
    below.read_only = !write;
    if (!path && !own) {
        lodge_fail(err, LODGE_ERROR_INVALID, "%s: its %s is not named", node->path, role);
        return NULL;
    }
    return block_transport_open(&below, below.path ? NULL : own, err);
}

static bool open_backing(BlockNode *node, const BlockOpen *how, GError **err)
{
    const json_t *own = role_options(how, "backing");
    if (json_is_string(own) && *json_string_value(own))
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Cannot find device='' nor node-name='%s'",
                          json_string_value(own));
    if (how->no_backing || json_is_null(own) || json_is_string(own) ||
        (!node->backing_path && !own))
        return true;
    g_autofree char *path = block_backing_full_path(node);
    BlockOpen below = below_of(node, how, own, path);
    below.read_only = true;
    below.repair = false;
    if (!block_option_given(own, "driver"))
        below.format = node->backing_format;
    g_autoptr(GError) cause = NULL;
    node->backing = open_one(NULL, &below, &cause);
    if (!node->backing) {
        g_propagate_prefixed_error(err, g_steal_pointer(&cause), "Could not open backing file: ");
        return false;
    }
    return true;
}

static bool remember(GArray *chain, const BlockFile *file, GError **err)
{
    Visited here = {file->device, file->inode};
    for (guint i = 0; i < chain->len; i++) {
        const Visited *seen = &g_array_index(chain, Visited, i);
        if (here.inode != 0 && seen->device == here.device && seen->inode == here.inode)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "%s: the chain of backing files loops back to this file", file->path);
    }
    if (chain->len >= BLOCK_CHAIN_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "%s: the chain of backing files is longer than %d images", file->path,
                          BLOCK_CHAIN_MAX);
    g_array_append_val(chain, here);
    return true;
}

static bool choose_format(BlockNode *node, const BlockOpen *how, GError **err)
{
    const char *name = block_option_string(how->options, NULL, "driver");
    if (name && how->format)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Cannot specify both 'driver' and 'format' (\"%s\", \"%s\")", name,
                          how->format);
    if (!name)
        name = how->format;
    if (name) {
        const BlockTransport *bare = block_transport_find(name);
        node->format = bare ? &block_format_raw : block_format_find(name);
        node->driver = bare ? bare->name : NULL;
        if (node->format)
            return true;
        g_autofree char *names = block_format_names();
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Unknown driver '%s'; %s are known", name, names);
    }
    uint8_t head[PROBE_BYTES];
    int result = block_file_read(node->file, 0, head, sizeof(head));
    if (result < 0)
        return lodge_fail_errno(err, -result, "%s: cannot read the start of the image",
                                node->path);
    node->format = block_format_probe(head, sizeof(head));
    for (size_t i = 0; node->path && node->format == &block_format_raw && block_formats[i]; i++) {
        if (block_formats[i]->suffix && g_str_has_suffix(node->path, block_formats[i]->suffix))
            node->format = block_formats[i];
    }
    node->probed_raw = !strcmp(node->format->name, "raw");
    return true;
}

/* The node's own modes: what @how says, changed by what the tree says. */
static bool set_modes(BlockNode *node, const BlockOpen *how, GError **err)
{
    const json_t *own = how->options, *cache = own ? json_object_get(own, "cache") : NULL;
    const char *discard = block_option_string(own, NULL, "discard");
    node->read_only = how->read_only;
    node->no_flush = how->no_flush;
    node->direct = how->direct;
    node->shared = how->shared;
    node->discard_unmap = discard ? !strcmp(discard, "unmap") || !strcmp(discard, "on")
                                  : how->discard_unmap;
    return block_option_bool(own, NULL, "read-only", &node->read_only, err) &&
           block_option_bool(own, NULL, "force-share", &node->shared, err) &&
           block_option_bool(cache, NULL, "direct", &node->direct, err) &&
           block_option_bool(cache, NULL, "no-flush", &node->no_flush, err);
}

static BlockFile *open_file(BlockNode *node, const BlockOpen *how, GError **err)
{
    const json_t *own = how->options, *file = own ? json_object_get(own, "file") : NULL;
    const char *driver = block_option_string(own, NULL, "driver");
    BlockOpen below = *how;
    below.read_only = node->read_only;
    below.no_flush = node->no_flush;
    below.direct = node->direct;
    below.shared = node->shared;
    below.snapshot = NULL;
    below.no_secrets = false; /* what describes the image is read from there */
    if (json_is_string(file)) {
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "Cannot find device='' nor node-name='%s'",
                   json_string_value(file));
        return NULL;
    }
    below.format = NULL;
    if (file)
        return block_transport_open(&below, file, err);
    if (driver && block_transport_find(driver))
        return block_transport_open(&below, own, err);
    if (!below.path)
        below.path = block_option_string(own, NULL, "filename");
    if (!below.path) {
        lodge_fail(err, LODGE_ERROR_INVALID,
                   "A block device must be specified for \"file\"");
        return NULL;
    }
    below.options = NULL;
    return block_transport_open(&below, NULL, err);
}

/* What an image is opened with that its file's name does not say. */
static const char *const telling_options[] = {"key-secret", "header", "encrypt", "offset", "size"};

/*
 * The name that describes the node as it was opened, if its path does not: as QEMU writes it, of
 * the driver, the file and the options above.
 */
static char *shown_name(const BlockNode *node, const json_t *own)
{
    json_t *file = own ? json_object_get(own, "file") : NULL;
    json_auto_t *tree = json_object();
    for (size_t i = 0; i < G_N_ELEMENTS(telling_options); i++) {
        json_t *value = own ? json_object_get(own, telling_options[i]) : NULL;
        if (value)
            json_object_set(tree, telling_options[i], value);
    }
    if (json_object_size(tree) == 0 || !json_is_object(file) || json_object_get(file, "file"))
        return NULL;
    json_auto_t *below = json_object();
    if (!json_object_get(file, "driver"))
        json_object_set_new(below, "driver", json_string("file"));
    json_object_update(below, file);
    json_object_set_new(tree, "driver", json_string(block_format(node)));
    json_object_set(tree, "file", below);
    g_autofree char *text = json_text(tree, false);
    return g_strdup_printf("json:%s", text);
}

/* A name for messages, and to find relative references from. */
static char *name_of(const BlockOpen *how)
{
    const json_t *own = how->options, *file = own ? json_object_get(own, "file") : NULL;
    const char *name = block_option_string(json_is_object(file) ? file : own, NULL, "filename");
    if (how->path && g_str_has_prefix(how->path, "file:")) {
        /* As QEMU: a name that would be taken for a URI without "file:" is one of this folder. */
        const char *plain = how->path + strlen("file:"), *colon = strchr(plain, ':');
        const char *slash = strchr(plain, '/');
        return colon && (!slash || colon < slash) ? g_strconcat("./", plain, NULL)
                                                  : g_strdup(plain);
    }
    if (how->path)
        return g_strdup(how->path);
    if (name && (!file || json_object_size(file) <= 2))
        return g_strdup(name);
    g_autofree char *text = json_text(own, false);
    return g_strdup_printf("json:%s", text);
}

static bool open_view(BlockNode *node, const BlockOpen *how, GError **err)
{
    const json_t *own = how->options ? json_object_get(how->options, "snapshot") : NULL;
    const char *which = how->snapshot;
    if (!which)
        which = block_option_string(own, NULL, "id");
    if (!which)
        which = block_option_string(own, NULL, "name");
    if (!which)
        return true;
    if (!node->format->snapshots)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "%s: the format \"%s\" has no internal snapshots", node->path,
                          node->format->name);
    return node->format->snapshots->view(node, which, err);
}

static BlockNode *open_named(BlockFile *taken, const BlockOpen *how, GError **err)
{
    g_autoptr(BlockNode) node = g_new0(BlockNode, 1);
    node->refs = 1;
    node->path = name_of(how);
    node->objects = how->objects;
    node->queues = g_ptr_array_new();
    g_mutex_init(&node->queues_lock);
    g_mutex_init(&node->bitmaps_lock);
    node->file = taken;
    if (!set_modes(node, how, err))
        return NULL;
    if (!node->file)
        node->file = open_file(node, how, err);
    if (!node->file || !remember(how->visited, node->file, err) ||
        !choose_format(node, how, err))
        return NULL;
    /* A server's name tells more than the options it was put together from. */
    if (!how->path && g_str_has_prefix(node->path, "json:") && strstr(node->file->path, "://")) {
        g_free(node->path);
        node->path = g_strdup(node->file->path);
    }
    /* A bare transport looked at its options itself. */
    if (!node->driver && !block_options_known(how->options, block_node_options,
                                              node->format->open_options, node->format->name, err))
        return NULL;
    if (!node->format->open(node, how, err) || !open_backing(node, how, err))
        return NULL;
    if (node->format->activate && !node->format->activate(node, err))
        return NULL;
    node->shown = shown_name(node, how->options);
    return open_view(node, how, err) ? g_steal_pointer(&node) : NULL;
}

/* "json:{...}" is a tree in the place of a name. */
static BlockNode *open_one(BlockFile *taken, const BlockOpen *how, GError **err)
{
    if (!how->path || !g_str_has_prefix(how->path, "json:"))
        return open_named(taken, how, err);
    g_autofree char *problem = NULL;
    json_auto_t *flat = json_text_parse(how->path + strlen("json:"), &problem);
    if (!json_is_object(flat)) {
        block_file_close(taken);
        lodge_fail(err, LODGE_ERROR_INVALID, "Could not parse the JSON options: %s",
                   flat ? "not an object" : problem);
        return NULL;
    }
    json_auto_t *tree = block_options_nest(flat, err);
    if (!tree) {
        block_file_close(taken);
        return NULL;
    }
    if (how->options)
        json_object_update((json_t *)tree, (json_t *)how->options);
    BlockOpen named = *how;
    named.path = NULL;
    named.options = tree;
    if (block_option_given(tree, "driver"))
        named.format = NULL;
    return open_named(taken, &named, err);
}

static BlockNode *open_first(BlockFile *file, const BlockOpen *options, GError **err)
{
    if (options->visited) /* a node below another one */
        return open_one(file, options, err);
    g_autoptr(GArray) visited = g_array_new(FALSE, FALSE, sizeof(Visited));
    BlockOpen first = *options;
    first.visited = visited;
    return open_one(file, &first, err);
}

BlockNode *block_open(const BlockOpen *options, GError **err)
{
    return open_first(NULL, options, err);
}

BlockNode *block_open_file(BlockFile *file, const BlockOpen *options, GError **err)
{
    return open_first(file, options, err);
}

BlockNode *block_ref(BlockNode *node)
{
    g_atomic_int_inc(&node->refs);
    return node;
}

void block_unref(BlockNode *node)
{
    if (!node || !g_atomic_int_dec_and_test(&node->refs))
        return;
    if (node->format)
        node->format->close(node);
    block_unref(node->backing);
    block_file_close(node->file);
    g_ptr_array_unref(node->queues);
    block_bitmaps_free(node);
    g_mutex_clear(&node->bitmaps_lock);
    g_mutex_clear(&node->queues_lock);
    g_free(node->path);
    g_free(node->shown);
    g_free(node->backing_path);
    g_free(node->backing_format);
    g_free(node);
}

uint64_t block_size(const BlockNode *node)
{
    return node->size;
}

bool block_read_only(const BlockNode *node)
{
    return node->read_only;
}

bool block_probed_raw(const BlockNode *node)
{
    return node->probed_raw;
}

const char *block_path(const BlockNode *node)
{
    return node->path;
}

const char *block_shown_name(const BlockNode *node)
{
    return node->shown ? node->shown : node->path;
}

const char *block_format(const BlockNode *node)
{
    return node->driver ? node->driver : node->format->name;
}

BlockNode *block_backing(const BlockNode *node)
{
    return node->backing;
}

static int check_range(const BlockNode *node, uint64_t offset, uint64_t length, bool write)
{
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    return write && node->read_only ? -EROFS : 0;
}

int block_breakpoint(BlockNode *node, BlockBreak what, const char *event, const char *tag)
{
    return node->file->ops->breakpoint ? node->file->ops->breakpoint(node->file, what, event, tag)
                                       : -ENOTSUP;
}

void block_event(BlockNode *node, const char *event)
{
    if (node->file->ops->event)
        node->file->ops->event(node->file, event);
}

int block_readv(BlockNode *node, uint64_t offset, const struct iovec *iov, int n)
{
    uint64_t length = block_iov_length(iov, n);
    int result = check_range(node, offset, length, false);
    if (result < 0 || length == 0)
        return result;
    block_event(node, "read_aio");
    return node->format->readv(node, offset, iov, n);
}

/*
 * A guest that wrote another format's magic into an image opened as raw by probing would choose
 * how the next one to open it reads it.
 */
static bool forges_format(BlockNode *node, uint64_t offset, const struct iovec *iov, int n,
                          uint64_t length)
{
    uint8_t head[PROBE_BYTES];
    if (!node->probed_raw || offset >= sizeof(head))
        return false;
    if (block_file_read(node->file, 0, head, sizeof(head)) < 0)
        return true;
    block_iov_to(head + offset, iov, n, 0, MIN(length, sizeof(head) - offset));
    return strcmp(block_format_probe(head, sizeof(head))->name, "raw") != 0;
}

int block_writev(BlockNode *node, uint64_t offset, const struct iovec *iov, int n, unsigned flags)
{
    uint64_t length = block_iov_length(iov, n);
    int result = check_range(node, offset, length, true);
    if (result < 0)
        return result;
    if (length > 0 && forges_format(node, offset, iov, n, length))
        return -EPERM;
    block_bitmaps_dirty(node, offset, length);
    block_event(node, "write_aio");
    if (length > 0)
        result = node->format->writev(node, offset, iov, n);
    if (result == 0 && (flags & BLOCK_FUA))
        result = node->format->flush(node);
    return result;
}

int block_write_zeroes(BlockNode *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int result = check_range(node, offset, length, true);
    if (result < 0)
        return result;
    block_bitmaps_dirty(node, offset, length);
    if (length > 0)
        result = node->format->write_zeroes(node, offset, length,
                                            (flags & BLOCK_UNMAP) && node->discard_unmap);
    if (result == 0 && (flags & BLOCK_FUA))
        result = node->format->flush(node);
    return result;
}

int block_discard(BlockNode *node, uint64_t offset, uint64_t length)
{
    int result = check_range(node, offset, length, true);
    if (result < 0 || length == 0 || !node->discard_unmap)
        return result;
    block_bitmaps_dirty(node, offset, length);
    return node->format->discard(node, offset, length);
}

int block_flush(BlockNode *node)
{
    if (node->read_only)
        return 0;
    block_event(node, "flush_to_disk");
    return node->format->flush(node);
}

int block_node_sync(BlockNode *node)
{
    return node->no_flush ? 0 : node->file->ops->flush(node->file);
}

int block_read_backing(BlockNode *node, uint64_t offset, const struct iovec *iov, int n,
                       uint64_t skip, uint64_t length)
{
    BlockNode *below = node->backing;
    uint64_t inside = below && offset < below->size ? MIN(length, below->size - offset) : 0;
    block_iov_zero(iov, n, skip + inside, length - inside);
    while (inside > 0) {
        struct iovec part[64];
        uint64_t covered;
        int entries = block_iov_slice(part, G_N_ELEMENTS(part), iov, n, skip, inside, &covered);
        if (covered == 0)
            return -EINVAL;
        int result = below->format->readv(below, offset, part, entries);
        if (result < 0)
            return result;
        offset += covered;
        skip += covered;
        inside -= covered;
    }
    return 0;
}
