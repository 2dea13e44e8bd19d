/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * TLS by gnutls. The library is loaded when the first credentials are: it takes longer to start
 * than most of what lodge-img does without it.
 */
#include "disk/nbd/channel.h"

#include "base/error.h"

#include <dlfcn.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY "libgnutls.so.30"

/* A server's key exchange with anonymous clients and by keys of our own is not in the default set.
 */
#define PRIORITY "NORMAL"

#define FUNCTIONS(X)                                                                               \
    X(anon_allocate_client_credentials)                                                            \
    X(anon_allocate_server_credentials)                                                            \
    X(anon_free_client_credentials)                                                                \
    X(anon_free_server_credentials)                                                                \
    X(anon_set_server_known_dh_params)                                                             \
    X(certificate_allocate_credentials)                                                            \
    X(certificate_free_credentials)                                                                \
    X(certificate_get_peers)                                                                       \
    X(certificate_server_set_request)                                                              \
    X(certificate_set_known_dh_params)                                                             \
    X(certificate_set_x509_crl_file)                                                               \
    X(certificate_set_x509_key_file2)                                                              \
    X(certificate_set_x509_trust_file)                                                             \
    X(certificate_verify_peers2)                                                                   \
    X(credentials_set)                                                                             \
    X(deinit)                                                                                      \
    X(error_is_fatal)                                                                              \
    X(free)                                                                                        \
    X(handshake)                                                                                   \
    X(init)                                                                                        \
    X(priority_set_direct)                                                                         \
    X(psk_allocate_client_credentials)                                                             \
    X(psk_allocate_server_credentials)                                                             \
    X(psk_free_client_credentials)                                                                 \
    X(psk_free_server_credentials)                                                                 \
    X(psk_set_client_credentials)                                                                  \
    X(psk_set_server_credentials_file)                                                             \
    X(psk_set_server_known_dh_params)                                                              \
    X(record_recv)                                                                                 \
    X(record_send)                                                                                 \
    X(server_name_set)                                                                             \
    X(strerror)                                                                                    \
    X(transport_set_errno)                                                                         \
    X(transport_set_ptr)                                                                           \
    X(transport_set_pull_function)                                                                 \
    X(transport_set_push_function)                                                                 \
    X(x509_crt_check_hostname)                                                                     \
    X(x509_crt_deinit)                                                                             \
    X(x509_crt_get_dn3)                                                                            \
    X(x509_crt_import)                                                                             \
    X(x509_crt_init)

#define MEMBER(name) __typeof__(gnutls_##name) *name;
static struct {
    FUNCTIONS(MEMBER)
} tls_calls;
#undef MEMBER

struct NbdTls {
    int kind; /* BLOCK_TLS_... */
    bool server, verify;
    char *identity, *priority;
    gnutls_certificate_credentials_t x509;
    gnutls_anon_client_credentials_t anon_client;
    gnutls_anon_server_credentials_t anon_server;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_psk_server_credentials_t psk_server;
};

struct NbdTlsSession {
    gnutls_session_t session;
    void *opaque;
    ssize_t (*receive)(void *opaque, void *buffer, size_t length);
    ssize_t (*send)(void *opaque, const void *buffer, size_t length);
};

