/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images for NBD clients; under the name qemu-nbd with that program's options. docs/nbd.md */
#include "cli/image/serve.h"

#include "base/error.h"
#include "disk/nbd/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    SERVE_TLS_CREDS = IMAGE_OWN,
    SERVE_TLS_AUTHZ,
    SERVE_TLS_HOSTNAME,
    SERVE_FORK,
    SERVE_PID_FILE,
    SERVE_CACHE,
    SERVE_AIO,
    SERVE_DISCARD,
    SERVE_DETECT_ZEROES,
    SERVE_SELINUX,
};

static bool refuse(const char *format, const char *value)
{
    image_fail(format, value);
    return false;
}

static bool one_of(const char *value, const char *const *names, const char *what)
{
    for (; *names; names++) {
        if (!strcmp(value, *names))
            return true;
    }
    image_fail("Invalid %s `%s'", what, value);
    return false;
}

static bool apply_clients(ServeOptions *o, const char *value)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(value, &end, 0);
    if (errno || *end || end == value || *value == '-' || n > G_MAXINT)
        return refuse("Invalid shared device number '%s'", value);
    /* 0: as many as like */
    o->clients = n == 0 ? NBD_SERVER_CLIENTS_MAX : MIN(n, NBD_SERVER_CLIENTS_MAX);
    return true;
}

static bool apply_snapshot(ServeOptions *o, const char *value)
{
    static char *which;
    g_clear_pointer(&which, g_free);
    if (!image_snapshot_param(value, &which))
        return false;
    o->snapshot = which;
    o->read_only = true;
    return true;
}

/* Options with an argument that has to be looked at. */
static bool apply_checked(ServeOptions *o, int key, const char *value)
{
    static const char *const aio[] = {"native", "io_uring", "threads", NULL};
    static const char *const discard[] = {"ignore", "off", "unmap", "on", NULL};
    static const char *const detect[] = {"off", "on", "unmap", NULL};
    switch (key) {
    case 'e':
        return apply_clients(o, value);
    case 'l':
        return apply_snapshot(o, value);
    case 'o':
        return block_parse_size(value, &o->offset) || refuse("Invalid offset '%s'", value);
    case 'x':
        g_ptr_array_add(o->names, (gpointer)value);
        return strlen(value) <= NBD_STRING_MAX || refuse("export name '%s' too long", value);
    case 'D':
        o->description = value;
        return strlen(value) <= NBD_STRING_MAX || refuse("export description '%s' too long", value);
    case SERVE_CACHE:
        o->cache = value;
        return image_cache_known(value, false);
    case SERVE_AIO:
        return one_of(value, aio, "aio mode");
    case SERVE_DISCARD:
        o->keep_discard = value[0] == 'i' || !strcmp(value, "off");
        return one_of(value, discard, "discard mode");
    default:
        return one_of(value, detect, "detect-zeroes mode");
    }
}

static bool apply_text(ServeOptions *o, int key, const char *value)
{
    const char **place = key == 'k'                  ? &o->socket
                         : key == 'b'                ? &o->address
                         : key == 'p'                ? &o->port
                         : key == SERVE_TLS_CREDS    ? &o->tls_creds
                         : key == SERVE_TLS_AUTHZ    ? &o->tls_authz
                         : key == SERVE_TLS_HOSTNAME ? &o->tls_hostname
                         : key == SERVE_PID_FILE     ? &o->pid_file
                                                     : NULL;
    if (place)
        *place = value;
    return place != NULL;
}

static bool apply_switch(ServeOptions *o, int key)
{
    bool *place = key == 'r'          ? &o->read_only
                  : key == 't'        ? &o->persistent
                  : key == 'v'        ? &o->verbose
                  : key == 'A'        ? &o->depth
                  : key == 'L'        ? &o->list
                  : key == 's'        ? &o->temporary
                  : key == SERVE_FORK ? &o->fork
                                      : NULL;
    if (place)
        *place = true;
    return place != NULL;
}

