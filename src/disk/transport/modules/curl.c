/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * HTTP and FTP servers, read by ranges with libcurl. Each reader's thread has a connection of its
 * own from a pool; small reads go through a few windows, which run ahead of a reader that goes on.
 * A file that changes meanwhile is an I/O error, not a mixture.
 */
#include <curl/curl.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/iov.h"
#include "disk/transport/module.h"

#define WINDOWS       8u
#define WINDOW_LEAST  ((uint64_t)KIB(32)) /* of one that does not run ahead */
#define READAHEAD_MAX ((uint64_t)MIB(16))
#define DIRECT_LEAST  ((uint64_t)KIB(256)) /* longer reads go past the windows */
#define IDLE_KEPT     16u
#define ATTEMPTS      3u
#define TIMEOUT_MAX_S 10000u
#define REDIRECTS_MAX 10L

/* A piece of the file that was fetched, or is being fetched by one thread. */
typedef struct Window {
    enum { WINDOW_EMPTY, WINDOW_FETCHING, WINDOW_READY } state;
    uint64_t start, length, used; /* used: when, for choosing whose turn it is to go */
    uint8_t *bytes;
    uint64_t room;
} Window;

typedef struct Remote Remote;

/* One connection and the request on it. */
typedef struct Connection Connection;
struct Connection {
    Connection *next;
    Remote *remote;
    CURL *curl;
    char message[CURL_ERROR_SIZE];
    /* what is asked for, and where it goes */
    uint64_t offset, wanted, received;
    const struct iovec *iov;
    int n;
    uint64_t skip;
    /* what the server says */
    bool accepts_ranges, ranged, changed;
    uint64_t total; /* of Content-Range */
    /* how far it is, and since when */
    curl_off_t moved_to, sent;
    gint64 moved_us; /* 0: not begun */
    bool stalled;
    char *etag;
};

struct Remote {
    BlockFile file; /* first */
    char *url, *cookie, *username, *password, *proxy_username, *proxy_password;
    const char *protocols, *redirects;
    bool http, verify;
    uint64_t size, readahead, timeout_s;
    char *etag; /* of the file as it was found; NULL: not told */
    GMutex lock; /* of all below */
    GCond fetched;
    Connection *idle;
    unsigned n_idle;
    Window windows[WINDOWS];
    uint64_t clock;
};

/* ---- what comes in */

static size_t on_body(char *bytes, size_t one, size_t n, void *opaque)
{
    Connection *c = opaque;
    if (n > c->wanted - c->received || (c->remote->http && !c->ranged) || c->changed)
        return 0; /* more than was asked for, or not the part that was: libcurl gives up */
    block_iov_from(c->iov, c->n, c->skip + c->received, bytes, n);
    c->received += n;
    return n;
}

/* "bytes FIRST-LAST/TOTAL", RFC 9110 section 14.4. */
static void on_content_range(Connection *c, const char *value)
{
    char *end;
    if (g_ascii_strncasecmp(value, "bytes ", 6))
        return;
    uint64_t first = g_ascii_strtoull(value + 6, &end, 10);
    if (*end != '-')
        return;
    g_ascii_strtoull(end + 1, &end, 10);
    if (*end != '/' || !g_ascii_isdigit(end[1]))
        return;
    c->total = g_ascii_strtoull(end + 1, NULL, 10);
    c->ranged = first == c->offset;
    c->changed = c->changed || (c->remote->size && c->total != c->remote->size);
}

static void on_etag(Connection *c, const char *value)
{
    if (g_str_has_prefix(value, "W/")) /* weak: it may stay while bytes change */
        return;
    if (c->remote->etag && strcmp(c->remote->etag, value))
        c->changed = true;
    g_free(c->etag);
    c->etag = g_strdup(value);
}

static size_t on_header(char *bytes, size_t one, size_t n, void *opaque)
{
    Connection *c = opaque;
    g_autofree char *line = g_strchomp(g_strndup(bytes, n));
    char *value = strchr(line, ':');
    if (g_str_has_prefix(line, "HTTP/")) { /* a redirection's headers are not the file's */
        c->accepts_ranges = c->ranged = c->changed = false;
        g_clear_pointer(&c->etag, g_free);
    }
    if (!value)
        return n;
    *value++ = '\0';
    value = g_strchug(value);
    if (!g_ascii_strcasecmp(line, "accept-ranges"))
        c->accepts_ranges = !g_ascii_strcasecmp(value, "bytes");
    else if (!g_ascii_strcasecmp(line, "content-range"))
        on_content_range(c, value);
    else if (!g_ascii_strcasecmp(line, "etag"))
        on_etag(c, value);
    return n;
}

