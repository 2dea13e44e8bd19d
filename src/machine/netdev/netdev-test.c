/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The network backends, by frames: a guest made of a few bytes of Ethernet. */
#include <arpa/inet.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "machine/netdev/netdev-type.h"
#include "machine/test-machine.h"

static const uint8_t guest_mac[6] = {0x52, 0x54, 0, 1, 2, 3};

typedef struct Guest {
    Machine *m;
    Netdev *n;
    bool full;         /* no room for frames */
    GPtrArray *frames; /* of GByteArray */
} Guest;

static bool guest_can_receive(void *opaque)
{
    return !((Guest *)opaque)->full;
}

static void guest_receive(void *opaque, const uint8_t *frame, size_t size)
{
    GByteArray *copy = g_byte_array_new();
    g_byte_array_append(copy, frame, (guint)size);
    g_ptr_array_add(((Guest *)opaque)->frames, copy);
}

static const NetdevUser guest_user = {.can_receive = guest_can_receive, .receive = guest_receive};

static MachineItem *new_item(const char *type, const char *options)
{
    MachineItem *item = machine_item_new(type, "net0");
    g_auto(GStrv) parts = g_strsplit(options ? options : "", ";", -1);
    for (unsigned i = 0; parts[i]; i++) {
        g_auto(GStrv) pair = g_strsplit(parts[i], "=", 2);
        if (pair[0])
            machine_item_set(item, pair[0], pair[1]);
    }
    return item;
}

static void item_release(MachineItem *item)
{
    MachineConfig *owner = machine_config_new();
    g_ptr_array_add(owner->netdevs, item);
    machine_config_free(owner);
}

static void guest_start(Guest *g, const char *type, const char *options)
{
    GError *err = NULL;
    MachineItem *item = new_item(type, options);
    *g = (Guest){.m = test_machine(1)};
    g->frames = g_ptr_array_new_with_free_func((GDestroyNotify)g_byte_array_unref);
    g->n = netdev_new(g->m, item, &err);
    g_assert_no_error(err);
    g_assert_true(netdev_find(g->m, "net0") == g->n);
    g_assert_true(netdev_attach(g->n, &guest_user, g, &err));
    g_assert_false(netdev_attach(g->n, &guest_user, g, NULL));
    item_release(item);
}

static void guest_end(Guest *g)
{
    netdev_detach(g->n);
    netdev_free(g->n);
    g_assert_null(netdev_find(g->m, "net0"));
    g_ptr_array_unref(g->frames);
    machine_free(g->m);
}

static void guest_send(Guest *g, const uint8_t *frame, size_t size)
{
    /* In two pieces, as a driver does. */
    struct iovec iov[] = {{(void *)frame, 14}, {(void *)(frame + 14), size - 14}};
    machine_lock(g->m);
    netdev_send(g->n, iov, 2);
    machine_unlock(g->m);
}

/* Runs the main loop until @count frames have come, for at most three seconds. */
static bool guest_wait(Guest *g, unsigned count)
{
    gint64 end = g_get_monotonic_time() + 3 * G_USEC_PER_SEC;
    while (g->frames->len < count && g_get_monotonic_time() < end)
        if (!g_main_context_iteration(machine_context(g->m), FALSE))
            g_usleep(1000);
    return g->frames->len >= count;
}

static const uint8_t *guest_frame(Guest *g, unsigned i)
{
    return ((GByteArray *)g->frames->pdata[i])->data;
}

/* ---- frames: RFC 894, 826, 791, 768, 2131 ---- */

static void put_ethernet(uint8_t *f, const uint8_t *to, uint16_t type)
{
    memcpy(f, to, 6);
    memcpy(f + 6, guest_mac, 6);
    be16_put(f + 12, type);
}

