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
    &image_snapshot_command,
    &image_rebase_command,
    &image_resize_command,
    &image_restore_command,
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

static const char parameters[] =
    "Command parameters:\n"
    "  'filename' is an image: a file, a device, a URI (nbd://...), or json:{...}; with\n"
    "    --image-opts it is driver=...,file.filename=... and so on\n"
    "  'objectdef' defines a secret or TLS credentials: secret,id=ID,file=...\n"
    "  'fmt' is an image format; it is probed when it is not said\n"
    "  'cache' is how the image that is written uses the host's cache: none, writeback (the\n"
    "    default, except for convert), writethrough, directsync or unsafe (convert's default)\n"
    "  'src_cache' is the same for images that are read\n"
    "  'size' is in bytes, or with a suffix k, M, G, T, P or E (powers of 1024)\n"
    "  'options' are name=value, separated by commas; -o help lists what the format has\n"
    "  'snapshot_param' is snapshot.id=ID,snapshot.name=NAME, or an ID or name alone\n"
    "  -p shows progress; SIGUSR1 makes any long command say how far it is\n"
    "  -q says nothing but errors\n"
    "  -U takes no locks, for an image that is in use\n"
    "\n"
    "Exit status of check: 0 clean, 1 not done, 2 corrupt, 3 leaked clusters, 63 the format\n"
    "has no check. Of compare: 0 equal, 1 different, more than 1 an error.\n";

char *image_help(void)
{
    GString *out = g_string_new(NULL);
    g_autofree char *formats = block_format_list();
    g_string_append_printf(out,
                           "usage: %s [standard options] command [command options]\n"
                           "Creates, describes, checks, changes and copies disk images.\n\n"
                           "    '-h', '--help'       display this help and exit\n"
                           "    '-V', '--version'    output version information and exit\n\n"
                           "Command syntax:\n",
                           image_program());
    for (const ImageCommand *const *c = image_commands; *c; c++)
        g_string_append_printf(out, "  %s %s\n", (*c)->name, (*c)->usage);
    g_string_append_printf(out, "\n%s\nSupported formats:%s\n", parameters, formats);
    return g_string_free(out, FALSE);
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