/*
 * Called when something moved, and once a second: a server that stands still is given up, one that
 * is slow is not. (libcurl's own LOW_SPEED_TIME looks at an average.)
 */
static int on_progress(void *opaque, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                       curl_off_t up)
{
    Connection *c = opaque;
    gint64 now = g_get_monotonic_time();
    if (!c->moved_us || down != c->moved_to || up != c->sent) {
        c->moved_us = now;
        c->moved_to = down;
        c->sent = up;
    }
    uint64_t limit_us = c->remote->timeout_s * G_USEC_PER_SEC;
    c->stalled = limit_us && (uint64_t)(now - c->moved_us) > limit_us;
    return c->stalled;
}

/* ---- connections */

static void connection_free(Connection *c)
{
    curl_easy_cleanup(c->curl);
    g_free(c->etag);
    g_free(c);
}

/* The types of the values are libcurl's: long for numbers. */
static void set_options(Connection *c)
{
    const Remote *r = c->remote;
    CURL *h = c->curl;
    curl_easy_setopt(h, CURLOPT_URL, r->url);
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, r->protocols);
    curl_easy_setopt(h, CURLOPT_REDIR_PROTOCOLS_STR, r->redirects);
    curl_easy_setopt(h, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(h, CURLOPT_MAXREDIRS, REDIRECTS_MAX);
    curl_easy_setopt(h, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L); /* there are threads */
    curl_easy_setopt(h, CURLOPT_ERRORBUFFER, c->message);
    curl_easy_setopt(h, CURLOPT_USERAGENT, "lodge/" LODGE_VERSION);
    curl_easy_setopt(h, CURLOPT_BUFFERSIZE, 512L * 1024);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYPEER, (long)r->verify);
    curl_easy_setopt(h, CURLOPT_SSL_VERIFYHOST, r->verify ? 2L : 0L);
    curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, (long)r->timeout_s);
    curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(h, CURLOPT_XFERINFODATA, c);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, c);
    if (r->cookie)
        curl_easy_setopt(h, CURLOPT_COOKIE, r->cookie);
    if (r->username)
        curl_easy_setopt(h, CURLOPT_USERNAME, r->username);
    if (r->password)
        curl_easy_setopt(h, CURLOPT_PASSWORD, r->password);
    if (r->proxy_username)
        curl_easy_setopt(h, CURLOPT_PROXYUSERNAME, r->proxy_username);
    if (r->proxy_password)
        curl_easy_setopt(h, CURLOPT_PROXYPASSWORD, r->proxy_password);
}

static Connection *take(Remote *r)
{
    g_mutex_lock(&r->lock);
    Connection *c = r->idle;
    if (c) {
        r->idle = c->next;
        r->n_idle--;
    }
    g_mutex_unlock(&r->lock);
    if (c)
        return c;
    c = g_new0(Connection, 1);
    c->remote = r;
    c->curl = curl_easy_init();
    if (c->curl) {
        set_options(c);
        return c;
    }
    g_free(c);
    return NULL;
}

/* One on which something went wrong is not used again. */
static void give(Connection *c, bool good)
{
    Remote *r = c->remote;
    g_mutex_lock(&r->lock);
    bool keep = good && r->n_idle < IDLE_KEPT;
    if (keep) {
        c->next = r->idle;
        r->idle = c;
        r->n_idle++;
    }
    g_mutex_unlock(&r->lock);
    if (!keep)
        connection_free(c);
}

/* ---- requests */

static int errno_of(Connection *c, CURLcode code)
{
    long status = 0;
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    if (code == CURLE_OPERATION_TIMEDOUT || c->stalled)
        return -ETIMEDOUT;
    if (code == CURLE_HTTP_RETURNED_ERROR && (status == 401 || status == 403))
        return -EACCES;
    return code == CURLE_HTTP_RETURNED_ERROR && status == 404 ? -ENOENT : -EIO;
}

