/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "launch/process.h"

const CliCommand cli_commands[] = {
    {"run", "[FILE.xml]", "start a guest and stay with it until it powers off",
     "The guest comes from a libvirt domain document, from the options, or from both: an option "
     "overrides the document. Its console is this terminal unless --console or the document says "
     "otherwise; Ctrl-] leaves and ends the guest.\n\n"
     "Without a document at least --kernel is needed in this version.",
     cli_run_options, cli_run},
    {"image", "COMMAND ...", "work with disk images (the same as lodge-img)", NULL, NULL,
     cli_image},
    {"help", "[COMMAND]", "explain lodge, or one of its commands", NULL, cli_help_options,
     cli_help},
    {0},
};

const CliCommand *cli_command_find(const char *name)
{
    for (const CliCommand *command = cli_commands; command->name; command++)
        if (strcmp(command->name, name) == 0)
            return command;
    return NULL;
}

int cli_image(const CliCommand *command, int argc, char **argv)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *program = launch_find_program("lodge-img", &err);
    if (!program) {
        log_error("%s", err->message);
        return EXIT_FAILURE;
    }
    g_autoptr(GPtrArray) words = g_ptr_array_new();
    g_ptr_array_add(words, program);
    for (int i = 0; i < argc; i++)
        g_ptr_array_add(words, argv[i]);
    g_ptr_array_add(words, NULL);
    execv(program, (char **)words->pdata);
    log_error("cannot run '%s': %s", program, g_strerror(errno));
    return EXIT_FAILURE;
}

static int print_and_free(char *text)
{
    fputs(text, stdout);
    g_free(text);
    return EXIT_SUCCESS;
}

static bool want_completion(void *state, const char *value, GError **err)
{
    *(bool *)state = true;
    return true;
}

const CliOption cli_help_options[] = {
    {"bash-completion", NULL, CLI_VALUE_ANY, "print the completion script for bash",
     want_completion},
    {0},
};

int cli_help(const CliCommand *command, int argc, char **argv)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(GPtrArray) operands = g_ptr_array_new();
    bool completion = false, help = false;
    if (!cli_parse(command, argc, argv, &completion, operands, &help, &err)) {
        log_error("%s", err->message);
        return EXIT_FAILURE;
    }
    if (help)
        return print_and_free(cli_command_help(command));
    if (completion)
        return print_and_free(cli_bash_completion());
    if (operands->len == 0)
        return print_and_free(cli_program_help());
    const CliCommand *about = cli_command_find(operands->pdata[0]);
    if (!about) {
        log_error("there is no command '%s'; `lodge help` lists them",
                  (const char *)operands->pdata[0]);
        return EXIT_FAILURE;
    }
    return print_and_free(cli_command_help(about));
}

int cli_main(int argc, char **argv)
{
    log_set_program("lodge");
    if (argc < 2) {
        fputs("lodge: error: a command is missing; `lodge help` lists them\n", stderr);
        return EXIT_FAILURE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        puts("lodge " LODGE_VERSION);
        return EXIT_SUCCESS;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return print_and_free(cli_program_help());
    const CliCommand *command = cli_command_find(argv[1]);
    if (!command) {
        log_error("there is no command '%s'; `lodge help` lists them", argv[1]);
        return EXIT_FAILURE;
    }
    return command->run(command, argc - 2, argv + 2);
}