static uint16_t ip_checksum(const uint8_t *p, size_t size)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < size; i += 2)
        sum += be16_get(p + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static size_t put_udp(uint8_t *f, const uint8_t *mac, uint32_t from, uint32_t to,
                      uint16_t from_port, uint16_t to_port, const void *data, size_t size)
{
    put_ethernet(f, mac, 0x0800);
    uint8_t *ip = f + 14, *udp = ip + 20;
    memset(ip, 0, 28);
    ip[0] = 0x45;
    be16_put(ip + 2, (uint16_t)(28 + size));
    ip[8] = 64;
    ip[9] = 17;
    be32_put(ip + 12, from);
    be32_put(ip + 16, to);
    be16_put(ip + 10, ip_checksum(ip, 20));
    be16_put(udp, from_port);
    be16_put(udp + 2, to_port);
    be16_put(udp + 4, (uint16_t)(8 + size));
    memcpy(udp + 8, data, size);
    return 42 + size;
}

static void guest_arp(Guest *g, uint32_t own, uint32_t wanted, uint8_t mac[6])
{
    static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
    uint8_t f[60] = {0};
    put_ethernet(f, broadcast, 0x0806);
    static const uint8_t request[] = {0, 1, 8, 0, 6, 4, 0, 1};
    memcpy(f + 14, request, sizeof(request));
    memcpy(f + 22, guest_mac, 6);
    be32_put(f + 28, own);
    be32_put(f + 38, wanted);
    unsigned seen = g->frames->len;
    guest_send(g, f, sizeof(f));
    g_assert_true(guest_wait(g, seen + 1));
    const uint8_t *answer = guest_frame(g, seen);
    g_assert_cmphex(be16_get(answer + 12), ==, 0x0806);
    g_assert_cmpuint(be16_get(answer + 20), ==, 2);
    g_assert_cmphex(be32_get(answer + 28), ==, wanted);
    memcpy(mac, answer + 22, 6);
}

/* Sends DISCOVER; returns the address offered. */
static uint32_t guest_dhcp(Guest *g)
{
    static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
    uint8_t f[400] = {0}, dhcp[300] = {1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78};
    memcpy(dhcp + 28, guest_mac, 6);
    static const uint8_t options[] = {0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255};
    memcpy(dhcp + 236, options, sizeof(options));
    unsigned seen = g->frames->len;
    guest_send(g, f, put_udp(f, broadcast, 0, 0xffffffff, 68, 67, dhcp, sizeof(dhcp)));
    g_assert_true(guest_wait(g, seen + 1));
    const uint8_t *offer = guest_frame(g, seen) + 42;
    g_assert_cmphex(be32_get(offer + 4), ==, 0x12345678);
    return be32_get(offer + 16);
}

/* ---- user ---- */

static void test_user_dhcp(void)
{
    Guest g;
    uint8_t mac[6];
    guest_start(&g, "user", NULL);
    g_assert_cmphex(guest_dhcp(&g), ==, 0x0a00020f);
    guest_arp(&g, 0x0a00020f, 0x0a000202, mac);
    guest_end(&g);

    guest_start(&g, "user", "net=192.168.77.0/24;ipv6=off;restrict=on;hostname=g;domain=d.test");
    g_assert_cmphex(guest_dhcp(&g), ==, 0xc0a84d0f);
    guest_arp(&g, 0xc0a84d0f, 0xc0a84d03, mac);
    guest_end(&g);
}

static int host_socket(int type, uint16_t *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(a);
    int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);
    g_assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    g_assert_true(getsockname(fd, (struct sockaddr *)&a, &length) == 0);
    *port = ntohs(a.sin_port);
    return fd;
}

/* A datagram to the gateway reaches this host; the answer comes back through the main loop. */
static void test_user_udp(void)
{
    Guest g;
    uint8_t mac[6], f[100];
    char text[20];
    uint16_t port;
    struct sockaddr_in peer;
    socklen_t length = sizeof(peer);
    int fd = host_socket(SOCK_DGRAM, &port);

    guest_start(&g, "user", NULL);
    guest_dhcp(&g);
    guest_arp(&g, 0x0a00020f, 0x0a000202, mac);
    guest_send(&g, f, put_udp(f, mac, 0x0a00020f, 0x0a000202, 4000, port, "ping", 4));
    ssize_t n = -1;
    for (unsigned i = 0; i < 1000 && n < 0; i++) {
        g_main_context_iteration(machine_context(g.m), FALSE);
        n = recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&peer, &length);
        if (n < 0)
            g_usleep(1000);
    }
    g_assert_cmpmem(text, n, "ping", 4);
    unsigned seen = g.frames->len;
    g_assert_cmpint(sendto(fd, "answer", 6, 0, (struct sockaddr *)&peer, length), ==, 6);
    g_assert_true(guest_wait(&g, seen + 1));
    g_assert_cmpmem(guest_frame(&g, seen) + 42, 6, "answer", 6);
    guest_end(&g);
    close(fd);
}

/* A connection to the forwarded port becomes a SYN to the guest's. */
static void test_user_forward(void)
{
    Guest g;
    uint8_t mac[6];
    uint16_t port;
    close(host_socket(SOCK_STREAM, &port)); /* free a moment ago */
    g_autofree char *options = g_strdup_printf("hostfwd=tcp:127.0.0.1:%u-22", port);
    guest_start(&g, "user", options);
    guest_dhcp(&g);
    guest_arp(&g, 0x0a00020f, 0x0a000202, mac);
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    (void)!connect(fd, (struct sockaddr *)&a, sizeof(a));
    unsigned seen = g.frames->len;
    g_assert_true(guest_wait(&g, seen + 1));
    const uint8_t *syn = guest_frame(&g, seen);
    if (be16_get(syn + 12) == 0x0806) { /* slirp asks for our address first */
        uint8_t reply[60] = {0};
        put_ethernet(reply, syn + 6, 0x0806);
        memcpy(reply + 14, syn + 14, 6);
        be16_put(reply + 20, 2);
        memcpy(reply + 22, guest_mac, 6);
        be32_put(reply + 28, 0x0a00020f);
        memcpy(reply + 32, syn + 22, 10);
        guest_send(&g, reply, sizeof(reply));
        g_assert_true(guest_wait(&g, seen + 2));
        syn = guest_frame(&g, seen + 1);
    }
    g_assert_cmpuint(syn[23], ==, 6); /* TCP */
    g_assert_cmphex(be32_get(syn + 30), ==, 0x0a00020f);
    g_assert_cmpuint(be16_get(syn + 36), ==, 22);
    g_assert_cmphex(syn[47] & 0x12, ==, 0x02); /* SYN without ACK */
    close(fd);
    guest_end(&g);
}