/* May the next attempt do better? */
static bool passing(Connection *c, CURLcode code)
{
    long status = 0;
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    switch (code) {
    case CURLE_HTTP_RETURNED_ERROR:
        return status == 429 || status >= 500;
    case CURLE_COULDNT_CONNECT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
        return true;
    default:
        return false;
    }
}

static CURLcode perform(Connection *c)
{
    c->moved_us = 0;
    c->message[0] = '\0';
    return curl_easy_perform(c->curl);
}

static CURLcode get_once(Connection *c)
{
    char range[64];
    g_snprintf(range, sizeof(range), "%" G_GUINT64_FORMAT "-%" G_GUINT64_FORMAT, c->offset,
               c->offset + c->wanted - 1);
    curl_easy_setopt(c->curl, CURLOPT_RANGE, range);
    c->received = 0;
    c->ranged = c->changed = false;
    CURLcode code = perform(c);
    return code == CURLE_OK && c->received < c->wanted ? CURLE_PARTIAL_FILE : code;
}

/* [offset, offset + length), within the file, into @iov from byte @skip on. */
static int get(Remote *r, uint64_t offset, const struct iovec *iov, int n, uint64_t skip,
               uint64_t length)
{
    int result = -EIO;
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        Connection *c = take(r);
        if (!c)
            return -ENOMEM;
        c->offset = offset;
        c->wanted = length;
        c->iov = iov;
        c->n = n;
        c->skip = skip;
        CURLcode code = get_once(c);
        result = code == CURLE_OK ? 0 : errno_of(c, code);
        bool again = code != CURLE_OK && !c->changed && passing(c, code);
        give(c, code == CURLE_OK);
        if (!again)
            return result;
        g_usleep((50u << attempt) * 1000u);
    }
    return result;
}

/* ---- windows; all with the lock held, which is dropped while something is fetched */

static Window *window_at(Remote *r, uint64_t offset)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        Window *w = &r->windows[i];
        if (w->state != WINDOW_EMPTY && offset >= w->start && offset - w->start < w->length)
            return w;
    }
    return NULL;
}

static bool goes_on(const Remote *r, uint64_t offset)
{
    for (unsigned i = 0; i < WINDOWS; i++) {
        const Window *w = &r->windows[i];
        if (w->state != WINDOW_EMPTY && w->start + w->length == offset)
            return true;
    }
    return false;
}

/* The one that was used longest ago; NULL when all are being fetched. */
static Window *window_oldest(Remote *r)
{
    Window *oldest = NULL;
    for (unsigned i = 0; i < WINDOWS; i++) {
        Window *w = &r->windows[i];
        if (w->state != WINDOW_FETCHING && (!oldest || w->used < oldest->used))
            oldest = w;
    }
    return oldest;
}

/* Fills @w with what is at @offset and behind. */
static int fetch(Remote *r, Window *w, uint64_t offset, uint64_t length)
{
    uint64_t least = MAX(length, goes_on(r, offset) ? r->readahead : MIN(r->readahead, WINDOW_LEAST));
    w->start = offset;
    w->length = MIN(least, r->size - offset);
    w->state = WINDOW_FETCHING;
    w->used = ++r->clock;
    g_mutex_unlock(&r->lock);
    if (w->room < w->length) {
        g_free(w->bytes);
        w->bytes = g_try_malloc(w->length);
        w->room = w->bytes ? w->length : 0;
    }
    struct iovec iov = {w->bytes, w->length};
    int result = w->bytes ? get(r, offset, &iov, 1, 0, w->length) : -ENOMEM;
    g_mutex_lock(&r->lock);
    w->state = result == 0 ? WINDOW_READY : WINDOW_EMPTY;
    g_cond_broadcast(&r->fetched);
    return result;
}