static ImageApplied apply(void *opaque, int key, const char *value)
{
    ServeOptions *o = opaque;
    if (apply_switch(o, key) || apply_text(o, key, value))
        return IMAGE_APPLIED;
    switch (key) {
    case 'B':
        g_ptr_array_add(o->bitmaps, (gpointer)value);
        return IMAGE_APPLIED;
    case 'n':
        o->cache = "none";
        return IMAGE_APPLIED;
    case 'T':
        return IMAGE_APPLIED; /* traces of another program's parts */
    case 'c':
    case 'd':
        image_fail("Kernel /dev/nbdN support not available: use nbd-client with the socket");
        return IMAGE_REFUSED;
    case SERVE_SELINUX:
        image_fail("SELinux support not enabled in this binary");
        return IMAGE_REFUSED;
    case 'f':
    case IMAGE_OBJECT:
    case IMAGE_IMAGE_OPTS:
        return IMAGE_NOT_MINE;
    default:
        return apply_checked(o, key, value) ? IMAGE_APPLIED : IMAGE_REFUSED;
    }
}

/* ---- exports */

/* -s: writes go to an overlay that nobody else sees. */
static BlockNode *open_overlay(const ServeOptions *o, const char *name, const ImageOpen *open)
{
    g_autofree char *path = g_build_filename(g_get_tmp_dir(), "lodge-serve-XXXXXX", NULL);
    g_autoptr(GError) error = NULL;
    ImageOpen look = *open;
    look.write = false;
    g_autoptr(BlockNode) base = image_open(name, &look);
    if (!base)
        return NULL;
    int fd = g_mkstemp(path);
    if (fd < 0) {
        image_fail("cannot make a temporary file in %s: %s", g_get_tmp_dir(), g_strerror(errno));
        return NULL;
    }
    close(fd);
    g_autofree char *full = g_canonicalize_filename(name, NULL);
    BlockCreate create = {.path = path,
                          .format = "qcow2",
                          .size = block_size(base),
                          .backing = full,
                          .backing_format = block_format(base)};
    ImageOpen overlay = {
        .format = "qcow2", .write = true, .cache = "unsafe", .objects = open->objects};
    BlockNode *node = NULL;
    if (o->arguments.image_opts)
        image_fail("-s takes a file's name, not --image-opts");
    else if (!block_create(&create, &error))
        image_fail("%s", error->message);
    else
        node = image_open(path, &overlay);
    unlink(path);
    return node;
}

static char *export_name(const ServeOptions *o, int i)
{
    if ((guint)i < o->names->len)
        return g_strdup(g_ptr_array_index(o->names, (guint)i));
    return o->arguments.n_names == 1 ? g_strdup("") : g_path_get_basename(o->arguments.names[i]);
}

static bool add_export(const ServeOptions *o, NbdServer *server, int i)
{
    ImageOpen open = {.format = o->arguments.format,
                      .write = !o->read_only,
                      .cache = o->cache,
                      .image_opts = o->arguments.image_opts,
                      .snapshot = o->snapshot,
                      .ignore_discard = o->keep_discard,
                      .objects = o->arguments.objects};
    g_autoptr(GError) error = NULL;
    const char *file = o->arguments.names[i];
    g_autoptr(BlockNode) node =
        o->temporary ? open_overlay(o, file, &open) : image_open(file, &open);
    if (!node)
        return false;
    if (o->offset >= block_size(node) && o->offset > 0) {
        image_fail("Offset (%" G_GUINT64_FORMAT
                   ") has to be smaller than the image size (%" G_GUINT64_FORMAT ")",
                   o->offset, block_size(node));
        return false;
    }
    g_autofree char *name = export_name(o, i);
    g_ptr_array_add(o->bitmaps, NULL);
    NbdExportConfig config = {.name = name,
                              .description = o->description,
                              .node = node,
                              .offset = o->offset,
                              .read_only = o->read_only,
                              .allocation_depth = o->depth,
                              .bitmaps = (const char *const *)o->bitmaps->pdata};
    bool added = nbd_server_add(server, &config, &error);
    g_ptr_array_set_size(o->bitmaps, (int)o->bitmaps->len - 1);
    if (!added)
        image_fail("%s", error->message);
    return added;
}

