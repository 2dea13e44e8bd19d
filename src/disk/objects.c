/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "disk/objects.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "disk/crypto/cipher.h"
#include "disk/options.h"

/* A secret's bytes, as given and as used. */
#define SECRET_MAX ((size_t)1 << 20)

#define KEY_LENGTH 32u /* of a secret that encrypts others: AES-256 */
#define IV_LENGTH  16u

struct BlockObjects {
    GHashTable *all; /* id -> Object */
};

typedef struct ObjectType ObjectType;

typedef struct Object {
    const ObjectType *type;
    uint8_t *secret; /* a NUL follows its last byte; NULL: no secret */
    size_t length;
    BlockTlsCredentials tls;
    json_t *options; /* what tls's strings are borrowed from */
} Object;

struct ObjectType {
    const char *name;
    const BlockOption *options;
    /* Fills in @object from its options. */
    bool (*complete)(const BlockObjects *all, Object *object, GError **err);
};

static void wipe_free(void *bytes, size_t length)
{
    if (bytes)
        explicit_bzero(bytes, length);
    g_free(bytes);
}

/* jansson has no wiping; the strings of its values are ours to write over until they are freed. */
static void wipe_option(json_t *options, const char *name)
{
    json_t *value = json_object_get(options, name);
    if (json_is_string(value))
        explicit_bzero((char *)json_string_value(value), json_string_length(value));
}

static void object_free(void *opaque)
{
    Object *object = opaque;
    wipe_free(object->secret, object->length + 1);
    json_decref(object->options);
    g_free(object);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Object, object_free)

BlockObjects *block_objects_new(void)
{
    BlockObjects *objects = g_new0(BlockObjects, 1);
    objects->all = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, object_free);
    return objects;
}

void block_objects_free(BlockObjects *objects)
{
    if (!objects)
        return;
    g_hash_table_unref(objects->all);
    g_free(objects);
}

/* ---- secret */

static const BlockOption secret_options[] = {
    {"qom-type", BLOCK_OPTION_STRING, NULL, NULL},
    {"id", BLOCK_OPTION_STRING, NULL, NULL},
    {"data", BLOCK_OPTION_STRING, "the secret itself", NULL},
    {"file", BLOCK_OPTION_STRING, "the file that holds it", NULL},
    {"format", BLOCK_OPTION_STRING, "raw or base64", "raw"},
    {"keyid", BLOCK_OPTION_STRING, "the secret that it is encrypted with", NULL},
    {"iv", BLOCK_OPTION_STRING, "the encryption's vector, base64", NULL},
    {"loaded", BLOCK_OPTION_BOOL, "accepted for QEMU's sake", NULL},
    {NULL, 0, NULL, NULL},
};

static void set_secret(Object *object, uint8_t *bytes, size_t length)
{
    wipe_free(object->secret, object->length + 1);
    object->secret = bytes;
    object->length = length;
}

/* Any file that can be read once: /dev/fd/N and pipes too. */
static bool read_secret_file(Object *object, const char *name, GError **err)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND,
                          "Unable to read %s: Failed to open file “%s”: %s", name, name,
                          g_strerror(errno));
    uint8_t *bytes = g_malloc0(SECRET_MAX + 1);
    size_t length = 0;
    ssize_t got = 1;
    while (got != 0 && length <= SECRET_MAX) {
        got = read(fd, bytes + length, SECRET_MAX + 1 - length);
        if (got < 0 && errno != EINTR)
            break;
        length += got > 0 ? (size_t)got : 0;
    }
    int problem = got < 0 ? errno : length > SECRET_MAX ? EFBIG : 0;
    close(fd);
    if (problem == 0)
        set_secret(object, g_memdup2(bytes, length + 1), length);
    wipe_free(bytes, SECRET_MAX + 1);
    return problem == 0 || lodge_fail_errno(err, problem, "Unable to read %s", name);
}

static bool load_secret(Object *object, GError **err)
{
    const char *data = block_option_string(object->options, NULL, "data");
    const char *file = block_option_string(object->options, NULL, "file");
    if (data && file)
        return lodge_fail(err, LODGE_ERROR_INVALID, "'file' and 'data' are mutually exclusive");
    if (file)
        return read_secret_file(object, file, err);
    if (!data)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Either 'file' or 'data' must be provided");
    if (strlen(data) > SECRET_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "a secret of more than %zu bytes", SECRET_MAX);
    set_secret(object, (uint8_t *)g_strdup(data), strlen(data));
    return true;
}

/* The bytes behind @text, with a NUL behind them; free them. */
static uint8_t *decode_base64(const char *text, size_t length, size_t *out, GError **err)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n";
    if (strspn(text, digits) != length) {
        lodge_fail(err, LODGE_ERROR_INVALID, "Base64 data contains invalid characters");
        return NULL;
    }
    uint8_t *bytes = g_malloc0(length + 4);
    int state = 0;
    guint save = 0;
    *out = g_base64_decode_step(text, length, bytes, &state, &save);
    bytes[*out] = 0;
    return bytes;
}