static int read_windows(Remote *r, uint64_t offset, const struct iovec *iov, int n, uint64_t length)
{
    int result = 0;
    g_mutex_lock(&r->lock);
    for (uint64_t done = 0; done < length && result == 0;) {
        uint64_t at = offset + done, left = length - done;
        Window *w = window_at(r, at);
        if (w && w->state == WINDOW_FETCHING) {
            g_cond_wait(&r->fetched, &r->lock);
        } else if (w) {
            uint64_t part = MIN(left, w->start + w->length - at);
            block_iov_from(iov, n, done, w->bytes + (at - w->start), part);
            w->used = ++r->clock;
            done += part;
        } else if ((w = window_oldest(r))) {
            result = fetch(r, w, at, left);
        } else { /* more readers than windows */
            g_mutex_unlock(&r->lock);
            result = get(r, at, iov, n, done, left);
            g_mutex_lock(&r->lock);
            done += left;
        }
    }
    g_mutex_unlock(&r->lock);
    return result;
}

/* ---- the file */

static Remote *remote_of(BlockFile *file)
{
    return (Remote *)file;
}

static int curl_readv(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    Remote *r = remote_of(file);
    uint64_t length = block_iov_length(iov, n);
    uint64_t inside = offset < r->size ? MIN(length, r->size - offset) : 0;
    block_iov_zero(iov, n, inside, length - inside);
    if (inside == 0)
        return 0;
    return inside >= DIRECT_LEAST ? get(r, offset, iov, n, 0, inside)
                                  : read_windows(r, offset, iov, n, inside);
}

static int curl_writev(BlockFile *file, uint64_t offset, const struct iovec *iov, int n)
{
    return -EROFS;
}

static int curl_zero(BlockFile *file, uint64_t offset, uint64_t length, bool unmap)
{
    return -EROFS;
}

static int curl_discard(BlockFile *file, uint64_t offset, uint64_t length)
{
    return -EROFS;
}

static int curl_flush(BlockFile *file)
{
    return 0;
}

static int curl_truncate(BlockFile *file, uint64_t size)
{
    return -EROFS;
}

static int curl_size(BlockFile *file, uint64_t *size)
{
    *size = remote_of(file)->size;
    return 0;
}

static void wipe(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    g_free(text);
}

static void curl_close(BlockFile *file)
{
    Remote *r = remote_of(file);
    while (r->idle) {
        Connection *c = r->idle;
        r->idle = c->next;
        connection_free(c);
    }
    for (unsigned i = 0; i < WINDOWS; i++)
        g_free(r->windows[i].bytes);
    wipe(r->password);
    wipe(r->proxy_password);
    wipe(r->cookie);
    wipe(r->url);
    g_free(r->username);
    g_free(r->proxy_username);
    g_free(r->etag);
    g_mutex_clear(&r->lock);
    g_cond_clear(&r->fetched);
    g_mutex_clear(&file->rmw);
    g_free(file->path);
    g_free(r);
}

static const BlockFileOps curl_ops = {
    .name = "curl",
    .readv = curl_readv,
    .writev = curl_writev,
    .zero = curl_zero,
    .discard = curl_discard,
    .flush = curl_flush,
    .truncate = curl_truncate,
    .size = curl_size,
    .close = curl_close,
};

/* ---- open */

/* A server that does not say in a HEAD whether it has ranges may show it. */
static CURLcode try_range(Connection *c)
{
    uint8_t byte;
    struct iovec iov = {&byte, 1};
    curl_easy_setopt(c->curl, CURLOPT_NOBODY, 0L);
    curl_easy_setopt(c->curl, CURLOPT_HTTPGET, 1L);
    c->offset = 0;
    c->wanted = 1;
    c->iov = &iov;
    c->n = 1;
    c->skip = 0;
    CURLcode code = get_once(c);
    if (code == CURLE_OK) {
        c->accepts_ranges = true;
        c->remote->size = c->total;
    }
    return code;
}

static bool look(Remote *r, Connection *c, GError **err)
{
    curl_off_t length = -1;
    curl_easy_setopt(c->curl, CURLOPT_NOBODY, 1L);
    CURLcode code = perform(c);
    if (code == CURLE_OK)
        curl_easy_getinfo(c->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    r->size = length > 0 ? (uint64_t)length : 0;
    bool ranged = !r->http || c->accepts_ranges || length == 0;
    if (r->http && (length < 0 || !ranged) &&
        (code == CURLE_OK || code == CURLE_HTTP_RETURNED_ERROR)) {
        bool head = code == CURLE_OK;
        r->size = 0;
        code = try_range(c);
        if (code == CURLE_WRITE_ERROR || (head && code == CURLE_HTTP_RETURNED_ERROR))
            return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                              "Server does not support 'range' (byte ranges).");
        length = (curl_off_t)r->size;
    }
    if (code != CURLE_OK)
        return lodge_fail(err, LODGE_ERROR_IO, "CURL: Error opening file: %s",
                          c->stalled   ? "the server stands still"
                          : *c->message ? c->message
                                        : curl_easy_strerror(code));
    if (length < 0)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "CURL: Error opening file: Server didn't report file size.");
    r->etag = g_strdup(c->etag);
    return true;
}

