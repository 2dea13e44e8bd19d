/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LUKS: every cipher keeps data, headers that lie are refused, passphrases come and go safely. */
#include "disk/crypto/luks.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/formats.h"
#include "disk/memory-file.h"

#include <glib/gstdio.h>

#define LIMIT MIB(8)
#define DISK  MIB(1)

static BlockObjects *objects;

static json_t *parse(const char *text)
{
    json_t *options = json_object();
    g_assert_true(block_options_parse(text, NULL, NULL, options, NULL));
    return options;
}

static GByteArray *try_make(const char *text, GError **err)
{
    GByteArray *bytes = g_byte_array_new();
    json_auto_t *options = parse(text);
    BlockCreate create = {.path = "m", .format = "luks", .size = DISK, .options = options,
                          .objects = objects};
    g_autoptr(BlockFile) file = &memory_file_new(bytes, LIMIT, NULL)->file;
    if (block_format_luks.create_check(&create, err) &&
        block_format_luks.create(file, &create, err))
        return bytes;
    g_byte_array_unref(bytes);
    return NULL;
}

static GByteArray *make(const char *text)
{
    g_autoptr(GError) error = NULL;
    GByteArray *bytes = try_make(text, &error);
    g_assert_no_error(error);
    return bytes;
}

/* @secret NULL: only to describe it. */
static BlockNode *try_open(MemoryFile *file, const char *secret, GError **err)
{
    json_auto_t *options = json_object();
    if (secret)
        json_object_set_new(options, "key-secret", json_string(secret));
    BlockOpen how = {.path = "m", .format = "luks", .objects = objects, .options = options,
                     .no_secrets = !secret};
    return block_open_file(&file->file, &how, err);
}

static BlockNode *open_with(GByteArray *bytes, const char *secret)
{
    g_autoptr(GError) error = NULL;
    BlockNode *node = try_open(memory_file_new(bytes, LIMIT, NULL), secret, &error);
    g_assert_no_error(error);
    return node;
}

static void refused(GByteArray *bytes, const char *secret, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = try_open(memory_file_new(bytes, LIMIT, NULL), secret, &error);
    g_assert_null(node);
    if (!strstr(error->message, words))
        g_error("no \"%s\" in: %s", words, error->message);
}

static int transfer(BlockNode *node, bool write, uint64_t offset, void *bytes, size_t length)
{
    struct iovec iov = {bytes, length};
    return write ? block_writev(node, offset, &iov, 1, 0) : block_readv(node, offset, &iov, 1);
}

/* ---- data */

static void test_ciphers(void)
{
    static const char *const kinds[] = {
        "cipher-alg=aes-256", "cipher-alg=aes-192", "cipher-alg=aes-128,hash-alg=sha512",
        "cipher-alg=serpent-128", "cipher-alg=serpent-192,hash-alg=sha1", "cipher-alg=serpent-256",
        "cipher-alg=twofish-192", "cipher-alg=twofish-192,cipher-mode=cbc,ivgen-alg=essiv",
        "cipher-alg=twofish-192,cipher-mode=ctr", "cipher-alg=twofish-192,cipher-mode=ecb",
        "cipher-alg=twofish-128", "cipher-alg=twofish-256,hash-alg=ripemd160",
        "cipher-alg=cast5-128,cipher-mode=cbc", "cipher-mode=ctr", "cipher-mode=ecb",
        "cipher-mode=cbc,ivgen-alg=essiv", "cipher-mode=cbc,ivgen-alg=plain,ivgen-hash-alg=md5",
        "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5",
        "cipher-alg=serpent-256,ivgen-alg=essiv", "hash-alg=sha224", "hash-alg=sha384",
        "hash-alg=md5"};
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
        uint8_t out[3000], in[3000];
        g_autofree char *text = g_strdup_printf("key-secret=a,iter-time=0,%s", kinds[i]);
        g_autoptr(GByteArray) bytes = make(text);
        memset(out, (int)i + 1, sizeof(out));
        BlockNode *node = open_with(bytes, "a");
        g_assert_cmpuint(block_size(node), ==, DISK);
        g_assert_cmpint(transfer(node, true, DISK / 2, out, sizeof(out)), ==, 0);
        block_unref(node);
        g_assert_null(memmem(bytes->data, bytes->len, out, 64));
        node = open_with(bytes, "a");
        g_assert_cmpint(transfer(node, false, DISK / 2, in, sizeof(in)), ==, 0);
        g_assert_cmpmem(in, sizeof(in), out, sizeof(out));
        block_unref(node);
        refused(bytes, "b", "Invalid password, cannot unlock any keyslot");
    }
}

