/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/image/image.h"

#include <stdio.h>
#include <string.h>

/* One row a command. */
static const ImageCommand *const commands[] = {
    &image_bench_command,   &image_check_command,   &image_compare_command,
    &image_convert_command,
    &image_create_command,  &image_info_command,    &image_io_command,
    &image_map_command,     &image_resize_command,
};

/* What qemu-img has besides. */
static const char *const absent[] = {"amend", "bitmap", "commit",
                                     "dd",    "measure", "rebase", "snapshot"};

static int help(void)
{
    printf("lodge-img version " LODGE_VERSION "\n"
           "usage: lodge-img [-h | --help] [-V | --version] COMMAND [OPTIONS]\n"
           "Creates, describes, checks, converts and compares disk images (raw, qcow2).\n\n"
           "Commands:\n");
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++)
        printf("  %s %s\n", commands[i]->name, commands[i]->usage);
    printf("\nSizes are in bytes, or with a suffix k, M, G, T, P or E (powers of 1024).\n"
           "Exit status of check: 0 clean, 1 not done, 2 corrupt, 3 leaked clusters, 63 the format\n"
           "has no check. Of compare: 0 equal, 1 different, more than 1 an error.\n");
    return 0;
}

int image_main(int argc, char **argv)
{
    image_set_program(argv[0]);
    if (argc < 2)
        return image_fail("Not enough arguments\nTry 'lodge-img --help' for more information");
    const char *name = argv[1];
    if (!strcmp(name, "-h") || !strcmp(name, "--help"))
        return help();
    if (!strcmp(name, "-V") || !strcmp(name, "--version")) {
        printf("lodge-img version " LODGE_VERSION "\n");
        return 0;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(commands[i]->name, name))
            continue;
        if (argc == 3 && (!strcmp(argv[2], "-h") || !strcmp(argv[2], "--help"))) {
            printf("usage: lodge-img %s %s\n", name, commands[i]->usage);
            return 0;
        }
        return commands[i]->run(argc - 1, argv + 1);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(absent); i++) {
        if (!strcmp(absent[i], name))
            return image_fail("the command '%s' is not supported", name);
    }
    return image_fail("Command not found: %s\nTry 'lodge-img --help' for more information", name);
}
