/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of remote images as QEMU has them, and names that cannot be meant. */
#include "disk/transport/remote-uri.h"

#include <string.h>

typedef bool (*Parse)(const char *uri, json_t *options, GError **err);

typedef struct Name {
    Parse parse;
    const char *uri, *expected; /* the options as JSON; or words of the refusal */
} Name;

static const Name good[] = {
    {block_uri_iscsi, "iscsi://10.0.0.1/iqn.2026-11.org:t/3",
     "{\"transport\":\"tcp\",\"portal\":\"10.0.0.1\",\"target\":\"iqn.2026-11.org:t\",\"lun\":\"3\"}"},
    {block_uri_iscsi, "iscsi://me%pass@host:3261/t/0",
     "{\"user\":\"me\",\"password\":\"pass\",\"transport\":\"tcp\",\"portal\":\"host:3261\","
     "\"target\":\"t\",\"lun\":\"0\"}"},
    {block_uri_nfs, "nfs://host/export/dir/a.img",
     "{\"server\":{\"type\":\"inet\",\"host\":\"host\"},\"path\":\"/export/dir/a.img\"}"},
    {block_uri_nfs, "nfs://host/e/a?uid=7",
     "{\"server\":{\"type\":\"inet\",\"host\":\"host\"},\"path\":\"/e/a\",\"user\":\"7\"}"},
    {block_uri_rbd, "rbd:pool/image", "{\"pool\":\"pool\",\"image\":\"image\"}"},
    {block_uri_rbd, "rbd:pool/space/image@snap:conf=/etc/c:id=me",
     "{\"pool\":\"pool\",\"namespace\":\"space\",\"image\":\"image\",\"snapshot\":\"snap\","
     "\"conf\":\"/etc/c\",\"user\":\"me\"}"},
    {block_uri_rbd, "rbd:po\\/ol/im\\@age:mon_host=a\\:1",
     "{\"pool\":\"po/ol\",\"image\":\"im@age\",\"keyvalue\":\"{\\\"mon_host\\\":\\\"a:1\\\"}\"}"},
};

static const Name bad[] = {
    {block_uri_iscsi, "iscsi:host/t/1", "no \"//\""},
    {block_uri_iscsi, "iscsi://host/t", "no target or no lun"},
    {block_uri_iscsi, "iscsi://host//1", "no target or no lun"},
    {block_uri_iscsi, "iscsi:///t/1", "no host"},
    {block_uri_nfs, "nfs:///e/a", "Invalid hostname in URI"},
    {block_uri_nfs, "nfs://host", "Invalid file path in URI"},
    {block_uri_nfs, "nfs://host/a?zip=1", "Unknown NFS parameter name: zip"},
    {block_uri_nfs, "nfs://host:x/a", "Invalid URI specified"},
    {block_uri_rbd, "rbd:pool", "Pool name is required"},
    {block_uri_rbd, "rbd:pool/image:conf", "conf option conf has no value"},
};

static void test_good(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_autoptr(GError) error = NULL;
        json_auto_t *options = json_object(), *expected = json_loads(good[i].expected, 0, NULL);
        g_assert_nonnull(expected);
        g_assert_true(good[i].parse(good[i].uri, options, &error));
        if (!json_equal(options, expected))
            g_error("%s: %s", good[i].uri, json_dumps(options, JSON_COMPACT));
    }
}

static void test_bad(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        json_auto_t *options = json_object();
        if (bad[i].parse(bad[i].uri, options, &error))
            g_error("%s is taken", bad[i].uri);
        if (!strstr(error->message, bad[i].expected))
            g_error("%s: %s", bad[i].uri, error->message);
    }
}

/* Any bytes behind the scheme: refused or parsed. */
static void test_noise(void)
{
    static const Parse parsers[] = {block_uri_iscsi, block_uri_nfs, block_uri_rbd};
    static const char *const schemes[] = {"iscsi://", "nfs://", "rbd:"};
    static const char letters[] = "ab/@:%\\=?&1.";
    for (int round = 0; round < 20000; round++) {
        int which = g_test_rand_int_range(0, 3), length = g_test_rand_int_range(0, 24);
        char text[64];
        size_t at = g_strlcpy(text, schemes[which], sizeof(text));
        for (int i = 0; i < length; i++)
            text[at++] = letters[g_test_rand_int_range(0, sizeof(letters) - 1)];
        text[at] = '\0';
        g_autoptr(GError) error = NULL;
        json_auto_t *options = json_object();
        g_assert_true(parsers[which](text, options, &error) == !error);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/disk/remote-uri/good", test_good);
    g_test_add_func("/disk/remote-uri/bad", test_bad);
    g_test_add_func("/disk/remote-uri/noise", test_noise);
    return g_test_run();
}