/* Bytes anywhere, of any length: the sectors around them stay as they are. */
static void test_parts(void)
{
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0");
    g_autofree uint8_t *model = g_malloc0(DISK), *all = g_malloc(DISK);
    g_autoptr(BlockNode) node = open_with(bytes, "a");
    g_assert_cmpint(block_write_zeroes(node, 0, DISK, 0), ==, 0);
    for (int i = 0; i < 200; i++) {
        uint64_t offset = (uint64_t)g_test_rand_int_range(0, DISK);
        size_t length = (size_t)g_test_rand_int_range(1, i % 10 ? 1500 : 400000);
        length = MIN(length, DISK - offset);
        memset(model + offset, i + 1, length);
        struct iovec iov[3] = {{model + offset, length / 5},
                               {model + offset + length / 5, length / 3},
                               {model + offset + length / 5 + length / 3,
                                length - length / 5 - length / 3}};
        g_assert_cmpint(block_writev(node, offset, iov, 3, 0), ==, 0);
        g_assert_cmpint(transfer(node, false, offset, all, length), ==, 0);
        g_assert_cmpmem(all, length, model + offset, length);
    }
    g_assert_cmpint(transfer(node, false, 0, all, DISK), ==, 0);
    g_assert_cmpmem(all, DISK, model, DISK);
}

typedef struct Worker {
    BlockNode *node;
    unsigned number;
} Worker;

/* Threads that share sectors but no bytes: 100 bytes each in every 800. */
static gpointer work(gpointer opaque)
{
    const Worker *w = opaque;
    uint8_t out[100], in[100];
    for (unsigned round = 0; round < 100; round++) {
        uint64_t offset = round * 800 + w->number * 100;
        memset(out, (int)(w->number * 31 + round), sizeof(out));
        if (transfer(w->node, true, offset, out, sizeof(out)) < 0)
            return opaque;
    }
    for (unsigned round = 0; round < 100; round++) {
        memset(out, (int)(w->number * 31 + round), sizeof(out));
        if (transfer(w->node, false, round * 800 + w->number * 100, in, sizeof(in)) < 0 ||
            memcmp(in, out, sizeof(in)) != 0)
            return opaque;
    }
    return NULL;
}

static void test_threads(void)
{
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0,cipher-mode=cbc,ivgen-alg=essiv");
    g_autoptr(BlockNode) node = open_with(bytes, "a");
    GThread *threads[8];
    Worker workers[8];
    for (unsigned i = 0; i < 8; i++) {
        workers[i] = (Worker){node, i};
        threads[i] = g_thread_new("luks", work, &workers[i]);
    }
    for (unsigned i = 0; i < 8; i++)
        g_assert_null(g_thread_join(threads[i]));
}

/* ---- headers */