static bool load_tls(const ServeOptions *o, NbdTls **tls)
{
    g_autoptr(GError) error = NULL;
    const BlockTlsCredentials *found =
        block_objects_tls(o->arguments.objects, o->tls_creds, &error);
    if (!found) {
        image_fail("Failed to get TLS creds: %s", error->message);
        return false;
    }
    if (found->server == o->list) {
        image_fail("Failed to get TLS creds: Expecting TLS credentials with a %s endpoint",
                   o->list ? "client" : "server");
        return false;
    }
    *tls = nbd_tls_new(found, o->arguments.objects, &error);
    if (!*tls) {
        image_fail("%s", error->message);
        return false;
    }
    if (o->tls_authz)
        nbd_tls_authorize(*tls, o->tls_authz);
    return true;
}

/* ---- serving */

static void client_gone(void *opaque, bool negotiated, unsigned left)
{
    uint64_t count = negotiated && left == 0 ? 1u << 16 : 1;
    ssize_t put = write(*(int *)opaque, &count, sizeof(count));
    (void)put; /* it can only be full of news */
}

static void client_log(void *opaque, const char *text)
{
    image_fail("%s", text);
}

static void block_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static bool write_pid_file(const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    if (!path || g_file_set_contents(path, text, -1, &error))
        return true;
    image_fail("cannot write the process id: %s", error->message);
    return false;
}

static void announce(const ServeOptions *o, const ServeSockets *s)
{
    if (!s->where || !strcmp(image_program(), "qemu-nbd"))
        return;
    for (int i = 0; i < o->arguments.n_names; i++) {
        g_autofree char *name = export_name(o, i);
        g_autofree char *escaped = g_uri_escape_string(name, NULL, FALSE);
        g_auto(GStrv) halves = g_strsplit(s->where, "%s", 2);
        printf("%s%s%s%s\n", o->tls_creds && g_str_has_prefix(halves[0], "nbd://") ? "nbds" : "nbd",
               halves[0] + strlen("nbd"), escaped, halves[1]);
    }
    fflush(stdout);
}

static int serve_images(ServeOptions *o, const NbdTls *tls, ServeBackground *background)
{
    g_autoptr(GError) error = NULL;
    int gone = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    NbdServerConfig config = {.clients = (unsigned)o->clients,
                              .tls = tls,
                              .gone = client_gone,
                              .log = client_log,
                              .opaque = &gone};
    ServeSockets sockets = {0};
    NbdServer *server = nbd_server_new(&config);
    int status = 1;
    bool ready = true;
    block_signals();
    for (int i = 0; ready && i < o->arguments.n_names; i++)
        ready = add_export(o, server, i);
    if (ready && !serve_listen(o, &sockets, &error)) {
        image_fail("%s", error->message);
        ready = false;
    }
    if (ready && write_pid_file(o->pid_file)) {
        announce(o, &sockets);
        serve_is_ready(background);
        status = serve_loop(o, &config, server, &sockets, gone);
        if (o->pid_file)
            unlink(o->pid_file);
    }
    serve_close(&sockets);
    nbd_server_free(server);
    close(gone);
    return status;
}

static bool check_options(const ServeOptions *o)
{
    bool nbd = !strcmp(image_program(), "qemu-nbd");
    if (o->list && (o->names->len || o->description || o->depth || o->bitmaps->len || o->offset))
        return refuse("List mode is incompatible with %s", "per-device settings");
    if (o->list && o->fork)
        return refuse("List mode is incompatible with %s", "forking");
    if (o->list && o->arguments.n_names)
        return refuse("List mode is incompatible with %s", "a file name");
    if (!o->list && (o->arguments.n_names == 0 || (nbd && o->arguments.n_names > 1)))
        return image_usage("Invalid number of arguments"), false;
    if (o->names->len > (guint)MAX(o->arguments.n_names, 0) && !nbd)
        return refuse("%s", "more names (-x) than images");
    if (nbd && o->socket && o->socket[0] != '/')
        return refuse("%s", "socket path must be absolute");
    if (o->tls_hostname && !o->list)
        return refuse("%s", "TLS hostname is only supported with export list");
    if (o->tls_authz && (o->list || !o->tls_creds))
        return refuse("%s", o->list ? "TLS authorization is incompatible with export list"
                                    : "--tls-authz is not permitted without --tls-creds");
    if (o->tls_hostname && !o->tls_creds)
        return refuse("%s", "--tls-hostname is not permitted without --tls-creds");
    if (o->snapshot && o->temporary)
        return refuse("%s", "-s and -l cannot be used together");
    return true;
}

