/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The command line: a table of commands, each with a table of options. --help, the shell
 * completion and the test of the manual pages read the same tables.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>

typedef enum CliValue {
    CLI_VALUE_ANY,
    CLI_VALUE_FILE,  /* completed with file names */
    CLI_VALUE_WORDS, /* completed with the words of @argument: "auto|kvm|soft" */
} CliValue;

typedef struct CliOption {
    const char *name;     /* "memory": written --memory */
    const char *argument; /* "SIZE"; NULL: takes none */
    CliValue value;
    const char *help; /* one line */
    bool (*apply)(void *state, const char *value, GError **err);
} CliOption;

typedef struct CliCommand {
    const char *name;
    const char *operands;     /* "[FILE.xml]" */
    const char *summary;      /* one line */
    const char *details;      /* paragraphs for --help; may be NULL */
    const CliOption *options; /* ends with {0}; NULL: the command reads its arguments itself */
    int (*run)(const struct CliCommand *command, int argc, char **argv); /* exit status */
} CliCommand;

/* Ends with {0}. */
extern const CliCommand cli_commands[];
const CliCommand *cli_command_find(const char *name);

/* The whole program: the exit status. */
int cli_main(int argc, char **argv);

/*
 * Applies the options of @argv (which starts behind the command's name) to @state; operands are
 * appended to @operands. *help is set when --help is met, and nothing after it is read.
 */
bool cli_parse(const CliCommand *command, int argc, char **argv, void *state, GPtrArray *operands,
               bool *help, GError **err);
/* The caller frees these. */
char *cli_command_help(const CliCommand *command);
char *cli_program_help(void);
char *cli_bash_completion(void);

int cli_run(const CliCommand *command, int argc, char **argv);
int cli_image(const CliCommand *command, int argc, char **argv);
int cli_help(const CliCommand *command, int argc, char **argv);
extern const CliOption cli_run_options[], cli_help_options[];
