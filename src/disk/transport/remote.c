/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Transports that are modules: their names and options, and how a module is found. */
#include "disk/transport/remote.h"

#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "disk/objects.h"
#include "disk/transport/module.h"
#include "disk/transport/remote-uri.h"

/* ---- loading */

/* Where modules are: as told, beside a program that was built and not installed, or installed. */
static char *find_module(const char *name)
{
    g_autofree char *file = g_strdup_printf("lodge-disk-%s.so", name);
    const char *told = g_getenv("LODGE_MODULES");
    if (told)
        return g_build_filename(told, file, NULL);
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *folder = self ? g_path_get_dirname(self) : NULL;
    g_autofree char *marker =
        folder ? g_build_filename(folder, LODGE_BUILD_TO_MODULES, "built-here", NULL) : NULL;
    if (marker && access(marker, F_OK) == 0)
        return g_build_filename(folder, LODGE_BUILD_TO_MODULES, file, NULL);
    return g_build_filename(LODGE_MODULE_DIR, file, NULL);
}

/* Modules stay loaded: their libraries start threads that outlive a file. */
static const BlockModule *load(const char *name, const char *package, GError **err)
{
    g_autofree char *path = find_module(name);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        if (access(path, F_OK) < 0)
            lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                       "The module for %s images, %s, is not installed", name, path);
        else
            lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                       "The module for %s images cannot be loaded: %s (install the Debian package "
                       "%s)",
                       name, why ? why : "no reason given", package);
        return NULL;
    }
    const BlockModule *module = dlsym(handle, BLOCK_MODULE_SYMBOL);
    if (module && !strcmp(module->version, LODGE_VERSION) &&
        module->open_size == sizeof(BlockModuleOpen))
        return module;
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
               "%s is a module of version %s; this is version %s, and another build of it", path,
               module ? module->version : "unknown", LODGE_VERSION);
    dlclose(handle);
    return NULL;
}

