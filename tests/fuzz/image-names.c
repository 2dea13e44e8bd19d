/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of images: "json:{...}", option strings of --image-opts and -o, URIs. Whatever they say,
 * nothing but the files that are handed out is opened: one small raw file by every name.
 */
#include "base/bytes.h"
#include "disk/image.h"
#include "disk/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int hand_out(void *opaque, const char *path, int open_flags)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    return fd < 0 ? -errno : ftruncate(fd, 65536) < 0 ? -errno : fd;
}

static void try(const char *path, const json_t *options)
{
    g_autoptr(GError) err = NULL;
    BlockOpen how = {.path = path, .options = options, .read_only = true, .shared = true,
                     .opener = hand_out};
    g_autoptr(BlockNode) node = block_open(&how, &err);
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    if (!node != !!err)
        abort();
    if (node && block_size(node))
        block_readv(node, 0, &iov, 1);
}

static void as_options(const char *text)
{
    g_autoptr(GError) err = NULL;
    json_auto_t *flat = json_object();
    if (!block_options_parse(text, NULL, "filename", flat, &err))
        return;
    json_auto_t *tree = block_options_nest(flat, &err);
    if (!tree != !!err)
        abort();
    if (!tree)
        return;
    json_auto_t *again = block_options_flat(tree);
    uint64_t number;
    bool on;
    block_option_size(again, NULL, "size", &number, NULL);
    block_option_bool(again, NULL, "read-only", &on, NULL);
    try(NULL, tree);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = size ? g_strndup((const char *)data, MIN(size, 4096)) : g_strdup("");
    g_autofree char *json = g_strconcat("json:", text, NULL);
    if (*text)
        try(text, NULL);
    try(json, NULL);
    as_options(text);
    return 0;
}
