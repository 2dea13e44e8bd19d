/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * User-mode network by libslirp: the guest sees a private network with a gateway, DHCP and DNS;
 * its connections are made by this process. No privileges needed.
 *
 * slirp names the descriptors it waits for before each sleep of the main loop. A GSource of our
 * own asks it in prepare and reports in dispatch, so that nothing is polled in vain.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <slirp/libslirp.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "machine/netdev/netdev-type.h"

enum { POLL_MAX = 4096 /* descriptors; slirp drops connections over its own limits first */ };

typedef struct UserPoll {
    int fd;
    int events; /* SLIRP_POLL_* */
    gpointer tag;
    bool used; /* asked for in this round */
} UserPoll;

typedef struct UserSource {
    GSource source; /* first */
    struct NetdevUserMode *user;
} UserSource;

typedef struct NetdevUserMode {
    Netdev netdev; /* first */
    Slirp *slirp;
    GSource *source;
    GArray *polls;      /* of UserPoll */
    gint64 deadline_us; /* monotonic: slirp's timers need a turn then; G_MAXINT64: none */
    char *hostname, *domain;
    uint8_t frame[NETDEV_FRAME_MAX]; /* one being sent */
} NetdevUserMode;

/* ---- callbacks of slirp ---- */

static ssize_t user_send_packet(const void *data, size_t size, void *opaque)
{
    NetdevUserMode *u = opaque;
    netdev_deliver(&u->netdev, data, size);
    return (ssize_t)size;
}

static void user_guest_error(const char *message, void *opaque)
{
    /* What the guest does wrong on its network is the guest's affair. */
}

static int64_t user_clock(void *opaque)
{
    NetdevUserMode *u = opaque;
    return machine_clock_ns(u->netdev.machine);
}

static void *user_timer_new(SlirpTimerCb callback, void *callback_opaque, void *opaque)
{
    NetdevUserMode *u = opaque;
    return machine_timer_new(u->netdev.machine, callback, callback_opaque);
}

static void user_timer_free(void *timer, void *opaque)
{
    machine_timer_free(timer);
}

static void user_timer_mod(void *timer, int64_t expire_ms, void *opaque)
{
    machine_timer_set(timer, expire_ms * 1000000);
}

static void user_fd(int fd, void *opaque)
{
    /* The descriptors are learnt anew before each sleep. */
}

static void user_notify(void *opaque)
{
    NetdevUserMode *u = opaque;
    g_main_context_wakeup(machine_context(u->netdev.machine));
}

static const SlirpCb user_callbacks = {
    .send_packet = user_send_packet,
    .guest_error = user_guest_error,
    .clock_get_ns = user_clock,
    .timer_new = user_timer_new,
    .timer_free = user_timer_free,
    .timer_mod = user_timer_mod,
    .register_poll_fd = user_fd,
    .unregister_poll_fd = user_fd,
    .notify = user_notify,
};

/* ---- the main loop ---- */

static GIOCondition condition_of(int events)
{
    GIOCondition c = 0;
    if (events & SLIRP_POLL_IN)
        c |= G_IO_IN;
    if (events & SLIRP_POLL_OUT)
        c |= G_IO_OUT;
    if (events & SLIRP_POLL_PRI)
        c |= G_IO_PRI;
    return c | G_IO_ERR | G_IO_HUP;
}

static int user_add_poll(int fd, int events, void *opaque)
{
    NetdevUserMode *u = opaque;
    for (guint i = 0; i < u->polls->len; i++) {
        UserPoll *p = &g_array_index(u->polls, UserPoll, i);
        if (p->fd != fd)
            continue;
        events |= p->used ? p->events : 0;
        if (p->events != events)
            g_source_modify_unix_fd(u->source, p->tag, condition_of(events));
        p->events = events;
        p->used = true;
        return (int)i;
    }
    guint slot = 0;
    while (slot < u->polls->len && g_array_index(u->polls, UserPoll, slot).tag)
        slot++;
    if (slot >= POLL_MAX)
        return -1;
    if (slot == u->polls->len)
        g_array_set_size(u->polls, slot + 1);
    g_array_index(u->polls, UserPoll, slot) = (UserPoll){
        .fd = fd,
        .events = events,
        .tag = g_source_add_unix_fd(u->source, fd, condition_of(events)),
        .used = true,
    };
    return (int)slot;
}

/* Forgets the descriptors that slirp no longer asks for; indexes of the others stay. */
static void user_drop_unused(NetdevUserMode *u)
{
    for (guint i = 0; i < u->polls->len; i++) {
        UserPoll *p = &g_array_index(u->polls, UserPoll, i);
        if (!p->used && p->tag) {
            g_source_remove_unix_fd(u->source, p->tag);
            *p = (UserPoll){.fd = -1};
        }
    }
    while (u->polls->len && !g_array_index(u->polls, UserPoll, u->polls->len - 1).tag)
        g_array_set_size(u->polls, u->polls->len - 1);
}