static bool secret_text(const BlockModuleOpen *how, const char *name, char **text, GError **err)
{
    const char *id = block_option_string(how->options, NULL, name);
    size_t length;
    *text = NULL;
    if (!id)
        return true;
    const uint8_t *bytes = block_objects_secret(how->objects, id, &length, err);
    if (!bytes)
        return false;
    if (!g_utf8_validate((const char *)bytes, (gssize)length, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Data from secret %s is not valid UTF-8", id);
    *text = g_strndup((const char *)bytes, length);
    return true;
}

static BlockFile *open_module(const BlockTransport *transport, const char *module,
                              const char *package, const BlockOpen *how, const json_t *options,
                              const uint64_t *new_size, GError **err)
{
    const BlockModule *m = load(module, package, err);
    BlockModuleOpen here = {.driver = transport->name, .table = transport->options,
                            .options = options, .read_only = how->read_only,
                            .direct = how->direct, .secret = secret_text,
                            .create = new_size, .size = new_size ? *new_size : 0,
                            .objects = how->objects};
    return m ? m->open(&here, err) : NULL;
}

/* A function of a row: BlockTransport has no room for a module's name. */
#define OPEN_BY(row, module, package)                                                              \
    static BlockFile *row##_open(const BlockOpen *how, const json_t *options, GError **err)        \
    {                                                                                              \
        return open_module(&block_transport_##row, module, package, how, options, NULL, err);      \
    }

#define CREATE_BY(row, module, package)                                                            \
    static BlockFile *row##_create(const char *path, uint64_t size, GError **err)                  \
    {                                                                                              \
        BlockOpen how = {.path = path};                                                            \
        json_auto_t *options = json_object();                                                      \
        if (!block_transport_##row.parse(path, options, err))                                      \
            return NULL;                                                                           \
        return open_module(&block_transport_##row, module, package, &how, options, &size, err);    \
    }

/* ---- HTTP and FTP */

static const BlockOption curl_options[] = {
    {"url", BLOCK_OPTION_STRING, "the file's URL", NULL},
    {"readahead", BLOCK_OPTION_SIZE, "bytes read ahead of a reader that goes on", "256k"},
    {"sslverify", BLOCK_OPTION_BOOL, "check the server's certificate", "on"},
    {"timeout", BLOCK_OPTION_NUMBER, "seconds without a byte until it is an error", "5"},
    {"cookie", BLOCK_OPTION_STRING, "sent with each request", NULL},
    {"cookie-secret", BLOCK_OPTION_STRING, "ID of the secret that holds the cookie", NULL},
    {"username", BLOCK_OPTION_STRING, "who asks", NULL},
    {"password-secret", BLOCK_OPTION_STRING, "ID of the secret that holds the password", NULL},
    {"proxy-username", BLOCK_OPTION_STRING, "who asks the proxy", NULL},
    {"proxy-password-secret", BLOCK_OPTION_STRING,
     "ID of the secret that holds the proxy's password", NULL},
    {NULL, 0, NULL, NULL},
};

static bool url_parse(const char *uri, json_t *options, GError **err)
{
    json_object_set_new(options, "url", json_string(uri));
    return true;
}

#define CURL_ROW(row)                                                                              \
    OPEN_BY(row, "curl", "libcurl3-gnutls")                                                        \
    static const char *const row##_schemes[] = {#row, NULL};                                       \
    const BlockTransport block_transport_##row = {.name = #row,                                    \
                                                  .schemes = row##_schemes,                        \
                                                  .options = curl_options,                         \
                                                  .parse = url_parse,                              \
                                                  .open = row##_open}

CURL_ROW(http);
CURL_ROW(https);
CURL_ROW(ftp);
CURL_ROW(ftps);

/* ---- iSCSI, NFS, Ceph */

static const BlockOption iscsi_options[] = {
    {"transport", BLOCK_OPTION_STRING, "tcp", "tcp"},
    {"portal", BLOCK_OPTION_STRING, "the server, HOST[:PORT]", NULL},
    {"target", BLOCK_OPTION_STRING, "the target's name, iqn...", NULL},
    {"lun", BLOCK_OPTION_NUMBER, "the unit's number", "0"},
    {"user", BLOCK_OPTION_STRING, "who asks (CHAP)", NULL},
    {"password", BLOCK_OPTION_STRING, "from a URL", NULL},
    {"password-secret", BLOCK_OPTION_STRING, "ID of the secret that holds the password", NULL},
    {"initiator-name", BLOCK_OPTION_STRING, "this side's name",
     "iqn.2008-11.org.linux-kvm:lodge"},
    {"header-digest", BLOCK_OPTION_STRING, "crc32c, none, crc32c-none, none-crc32c",
     "none-crc32c"},
    {"timeout", BLOCK_OPTION_NUMBER, "seconds a request may take; 0: any", "0"},
    {NULL, 0, NULL, NULL},
};

static const char *const iscsi_schemes[] = {"iscsi", NULL};
OPEN_BY(iscsi, "iscsi", "libiscsi7")
const BlockTransport block_transport_iscsi = {.name = "iscsi",
                                              .schemes = iscsi_schemes,
                                              .options = iscsi_options,
                                              .parse = block_uri_iscsi,
                                              .open = iscsi_open};

static const BlockOption nfs_options[] = {
    {"server", BLOCK_OPTION_TREE, "server.type=inet, server.host", NULL},
    {"path", BLOCK_OPTION_STRING, "the file, export included", NULL},
    {"user", BLOCK_OPTION_NUMBER, "UID that asks", NULL},
    {"group", BLOCK_OPTION_NUMBER, "GID that asks", NULL},
    {"tcp-syn-count", BLOCK_OPTION_NUMBER, "SYNs sent until it is an error", NULL},
    {"readahead-size", BLOCK_OPTION_SIZE, "bytes read ahead", NULL},
    {"page-cache-size", BLOCK_OPTION_SIZE, "accepted for QEMU's sake", NULL},
    {"debug", BLOCK_OPTION_NUMBER, "the library's messages, 0 to 2", NULL},
    {NULL, 0, NULL, NULL},
};

static const char *const nfs_schemes[] = {"nfs", NULL};
OPEN_BY(nfs, "nfs", "libnfs13")
CREATE_BY(nfs, "nfs", "libnfs13")
const BlockTransport block_transport_nfs = {.name = "nfs",
                                            .schemes = nfs_schemes,
                                            .options = nfs_options,
                                            .parse = block_uri_nfs,
                                            .open = nfs_open,
                                            .create = nfs_create};

static const BlockOption rbd_options[] = {
    {"pool", BLOCK_OPTION_STRING, "the pool", NULL},
    {"namespace", BLOCK_OPTION_STRING, "the namespace in it", NULL},
    {"image", BLOCK_OPTION_STRING, "the image", NULL},
    {"snapshot", BLOCK_OPTION_STRING, "a snapshot of it, read only", NULL},
    {"conf", BLOCK_OPTION_STRING, "Ceph's configuration file", NULL},
    {"user", BLOCK_OPTION_STRING, "the client's name", NULL},
    {"key-secret", BLOCK_OPTION_STRING, "ID of the secret that holds the client's key", NULL},
    {"auth-client-required", BLOCK_OPTION_TREE, "cephx, none", NULL},
    {"keyvalue", BLOCK_OPTION_STRING, "Ceph's settings from a name, key=value:...", NULL},
    {NULL, 0, NULL, NULL},
};

static const char *const rbd_schemes[] = {"rbd", NULL};
OPEN_BY(rbd, "rbd", "librbd1")
CREATE_BY(rbd, "rbd", "librbd1")
const BlockTransport block_transport_rbd = {.name = "rbd",
                                            .schemes = rbd_schemes,
                                            .options = rbd_options,
                                            .parse = block_uri_rbd,
                                            .open = rbd_open,
                                            .create = rbd_create};

/* ---- ssh */

static BlockFile *ssh_open(const BlockOpen *how, const json_t *options, GError **err)
{
    lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
               "Images over ssh are not supported; mount the folder with sshfs, or serve the image "
               "there with \"lodge-img serve\" and open it as nbd://");
    return NULL;
}

static const BlockOption ssh_options[] = {
    {"url", BLOCK_OPTION_STRING, "the file's URL", NULL},
    {"path", BLOCK_OPTION_STRING, "the file", NULL},
    {"server", BLOCK_OPTION_TREE, "the server", NULL},
    {"host", BLOCK_OPTION_STRING, "the server", NULL},
    {"port", BLOCK_OPTION_NUMBER, "its port", NULL},
    {"user", BLOCK_OPTION_STRING, "who asks", NULL},
    {"host-key-check", BLOCK_OPTION_TREE, "the server's key", NULL},
    {NULL, 0, NULL, NULL},
};

static const char *const ssh_schemes[] = {"ssh", "ssh+libssh", "sftp", NULL};
const BlockTransport block_transport_ssh = {.name = "ssh",
                                            .schemes = ssh_schemes,
                                            .options = ssh_options,
                                            .parse = url_parse,
                                            .open = ssh_open};