static bool decode_secret(Object *object, GError **err)
{
    size_t length;
    uint8_t *bytes = decode_base64((const char *)object->secret, object->length, &length, err);
    if (bytes)
        set_secret(object, bytes, length);
    return bytes;
}

static bool unpad(Object *object, GError **err)
{
    unsigned padding = object->length ? object->secret[object->length - 1] : 0;
    if (padding == 0 || padding > IV_LENGTH || padding > object->length)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Incorrect number of padding bytes (%u) found on decrypted data",
                          padding);
    object->length -= padding;
    explicit_bzero(object->secret + object->length, padding);
    return true;
}

static bool decrypt_secret(const BlockObjects *all, Object *object, const char *keyid,
                           GError **err)
{
    size_t key_length, iv_length = 0;
    const uint8_t *key = block_objects_secret(all, keyid, &key_length, err);
    const char *iv_text = block_option_string(object->options, NULL, "iv");
    if (!key)
        return false;
    if (key_length != KEY_LENGTH)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Key should be %u bytes in length", KEY_LENGTH);
    if (!iv_text)
        return lodge_fail(err, LODGE_ERROR_INVALID, "IV is required to decrypt secret");
    g_autofree uint8_t *iv = decode_base64(iv_text, strlen(iv_text), &iv_length, err);
    if (!iv)
        return false;
    if (iv_length != IV_LENGTH)
        return lodge_fail(err, LODGE_ERROR_INVALID, "IV should be %u bytes in length not %zu",
                          IV_LENGTH, iv_length);
    uint8_t *plain = g_malloc0(object->length + 1);
    int result = block_cipher_cbc_decrypt(BLOCK_CIPHER_AES_256, key, iv, object->secret, plain,
                                          object->length);
    set_secret(object, plain, object->length);
    if (result < 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Length %zu must be a multiple of block size %u",
                          object->length, IV_LENGTH);
    return unpad(object, err);
}

static bool secret_complete(const BlockObjects *all, Object *object, GError **err)
{
    const char *format = block_option_string(object->options, secret_options, "format");
    const char *keyid = block_option_string(object->options, NULL, "keyid");
    bool base64 = !strcmp(format, "base64");
    if (!base64 && strcmp(format, "raw"))
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'format' does not accept value '%s'",
                          format);
    if (!load_secret(object, err) || (base64 && !decode_secret(object, err)) ||
        (keyid && !decrypt_secret(all, object, keyid, err)))
        return false;
    wipe_option(object->options, "data");
    return true;
}

/* ---- TLS credentials; QEMU's names of the files */

#define TLS_OPTIONS                                                                                \
    {"qom-type", BLOCK_OPTION_STRING, NULL, NULL}, {"id", BLOCK_OPTION_STRING, NULL, NULL},        \
        {"dir", BLOCK_OPTION_STRING, "the folder of keys and certificates", NULL},                 \
        {"endpoint", BLOCK_OPTION_STRING, "client or server", "client"},                           \
        {"priority", BLOCK_OPTION_STRING, "a gnutls priority string", NULL},                       \
        {"verify-peer", BLOCK_OPTION_BOOL, "the other side must show who it is", "on"},            \
        {"loaded", BLOCK_OPTION_BOOL, "accepted for QEMU's sake", NULL}

static const BlockOption anon_options[] = {TLS_OPTIONS, {NULL, 0, NULL, NULL}};
static const BlockOption psk_options[] = {
    TLS_OPTIONS,
    {"username", BLOCK_OPTION_STRING, "whose key a client uses", "qemu"},
    {NULL, 0, NULL, NULL},
};
static const BlockOption x509_options[] = {
    TLS_OPTIONS,
    {"passwordid", BLOCK_OPTION_STRING, "the secret that opens the private key", NULL},
    {"sanity-check", BLOCK_OPTION_BOOL, "accepted for QEMU's sake", "on"},
    {NULL, 0, NULL, NULL},
};

static bool credentials_there(const char *dir, const char *const *names, GError **err)
{
    for (; *names; names++) {
        g_autofree char *path = g_build_filename(dir, *names, NULL);
        if (access(path, F_OK) < 0)
            return lodge_fail_errno(err, errno, "Unable to access credentials %s", path);
    }
    return true;
}