static gboolean user_prepare(GSource *source, gint *timeout_ms)
{
    NetdevUserMode *u = ((UserSource *)source)->user;
    uint32_t timeout = UINT32_MAX;

    machine_lock(u->netdev.machine);
    for (guint i = 0; i < u->polls->len; i++)
        g_array_index(u->polls, UserPoll, i).used = false;
    slirp_pollfds_fill(u->slirp, &timeout, user_add_poll, u);
    user_drop_unused(u);
    machine_unlock(u->netdev.machine);

    /* The time is counted from the last dispatch: other sources that wake the loop more often
     * than this must not put slirp's turn off for ever. */
    gint64 now = g_source_get_time(source);
    if (timeout != UINT32_MAX)
        u->deadline_us = MIN(u->deadline_us, now + (gint64)timeout * 1000);
    if (u->deadline_us == G_MAXINT64)
        *timeout_ms = -1;
    else
        *timeout_ms = (gint)CLAMP((u->deadline_us - now + 999) / 1000, 0, G_MAXINT);
    return *timeout_ms == 0;
}

static gboolean user_check(GSource *source)
{
    NetdevUserMode *u = ((UserSource *)source)->user;
    for (guint i = 0; i < u->polls->len; i++) {
        const UserPoll *p = &g_array_index(u->polls, UserPoll, i);
        if (p->tag && g_source_query_unix_fd(source, p->tag))
            return TRUE;
    }
    return g_source_get_time(source) >= u->deadline_us;
}

static int user_get_revents(int index, void *opaque)
{
    NetdevUserMode *u = opaque;
    if (index < 0 || (guint)index >= u->polls->len)
        return 0;
    const UserPoll *p = &g_array_index(u->polls, UserPoll, index);
    GIOCondition c = p->tag ? g_source_query_unix_fd(u->source, p->tag) : 0;
    int events = 0;
    if (c & G_IO_IN)
        events |= SLIRP_POLL_IN;
    if (c & G_IO_OUT)
        events |= SLIRP_POLL_OUT;
    if (c & G_IO_PRI)
        events |= SLIRP_POLL_PRI;
    if (c & (G_IO_ERR | G_IO_NVAL))
        events |= SLIRP_POLL_ERR;
    if (c & G_IO_HUP)
        events |= SLIRP_POLL_HUP;
    return events;
}

static gboolean user_dispatch(GSource *source, GSourceFunc callback, gpointer data)
{
    NetdevUserMode *u = ((UserSource *)source)->user;
    u->deadline_us = G_MAXINT64;
    machine_lock(u->netdev.machine);
    slirp_pollfds_poll(u->slirp, 0, user_get_revents, u);
    machine_unlock(u->netdev.machine);
    return G_SOURCE_CONTINUE;
}

static GSourceFuncs user_source_funcs = {
    .prepare = user_prepare,
    .check = user_check,
    .dispatch = user_dispatch,
};

/* ---- from the device ---- */

static void user_send(Netdev *n, const struct iovec *iov, int count)
{
    NetdevUserMode *u = (NetdevUserMode *)n;
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > sizeof(u->frame) - size)
            return; /* longer than any frame */
        memcpy(u->frame + size, iov[i].iov_base, iov[i].iov_len);
        size += iov[i].iov_len;
    }
    slirp_input(u->slirp, u->frame, (int)size);
}

/* ---- options ---- */

static bool parse_port(const char *text, int *port)
{
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    *port = (int)v;
    return g_ascii_isdigit(*text) && *end == '\0' && !errno && v > 0 && v < 65536;
}

/* "ADDRESS:PORT", ":PORT" or "PORT". */
static bool parse_end(const char *text, struct in_addr *address, int *port)
{
    const char *colon = strrchr(text, ':');
    if (!colon)
        return parse_port(text, port);
    g_autofree char *host = g_strndup(text, (gsize)(colon - text));
    if (*host && inet_pton(AF_INET, host, address) != 1)
        return false;
    return parse_port(colon + 1, port);
}

