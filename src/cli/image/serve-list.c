/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What another server has: qemu-nbd's --list, in its words. */
#include "cli/image/serve.h"

#include "disk/nbd/client.h"
#include "disk/nbd/wire.h"

#include <stdio.h>

static void print_flags(unsigned flags)
{
    static const char *const names[] = {NULL,         "readonly", "flush",  "fua",
                                        "rotational", "trim",     "zeroes", "df",
                                        "multi",      "resize",   "cache",  "fast-zero"};
    printf("  flags: 0x%x (", flags);
    for (size_t bit = 0; bit < G_N_ELEMENTS(names); bit++) {
        if (names[bit] && flags >> bit & 1)
            printf(" %s", names[bit]);
    }
    printf(" )\n");
}

static void print_export(const NbdClientExport *export)
{
    printf(" export: '%s'\n", export->name);
    if (export->description && *export->description)
        printf("  description: %s\n", export->description);
    if (export->flags & NBD_FLAG_HAS_FLAGS) {
        printf("  size:  %" G_GUINT64_FORMAT "\n", export->size);
        print_flags(export->flags);
    }
    if (export->min_block) {
        printf("  min block: %u\n", export->min_block);
        printf("  opt block: %u\n", export->preferred_block);
        printf("  max block: %u\n", export->max_block);
    }
    if (export->contexts->len > 0)
        printf("  available meta contexts: %u\n", export->contexts->len);
    for (guint i = 0; i < export->contexts->len; i++)
        printf("   %s\n", (const char *)g_ptr_array_index(export->contexts, i));
}

int serve_list(const ServeOptions *o, const NbdTls *tls)
{
    g_autoptr(GError) error = NULL;
    const char *host = o->address ? o->address : "localhost";
    NbdClientConfig config = {.path = o->socket,
                              .host = host,
                              .port = o->port,
                              .export = "",
                              .tls = tls,
                              .hostname = o->tls_hostname ? o->tls_hostname
                                          : o->socket     ? NULL
                                                          : host};
    int fd = nbd_client_connect(&config, &error);
    if (fd < 0)
        return image_fail("%s", error->message);
    g_autoptr(NbdChannel) channel = nbd_channel_new(fd);
    g_autoptr(GPtrArray) list = nbd_client_list(channel, &config, &error);
    if (!list)
        return image_fail("%s", error->message);
    printf("exports available: %u\n", list->len);
    for (guint i = 0; i < list->len; i++)
        print_export(g_ptr_array_index(list, i));
    return 0;
}
