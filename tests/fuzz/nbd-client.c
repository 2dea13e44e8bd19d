/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A server from anywhere, at our client: the input is what it says, up to the end of its stream. A
 * first byte chooses what the client wants: a list, or an export on which every request is tried.
 */
#include "nbd-peer.h"

#include "disk/nbd/client.h"
#include "disk/nbd/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { CLIENT_LISTS = 1 << 0, CLIENT_CONTEXT = 1 << 1, CLIENT_READY = 1 << 2 };

#define GUARD 64u
#define PIECE 4096u

typedef struct Server {
    int fd;
    const uint8_t *data;
    size_t length;
} Server;

static gpointer serve(gpointer data)
{
    Server *s = data;
    nbd_peer_talk(s->fd, s->data, s->length);
    close(s->fd);
    return NULL;
}

/* Replies must not touch what is around the buffer of a request. */
static void request(NbdLink *link, uint16_t type, uint64_t offset)
{
    uint8_t buffer[PIECE + 2 * GUARD];
    memset(buffer, 0xa5, sizeof(buffer));
    struct iovec iov[] = {{buffer + GUARD, 1000}, {buffer + GUARD + 1000, PIECE - 1000}};
    NbdCall call = {.type = type, .offset = offset, .length = PIECE, .iov = iov, .n = 2};
    if (type == NBD_CMD_FLUSH)
        call.length = 0;
    int result = nbd_link_call(link, &call);
    if (result > 0)
        abort();
    if (type == NBD_CMD_BLOCK_STATUS && result == 0 && call.extent_length == 0)
        abort();
    for (size_t i = 0; i < GUARD; i++) {
        if (buffer[i] != 0xa5 || buffer[GUARD + PIECE + i] != 0xa5)
            abort();
    }
}

static void requests(NbdChannel *channel, const NbdClientExport *export)
{
    static const uint16_t types[] = {NBD_CMD_READ,         NBD_CMD_BLOCK_STATUS, NBD_CMD_WRITE,
                                     NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM,         NBD_CMD_FLUSH};
    if (export->size > INT64_MAX)
        abort();
    NbdLink *link = nbd_link_new(channel, export);
    for (size_t i = 0; i < 3 * G_N_ELEMENTS(types) && !nbd_link_lost(link); i++)
        request(link, types[i % G_N_ELEMENTS(types)], i * PIECE);
    nbd_link_unref(link);
}

static void attach(int fd, unsigned what)
{
    NbdClientConfig config = {.export = "disk",
                              .context = what & CLIENT_CONTEXT ? NBD_CONTEXT_ALLOCATION : NULL};
    NbdClientExport export = {
        .size = NBD_PEER_DISK, .structured = true, .has_context = true, .context = 1};
    g_autoptr(GError) error = NULL;
    NbdChannel *channel = nbd_channel_new(fd);
    nbd_channel_deadline(channel, NBD_PEER_HANG_MS / 1000 / 2);
    if (what & CLIENT_LISTS) {
        g_autoptr(GPtrArray) list = nbd_client_list(channel, &config, &error);
        if (!list != !!error)
            abort();
    } else if (what & CLIENT_READY || nbd_client_negotiate(channel, &config, &export, &error)) {
        requests(channel, &export);
        return;
    } else if (!error) {
        abort();
    }
    nbd_channel_free(channel);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > NBD_PEER_INPUT_MAX)
        return 0;
    int ends[2];
    nbd_peer_sockets(ends);
    Server server = {ends[1], data + 1, size - 1};
    GThread *thread = g_thread_new("server", serve, &server);
    attach(ends[0], data[0]);
    g_thread_join(thread);
    return 0;
}
