/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The target of convert: made, opened, given bitmaps. */
#include "cli/image/convert.h"

#include "disk/bitmap.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static bool fail(const char *text)
{
    image_fail("%s", text);
    return false;
}

/* Options that name secrets are needed again when the new image is opened. */
static json_t *secrets_of(const json_t *named)
{
    json_auto_t *flat = json_object();
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)named, name, value)
    {
        if (g_str_has_suffix(name, "key-secret"))
            json_object_set(flat, name, value);
    }
    return json_object_size(flat) ? block_options_nest(flat, NULL) : NULL;
}

static bool check_compression(const Convert *c, const json_t *named)
{
    bool encrypted = false;
    const char *preallocation = block_option_string(named, NULL, "preallocation");
    if (!c->copy.compress)
        return true;
    block_option_bool(named, NULL, "encryption", &encrypted, NULL);
    if (c->target_format && !block_format_can_compress(c->target_format))
        return fail("Compression not supported for this file format");
    if (encrypted || block_option_given(named, "encrypt.format"))
        return fail("Compression and encryption not supported at the same time");
    if (preallocation && strcmp(preallocation, "off"))
        return fail("Compression and preallocation not supported at the same time");
    return true;
}

/* Bitmaps of the source that would be copied. */
static bool check_bitmaps(const Convert *c)
{
    if (!c->bitmaps)
        return true;
    if (c->sources->len > 1)
        return fail("Copying bitmaps only possible with single source");
    BlockNode *from = g_ptr_array_index(c->sources, 0);
    if (strcmp(block_format(from), "qcow2"))
        return fail("Source lacks bitmap support");
    unsigned n;
    bool ok = true;
    BlockBitmapInfo *list = block_bitmap_list(from, &n);
    for (unsigned i = 0; i < n && ok; i++) {
        ok = !list[i].persistent || !list[i].inconsistent || c->skip_broken;
        if (ok)
            continue;
        image_fail("Cannot copy inconsistent bitmap '%s'", list[i].name);
        fprintf(stderr,
                "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it\n");
    }
    block_bitmap_list_free(list, n);
    return ok;
}

static bool parse_options(Convert *c, BlockCreate *create, json_t *named)
{
    g_autoptr(GError) error = NULL;
    if (!block_format_exists(c->target_format)) {
        image_fail("Unknown file format '%s'", c->target_format);
        return false;
    }
    if (!block_create_file_options(c->target, &error))
        return fail(error->message);
    const BlockOption *table = block_create_options(c->target_format);
    if (!table) {
        image_fail("Format driver '%s' does not support image creation", c->target_format);
        return false;
    }
    for (guint i = 0; i < c->texts->len; i++) {
        if (!image_create_options(g_ptr_array_index(c->texts, i), create, named, &error))
            return fail(error->message);
    }
    create->size = c->size;
    if (c->backing && !block_option_find(table, "backing_file")) {
        image_fail("Backing file not supported for file format '%s'", c->target_format);
        return false;
    }
    if (c->backing_format && !block_option_find(table, "backing_fmt")) {
        image_fail("Backing file format not supported for file format '%s'", c->target_format);
        return false;
    }
    create->backing = c->backing ? c->backing : create->backing;
    create->backing_format = c->backing_format ? c->backing_format : create->backing_format;
    return true;
}

/* What was asked fits together; nothing has been touched yet. */
static bool check_target(Convert *c, const BlockCreate *create, const json_t *named)
{
    const char *backing = c->no_create ? c->backing : create->backing;
    if (backing && c->copy.target_is_zero)
        return fail("Cannot use --target-is-zero when the destination image has a backing file");
    if (backing && c->sources->len > 1)
        return fail("Having a backing file for the target makes no sense when concatenating "
                    "multiple input images");
    if (!c->no_create && backing && !create->backing_format)
        return fail("Use of backing file requires explicit backing format");
    c->copy.layers = backing ? 1 : 0;
    return check_compression(c, named) && check_bitmaps(c);
}

