/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A LUKS image whose first bytes are changed: the input is XORed into a good one, so that what it
 * leaves alone still fits its key. Iterations are kept few; a limit of their own is tested apart.
 */
#include "image-target.h"

#include "disk/format/formats.h"
#include "disk/objects.h"

#define HEADER 592u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static GByteArray *good;
static BlockObjects *objects;

static json_t *options_of(const char *text)
{
    json_t *options = json_object();
    if (!block_options_parse(text, NULL, NULL, options, NULL))
        abort();
    return options;
}

static void make_good(void)
{
    json_auto_t *options = options_of("key-secret=s,iter-time=0,cipher-alg=aes-128");
    objects = block_objects_new();
    BlockCreate create = {.path = "m", .format = "luks", .size = KIB(64), .options = options,
                          .objects = objects};
    good = g_byte_array_new();
    g_autoptr(BlockFile) file = &memory_file_new(good, IMAGE_FILE_LIMIT, NULL)->file;
    if (!block_objects_add(objects, "secret,id=s,data=fuzz", NULL) ||
        !block_format_luks.create(file, &create, NULL))
        abort();
}

static void few_iterations(uint8_t *count)
{
    be32_put(count, be32_get(count) % 1024);
}

static void once(GByteArray *bytes, bool locked)
{
    g_autoptr(GError) err = NULL;
    json_auto_t *options = options_of(locked ? "" : "key-secret=s");
    g_autofree uint8_t *buffer = g_malloc0(IMAGE_PIECE);
    BlockOpen how = {.path = "input", .format = "luks", .options = options, .objects = objects,
                     .no_secrets = locked, .read_only = locked, .discard_unmap = true};
    g_autoptr(BlockNode) node =
        block_open_file(&memory_file_new(bytes, IMAGE_FILE_LIMIT, NULL)->file, &how, &err);
    if (!node != !!err)
        abort();
    if (!node)
        return;
    BlockInfo info;
    block_info(node, &info);
    block_info_clear(&info);
    if (locked)
        return;
    image_touch(node, buffer, true);
    json_auto_t *amend = options_of("state=active,new-secret=s,iter-time=0");
    if (!block_amend(node, amend, objects, false, NULL, &err) != !!err)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!good)
        make_good();
    if (size > KIB(16))
        return 0;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_append(bytes, good->data, good->len);
    for (size_t i = 0; i < size; i++)
        bytes->data[i] ^= data[i];
    few_iterations(bytes->data + 164);
    for (size_t at = 212; at < HEADER; at += 48)
        few_iterations(bytes->data + at);
    once(bytes, true);
    once(bytes, false);
    return 0;
}
