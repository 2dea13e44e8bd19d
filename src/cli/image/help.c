/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tables say about the commands: --help, the manual page's part, bash completion. */
#include "cli/image/image.h"

#include <string.h>

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

/* Text for roff: dashes that are not hyphens, no line that begins like a request. */
static void append_roff(GString *out, const char *text)
{
    for (const char *at = text; *at; at++) {
        if (*at == '-' || *at == '\\')
            g_string_append_c(out, '\\');
        if (*at == '.' && (at == text || at[-1] == '\n'))
            g_string_append(out, "\\&");
        g_string_append_c(out, *at);
    }
}

static void append_option(GString *out, const ImageOption *o)
{
    g_autofree char *letter = o->key < 256 ? g_strdup_printf("-%c", o->key) : NULL;
    g_autofree char *name = o->name ? g_strdup_printf("--%s", o->name) : NULL;
    g_string_append(out, ".TP\n.B \"");
    append_roff(out, letter ? letter : name);
    if (letter && name) {
        g_string_append(out, ", ");
        append_roff(out, name);
    }
    if (o->argument)
        g_string_append_printf(out, " %s", o->argument);
    g_string_append(out, "\"\n");
    append_roff(out, o->help);
    g_string_append(out, ".\n");
}

char *image_manual(void)
{
    GString *out = g_string_new(NULL);
    for (const ImageCommand *const *c = image_commands; *c; c++) {
        g_string_append_printf(out, ".SS %s\n.B \"", (*c)->name);
        append_roff(out, (*c)->name);
        g_string_append_c(out, ' ');
        append_roff(out, (*c)->usage);
        g_string_append(out, "\"\n");
        for (const ImageOption *o = (*c)->options; o && o->key; o++)
            append_option(out, o);
    }
    return g_string_free(out, FALSE);
}

static void append_words(GString *out, const ImageCommand *command)
{
    for (const ImageOption *o = command->options; o && o->key; o++) {
        if (o->key < 256)
            g_string_append_printf(out, "-%c ", o->key);
        if (o->name)
            g_string_append_printf(out, "--%s ", o->name);
    }
}

char *image_bash_completion(void)
{
    GString *out = g_string_new("# SPDX-License-Identifier: LGPL-2.1-or-later\n"
                                "# bash completion for lodge-img; made from its tables by the test "
                                "image-cli\n\n"
                                "_lodge_img_words() {\n    case $1 in\n");
    GString *names = g_string_new(NULL);
    g_autofree char *formats = block_format_list();
    for (const ImageCommand *const *c = image_commands; *c; c++) {
        g_string_append_printf(names, "%s ", (*c)->name);
        g_string_append_printf(out, "    %s) echo '", (*c)->name);
        append_words(out, *c);
        g_string_append(out, "' ;;\n");
    }
    g_string_append_printf(
        out,
        "    esac\n}\n\n"
        "_lodge_img() {\n"
        "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
        "        mapfile -t COMPREPLY < <(compgen -W '%s--help --version' -- \"$current\")\n"
        "        return\n"
        "    fi\n"
        "    case $previous in\n"
        "    -f|-F|-O) mapfile -t COMPREPLY < <(compgen -W '%s' -- \"$current\"); return ;;\n"
        "    --output) mapfile -t COMPREPLY < <(compgen -W 'human json' -- \"$current\"); return "
        ";;\n"
        "    -t|-T) mapfile -t COMPREPLY < <(compgen -W 'none writeback writethrough directsync "
        "unsafe' -- \"$current\"); return ;;\n"
        "    esac\n"
        "    case $current in\n"
        "    -*) mapfile -t COMPREPLY < <(compgen -W \"$(_lodge_img_words \"${COMP_WORDS[1]}\")\" "
        "-- \"$current\") ;;\n"
        "    *) mapfile -t COMPREPLY < <(compgen -f -- \"$current\") ;;\n"
        "    esac\n"
        "}\n"
        "complete -o filenames -F _lodge_img lodge-img\n",
        names->str, formats + 1);
    g_string_free(names, TRUE);
    return g_string_free(out, FALSE);
}