/* A new image reads as zero, but not a device that keeps what it held, nor what is deciphered. */
static bool new_is_zero(const Convert *c)
{
    struct stat st;
    return strcmp(c->target_format, "luks") &&
           (stat(c->target, &st) < 0 ? !strstr(c->target, "://") : S_ISREG(st.st_mode));
}

bool image_convert_make_target(Convert *c)
{
    g_autoptr(GError) error = NULL;
    json_auto_t *named = json_object();
    BlockCreate create = {.path = c->target,
                          .format = c->target_format,
                          .options = named,
                          .objects = c->arguments.objects};
    struct stat st;
    if (!c->no_create && !parse_options(c, &create, named))
        return false;
    if (!check_target(c, &create, named))
        return false;
    if (c->no_create)
        return true;
    c->secrets = secrets_of(named);
    if (!block_create(&create, &error)) {
        image_fail("%s: error while converting %s: %s", c->target, c->target_format,
                   error->message);
        return false;
    }
    c->created = stat(c->target, &st) == 0 && S_ISREG(st.st_mode);
    c->copy.target_is_zero = c->copy.sparse && !c->copy.layers && new_is_zero(c);
    return true;
}

static bool open_made(Convert *c, const char *cache)
{
    g_autoptr(GError) error = NULL;
    BlockOpen open = {.path = c->target,
                      .format = c->target_format,
                      .options = c->secrets,
                      .objects = c->arguments.objects,
                      .discard_unmap = c->copy.sparse != 0,
                      .direct = image_cache_direct(cache),
                      .no_flush = !strcmp(cache, "unsafe")};
    if (!image_cache_known(cache, false))
        return false;
    c->to = block_open(&open, &error);
    json_decref(c->secrets);
    c->secrets = NULL;
    if (c->to)
        return true;
    image_fail("Could not open '%s': %s", c->target, error->message);
    return false;
}

bool image_convert_open_target(Convert *c)
{
    const char *cache = c->arguments.cache ? c->arguments.cache : "unsafe";
    ImageOpen open = {.format = c->target_format,
                      .write = true,
                      .image_opts = c->target_image_opts,
                      .cache = cache,
                      .objects = c->arguments.objects};
    if (!c->no_create && !open_made(c, cache))
        return false;
    if (c->no_create)
        c->to = image_open(c->target, &open);
    if (!c->to)
        return false;
    if (c->bitmaps && strcmp(block_format(c->to), "qcow2")) {
        image_fail("Format driver '%s' does not support bitmaps", block_format(c->to));
        return false;
    }
    if (c->copy.compress && !block_can_compress(c->to))
        return fail("Compression not supported for this file format");
    if (block_size(c->to) < c->size)
        return fail("output file is smaller than input file");
    if (c->copy.layers && !c->no_create && block_backing(c->to))
        c->copy.backing_size = block_size(block_backing(c->to));
    c->copy.compress = c->copy.compress || block_only_compressed(c->to);
    return true;
}

static bool copy_bitmap(Convert *c, BlockNode *from, const BlockBitmapInfo *bitmap)
{
    g_autoptr(GError) error = NULL;
    if (!block_bitmap_add(c->to, bitmap->name, bitmap->granularity, bitmap->recording, true,
                          &error)) {
        image_fail("Failed to create bitmap %s: %s", bitmap->name, error->message);
        return false;
    }
    if (block_bitmap_merge(c->to, bitmap->name, from, bitmap->name, &error))
        return true;
    image_fail("Failed to populate bitmap %s: %s", bitmap->name, error->message);
    block_bitmap_remove(c->to, bitmap->name, NULL);
    return false;
}

bool image_convert_copy_bitmaps(Convert *c)
{
    BlockNode *from = g_ptr_array_index(c->sources, 0);
    unsigned n;
    bool ok = true;
    BlockBitmapInfo *list = block_bitmap_list(from, &n);
    for (unsigned i = 0; i < n && ok; i++) {
        if (!list[i].persistent)
            continue;
        if (list[i].inconsistent) {
            g_autofree char *text =
                g_strdup_printf("Skipping inconsistent bitmap '%s'", list[i].name);
            image_warn(text);
            continue;
        }
        ok = copy_bitmap(c, from, &list[i]);
    }
    block_bitmap_list_free(list, n);
    return ok;
}