static int serve(ServeOptions *o)
{
    ServeBackground background = {-1, -1};
    g_autoptr(NbdTls) tls = NULL;
    if (!check_options(o))
        return 1;
    if (o->fork && !serve_fork(&background, o->verbose))
        return 1;
    if (o->tls_creds && !load_tls(o, &tls))
        return 1;
    if (o->list)
        return serve_list(o, tls);
    return serve_images(o, tls, &background);
}

static const ImageOption options[] = {
    IMAGE_OPTION_HELP,
    IMAGE_OPTION_OBJECT,
    IMAGE_OPTION_IMAGE_OPTS,
    {'f', "format", "FMT", "format of the image; else it is probed"},
    {'k', "socket", "PATH", "listen on a UNIX socket"},
    {'b', "bind", "ADDRESS", "listen on this address (all of the host's)"},
    {'p', "port", "PORT", "listen on this port (10809; 0: any)"},
    {'x', "export-name", "NAME", "the export's name; once for each image"},
    {'D', "description", "TEXT", "what clients are told about the export"},
    {'e', "shared", "N", "clients at the same time (1; 0: many)"},
    {'t', "persistent", NULL, "go on when the last client has gone"},
    {'r', "read-only", NULL, "let nobody write"},
    {'s', "snapshot", NULL, "writes go to a temporary overlay"},
    {'l', "load-snapshot", "SNAPSHOT_PARAM", "serve an internal snapshot"},
    {'A', "allocation-depth", NULL, "let clients ask which image of a chain has the data"},
    {'B', "bitmap", "NAME", "let clients ask for this dirty bitmap"},
    {'o', "offset", "N", "leave out the first N bytes of the disk"},
    {'n', "nocache", NULL, "the same as --cache=none"},
    {'v', "verbose", NULL, "keep standard error when in the background"},
    {'L', "list", NULL, "list the exports of another server"},
    {'T', "trace", "PATTERN", "accepted for qemu-nbd's sake"},
    {'c', "connect", "DEVICE", "not supported: use nbd-client"},
    {'d', "disconnect", NULL, "not supported: use nbd-client"},
    {SERVE_CACHE, "cache", "CACHE", "cache mode"},
    {SERVE_AIO, "aio", "MODE", "accepted for qemu-nbd's sake"},
    {SERVE_DISCARD, "discard", "MODE", "unmap (the default) or ignore"},
    {SERVE_DETECT_ZEROES, "detect-zeroes", "MODE", "accepted for qemu-nbd's sake"},
    {SERVE_TLS_CREDS, "tls-creds", "ID", "encrypt, by credentials of an --object"},
    {SERVE_TLS_AUTHZ, "tls-authz", "NAME", "only for clients with this distinguished name"},
    {SERVE_TLS_HOSTNAME, "tls-hostname", "NAME", "with -L: the name in the server's certificate"},
    {SERVE_FORK, "fork", NULL, "come back once clients can connect"},
    {SERVE_PID_FILE, "pid-file", "PATH", "write the process id there"},
    {SERVE_SELINUX, "selinux-label", "LABEL", "not supported"},
    {0, NULL, NULL, NULL},
};

static int run(int argc, char **argv)
{
    ServeOptions o = {.clients = 1};
    int status;
    o.names = g_ptr_array_new();
    o.bitmaps = g_ptr_array_new();
    if (image_parse(options, argc, argv, &o.arguments, apply, &o, &status))
        status = serve(&o);
    g_ptr_array_unref(o.names);
    g_ptr_array_unref(o.bitmaps);
    image_arguments_clear(&o.arguments);
    return status;
}

const ImageCommand image_serve_command = {
    .name = "serve",
    .run = run,
    .usage =
        "[--object objectdef] [--image-opts] [-f fmt] [-k path | -b address -p port] [-x name]... "
        "[-D text] [-e clients] [-t] [-r] [-s] [-l snapshot_param] [-A] [-B bitmap]... [-o offset] "
        "[-n | --cache=cache] [--aio=mode] [--discard=mode] [--detect-zeroes=mode] "
        "[--tls-creds id [--tls-authz name]] [--fork] [--pid-file path] [--selinux-label label] "
        "[-T pattern] [-v] [-c device | -d] filename... | -L [--tls-hostname name]",
    .options = options,
};