static void test_headers(void)
{
    static const struct {
        uint32_t at, width, value;
        const char *words;
    } bad[] = {
        {0, 4, 0, "Volume is not in LUKS format"},
        {6, 2, 2, "LUKS version 2 is not supported"},
        {104, 4, 7, "LUKS payload is overlapping with the header"},
        {104, 4, 1000, "Keyslot 1 is overlapping with the encrypted payload"},
        {104, 4, UINT32_MAX, "the encrypted payload starts at byte"},
        {108, 4, 62, "Algorithm 'aes' with key size 31 bytes not supported"},
        {108, 4, UINT32_MAX, "overlapping"},
        {164, 4, 0, "LUKS key iteration count is zero"},
        {164, 4, UINT32_MAX, "at most"},
        {208, 4, 1, "Keyslot 0 state (active/disable) is corrupted"},
        {212, 4, 0, "Keyslot 0 iteration count is zero"},
        {212, 4, UINT32_MAX, "at most"},
        {248, 4, 7, "Keyslot 0 is overlapping with the LUKS header"},
        {248, 4, 9, "Keyslots 0 and 1 are overlapping in the header"},
        {252, 4, 1, "Keyslot 0 is corrupted (stripes 1 != 4000)"},
        {8, 4, 0x7a697000, "Algorithm 'zip' with key size 32 bytes not supported"},
        {40, 4, 0x7a697000, "Unexpected cipher mode string format 'zip'"},
        {40, 4, 0x7a69702d, "Cipher mode 'zip' not supported"},
        {44, 4, 0x7a697000, "IV generator 'zip' not supported"},
        {72, 4, 0x7a697000, "Hash algorithm 'zip' not supported"},
    };
    g_autoptr(GByteArray) good = make("key-secret=a,iter-time=0");
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_append(bytes, good->data, good->len);
        if (bad[i].width == 2)
            be16_put(bytes->data + bad[i].at, (uint16_t)bad[i].value);
        else
            be32_put(bytes->data + bad[i].at, bad[i].value);
        refused(bytes, "a", bad[i].words);
        refused(bytes, NULL, bad[i].words);
    }
    memset(good->data + 40, 'x', 32);
    refused(good, NULL, "cipher mode is not NUL terminated");
}

static void test_locked(void)
{
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0,cipher-alg=serpent-256");
    g_autoptr(BlockNode) node = open_with(bytes, NULL);
    uint8_t byte;
    BlockInfo info;
    block_info(node, &info);
    g_assert_true(info.encrypted);
    g_assert_cmpstr(json_string_value(json_object_get(info.specific, "cipher-alg")), ==,
                    "serpent-256");
    g_assert_cmpuint(json_array_size(json_object_get(info.specific, "slots")), ==, 8);
    block_info_clear(&info);
    g_assert_cmpint(transfer(node, false, 0, &byte, 1), ==, -EACCES);
    g_assert_cmpint(transfer(node, true, 0, &byte, 1), ==, -EACCES);
    g_autoptr(GError) error = NULL;
    BlockOpen how = {.path = "m", .format = "luks", .objects = objects};
    g_assert_null(block_open_file(&memory_file_new(bytes, LIMIT, NULL)->file, &how, &error));
    g_assert_cmpstr(error->message, ==, "Parameter 'key-secret' is required for cipher");
}

static void test_create_refusals(void)
{
    static const char *const bad[][2] = {
        {"iter-time=0", "Parameter 'key-secret' is required for cipher"},
        {"key-secret=none", "No secret with id 'none'"},
        {"key-secret=a,cipher-alg=foo", "Parameter 'cipher-alg' does not accept value 'foo'"},
        {"key-secret=a,cipher-mode=foo", "Parameter 'cipher-mode' does not accept value 'foo'"},
        {"key-secret=a,ivgen-alg=foo", "Parameter 'ivgen-alg' does not accept value 'foo'"},
        {"key-secret=a,hash-alg=foo", "Parameter 'hash-alg' does not accept value 'foo'"},
        {"key-secret=a,iter-time=x", "Parameter 'iter-time' expects a number"},
        {"key-secret=a,cipher-alg=3des", "Algorithm '3des' not supported"},
        {"key-secret=a,iter-time=18446744073709551615", "larger than"},
        {"key-secret=a,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha1",
         "No AES cipher with key size 20 available"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(try_make(bad[i][0], &error));
        if (!strstr(error->message, bad[i][1]))
            g_error("no \"%s\" in: %s", bad[i][1], error->message);
    }
}

/* ---- passphrases */

/* NULL: it was done; else the message. */
static char *amend(MemoryFile *file, const char *secret, const char *text, bool force)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = try_open(file, secret, &error);
    json_auto_t *options = parse(text);
    g_assert_no_error(error);
    if (block_amend(node, options, objects, force, NULL, &error))
        return NULL;
    return g_strdup(error->message);
}