static gboolean alarm_again(gpointer opaque)
{
    return G_SOURCE_CONTINUE;
}

/* With nothing to do the main loop sleeps. */
static void test_user_idle(void)
{
    Guest g;
    guest_start(&g, "user", NULL);
    guest_dhcp(&g);
    gint64 end = g_get_monotonic_time() + G_USEC_PER_SEC / 2;
    unsigned rounds = 0;
    GSource *alarm = g_timeout_source_new(50);
    g_source_set_callback(alarm, alarm_again, NULL, NULL);
    g_source_attach(alarm, machine_context(g.m));
    for (; g_get_monotonic_time() < end; rounds++)
        g_main_context_iteration(machine_context(g.m), TRUE);
    g_source_destroy(alarm);
    g_source_unref(alarm);
    g_assert_cmpuint(rounds, <=, 30); /* ten alarms and a few turns of slirp's */
    guest_end(&g);
}

static void test_user_options(void)
{
    Machine *m = test_machine(1);
    static const char *const bad[] = {
        "net=10.0.2.0/33", "net=nonsense",     "restrict=maybe",       "ipv6=2",
        "hostfwd=tcp:22",  "hostfwd=sctp:1-2", "hostfwd=tcp:70000-22", "hostfwd=tcp:1.2.3:4-5",
        "color=red",
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        GError *err = NULL;
        MachineItem *item = new_item("user", bad[i]);
        g_assert_null(netdev_new(m, item, &err));
        g_assert_nonnull(err);
        g_assert_nonnull(strstr(err->message, "net0"));
        g_clear_error(&err);
        item_release(item);
    }
    MachineItem *item = new_item("vde", NULL);
    g_assert_null(netdev_new(m, item, NULL));
    item_release(item);
    machine_free(m);
}

/* ---- tap-fd ---- */

static void test_tap_frames(void)
{
    Guest g;
    int pair[2];
    uint8_t frame[60] = {1, 2, 3, 4, 5, 6}, got[100];
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), ==, 0);
    g_autofree char *options = g_strdup_printf("fd=%d", pair[0]);
    guest_start(&g, "tap-fd", options);
    guest_send(&g, frame, sizeof(frame));
    g_assert_cmpint(read(pair[1], got, sizeof(got)), ==, sizeof(frame));
    g_assert_cmpmem(got, sizeof(frame), frame, sizeof(frame));

    /* While the card is full frames wait, in the socket for the most part, and keep their order. */
    g.full = true;
    for (uint8_t i = 0; i < 5; i++) {
        frame[0] = i;
        g_assert_cmpint(write(pair[1], frame, sizeof(frame)), ==, sizeof(frame));
    }
    for (unsigned i = 0; i < 20; i++)
        g_main_context_iteration(machine_context(g.m), FALSE);
    g_assert_cmpuint(g.frames->len, ==, 0);
    g.full = false;
    netdev_accept_input(g.n);
    g_assert_true(guest_wait(&g, 5));
    for (uint8_t i = 0; i < 5; i++)
        g_assert_cmpuint(guest_frame(&g, i)[0], ==, i);
    close(pair[1]); /* the other end goes: no more, and no spinning */
    for (unsigned i = 0; i < 20; i++)
        g_main_context_iteration(machine_context(g.m), FALSE);
    guest_end(&g);
}

static void test_tap_options(void)
{
    Machine *m = test_machine(1);
    int pair[2];
    g_assert_cmpint(pipe(pair), ==, 0);
    g_autofree char *not_a_tap = g_strdup_printf("fd=%d", pair[0]);
    const char *const bad[] = {NULL, "fd=x", "fd=-1", "fd=99999", not_a_tap, "ifname=tap0"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        GError *err = NULL;
        MachineItem *item = new_item("tap-fd", bad[i]);
        g_assert_null(netdev_new(m, item, &err));
        g_assert_nonnull(err);
        g_clear_error(&err);
        item_release(item);
    }
    close(pair[0]);
    close(pair[1]);
    machine_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/netdev/user/dhcp", test_user_dhcp);
    g_test_add_func("/netdev/user/udp", test_user_udp);
    g_test_add_func("/netdev/user/forward", test_user_forward);
    g_test_add_func("/netdev/user/idle", test_user_idle);
    g_test_add_func("/netdev/user/options", test_user_options);
    g_test_add_func("/netdev/tap-fd/frames", test_tap_frames);
    g_test_add_func("/netdev/tap-fd/options", test_tap_options);
    return g_test_run();
}
