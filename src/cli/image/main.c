/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

/* One row a command; --help lists them in this order. */
const ImageCommand *const image_commands[] = {
    /* clang-format off */
    &image_amend_command,
    &image_backup_command,
    &image_bench_command,
    &image_bitmap_command,
    &image_check_command,
    &image_commit_command,
    &image_compare_command,
    &image_convert_command,
    &image_create_command,
    &image_dd_command,
    &image_info_command,
    &image_io_command,
    &image_map_command,
    &image_measure_command,
    &image_mount_command,
    &image_snapshot_command,
    &image_rebase_command,
    &image_resize_command,
    &image_restore_command,
    &image_serve_command,
    &image_verify_command,
    NULL,
    /* clang-format on */
};

/* Scripts look for qemu-img's version under that name: what is said is what we are compatible with.
 */
void image_print_version(void)
{
    if (strcmp(image_program(), "lodge-img"))
        printf("%s version 7.2.0 (Lodge " LODGE_VERSION ")\n", image_program());
    else
        printf("lodge-img version " LODGE_VERSION "\n");
}

static int help(void)
{
    g_autofree char *text = image_help();
    image_print_version();
    fputs(text, stdout);
    return 0;
}

int image_main(int argc, char **argv)
{
    image_set_program(argv[0]);
    if (!strcmp(image_program(), "qemu-io"))
        return image_io_command.run(argc, argv);
    if (!strcmp(image_program(), "qemu-nbd"))
        return image_serve_command.run(argc, argv);
    if (argc < 2)
        return image_usage("Not enough arguments");
    const char *name = argv[1];
    if (!strcmp(name, "-h") || !strcmp(name, "--help"))
        return help();
    if (!strcmp(name, "-V") || !strcmp(name, "--version")) {
        image_print_version();
        return 0;
    }
    if (name[0] == '-')
        return image_usage("unrecognized option '%s'", name);
    for (const ImageCommand *const *c = image_commands; *c; c++) {
        if (!strcmp((*c)->name, name))
            return (*c)->run(argc - 1, argv + 1);
    }
    return image_usage("Command not found: %s", name);
}