/* PROTOCOL:[ADDRESS:]PORT-[GUESTADDRESS:]GUESTPORT */
static bool add_forward(NetdevUserMode *u, const char *rule, struct in_addr guest, GError **err)
{
    bool udp = g_str_has_prefix(rule, "udp:");
    struct in_addr host = {.s_addr = htonl(INADDR_ANY)};
    int host_port = 0, guest_port = 0;
    g_auto(GStrv) ends = NULL;

    if (udp || g_str_has_prefix(rule, "tcp:"))
        ends = g_strsplit(rule + 4, "-", 2);
    if (!ends || g_strv_length(ends) != 2 || !parse_end(ends[0], &host, &host_port) ||
        !parse_end(ends[1], &guest, &guest_port))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "netdev '%s': hostfwd \"%s\" is not tcp:ADDRESS:PORT-GUESTPORT "
                          "(or udp:)",
                          u->netdev.id, rule);
    errno = 0;
    if (slirp_add_hostfwd(u->slirp, udp, host, host_port, guest, guest_port) < 0)
        return lodge_fail_errno(err, errno ? errno : EADDRINUSE,
                                "netdev '%s': cannot listen for hostfwd \"%s\"", u->netdev.id,
                                rule);
    return true;
}

static bool add_forwards(NetdevUserMode *u, const char *list, struct in_addr guest, GError **err)
{
    g_auto(GStrv) rules = g_strsplit_set(list, ", ", -1);
    for (unsigned i = 0; rules[i]; i++)
        if (*rules[i] && !add_forward(u, rules[i], guest, err))
            return false;
    return true;
}

/* NETWORK/BITS; the gateway is host 2 in it, the name server 3, the guest gets 15 and up. */
static bool parse_network(SlirpConfig *c, const char *id, const char *text, GError **err)
{
    g_auto(GStrv) parts = g_strsplit(text, "/", 2);
    int bits = 24;
    struct in_addr network;
    if (!parts[0] || inet_pton(AF_INET, parts[0], &network) != 1 ||
        (parts[1] && !parse_port(parts[1], &bits)) || bits < 8 || bits > 27)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "netdev '%s': net=%s is not an IPv4 network with 8 to 27 bits, "
                          "such as 10.0.2.0/24",
                          id, text);
    uint32_t mask = ~(uint32_t)0 << (32 - bits), base = ntohl(network.s_addr) & mask;
    c->vnetwork.s_addr = htonl(base);
    c->vnetmask.s_addr = htonl(mask);
    c->vhost.s_addr = htonl(base + 2);
    c->vnameserver.s_addr = htonl(base + 3);
    c->vdhcp_start.s_addr = htonl(base + 15);
    return true;
}

/* ---- life ---- */

static bool user_open(Netdev *n, const MachineItem *item, GError **err)
{
    NetdevUserMode *u = (NetdevUserMode *)n;
    const char *network = machine_item_get(item, "net"),
               *forwards = machine_item_get(item, "hostfwd");
    SlirpConfig c = {.version = 4, .in_enabled = true};
    bool restricted, ipv6;

    u->polls = g_array_new(FALSE, TRUE, sizeof(UserPoll));
    u->deadline_us = G_MAXINT64;
    u->hostname = g_strdup(machine_item_get(item, "hostname"));
    u->domain = g_strdup(machine_item_get(item, "domain"));
    if (!parse_network(&c, item->id, network ? network : "10.0.2.0/24", err) ||
        !netdev_bool_option(item, "restrict", false, &restricted, err) ||
        !netdev_bool_option(item, "ipv6", true, &ipv6, err))
        return false;
    c.restricted = restricted;
    c.in6_enabled = ipv6;
    c.vprefix_len = 64;
    inet_pton(AF_INET6, "fec0::", &c.vprefix_addr6);
    inet_pton(AF_INET6, "fec0::2", &c.vhost6);
    inet_pton(AF_INET6, "fec0::3", &c.vnameserver6);
    c.vhostname = u->hostname;
    c.vdomainname = u->domain;

    u->slirp = slirp_new(&c, &user_callbacks, u);
    if (!u->slirp)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "netdev '%s': libslirp does not start",
                          item->id);
    if (forwards && !add_forwards(u, forwards, c.vdhcp_start, err))
        return false;
    u->source = g_source_new(&user_source_funcs, sizeof(UserSource));
    ((UserSource *)u->source)->user = u;
    g_source_set_static_name(u->source, "user network");
    g_source_attach(u->source, machine_context(n->machine));
    return true;
}

static void user_close(Netdev *n)
{
    NetdevUserMode *u = (NetdevUserMode *)n;
    if (u->source) {
        g_source_destroy(u->source);
        g_source_unref(u->source);
    }
    if (u->slirp)
        slirp_cleanup(u->slirp);
    if (u->polls)
        g_array_unref(u->polls);
    g_free(u->hostname);
    g_free(u->domain);
}

static const char *const user_options[] = {"net",      "hostfwd", "restrict", "ipv6",
                                           "hostname", "domain",  NULL};

const NetdevType netdev_type_user = {
    .name = "user",
    .summary = "NAT by this process, with DHCP and DNS (libslirp)",
    .options = user_options,
    .instance_size = sizeof(NetdevUserMode),
    .open = user_open,
    .close = user_close,
    .send = user_send,
};