static void assert_amend(GByteArray *bytes, const char *secret, const char *text, bool force,
                         const char *expected)
{
    g_autofree char *message = amend(memory_file_new(bytes, LIMIT, NULL), secret, text, force);
    g_assert_cmpstr(message, ==, expected);
}

static void test_amend(void)
{
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0");
    assert_amend(bytes, "a", "state=active,new-secret=b,iter-time=0", false, NULL);
    block_unref(open_with(bytes, "b"));
    assert_amend(bytes, "b", "state=active,new-secret=c,keyslot=1,iter-time=0", false,
                 "Refusing to overwrite active keyslot 1 - please erase it first");
    assert_amend(bytes, "b", "state=active,new-secret=c,keyslot=7,iter-time=0", false, NULL);
    assert_amend(bytes, "a", "state=active,new-secret=b,keyslot=8", false,
                 "Invalid keyslot 8 specified, must be between 0 and 7");
    assert_amend(bytes, "a", "state=active", false,
                 "'new-secret' is required to activate a keyslot");
    assert_amend(bytes, "a", "new-secret=b", false, "Parameter 'state' is missing");
    assert_amend(bytes, "a", "state=foo", false, "Parameter 'state' does not accept value 'foo'");
    assert_amend(bytes, "a", "state=inactive,new-secret=b", false,
                 "'new-secret' must not be given when erasing keyslots");
    assert_amend(bytes, "a", "state=inactive,keyslot=0,old-secret=b", false,
                 "Given keyslot 0 doesn't contain the given old password for erase operation");
    assert_amend(bytes, "a", "state=inactive,keyslot=3", false,
                 "Given keyslot 3 is already erased (inactive) ");
    assert_amend(bytes, "a", "state=inactive,old-secret=b", false, NULL);
    refused(bytes, "b", "Invalid password");
    assert_amend(bytes, "a", "state=inactive,old-secret=b", false,
                 "No keyslots match given (old) password for erase operation");
    assert_amend(bytes, "c", "state=inactive,keyslot=0", false, NULL);
    refused(bytes, "a", "Invalid password");
    assert_amend(bytes, "c", "state=inactive,keyslot=7", false,
                 "Attempt to erase the only active keyslot 7 which will erase all the data in the "
                 "image irreversibly - refusing operation");
    assert_amend(bytes, "c", "state=inactive,old-secret=c", false,
                 "All the active keyslots match the (old) password that was given and erasing "
                 "them will erase all the data in the image irreversibly - refusing operation");
    assert_amend(bytes, "c", "state=active,new-secret=a,keyslot=7,iter-time=0", true, NULL);
    assert_amend(bytes, "a", "state=inactive,keyslot=7", true, NULL);
    refused(bytes, "a", "Invalid password");
}

/* Whichever operation fails: the old passphrase opens, and the new one does or does not. */
static void test_amend_fails(void)
{
    g_autoptr(GByteArray) good = make("key-secret=a,iter-time=0");
    bool done = false;
    for (uint64_t n = 0; !done && n < 100; n++) {
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_byte_array_append(bytes, good->data, good->len);
        MemoryFile *file = memory_file_new(bytes, LIMIT, NULL);
        g_autoptr(GError) error = NULL;
        BlockNode *node = try_open(file, "a", &error);
        json_auto_t *options = parse("state=active,new-secret=b,iter-time=0");
        file->fail_from = file->operations + n;
        file->fail_until = file->fail_from + 1;
        done = block_amend(node, options, objects, false, NULL, &error);
        g_assert_true(done == !error);
        block_unref(node);
        block_unref(open_with(bytes, "a"));
    }
    g_assert_true(done);
}

