/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where an image may lead its reader: not to the host's secrets, not in circles. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/image.h"

#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define SECRET "/etc/passwd"

typedef struct Fixture {
    char *folder, *image, *link;
} Fixture;

static void setup(Fixture *f, gconstpointer data)
{
    f->folder = g_dir_make_tmp("lodge-reference-XXXXXX", NULL);
    f->image = g_build_filename(f->folder, "image", NULL);
    f->link = g_build_filename(f->folder, "link", NULL);
}

static void teardown(Fixture *f, gconstpointer data)
{
    g_unlink(f->image);
    g_unlink(f->link);
    g_rmdir(f->folder);
    g_free(f->folder);
    g_free(f->image);
    g_free(f->link);
}

static void create(Fixture *f, const char *backing)
{
    g_autoptr(GError) error = NULL;
    BlockCreate what = {.path = f->image, .format = "qcow2", .size = MIB(1), .backing = backing,
                        .backing_format = "raw"};
    bool made = block_create(&what, &error);
    g_assert_no_error(error);
    g_assert_true(made);
}

static void expect(const BlockOpen *how, bool allowed)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockNode) node = block_open(how, &error);
    if (allowed) {
        g_assert_no_error(error);
        return;
    }
    g_assert_null(node);
    g_assert_error(error, LODGE_ERROR, LODGE_ERROR_DENIED);
    g_assert_nonnull(strstr(error->message, "an image refers to this file"));
}

static void test_secrets(Fixture *f, gconstpointer data)
{
    g_assert_cmpint(symlink(SECRET, f->link), ==, 0);
    const char *ways[] = {
        SECRET,
        "link", /* in the image's own folder, but a link */
        "/proc/self/root/etc/passwd",
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"" SECRET "\"}}",
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"raw\",\"file.filename\":\"" SECRET "\"}}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        create(f, ways[i]);
        BlockOpen how = {.path = f->image, .format = "qcow2", .read_only = true};
        expect(&how, false);
        how.trust_references = true;
        expect(&how, true);
        how = (BlockOpen){.path = f->image, .format = "qcow2", .read_only = true,
                          .no_backing = true};
        expect(&how, true);
    }
    BlockOpen direct = {.path = SECRET, .format = "raw", .read_only = true};
    expect(&direct, true); /* whom the user names, the user may read */
}

/* What the caller says of the backing file is the caller's, not the image's. */
static void test_override(Fixture *f, gconstpointer data)
{
    create(f, SECRET);
    json_auto_t *tree = json_pack("{s:s, s:{s:s, s:{s:s, s:s}}}", "driver", "qcow2", "backing",
                                  "driver", "raw", "file", "driver", "file", "filename", SECRET);
    BlockOpen how = {.path = f->image, .options = tree, .read_only = true};
    expect(&how, true);
}

static void test_circles(Fixture *f, gconstpointer data)
{
    g_autofree char *nested = g_strdup_printf(
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"qcow2\",\"file.filename\":\"%s\"}}",
        f->image);
    const char *ways[] = {f->image, "image", nested};
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        g_autoptr(GError) error = NULL;
        create(f, ways[i]);
        BlockOpen how = {.path = f->image, .format = "qcow2", .read_only = true};
        g_autoptr(BlockNode) node = block_open(&how, &error);
        g_assert_true(i == 2 || !node); /* as raw the image is a file like others */
        if (i == 2 && node)
            continue;
        g_assert_nonnull(error);
    }
}

static void add(const char *name, void (*test)(Fixture *, gconstpointer))
{
    g_test_add(name, Fixture, NULL, setup, test, teardown);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("/disk/reference/secrets", test_secrets);
    add("/disk/reference/override", test_override);
    add("/disk/reference/circles", test_circles);
    return g_test_run();
}
