/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A client from anywhere, at the server: the input is what it sends, up to the end of its stream.
 * The client reads whatever it is sent. A first byte chooses among servers.
 */
#include "nbd-peer.h"

#include "disk/memory-file.h"
#include "disk/nbd/server.h"
#include "disk/node.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SERVER_READ_ONLY = 1 << 0, SERVER_DEPTH = 1 << 1 };

static BlockNode *disk_new(bool read_only)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, NBD_PEER_DISK);
    memset(bytes->data, 0, NBD_PEER_DISK);
    BlockOpen how = {
        .path = "memory", .format = "raw", .read_only = read_only, .discard_unmap = true};
    return block_open_file(&memory_file_new(bytes, NBD_PEER_DISK, NULL)->file, &how, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > NBD_PEER_INPUT_MAX)
        return 0;
    bool read_only = data[0] & SERVER_READ_ONLY;
    NbdServerConfig config = {.clients = 1, .handshake_seconds = 5};
    g_autoptr(BlockNode) node = disk_new(read_only);
    g_autoptr(NbdServer) server = nbd_server_new(&config);
    NbdExportConfig export = {.name = "disk",
                              .node = node,
                              .read_only = read_only,
                              .allocation_depth = data[0] & SERVER_DEPTH};
    if (!node || !nbd_server_add(server, &export, NULL))
        abort();
    int ends[2];
    nbd_peer_sockets(ends);
    nbd_server_client(server, ends[0]);
    nbd_peer_talk(ends[1], data + 1, size - 1);
    close(ends[1]);
    return 0;
}