static bool tls_common(Object *object, GError **err)
{
    const json_t *o = object->options;
    const BlockOption *table = object->type->options;
    const char *endpoint = block_option_string(o, table, "endpoint");
    BlockTlsCredentials *tls = &object->tls;
    tls->server = !strcmp(endpoint, "server");
    if (!tls->server && strcmp(endpoint, "client"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'endpoint' does not accept value '%s'", endpoint);
    tls->dir = block_option_string(o, NULL, "dir");
    tls->priority = block_option_string(o, NULL, "priority");
    return block_option_bool(o, table, "verify-peer", &tls->verify_peer, err);
}

static bool anon_complete(const BlockObjects *all, Object *object, GError **err)
{
    object->tls.kind = BLOCK_TLS_ANON;
    return tls_common(object, err);
}

static bool need_dir(const Object *object, GError **err)
{
    return object->tls.dir || lodge_fail(err, LODGE_ERROR_INVALID, "Missing 'dir' property value");
}

static bool psk_complete(const BlockObjects *all, Object *object, GError **err)
{
    static const char *const files[] = {"keys.psk", NULL};
    object->tls.kind = BLOCK_TLS_PSK;
    object->tls.username = block_option_string(object->options, psk_options, "username");
    return tls_common(object, err) && need_dir(object, err) &&
           credentials_there(object->tls.dir, files, err);
}

static bool x509_complete(const BlockObjects *all, Object *object, GError **err)
{
    static const char *const client[] = {"ca-cert.pem", NULL};
    static const char *const server[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem", NULL};
    bool check = true;
    object->tls.kind = BLOCK_TLS_X509;
    object->tls.password_secret = block_option_string(object->options, NULL, "passwordid");
    return tls_common(object, err) && need_dir(object, err) &&
           block_option_bool(object->options, x509_options, "sanity-check", &check, err) &&
           credentials_there(object->tls.dir, object->tls.server ? server : client, err);
}

/* ---- all of them */

static const ObjectType types[] = {
    {"secret", secret_options, secret_complete},
    {"tls-creds-anon", anon_options, anon_complete},
    {"tls-creds-psk", psk_options, psk_complete},
    {"tls-creds-x509", x509_options, x509_complete},
};

static const ObjectType *type_of(const json_t *options, GError **err)
{
    const char *name = block_option_string(options, NULL, "qom-type");
    for (size_t i = 0; name && i < G_N_ELEMENTS(types); i++) {
        if (!strcmp(types[i].name, name))
            return &types[i];
    }
    if (name)
        lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Parameter 'qom-type' does not accept value '%s'",
                   name);
    else
        lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'qom-type' is missing");
    return NULL;
}

static bool check_names(const json_t *options, const ObjectType *type, GError **err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)options, name, value)
    {
        const BlockOption *row = block_option_find(type->options, name);
        if (!row)
            return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter '%s' is unexpected", name);
        if (row->type == BLOCK_OPTION_STRING && !json_is_string(value))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "Invalid parameter type for '%s', expected: string", name);
    }
    return true;
}

static bool check_id(const BlockObjects *objects, const char *id, GError **err)
{
    if (!id)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Parameter 'id' is missing");
    bool good = g_ascii_isalpha(id[0]);
    for (const char *c = id; *c; c++)
        good = good && (g_ascii_isalnum(*c) || strchr("-._", *c));
    if (!good)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "Parameter 'id' expects an identifier\n"
                          "Identifiers consist of letters, digits, '-', '.', '_', "
                          "starting with a letter.");
    return !g_hash_table_contains(objects->all, id) ||
           lodge_fail(err, LODGE_ERROR_EXISTS,
                      "attempt to add duplicate property '%s' to object (type 'container')", id);
}

static json_t *parse(const char *text, GError **err)
{
    json_error_t problem;
    if (*text != '{') {
        json_auto_t *options = json_object();
        return block_options_parse(text, NULL, "qom-type", options, err) ? json_incref(options)
                                                                         : NULL;
    }
    json_t *options = json_loads(text, JSON_REJECT_DUPLICATES, &problem);
    if (!options)
        lodge_fail(err, LODGE_ERROR_INVALID, "JSON parse error, %s", problem.text);
    return options;
}

bool block_objects_add(BlockObjects *objects, const char *text, GError **err)
{
    g_autoptr(Object) object = g_new0(Object, 1);
    object->options = parse(text, err);
    if (!object->options)
        return false;
    object->type = type_of(object->options, err);
    const char *id = block_option_string(object->options, NULL, "id");
    if (!object->type || !check_id(objects, id, err) ||
        !check_names(object->options, object->type, err) ||
        !object->type->complete(objects, object, err)) {
        wipe_option(object->options, "data");
        return false;
    }
    g_hash_table_insert(objects->all, g_strdup(id), g_steal_pointer(&object));
    return true;
}

static const Object *find(const BlockObjects *objects, const char *id)
{
    return objects ? g_hash_table_lookup(objects->all, id) : NULL;
}

const uint8_t *block_objects_secret(const BlockObjects *objects, const char *id, size_t *length,
                                    GError **err)
{
    const Object *found = find(objects, id);
    if (found && found->secret) {
        *length = found->length;
        return found->secret;
    }
    if (found)
        lodge_fail(err, LODGE_ERROR_INVALID, "Object with id '%s' is not a secret", id);
    else
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "No secret with id '%s'", id);
    return NULL;
}

const BlockTlsCredentials *block_objects_tls(const BlockObjects *objects, const char *id,
                                             GError **err)
{
    const Object *found = find(objects, id);
    if (found && !found->secret)
        return &found->tls;
    if (found)
        lodge_fail(err, LODGE_ERROR_INVALID, "Object with id '%s' is not TLS credentials", id);
    else
        lodge_fail(err, LODGE_ERROR_NOT_FOUND, "No TLS credentials with id '%s'", id);
    return NULL;
}