static bool load_library(GError **err)
{
    static gsize loaded;
    static char *problem;
    if (g_once_init_enter(&loaded)) {
        void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
        if (!library)
            problem = g_strdup(dlerror());
#define RESOLVE(name)                                                                              \
    if (!problem) {                                                                                \
        *(void **)&tls_calls.name = dlsym(library, "gnutls_" #name);                               \
        if (!tls_calls.name)                                                                       \
            problem = g_strdup(LIBRARY " has no gnutls_" #name);                                   \
    }
        FUNCTIONS(RESOLVE)
#undef RESOLVE
        g_once_init_leave(&loaded, 1);
    }
    return !problem || lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "TLS needs gnutls: %s", problem);
}

/* ---- credentials */

void nbd_tls_free(NbdTls *tls)
{
    if (!tls)
        return;
    if (tls->x509)
        tls_calls.certificate_free_credentials(tls->x509);
    if (tls->anon_client)
        tls_calls.anon_free_client_credentials(tls->anon_client);
    if (tls->anon_server)
        tls_calls.anon_free_server_credentials(tls->anon_server);
    if (tls->psk_client)
        tls_calls.psk_free_client_credentials(tls->psk_client);
    if (tls->psk_server)
        tls_calls.psk_free_server_credentials(tls->psk_server);
    g_free(tls->identity);
    g_free(tls->priority);
    g_free(tls);
}

static bool ok(int result, const char *path, const char *what, GError **err)
{
    return result >= 0 || lodge_fail(err, LODGE_ERROR_INVALID, "Cannot load %s '%s': %s", what,
                                     path, tls_calls.strerror(result));
}

static bool load_x509(NbdTls *tls, const BlockTlsCredentials *given, const char *password,
                      GError **err)
{
    const char *role = given->server ? "server" : "client";
    g_autofree char *ca = g_build_filename(given->dir, "ca-cert.pem", NULL);
    g_autofree char *crl = g_build_filename(given->dir, "ca-crl.pem", NULL);
    g_autofree char *cert_name = g_strconcat(role, "-cert.pem", NULL);
    g_autofree char *key_name = g_strconcat(role, "-key.pem", NULL);
    g_autofree char *cert = g_build_filename(given->dir, cert_name, NULL);
    g_autofree char *key = g_build_filename(given->dir, key_name, NULL);
    bool has_ca = access(ca, F_OK) == 0, has_cert = access(cert, F_OK) == 0;
    tls_calls.certificate_allocate_credentials(&tls->x509);
    if ((has_ca || !given->server || given->verify_peer) &&
        !ok(tls_calls.certificate_set_x509_trust_file(tls->x509, ca, GNUTLS_X509_FMT_PEM), ca,
            "CA certificate", err))
        return false;
    /* A client may have no certificate of its own. */
    if ((has_cert || given->server) &&
        !ok(tls_calls.certificate_set_x509_key_file2(tls->x509, cert, key, GNUTLS_X509_FMT_PEM,
                                                     password, 0),
            cert, "certificate and key", err))
        return false;
    if (access(crl, F_OK) == 0 &&
        !ok(tls_calls.certificate_set_x509_crl_file(tls->x509, crl, GNUTLS_X509_FMT_PEM), crl,
            "revocation list", err))
        return false;
    if (given->server)
        tls_calls.certificate_set_known_dh_params(tls->x509, GNUTLS_SEC_PARAM_MEDIUM);
    return true;
}

/* A line "USERNAME:HEX" of keys.psk. */
static bool load_psk_client(NbdTls *tls, const char *path, const char *username, GError **err)
{
    g_autofree char *text = NULL;
    gsize length;
    if (!g_file_get_contents(path, &text, &length, err))
        return false;
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        size_t name = strlen(username);
        if (strncmp(*line, username, name) || (*line)[name] != ':')
            continue;
        g_strchomp(*line);
        gnutls_datum_t key = {(unsigned char *)*line + name + 1,
                              (unsigned)strlen(*line + name + 1)};
        tls_calls.psk_allocate_client_credentials(&tls->psk_client);
        return ok(tls_calls.psk_set_client_credentials(tls->psk_client, username, &key,
                                                       GNUTLS_PSK_KEY_HEX),
                  path, "key", err);
    }
    return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "%s: no key for user '%s'", path, username);
}

static bool load_psk(NbdTls *tls, const BlockTlsCredentials *given, GError **err)
{
    g_autofree char *path = g_build_filename(given->dir, "keys.psk", NULL);
    if (!given->server)
        return load_psk_client(tls, path, given->username ? given->username : "qemu", err);
    tls_calls.psk_allocate_server_credentials(&tls->psk_server);
    tls_calls.psk_set_server_known_dh_params(tls->psk_server, GNUTLS_SEC_PARAM_MEDIUM);
    return ok(tls_calls.psk_set_server_credentials_file(tls->psk_server, path), path, "keys", err);
}

static bool load_anon(NbdTls *tls)
{
    if (!tls->server)
        return tls_calls.anon_allocate_client_credentials(&tls->anon_client) == 0;
    tls_calls.anon_allocate_server_credentials(&tls->anon_server);
    tls_calls.anon_set_server_known_dh_params(tls->anon_server, GNUTLS_SEC_PARAM_MEDIUM);
    return true;
}

