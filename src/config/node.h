/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An XML document as a plain tree: parsed from hostile input under named limits, written the
 * way libvirt writes (two spaces, single quotes). Comments and processing instructions are
 * dropped, as libvirt drops them. No thread owns a tree; one thread uses it at a time.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#define CONFIG_DOCUMENT_MAX   (4u << 20) /* bytes */
#define CONFIG_DEPTH_MAX      64u        /* elements inside elements */
#define CONFIG_ATTRIBUTES_MAX 2000u      /* of one element */
#define CONFIG_NODES_MAX      100000u    /* elements and attributes of one document */

typedef struct ConfigAttribute {
    char *name; /* with its prefix: "id", "xmlns:libosinfo" */
    char *value;
} ConfigAttribute;

typedef struct ConfigNode ConfigNode;
struct ConfigNode {
    char *name;          /* with its prefix; NULL: a piece of text between elements */
    char *text;          /* of an element without child elements, or of a piece; may be NULL */
    unsigned line;       /* in the document it came from; 0: made here */
    GArray *attributes;  /* of ConfigAttribute; NULL: none */
    GPtrArray *children; /* of ConfigNode, owned; NULL: none */
};

/*
 * Parses @size bytes at @data. @file only names the document in errors, which read
 * "FILE:LINE: what is wrong". A DOCTYPE is refused, so no entity is ever expanded and nothing is
 * fetched. The caller frees the result.
 */
ConfigNode *config_node_parse(const char *data, size_t size, const char *file, GError **err);
/* The same for a file's content; "-" is standard input. */
ConfigNode *config_node_parse_file(const char *path, GError **err);

ConfigNode *config_node_new(const char *name);
void config_node_free(ConfigNode *node); /* NULL is accepted */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ConfigNode, config_node_free)
ConfigNode *config_node_copy(const ConfigNode *node);

const char *config_node_attribute(const ConfigNode *node, const char *name); /* NULL if absent */
void config_node_set_attribute(ConfigNode *node, const char *name, const char *value);
void config_node_set_text(ConfigNode *node, const char *text);
/* Takes @child; returns it. */
ConfigNode *config_node_append(ConfigNode *node, ConfigNode *child);
/* The first child element of that name, or NULL. */
const ConfigNode *config_node_child(const ConfigNode *node, const char *name);
unsigned config_node_count(const ConfigNode *node);
const ConfigNode *config_node_nth(const ConfigNode *node, unsigned index);

/* The document, ending with a newline. The caller frees it. */
char *config_node_to_string(const ConfigNode *node);

/*
 * Whether both mean the same: attributes in any order, elements of the same name in the same
 * order, text without the white space around it. On false, *where names the first difference
 * (the caller frees it).
 */
bool config_node_equal(const ConfigNode *a, const ConfigNode *b, char **where);
