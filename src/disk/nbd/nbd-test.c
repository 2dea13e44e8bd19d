/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Our server and our client over socket pairs, and each against bytes that no honest peer sends. */
#include "base/bytes.h"
#include "disk/memory-file.h"
#include "disk/nbd/client.h"
#include "disk/nbd/server.h"
#include "disk/nbd/wire.h"
#include "disk/node.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISK    MIB(4)
#define THREADS 8
#define ROUNDS  300

static BlockNode *memory_node(bool read_only)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, DISK);
    memset(bytes->data, 0, DISK);
    BlockOpen how = {
        .path = "memory", .format = "raw", .read_only = read_only, .discard_unmap = true};
    BlockNode *node = block_open_file(&memory_file_new(bytes, DISK, NULL)->file, &how, NULL);
    g_assert_nonnull(node);
    return node;
}

static NbdServer *new_server(const NbdServerConfig *config, BlockNode *node, bool read_only)
{
    NbdServer *server = nbd_server_new(config);
    NbdExportConfig export = {.name = "disk",
                              .description = "a disk",
                              .node = node,
                              .read_only = read_only,
                              .allocation_depth = true};
    g_autoptr(GError) error = NULL;
    g_assert_true(nbd_server_add(server, &export, &error));
    g_assert_false(nbd_server_add(server, &export, &error));
    g_assert_nonnull(strstr(error->message, "already"));
    return server;
}

static int attach(NbdServer *server)
{
    int ends[2];
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), ==, 0);
    nbd_server_client(server, ends[0]);
    return ends[1];
}

static NbdLink *dial(NbdServer *server)
{
    NbdClientConfig config = {.export = "disk", .context = NBD_CONTEXT_ALLOCATION};
    NbdClientExport export;
    g_autoptr(GError) error = NULL;
    NbdChannel *channel = nbd_channel_new(attach(server));
    g_assert_true(nbd_client_negotiate(channel, &config, &export, &error));
    g_assert_true(export.structured && export.has_context);
    g_assert_cmpuint(export.size, ==, DISK);
    return nbd_link_new(channel, &export);
}

static int call(NbdLink *link, uint16_t type, uint16_t flags, uint64_t offset, void *data,
                uint32_t length)
{
    struct iovec iov = {data, length};
    NbdCall c = {
        .type = type, .flags = flags, .offset = offset, .length = length, .iov = &iov, .n = 1};
    return nbd_link_call(link, &c);
}

/* Each thread has a slice of its own of the disk, and a copy of what must be in it. */
typedef struct Slice {
    NbdLink *link;
    uint64_t start, length;
    guint32 seed;
} Slice;

static gpointer exercise(gpointer data)
{
    Slice *s = data;
    g_autoptr(GRand) rand = g_rand_new_with_seed(s->seed);
    g_autofree uint8_t *model = g_malloc0(s->length), *buffer = g_malloc(s->length);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint32_t at = (uint32_t)g_rand_int_range(rand, 0, (gint32)s->length);
        uint32_t n = 1 + (uint32_t)g_rand_int_range(rand, 0, (gint32)(s->length - at));
        int kind = g_rand_int_range(rand, 0, 5);
        if (kind == 0) {
            memset(model + at, 0, n);
            g_assert_cmpint(call(s->link, NBD_CMD_WRITE_ZEROES, 0, s->start + at, NULL, n), ==, 0);
        } else if (kind == 1) {
            memset(model + at, (int)i, n);
            g_assert_cmpint(
                call(s->link, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, s->start + at, model + at, n), ==,
                0);
        } else if (kind == 2) {
            g_assert_cmpint(call(s->link, NBD_CMD_FLUSH, 0, 0, NULL, 0), ==, 0);
        } else {
            memset(buffer, 0xee, n);
            g_assert_cmpint(call(s->link, NBD_CMD_READ, kind == 3 ? NBD_CMD_FLAG_DF : 0,
                                 s->start + at, buffer, n),
                            ==, 0);
            g_assert_cmpmem(buffer, n, model + at, n);
        }
    }
    return NULL;
}

