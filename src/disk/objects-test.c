/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --object: secrets in all their forms, TLS credentials, and what is refused in which words. */
#include "disk/objects.h"

#include <string.h>
#include <unistd.h>

static void add(BlockObjects *objects, const char *text)
{
    g_autoptr(GError) error = NULL;
    g_assert_true(block_objects_add(objects, text, &error));
    g_assert_no_error(error);
}

static void assert_secret(const BlockObjects *objects, const char *id, const char *expected)
{
    g_autoptr(GError) error = NULL;
    size_t length = 0;
    const uint8_t *bytes = block_objects_secret(objects, id, &length, &error);
    g_assert_no_error(error);
    g_assert_cmpmem(bytes, length, expected, strlen(expected));
    g_assert_cmpint(bytes[length], ==, 0);
}

static void refused(BlockObjects *objects, const char *text, const char *message)
{
    g_autoptr(GError) error = NULL;
    g_assert_false(block_objects_add(objects, text, &error));
    g_assert_cmpstr(error->message, ==, message);
}

static void test_secret(void)
{
    g_autoptr(BlockObjects) objects = block_objects_new();
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("lodge-secret-XXXXXX", &path, NULL);
    g_assert_cmpint(write(fd, "from file\n", 10), ==, 10);
    close(fd);
    add(objects, "secret,id=a,data=plain,,comma");
    add(objects, "{\"qom-type\": \"secret\", \"id\": \"b\", \"data\": \"as=JSON\"}");
    add(objects, "secret,id=c,format=base64,data=bGV0bWVpbg==");
    g_autofree char *text = g_strdup_printf("secret,id=d,file=%s", path);
    add(objects, text);
    assert_secret(objects, "a", "plain,comma");
    assert_secret(objects, "b", "as=JSON");
    assert_secret(objects, "c", "letmein");
    assert_secret(objects, "d", "from file\n");
    unlink(path);
}

/* What `openssl enc -aes-256-cbc` makes of "letmein" with key 00 01 ... 1f, vector 10 11 ... 1f. */
static void test_encrypted(void)
{
    g_autoptr(BlockObjects) objects = block_objects_new();
    add(objects, "secret,id=master,format=base64,data=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    add(objects, "secret,id=s,format=base64,keyid=master,iv=EBESExQVFhcYGRobHB0eHw==,"
                 "data=6Wa7U58YUl+hc//5rSKPgA==");
    assert_secret(objects, "s", "letmein");
    refused(objects, "secret,id=t,keyid=none,data=x", "No secret with id 'none'");
    refused(objects, "secret,id=t,keyid=s,data=x", "Key should be 32 bytes in length");
    refused(objects, "secret,id=t,keyid=master,data=x", "IV is required to decrypt secret");
    refused(objects, "secret,id=t,keyid=master,iv=EBES,data=x",
            "IV should be 16 bytes in length not 3");
    refused(objects, "secret,id=t,keyid=master,iv=EBESExQVFhcYGRobHB0eHw==,data=x",
            "Length 1 must be a multiple of block size 16");
}

static void test_refusals(void)
{
    g_autoptr(BlockObjects) objects = block_objects_new();
    add(objects, "secret,id=s,data=x");
    refused(objects, "secret,id=t", "Either 'file' or 'data' must be provided");
    refused(objects, "secret,id=t,data=a,file=b", "'file' and 'data' are mutually exclusive");
    refused(objects, "secret,id=t,file=/nonexistent",
            "Unable to read /nonexistent: Failed to open file “/nonexistent”: "
            "No such file or directory");
    refused(objects, "secret,data=a", "Parameter 'id' is missing");
    refused(objects, "id=t", "Parameter 'qom-type' is missing");
    refused(objects, "secret,id=t,data=a,foo=1", "Parameter 'foo' is unexpected");
    refused(objects, "foo,id=t", "Parameter 'qom-type' does not accept value 'foo'");
    refused(objects, "secret,id=t,format=zip,data=a",
            "Parameter 'format' does not accept value 'zip'");
    refused(objects, "secret,id=t,format=base64,data=a!!", "Base64 data contains invalid characters");
    refused(objects, "secret,id=s,data=y",
            "attempt to add duplicate property 's' to object (type 'container')");
    refused(objects, "{\"qom-type\":\"secret\",\"id\":\"t\",\"data\":1}",
            "Invalid parameter type for 'data', expected: string");
    refused(objects, "secret,id=1x,data=a",
            "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', "
            "'.', '_', starting with a letter.");
    g_autoptr(GError) error = NULL;
    size_t length;
    g_assert_null(block_objects_secret(NULL, "s", &length, &error));
    g_assert_cmpstr(error->message, ==, "No secret with id 's'");
    assert_secret(objects, "s", "x");
}

static void test_tls(void)
{
    g_autoptr(BlockObjects) objects = block_objects_new();
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_dir_make_tmp("lodge-tls-XXXXXX", NULL);
    g_autofree char *ca = g_build_filename(dir, "ca-cert.pem", NULL);
    g_autofree char *x509 = g_strdup_printf("tls-creds-x509,id=t0,dir=%s,endpoint=client,"
                                            "verify-peer=off,passwordid=s",
                                            dir);
    g_autofree char *psk = g_strdup_printf("tls-creds-psk,id=t1,dir=%s", dir);
    g_autofree char *missing = g_strdup_printf(
        "Unable to access credentials %s: No such file or directory", ca);
    refused(objects, x509, missing);
    g_assert_true(g_file_set_contents(ca, "x", 1, NULL));
    add(objects, x509);
    refused(objects, "tls-creds-x509,id=t9", "Missing 'dir' property value");
    refused(objects, "tls-creds-anon,id=t9,endpoint=foo",
            "Parameter 'endpoint' does not accept value 'foo'");
    refused(objects, "tls-creds-anon,id=t9,verify-peer=maybe",
            "Parameter 'verify-peer' expects 'on' or 'off'");
    g_assert_false(block_objects_add(objects, psk, NULL));
    add(objects, "tls-creds-anon,id=t2,endpoint=server");
    const BlockTlsCredentials *t = block_objects_tls(objects, "t0", &error);
    g_assert_nonnull(t);
    g_assert_true(t->kind == BLOCK_TLS_X509 && !t->server && !t->verify_peer);
    g_assert_cmpstr(t->dir, ==, dir);
    g_assert_cmpstr(t->password_secret, ==, "s");
    t = block_objects_tls(objects, "t2", &error);
    g_assert_true(t && t->kind == BLOCK_TLS_ANON && t->server && t->verify_peer);
    add(objects, "secret,id=s,data=x");
    g_assert_null(block_objects_tls(objects, "s", &error));
    g_assert_cmpstr(error->message, ==, "Object with id 's' is not TLS credentials");
    g_clear_error(&error);
    size_t length;
    g_assert_null(block_objects_secret(objects, "t0", &length, &error));
    g_assert_cmpstr(error->message, ==, "Object with id 't0' is not a secret");
    unlink(ca);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/objects/secret", test_secret);
    g_test_add_func("/disk/objects/encrypted", test_encrypted);
    g_test_add_func("/disk/objects/refusals", test_refusals);
    g_test_add_func("/disk/objects/tls", test_tls);
    return g_test_run();
}
