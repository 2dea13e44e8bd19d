/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Replays a fuzz target's corpus (each argument: a file, or a folder of files), then mutations of
 * it from a fixed seed, so that `make check` exercises every target without libFuzzer. Prints TAP.
 */
#include <glib.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

#define INPUT_MAX (1u << 20)
#define MUTATIONS_DEFAULT 200u

static unsigned n_run;

static void run_one(const uint8_t *data, size_t size)
{
    /* A heap copy of the exact size, so that AddressSanitizer sees any over-read. */
    uint8_t *copy = g_memdup2(data, size);
    LLVMFuzzerTestOneInput(copy, size);
    g_free(copy);
    n_run++;
}

static void mutate(GRand *random, uint8_t *data, size_t *size)
{
    unsigned edits = (unsigned)g_rand_int_range(random, 1, 9);
    for (unsigned i = 0; i < edits && *size > 0; i++) {
        size_t at = g_rand_int(random) % *size;
        switch (g_rand_int_range(random, 0, 5)) {
        case 0:
            data[at] ^= (uint8_t)(1u << g_rand_int_range(random, 0, 8));
            break;
        case 1:
            data[at] = (uint8_t)g_rand_int(random);
            break;
        case 2:
            data[at] = g_rand_boolean(random) ? 0xff : 0;
            break;
        case 3: /* an extreme word */
            if (*size - at >= 4)
                memset(data + at, g_rand_boolean(random) ? 0xff : 0x7f, 4);
            break;
        default: /* cut short */
            if (g_rand_int_range(random, 0, 8) == 0)
                *size = at;
            break;
        }
    }
}

static void run_file(const char *path, unsigned mutations)
{
    g_autofree char *text = NULL;
    gsize length = 0;
    g_autoptr(GError) err = NULL;
    if (!g_file_get_contents(path, &text, &length, &err)) {
        printf("Bail out! %s\n", err->message);
        exit(1);
    }
    length = MIN(length, INPUT_MAX);
    run_one((const uint8_t *)text, length);
    g_autofree char *name = g_path_get_basename(path);
    GRand *random = g_rand_new_with_seed(g_str_hash(name));
    for (unsigned i = 0; i < mutations; i++) {
        g_autofree uint8_t *data = g_memdup2(text, length);
        size_t size = length;
        mutate(random, data, &size);
        run_one(data, size);
    }
    g_rand_free(random);
}

static gint compare_names(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void run_path(const char *path, unsigned mutations)
{
    if (!g_file_test(path, G_FILE_TEST_IS_DIR)) {
        run_file(path, mutations);
        return;
    }
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    for (const char *name; dir && (name = g_dir_read_name(dir));)
        g_ptr_array_add(names, g_build_filename(path, name, NULL));
    g_ptr_array_sort(names, compare_names);
    for (guint i = 0; i < names->len; i++)
        run_file(g_ptr_array_index(names, i), mutations);
}

int main(int argc, char **argv)
{
    const char *count = g_getenv("LODGE_FUZZ_MUTATIONS");
    unsigned mutations = count ? (unsigned)strtoul(count, NULL, 10) : MUTATIONS_DEFAULT;
    if (LLVMFuzzerInitialize)
        LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++)
        run_path(argv[i], mutations);
    printf("1..1\n%s 1 - %u inputs\n", n_run ? "ok" : "not ok", n_run);
    return n_run ? 0 : 1;
}