static void test_threads(void)
{
    g_autoptr(BlockNode) node = memory_node(false);
    NbdServerConfig config = {.clients = 4};
    g_autoptr(NbdServer) server = new_server(&config, node, false);
    NbdLink *links[2] = {dial(server), dial(server)};
    Slice slices[THREADS];
    GThread *threads[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        slices[i] = (Slice){links[i % 2], i * (DISK / THREADS), DISK / THREADS, i + 1};
        threads[i] = g_thread_new("exercise", exercise, &slices[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        g_thread_join(threads[i]);
    nbd_link_unref(links[0]);
    nbd_link_unref(links[1]);
}

static void test_errors(void)
{
    uint8_t data[512] = {0};
    g_autoptr(BlockNode) node = memory_node(false);
    NbdServerConfig config = {.clients = 1};
    g_autoptr(NbdServer) server = new_server(&config, node, true);
    NbdLink *link = dial(server);
    g_assert_true(nbd_link_export(link)->flags & NBD_FLAG_READ_ONLY);
    g_assert_false(nbd_link_export(link)->flags & NBD_FLAG_MULTI_CONN);
    g_assert_cmpint(call(link, NBD_CMD_WRITE, 0, 0, data, 512), ==, -EPERM);
    g_assert_cmpint(call(link, NBD_CMD_TRIM, 0, 0, NULL, 512), ==, -EPERM);
    g_assert_cmpint(call(link, NBD_CMD_READ, 0, DISK - 511, data, 512), ==, -EINVAL);
    g_assert_cmpint(call(link, NBD_CMD_READ, 0, UINT64_MAX, data, 512), ==, -EINVAL);
    g_assert_cmpint(call(link, NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, data, 512), ==, -EINVAL);
    g_assert_cmpint(call(link, 77, 0, 0, NULL, 512), ==, -EINVAL);
    g_assert_cmpint(call(link, NBD_CMD_READ, 0, 0, data, 512), ==, 0);
    /* A write that is too long takes the connection with it. */
    g_autofree uint8_t *big = g_malloc0(NBD_REQUEST_MAX + 1);
    g_assert_cmpint(call(link, NBD_CMD_WRITE, 0, 0, big, NBD_REQUEST_MAX + 1), ==, -ENOLINK);
    g_assert_true(nbd_link_lost(link));
    g_assert_cmpint(call(link, NBD_CMD_READ, 0, 0, data, 512), ==, -ENOLINK);
    nbd_link_unref(link);
}

static void test_status(void)
{
    uint8_t data[65536];
    memset(data, 1, sizeof(data));
    g_autoptr(BlockNode) node = memory_node(false);
    NbdServerConfig config = {.clients = 2};
    g_autoptr(NbdServer) server = new_server(&config, node, false);
    NbdLink *link = dial(server);
    NbdCall c = {.type = NBD_CMD_BLOCK_STATUS, .flags = NBD_CMD_FLAG_REQ_ONE, .length = DISK};
    g_assert_cmpint(nbd_link_call(link, &c), ==, 0);
    g_assert_cmpuint(c.extent_length, >, 0);
    g_assert_cmpuint(c.extent_length, <=, DISK);
    c.length = 0;
    g_assert_cmpint(nbd_link_call(link, &c), ==, -EINVAL);
    nbd_link_unref(link);
}

static void test_list(void)
{
    g_autoptr(BlockNode) node = memory_node(false);
    g_autoptr(GError) error = NULL;
    NbdServerConfig server_config = {.clients = 2};
    NbdClientConfig config = {.export = "other"};
    NbdClientExport nothing;
    g_autoptr(NbdServer) server = new_server(&server_config, node, false);
    g_autoptr(NbdChannel) channel = nbd_channel_new(attach(server));
    g_autoptr(GPtrArray) list = nbd_client_list(channel, &config, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(list->len, ==, 1);
    const NbdClientExport *export = g_ptr_array_index(list, 0);
    g_assert_cmpstr(export->name, ==, "disk");
    g_assert_cmpstr(export->description, ==, "a disk");
    g_assert_cmpuint(export->contexts->len, ==, 2);
    g_assert_cmpuint(export->max_block, ==, NBD_REQUEST_MAX);
    g_autoptr(NbdChannel) second = nbd_channel_new(attach(server));
    g_assert_false(nbd_client_negotiate(second, &config, &nothing, &error));
    g_assert_nonnull(strstr(error->message, "not available"));
}

/* The server takes what it likes of random bytes and goes on serving others. */
static void test_hostile_client(void)
{
    g_autoptr(BlockNode) node = memory_node(false);
    NbdServerConfig config = {.clients = 64, .handshake_seconds = 1};
    g_autoptr(NbdServer) server = new_server(&config, node, false);
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    for (unsigned i = 0; i < 200; i++) {
        uint8_t junk[256];
        int fd = attach(server);
        size_t length = (size_t)g_rand_int_range(rand, 1, sizeof(junk));
        for (size_t b = 0; b < length; b++)
            junk[b] = (uint8_t)g_rand_int(rand);
        be32_put(junk, NBD_HANDSHAKE_FIXED);
        for (size_t at = 4; at + NBD_OPTION_SIZE < length; at += NBD_OPTION_SIZE + 8)
            nbd_option_put(junk + at, (uint32_t)g_rand_int_range(rand, 0, 12), 8);
        g_assert_cmpint(write(fd, junk, length), ==, (ssize_t)length);
        shutdown(fd, SHUT_WR);
        close(fd);
    }
    NbdLink *link = dial(server);
    nbd_link_unref(link);
}

/* One that says nothing is sent away; those who would be too many are, too. */
static void test_limits(void)
{
    char byte;
    g_autoptr(BlockNode) node = memory_node(false);
    NbdServerConfig config = {.clients = 1, .handshake_seconds = 1};
    g_autoptr(NbdServer) server = new_server(&config, node, false);
    int slow = attach(server), many = attach(server);
    g_assert_cmpint(read(many, &byte, 1), ==, 0);
    struct pollfd p = {.fd = slow, .events = POLLRDHUP};
    g_assert_cmpint(poll(&p, 1, 5000), ==, 1);
    close(slow);
    close(many);
}

/* ---- a server that lies */

typedef struct Liar {
    int fd;
    const uint8_t *reply;
    size_t length;
} Liar;

static gpointer lie(gpointer data)
{
    Liar *l = data;
    uint8_t request[NBD_REQUEST_SIZE];
    for (size_t got = 0; got < sizeof(request);) {
        ssize_t n = read(l->fd, request + got, sizeof(request) - got);
        if (n <= 0)
            return NULL;
        got += (size_t)n;
    }
    g_autofree uint8_t *reply = g_memdup2(l->reply, l->length);
    memcpy(reply + 8, request + 8, 8); /* the cookie */
    for (int i = 0; i < 1000; i++) {
        if (send(l->fd, reply, l->length, MSG_NOSIGNAL) < 0)
            break;
    }
    shutdown(l->fd, SHUT_RDWR);
    return NULL;
}

static int lied_to(uint16_t type, const uint8_t *reply, size_t length)
{
    int ends[2];
    uint8_t data[4096 + 16];
    memset(data, 0x55, sizeof(data));
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), ==, 0);
    NbdClientExport export = {.size = DISK, .structured = true, .has_context = true, .context = 3};
    NbdLink *link = nbd_link_new(nbd_channel_new(ends[0]), &export);
    Liar liar = {ends[1], reply, length};
    GThread *thread = g_thread_new("liar", lie, &liar);
    int result = call(link, type, 0, 8192, data + 8, 4096);
    for (int i = 0; i < 8; i++)
        g_assert_true(data[i] == 0x55 && data[4096 + 8 + i] == 0x55);
    nbd_link_unref(link);
    g_thread_join(thread);
    close(ends[1]);
    return result;
}

static int lie_with(uint16_t type, uint16_t flags, uint16_t chunk_type, const uint8_t *payload,
                    uint32_t said, uint32_t sent)
{
    g_autofree uint8_t *reply = g_malloc0(NBD_CHUNK_SIZE + sent);
    NbdChunk chunk = {flags, chunk_type, 0, said};
    nbd_chunk_put(reply, &chunk);
    memcpy(reply + NBD_CHUNK_SIZE, payload, sent);
    return lied_to(type, reply, NBD_CHUNK_SIZE + sent);
}

static void test_hostile_server(void)
{
    uint8_t payload[8192] = {0};
    be64_put(payload, 8192);
    /* Data past the request, before it, none at all, twice; a hole that is too long. */
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_DATA, payload, 8 + 4097, 8 + 4097), ==,
                    -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 0, NBD_CHUNK_DATA, payload, 8, 8), ==, -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 0, NBD_CHUNK_DATA, payload, 8 + 3000, 8 + 3000), ==,
                    -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_DATA, payload, 8 + 3000, 8 + 3000), ==,
                    -EIO);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_DATA, payload, 8 + 4096, 8 + 4096), ==, 0);
    be64_put(payload, 8191);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_DATA, payload, 8 + 4096, 8 + 4096), ==,
                    -ENOLINK);
    be64_put(payload, UINT64_MAX - 100);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_DATA, payload, 8 + 4096, 8 + 4096), ==,
                    -ENOLINK);
    be64_put(payload, 8192);
    be32_put(payload + 8, 5000);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_HOLE, payload, 12, 12), ==, -ENOLINK);
    be32_put(payload + 8, 0);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 0, NBD_CHUNK_HOLE, payload, 12, 12), ==, -ENOLINK);
    /* Chunks that never end, of types that are not there, for requests that have none. */
    g_assert_cmpint(lie_with(NBD_CMD_READ, 0, NBD_CHUNK_NONE, payload, 0, 0), ==, -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, 99, payload, 4, 4), ==, -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_FLUSH, 1, NBD_CHUNK_DATA, payload, 12, 12), ==, -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_FLUSH, 1, NBD_CHUNK_NONE, payload, 0, 0), ==, 0);
    g_assert_cmpint(lie_with(NBD_CMD_READ, 1, NBD_CHUNK_ERROR, payload, UINT32_MAX, 8), ==,
                    -ENOLINK);
    be32_put(payload, NBD_ENOSPC);
    be16_put(payload + 4, 0);
    g_assert_cmpint(lie_with(NBD_CMD_FLUSH, 0, NBD_CHUNK_ERROR, payload, 6, 6), ==, -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_FLUSH, 1, NBD_CHUNK_ERROR, payload, 6, 6), ==, -ENOSPC);
    be16_put(payload + 4, 1);
    g_assert_cmpint(lie_with(NBD_CMD_FLUSH, 1, NBD_CHUNK_ERROR, payload, 6, 6), ==, -ENOLINK);
    /* Block status of another context, of no length, of half an extent. */
    be32_put(payload, 3);
    be32_put(payload + 4, 4096);
    be32_put(payload + 8, NBD_STATE_ZERO);
    g_assert_cmpint(lie_with(NBD_CMD_BLOCK_STATUS, 1, NBD_CHUNK_STATUS, payload, 12, 12), ==, 0);
    g_assert_cmpint(lie_with(NBD_CMD_BLOCK_STATUS, 0, NBD_CHUNK_STATUS, payload, 12, 12), ==,
                    -ENOLINK);
    g_assert_cmpint(lie_with(NBD_CMD_BLOCK_STATUS, 1, NBD_CHUNK_STATUS, payload, 14, 14), ==,
                    -ENOLINK);
    be32_put(payload + 4, 0);
    g_assert_cmpint(lie_with(NBD_CMD_BLOCK_STATUS, 1, NBD_CHUNK_STATUS, payload, 12, 12), ==,
                    -ENOLINK);
    be32_put(payload, 4);
    be32_put(payload + 4, 4096);
    g_assert_cmpint(lie_with(NBD_CMD_BLOCK_STATUS, 1, NBD_CHUNK_STATUS, payload, 12, 12), ==,
                    -ENOLINK);
    g_assert_cmpint(lied_to(NBD_CMD_READ, payload, 20), ==, -ENOLINK);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd/threads", test_threads);
    g_test_add_func("/nbd/errors", test_errors);
    g_test_add_func("/nbd/status", test_status);
    g_test_add_func("/nbd/list", test_list);
    g_test_add_func("/nbd/hostile-client", test_hostile_client);
    g_test_add_func("/nbd/limits", test_limits);
    g_test_add_func("/nbd/hostile-server", test_hostile_server);
    return g_test_run();
}
