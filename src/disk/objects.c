/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/objects.h"

#include "base/error.h"

struct BlockObjects {
    GHashTable *tls; /* id -> BlockTlsCredentials */
};

BlockObjects *block_objects_new(void)
{
    BlockObjects *objects = g_new0(BlockObjects, 1);
    objects->tls = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    return objects;
}

void block_objects_free(BlockObjects *objects)
{
    if (!objects)
        return;
    g_hash_table_unref(objects->tls);
    g_free(objects);
}

bool block_objects_add(BlockObjects *objects, const char *text, GError **err)
{
    return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "--object '%s' is not supported", text);
}

const uint8_t *block_objects_secret(const BlockObjects *objects, const char *id, size_t *length,
                                    GError **err)
{
    lodge_fail(err, LODGE_ERROR_NOT_FOUND, "No secret with id '%s'", id);
    return NULL;
}

const BlockTlsCredentials *block_objects_tls(const BlockObjects *objects, const char *id,
                                             GError **err)
{
    const BlockTlsCredentials *found = objects ? g_hash_table_lookup(objects->tls, id) : NULL;
    if (!found)
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "No TLS credentials with id '%s'", id);
    return found;
}