NbdTls *nbd_tls_new(const BlockTlsCredentials *given, const BlockObjects *objects, GError **err)
{
    const char *password = NULL;
    if (!load_library(err))
        return NULL;
    if (given->password_secret) {
        size_t length;
        password =
            (const char *)block_objects_secret(objects, given->password_secret, &length, err);
        if (!password)
            return NULL;
    }
    g_autoptr(NbdTls) tls = g_new0(NbdTls, 1);
    static const char *const extra[] = {
        [BLOCK_TLS_X509] = "",
        [BLOCK_TLS_PSK] = ":+ECDHE-PSK:+DHE-PSK:+PSK",
        [BLOCK_TLS_ANON] = ":+ANON-ECDH:+ANON-DH:-VERS-TLS1.3",
    };
    tls->kind = (int)given->kind;
    tls->server = given->server;
    tls->verify = given->verify_peer;
    tls->priority =
        g_strconcat(given->priority ? given->priority : PRIORITY, extra[given->kind], NULL);
    bool loaded = given->kind == BLOCK_TLS_X509  ? load_x509(tls, given, password, err)
                  : given->kind == BLOCK_TLS_PSK ? load_psk(tls, given, err)
                                                 : load_anon(tls);
    return loaded ? g_steal_pointer(&tls) : NULL;
}

void nbd_tls_authorize(NbdTls *tls, const char *identity)
{
    g_free(tls->identity);
    tls->identity = g_strdup(identity);
}

/* ---- sessions */

static ssize_t pull(gnutls_transport_ptr_t opaque, void *buffer, size_t length)
{
    NbdTlsSession *s = opaque;
    ssize_t got = s->receive(s->opaque, buffer, length);
    if (got < 0)
        tls_calls.transport_set_errno(s->session, (int)-got == ETIMEDOUT ? EIO : (int)-got);
    return got < 0 ? -1 : got;
}

static ssize_t push(gnutls_transport_ptr_t opaque, const void *buffer, size_t length)
{
    NbdTlsSession *s = opaque;
    ssize_t put = s->send(s->opaque, buffer, length);
    if (put < 0)
        tls_calls.transport_set_errno(s->session, (int)-put);
    return put < 0 ? -1 : put;
}

static bool credentials(NbdTlsSession *s, const NbdTls *tls)
{
    if (tls->kind == BLOCK_TLS_X509) {
        if (tls->server)
            tls_calls.certificate_server_set_request(s->session, tls->verify ? GNUTLS_CERT_REQUEST
                                                                             : GNUTLS_CERT_IGNORE);
        return tls_calls.credentials_set(s->session, GNUTLS_CRD_CERTIFICATE, tls->x509) == 0;
    }
    if (tls->kind == BLOCK_TLS_PSK)
        return tls_calls.credentials_set(s->session, GNUTLS_CRD_PSK,
                                         tls->server ? (void *)tls->psk_server
                                                     : (void *)tls->psk_client) == 0;
    return tls_calls.credentials_set(s->session, GNUTLS_CRD_ANON,
                                     tls->server ? (void *)tls->anon_server
                                                 : (void *)tls->anon_client) == 0;
}

/* What is wrong with the peer's certificate, in the words of QEMU's tools. */
static bool check_status(unsigned status, GError **err)
{
    const char *reason =
        status & GNUTLS_CERT_EXPIRED              ? "The certificate has expired"
        : status & GNUTLS_CERT_NOT_ACTIVATED      ? "The certificate is not yet activated"
        : status & GNUTLS_CERT_SIGNER_NOT_FOUND   ? "The certificate hasn't got a known issuer"
        : status & GNUTLS_CERT_REVOKED            ? "The certificate has been revoked"
        : status & GNUTLS_CERT_INSECURE_ALGORITHM ? "The certificate uses an insecure algorithm"
                                                  : "The certificate is not trusted";
    return status == 0 || lodge_fail(err, LODGE_ERROR_DENIED, "%s", reason);
}

static bool check_names(gnutls_x509_crt_t certificate, const NbdTls *tls, const char *hostname,
                        GError **err)
{
    gnutls_datum_t name;
    if (!tls->server && !hostname)
        return lodge_fail(err, LODGE_ERROR_DENIED, "No hostname for certificate validation");
    if (!tls->server && !tls_calls.x509_crt_check_hostname(certificate, hostname))
        return lodge_fail(err, LODGE_ERROR_DENIED, "Certificate does not match the hostname %s",
                          hostname);
    if (!tls->identity)
        return true;
    if (tls_calls.x509_crt_get_dn3(certificate, &name, 0) < 0)
        return lodge_fail(err, LODGE_ERROR_DENIED, "The certificate has no distinguished name");
    bool same = strlen(tls->identity) == name.size && !memcmp(tls->identity, name.data, name.size);
    if (!same)
        lodge_fail(err, LODGE_ERROR_DENIED, "TLS x509 authz check for %.*s is denied",
                   (int)name.size, (const char *)name.data);
    (*tls_calls.free)(name.data);
    return same;
}