/* The material of an erased slot is not what it was. */
static void test_erased(void)
{
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0");
    assert_amend(bytes, "a", "state=active,new-secret=b,iter-time=0", false, NULL);
    uint8_t old[512];
    memcpy(old, bytes->data + 4096, sizeof(old));
    assert_amend(bytes, "b", "state=inactive,keyslot=0", false, NULL);
    g_assert_cmpint(memcmp(old, bytes->data + 4096, sizeof(old)), !=, 0);
}

/* ---- a header of its own */

static void test_detached(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0,detached-header=on");
    g_assert_cmpuint(bytes->len, <, DISK * 3);
    g_autofree char *folder = g_dir_make_tmp("lodge-luks-XXXXXX", NULL);
    g_autofree char *header = g_build_filename(folder, "header", NULL);
    g_autofree char *payload = g_build_filename(folder, "payload", NULL);
    g_autofree uint8_t *zeroes = g_malloc0(DISK);
    g_assert_true(g_file_set_contents(header, (char *)bytes->data, (gssize)bytes->len, NULL));
    g_assert_true(g_file_set_contents(payload, (char *)zeroes, DISK, NULL));
    g_autofree char *name = g_strdup_printf(
        "json:{\"driver\":\"luks\",\"key-secret\":\"a\",\"file\":{\"driver\":\"file\","
        "\"filename\":\"%s\"},\"header\":{\"driver\":\"file\",\"filename\":\"%s\"}}",
        payload, header);
    BlockOpen how = {.path = name, .objects = objects};
    BlockNode *node = block_open(&how, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(block_size(node), ==, DISK);
    uint8_t out[512], in[512];
    memset(out, 7, sizeof(out));
    g_assert_cmpint(transfer(node, true, 0, out, sizeof(out)), ==, 0);
    json_auto_t *options = parse("state=active,new-secret=b,iter-time=0");
    g_assert_true(block_amend(node, options, objects, false, NULL, &error));
    block_unref(node);
    node = block_open(&how, &error);
    g_assert_no_error(error);
    g_assert_cmpint(transfer(node, false, 0, in, sizeof(in)), ==, 0);
    g_assert_cmpmem(in, sizeof(in), out, sizeof(out));
    block_unref(node);
    refused(bytes, "a", "LUKS payload is overlapping with the header");
    g_unlink(header);
    g_unlink(payload);
    g_rmdir(folder);
}

static void test_measure(void)
{
    json_auto_t *options = parse("key-secret=a,cipher-alg=aes-128");
    BlockCreate create = {.path = "m", .format = "luks", .size = MIB(10), .options = options};
    BlockMeasure measure;
    g_autoptr(GError) error = NULL;
    g_assert_true(block_measure(&create, NULL, &measure, &error));
    g_autoptr(GByteArray) bytes = make("key-secret=a,iter-time=0,cipher-alg=aes-128");
    g_assert_cmpuint(measure.required - MIB(10), ==, bytes->len - DISK);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    objects = block_objects_new();
    g_assert_true(block_objects_add(objects, "secret,id=a,data=first", NULL));
    g_assert_true(block_objects_add(objects, "secret,id=b,data=second", NULL));
    g_assert_true(block_objects_add(objects, "secret,id=c,data=third", NULL));
    g_test_add_func("/disk/luks/ciphers", test_ciphers);
    g_test_add_func("/disk/luks/parts", test_parts);
    g_test_add_func("/disk/luks/threads", test_threads);
    g_test_add_func("/disk/luks/headers", test_headers);
    g_test_add_func("/disk/luks/locked", test_locked);
    g_test_add_func("/disk/luks/create-refusals", test_create_refusals);
    g_test_add_func("/disk/luks/amend", test_amend);
    g_test_add_func("/disk/luks/amend-fails", test_amend_fails);
    g_test_add_func("/disk/luks/erased", test_erased);
    g_test_add_func("/disk/luks/detached", test_detached);
    g_test_add_func("/disk/luks/measure", test_measure);
    int result = g_test_run();
    block_objects_free(objects);
    return result;
}
