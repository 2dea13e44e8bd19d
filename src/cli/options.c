/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parsing, help and completion from the tables. */
#include <string.h>

#include "base/error.h"
#include "cli/cli.h"

#define HELP_COLUMNS 78u

/* ---- parsing */

static const CliOption *find_option(const CliCommand *command, const char *name, size_t length)
{
    for (const CliOption *o = command->options; o && o->name; o++)
        if (strlen(o->name) == length && strncmp(o->name, name, length) == 0)
            return o;
    return NULL;
}

static bool apply_option(const CliCommand *command, int argc, char **argv, int *i, void *state,
                         GError **err)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const CliOption *option = find_option(command, name, length);
    const char *value = equals ? equals + 1 : NULL;
    if (!option)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "there is no option '--%.*s'; `lodge %s --help` lists them", (int)length,
                          name, command->name);
    if (!option->argument && value)
        return lodge_fail(err, LODGE_ERROR_INVALID, "--%s takes no value", option->name);
    if (option->argument && !value) {
        if (*i + 1 >= argc)
            return lodge_fail(err, LODGE_ERROR_INVALID, "--%s needs a value: --%s %s", option->name,
                              option->name, option->argument);
        value = argv[++*i];
    }
    g_autoptr(GError) problem = NULL;
    /* All of it ends in a domain document, and XML has no way to write other bytes. */
    if (value && !g_utf8_validate(value, -1, NULL))
        return lodge_fail(err, LODGE_ERROR_INVALID, "--%s: '%s' is not UTF-8", option->name, value);
    if (option->apply(state, value, &problem))
        return true;
    return lodge_fail(err, LODGE_ERROR_INVALID, "--%s: %s", option->name, problem->message);
}

bool cli_parse(const CliCommand *command, int argc, char **argv, void *state, GPtrArray *operands,
               bool *help, GError **err)
{
    bool options_end = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (options_end || word[0] != '-' || strcmp(word, "-") == 0) {
            g_ptr_array_add(operands, argv[i]);
        } else if (strcmp(word, "--") == 0) {
            options_end = true;
        } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            *help = true;
            return true;
        } else if (word[1] != '-') {
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "'%s' is not an option; `lodge %s --help` lists them", word,
                              command->name);
        } else if (!apply_option(command, argc, argv, &i, state, err)) {
            return false;
        }
    }
    return true;
}

/* ---- help */

static void append_wrapped(GString *out, const char *paragraph, unsigned indent)
{
    g_auto(GStrv) words = g_strsplit(paragraph, " ", -1);
    unsigned column = 0;
    for (char **word = words; *word; word++) {
        unsigned length = (unsigned)strlen(*word);
        if (column > 0 && indent + column + 1 + length > HELP_COLUMNS) {
            g_string_append_c(out, '\n');
            column = 0;
        }
        g_string_append_printf(out, "%*s%s", column ? 1 : (int)indent, "", *word);
        column += length + (column ? 1 : 0);
    }
    g_string_append_c(out, '\n');
}

char *cli_command_help(const CliCommand *command)
{
    GString *out = g_string_new(NULL);
    g_string_append_printf(out, "Usage: lodge %s%s %s\n\n", command->name,
                           command->options ? " [OPTION]..." : "", command->operands);
    g_autofree char *summary =
        g_strdup_printf("%c%s.", g_ascii_toupper(command->summary[0]), command->summary + 1);
    append_wrapped(out, summary, 0);
    g_auto(GStrv) paragraphs = g_strsplit(command->details ? command->details : "", "\n\n", -1);
    for (char **paragraph = paragraphs; *paragraph; paragraph++) {
        g_string_append_c(out, '\n');
        append_wrapped(out, *paragraph, 0);
    }
    g_string_append(out, "\nOptions:\n");
    for (const CliOption *o = command->options; o && o->name; o++) {
        g_string_append_printf(out, "  --%s%s%s\n", o->name, o->argument ? " " : "",
                               o->argument ? o->argument : "");
        append_wrapped(out, o->help, 8);
    }
    g_string_append(out, "  --help\n        print this text\n");
    return g_string_free(out, FALSE);
}

char *cli_program_help(void)
{
    GString *out = g_string_new("Usage: lodge COMMAND [ARGUMENT]...\n\n"
                                "Runs virtual machines described by libvirt domain XML.\n\n"
                                "Commands:\n");
    for (const CliCommand *command = cli_commands; command->name; command++)
        g_string_append_printf(out, "  %-8s %s\n", command->name, command->summary);
    g_string_append(out,
                    "\n`lodge help COMMAND` explains one; `lodge --version` prints the version.\n");
    return g_string_free(out, FALSE);
}

/* ---- completion */

static void append_values(GString *out, const CliOption *o)
{
    g_string_append_printf(out, "    --%s) ", o->name);
    if (o->value == CLI_VALUE_FILE) {
        g_string_append(out, "mapfile -t COMPREPLY < <(compgen -f -- \"$current\") ;;\n");
    } else {
        g_autofree char *words = g_strdup(o->argument);
        g_strdelimit(words, "|", ' ');
        g_string_append_printf(
            out, "mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$current\") ;;\n", words);
    }
}

static void append_command(GString *out, const CliCommand *command)
{
    g_string_append_printf(out, "_lodge_%s() {\n", command->name);
    g_string_append(out, "    case $previous in\n");
    for (const CliOption *o = command->options; o && o->name; o++)
        if (o->argument && o->value != CLI_VALUE_ANY)
            append_values(out, o);
    g_string_append(out, "    *)\n        case $current in\n        -*) mapfile -t COMPREPLY < "
                         "<(compgen -W '");
    for (const CliOption *o = command->options; o && o->name; o++)
        g_string_append_printf(out, "--%s ", o->name);
    g_string_append(out, "--help' -- \"$current\") ;;\n"
                         "        *) mapfile -t COMPREPLY < <(compgen -f -- \"$current\") ;;\n"
                         "        esac ;;\n    esac\n}\n\n");
}

char *cli_bash_completion(void)
{
    GString *out = g_string_new("# SPDX-License-Identifier: LGPL-2.1-or-later\n"
                                "# bash completion for lodge; made by `lodge help "
                                "--bash-completion`\n\n");
    GString *names = g_string_new(NULL);
    for (const CliCommand *command = cli_commands; command->name; command++) {
        append_command(out, command);
        g_string_append_printf(names, "%s ", command->name);
    }
    g_string_append_printf(
        out,
        "_lodge() {\n"
        "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W '%s--help --version' -- \"$current\")\n"
        "    elif declare -F \"_lodge_${COMP_WORDS[1]}\" >/dev/null; then\n"
        "        \"_lodge_${COMP_WORDS[1]}\"\n"
        "    fi\n"
        "}\n"
        "complete -o filenames -F _lodge lodge\n",
        names->str);
    g_string_free(names, TRUE);
    return g_string_free(out, FALSE);
}
