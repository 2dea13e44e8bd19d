/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --help, the manual page and completion say what the tables of lodge-img's commands say. */
#include "cli/image/image.h"

#include "disk/json-text.h"

#include <errno.h>
#include <string.h>

#define MANUAL_BEGIN ".\\\" commands: made from their tables by the test image-cli\n"
#define MANUAL_END   ".\\\" end of commands\n"

static char *source_path(const char *name)
{
    return g_build_filename(g_getenv("LODGE_SOURCE"), name, NULL);
}

/* The file @name is @made, or with UPDATE_GOLDEN becomes it. */
static void check_file(const char *name, const char *made)
{
    g_autofree char *path = source_path(name);
    g_autofree char *kept = NULL;
    if (g_getenv("UPDATE_GOLDEN"))
        g_assert_true(g_file_set_contents(path, made, -1, NULL));
    if (!g_file_get_contents(path, &kept, NULL, NULL))
        g_error("%s is missing", name);
    g_assert_cmpstr(kept, ==, made);
}

static void test_manual(void)
{
    g_autofree char *path = source_path("docs/man/lodge-img.1");
    g_autofree char *page = NULL;
    g_assert_true(g_file_get_contents(path, &page, NULL, NULL));
    char *begin = strstr(page, MANUAL_BEGIN), *end = strstr(page, MANUAL_END);
    g_assert_true(begin && end && begin < end);
    g_autofree char *manual = image_manual();
    g_autofree char *head = g_strndup(page, (gsize)(begin - page));
    g_autofree char *made = g_strconcat(head, MANUAL_BEGIN, manual, end, NULL);
    check_file("docs/man/lodge-img.1", made);
}

static void test_completion(void)
{
    g_autofree char *made = image_bash_completion();
    check_file("docs/completion/lodge-img.bash", made);
}

/* Is the letter alone, or one of a bundle like [-rsn]? */
static bool names_letter(const char *usage, int letter)
{
    for (const char *at = usage; (at = strchr(at, '-')); at++) {
        if (at > usage && at[-1] != '[' && at[-1] != ' ' && at[-1] != '(')
            continue;
        for (const char *c = at + 1; g_ascii_isalpha(*c); c++) {
            if (*c == letter)
                return true;
        }
    }
    return false;
}

static void test_usage(void)
{
    g_autofree char *help = image_help();
    for (const ImageCommand *const *c = image_commands; *c; c++) {
        g_autofree char *line = g_strdup_printf("\n  %s %s\n", (*c)->name, (*c)->usage);
        g_assert_nonnull(strstr(help, line));
        for (const ImageOption *o = (*c)->options; o && o->key; o++) {
            g_autofree char *name = g_strdup_printf("--%s", o->name ? o->name : "");
            g_assert_nonnull(o->help);
            if (o->key != 'h' && !(o->name && strstr((*c)->usage, name)) &&
                !(o->key < 256 && names_letter((*c)->usage, o->key)))
                g_error("the usage of %s lacks %c, %s", (*c)->name, o->key < 256 ? o->key : ' ',
                        name);
        }
    }
}

/* QEMU's order of members, layout and escapes: observed from qemu-img 7.2. */
static void test_json(void)
{
    json_auto_t *info =
        json_pack("{s:s, s:s, s:b, s:i, s:i, s:[], s:{}}", "filename", "a\t\"\xc3\xa9", "format",
                  "qcow2", "dirty-flag", 0, "actual-size", 1, "virtual-size", 2, "list", "none");
    g_autofree char *text = json_text(info, false);
    g_assert_cmpstr(
        text, ==,
        "{\"list\": [], \"virtual-size\": 2, \"filename\": \"a\\t\\\"\\u00E9\", "
        "\"format\": \"qcow2\", \"actual-size\": 1, \"none\": {}, \"dirty-flag\": false}");
    g_autofree char *problem = NULL;
    json_auto_t *read = json_text_parse("{'a': 'it\\'s \"b\"', \"c\": [1, '\\u0041']}", &problem);
    g_assert_null(problem);
    g_assert_cmpstr(json_string_value(json_object_get(read, "a")), ==, "it's \"b\"");
    g_assert_cmpstr(json_string_value(json_array_get(json_object_get(read, "c"), 1)), ==, "A");
    g_assert_null(json_text_parse("{'a': 'open}", &problem));
    g_assert_nonnull(problem);
}

static void test_sizes(void)
{
    static const struct {
        const char *text;
        int result;
        uint64_t value;
    } cases[] = {{"512", 0, 512},    {" 4k", 0, 4096},      {"1.5M", 0, 1572864}, {"0x10", 0, 16},
                 {"-1", -EINVAL, 0}, {"9000E", -ERANGE, 0}, {"1z", -EINVAL, 0},   {"", -EINVAL, 0}};
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t value = 0;
        g_assert_cmpint(image_size_parse(cases[i].text, &value), ==, cases[i].result);
        if (cases[i].result == 0)
            g_assert_cmpuint(value, ==, cases[i].value);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/image-cli/manual", test_manual);
    g_test_add_func("/image-cli/completion", test_completion);
    g_test_add_func("/image-cli/usage", test_usage);
    g_test_add_func("/image-cli/json", test_json);
    g_test_add_func("/image-cli/sizes", test_sizes);
    return g_test_run();
}