static bool find_file(Remote *r, GError **err)
{
    Connection *c = take(r);
    if (!c)
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "libcurl gives no handle");
    bool ok = look(r, c, err);
    give(c, false); /* it was set up for looking, not for reading */
    return ok;
}

static bool check_url(Remote *r, const BlockModuleOpen *how, GError **err)
{
    static const char http[] = "http,https", https[] = "https", ftp[] = "ftp,ftps";
    const char *url = block_option_string(how->options, NULL, "url");
    g_autofree char *prefix = g_strdup_printf("%s://", how->driver);
    if (!url)
        return lodge_fail(err, LODGE_ERROR_INVALID, "curl block driver requires an 'url' option");
    if (g_ascii_strncasecmp(url, prefix, strlen(prefix)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "%s curl driver cannot handle the URL '%s' (does not start with '%s')",
                          how->driver, url, prefix);
    r->url = g_strdup(url);
    r->http = g_str_has_prefix(how->driver, "http");
    r->protocols = how->driver;
    r->redirects = !r->http ? ftp : !strcmp(how->driver, "https") ? https : http;
    return true;
}

static bool read_options(Remote *r, const BlockModuleOpen *how, GError **err)
{
    const json_t *o = how->options;
    const char *cookie = block_option_string(o, NULL, "cookie");
    r->username = g_strdup(block_option_string(o, NULL, "username"));
    r->proxy_username = g_strdup(block_option_string(o, NULL, "proxy-username"));
    if (!check_url(r, how, err) ||
        !block_option_size(o, how->table, "readahead", &r->readahead, err) ||
        !block_option_bool(o, how->table, "sslverify", &r->verify, err) ||
        !block_option_number(o, how->table, "timeout", &r->timeout_s, err) ||
        !how->secret(how, "cookie-secret", &r->cookie, err) ||
        !how->secret(how, "password-secret", &r->password, err) ||
        !how->secret(how, "proxy-password-secret", &r->proxy_password, err))
        return false;
    if (r->readahead % 512)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "HTTP_READAHEAD_SIZE %" G_GUINT64_FORMAT " is not a multiple of 512",
                          r->readahead);
    if (r->readahead > READAHEAD_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "readahead is %" G_GUINT64_FORMAT "; at most %" G_GUINT64_FORMAT,
                          r->readahead, READAHEAD_MAX);
    if (r->timeout_s > TIMEOUT_MAX_S)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "timeout parameter is too large or negative");
    if (cookie && r->cookie)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "curl driver cannot handle both cookie and cookie secret");
    if (cookie)
        r->cookie = g_strdup(cookie);
    return true;
}

static BlockFile *curl_open(const BlockModuleOpen *how, GError **err)
{
    CURLcode code = curl_global_init(CURL_GLOBAL_ALL); /* counted, and made for threads */
    if (!how->read_only) {
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "curl driver does not support writes");
        return NULL;
    }
    if (code != CURLE_OK) {
        lodge_fail(err, LODGE_ERROR_INTERNAL, "libcurl initialization failed with %d", (int)code);
        return NULL;
    }
    Remote *r = g_new0(Remote, 1);
    r->file = (BlockFile){.ops = &curl_ops, .fd = -1, .read_only = true, .alignment = 1};
    g_mutex_init(&r->file.rmw);
    g_mutex_init(&r->lock);
    g_cond_init(&r->fetched);
    if (read_options(r, how, err) && find_file(r, err)) {
        r->file.path = g_strdup(r->url);
        return &r->file;
    }
    curl_close(&r->file);
    return NULL;
}

__attribute__((visibility("default"))) extern const BlockModule lodge_disk_module;
const BlockModule lodge_disk_module = {
    .version = LODGE_VERSION, .open_size = sizeof(BlockModuleOpen), .open = curl_open};