static bool check_peer(NbdTlsSession *s, const NbdTls *tls, const char *hostname, GError **err)
{
    unsigned status, n = 0;
    gnutls_x509_crt_t certificate;
    if (tls->kind != BLOCK_TLS_X509 || !tls->verify)
        return true;
    int result = tls_calls.certificate_verify_peers2(s->session, &status);
    if (result < 0)
        return lodge_fail(err, LODGE_ERROR_DENIED, "Verify failed: %s", tls_calls.strerror(result));
    if (!check_status(status, err))
        return false;
    const gnutls_datum_t *chain = tls_calls.certificate_get_peers(s->session, &n);
    if (!chain || n == 0 || tls_calls.x509_crt_init(&certificate) < 0)
        return lodge_fail(err, LODGE_ERROR_DENIED, "Verify failed: No certificate was found.");
    bool good = tls_calls.x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) == 0
                    ? check_names(certificate, tls, hostname, err)
                    : lodge_fail(err, LODGE_ERROR_DENIED, "The certificate cannot be read");
    tls_calls.x509_crt_deinit(certificate);
    return good;
}

NbdTlsSession *nbd_tls_session_new(const NbdTls *tls, const char *hostname, void *opaque,
                                   ssize_t (*receive)(void *opaque, void *buffer, size_t length),
                                   ssize_t (*send)(void *opaque, const void *buffer, size_t length),
                                   GError **err)
{
    NbdTlsSession *s = g_new0(NbdTlsSession, 1);
    s->opaque = opaque;
    s->receive = receive;
    s->send = send;
    int result = tls_calls.init(&s->session,
                                (tls->server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NO_SIGNAL);
    if (result < 0) {
        g_free(s);
        lodge_fail(err, LODGE_ERROR_INTERNAL, "TLS: %s", tls_calls.strerror(result));
        return NULL;
    }
    tls_calls.transport_set_ptr(s->session, s);
    tls_calls.transport_set_pull_function(s->session, pull);
    tls_calls.transport_set_push_function(s->session, push);
    if (!tls->server && hostname)
        tls_calls.server_name_set(s->session, GNUTLS_NAME_DNS, hostname, strlen(hostname));
    result = tls_calls.priority_set_direct(s->session, tls->priority, NULL);
    if (result < 0 || !credentials(s, tls)) {
        lodge_fail(err, LODGE_ERROR_INVALID, "TLS priority '%s': %s", tls->priority,
                   tls_calls.strerror(result));
        nbd_tls_session_free(s);
        return NULL;
    }
    do
        result = tls_calls.handshake(s->session);
    while (result < 0 && !tls_calls.error_is_fatal(result));
    if (result < 0)
        lodge_fail(err, LODGE_ERROR_DENIED, "TLS handshake failed: %s", tls_calls.strerror(result));
    if (result < 0 || !check_peer(s, tls, hostname, err)) {
        nbd_tls_session_free(s);
        return NULL;
    }
    return s;
}

void nbd_tls_session_free(NbdTlsSession *s)
{
    if (!s)
        return;
    tls_calls.deinit(s->session);
    g_free(s);
}

ssize_t nbd_tls_receive(NbdTlsSession *s, void *buffer, size_t length)
{
    for (;;) {
        ssize_t got = tls_calls.record_recv(s->session, buffer, length);
        if (got >= 0)
            return got;
        if (got == GNUTLS_E_PREMATURE_TERMINATION)
            return -ECONNABORTED;
        if (tls_calls.error_is_fatal((int)got))
            return -EIO;
    }
}

ssize_t nbd_tls_send(NbdTlsSession *s, const void *buffer, size_t length)
{
    for (;;) {
        ssize_t put = tls_calls.record_send(s->session, buffer, length);
        if (put >= 0)
            return put;
        if (tls_calls.error_is_fatal((int)put))
            return -EIO;
    }
}
