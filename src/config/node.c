/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config/node.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/xmlerror.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

/* ---- tree */

ConfigNode *config_node_new(const char *name)
{
    ConfigNode *node = g_new0(ConfigNode, 1);
    node->name = g_strdup(name);
    return node;
}

void config_node_free(ConfigNode *node)
{
    if (!node)
        return;
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        g_free(a->name);
        g_free(a->value);
    }
    g_clear_pointer(&node->attributes, g_array_unref);
    g_clear_pointer(&node->children, g_ptr_array_unref);
    g_free(node->name);
    g_free(node->text);
    g_free(node);
}

static void free_child(gpointer child)
{
    config_node_free(child);
}

ConfigNode *config_node_append(ConfigNode *node, ConfigNode *child)
{
    if (!node->children)
        node->children = g_ptr_array_new_with_free_func(free_child);
    g_ptr_array_add(node->children, child);
    return child;
}

static void append_attribute(ConfigNode *node, char *name, char *value)
{
    if (!node->attributes)
        node->attributes = g_array_new(FALSE, FALSE, sizeof(ConfigAttribute));
    ConfigAttribute a = {name, value};
    g_array_append_val(node->attributes, a);
}

void config_node_set_attribute(ConfigNode *node, const char *name, const char *value)
{
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        if (strcmp(a->name, name) == 0) {
            g_free(a->value);
            a->value = g_strdup(value);
            return;
        }
    }
    append_attribute(node, g_strdup(name), g_strdup(value));
}

void config_node_set_text(ConfigNode *node, const char *text)
{
    g_free(node->text);
    node->text = g_strdup(text);
}

ConfigNode *config_node_copy(const ConfigNode *node)
{
    ConfigNode *copy = config_node_new(node->name);
    copy->text = g_strdup(node->text);
    copy->line = node->line;
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        const ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        append_attribute(copy, g_strdup(a->name), g_strdup(a->value));
    }
    for (guint i = 0; node->children && i < node->children->len; i++)
        config_node_append(copy, config_node_copy(node->children->pdata[i]));
    return copy;
}

const char *config_node_attribute(const ConfigNode *node, const char *name)
{
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        const ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        if (strcmp(a->name, name) == 0)
            return a->value;
    }
    return NULL;
}

unsigned config_node_count(const ConfigNode *node)
{
    return node->children ? node->children->len : 0;
}

const ConfigNode *config_node_nth(const ConfigNode *node, unsigned index)
{
    return node->children->pdata[index];
}

const ConfigNode *config_node_child(const ConfigNode *node, const char *name)
{
    for (unsigned i = 0; i < config_node_count(node); i++) {
        const ConfigNode *child = config_node_nth(node, i);
        if (child->name && strcmp(child->name, name) == 0)
            return child;
    }
    return NULL;
}

/* ---- parsing */

typedef struct Parse {
    const char *file;
    unsigned n_nodes;
    int doctype_line; /* 0: none */
    int error_line;
    char *error; /* of the first problem that libxml2 reported */
} Parse;

/* A DOCTYPE is where entities, external subsets and their attacks come from. */
static void on_doctype(void *opaque, const xmlChar *name, const xmlChar *external,
                       const xmlChar *system_id)
{
    xmlParserCtxtPtr ctxt = opaque;
    Parse *parse = ctxt->_private;
    parse->doctype_line = ctxt->input && ctxt->input->line > 0 ? ctxt->input->line : 1;
    xmlStopParser(ctxt);
}

static void on_error(void *opaque, xmlErrorPtr problem)
{
    xmlParserCtxtPtr ctxt = opaque;
    Parse *parse = ctxt->_private;
    if (parse->error || problem->level < XML_ERR_ERROR)
        return;
    parse->error = g_strchomp(g_strdup(problem->message ? problem->message : "not well formed"));
    parse->error_line = problem->line;
}

static char *qualified(const xmlNs *ns, const xmlChar *name)
{
    if (ns && ns->prefix)
        return g_strdup_printf("%s:%s", (const char *)ns->prefix, (const char *)name);
    return g_strdup((const char *)name);
}

static bool count_node(Parse *parse, unsigned line, GError **err)
{
    if (++parse->n_nodes <= CONFIG_NODES_MAX)
        return true;
    return lodge_fail(err, LODGE_ERROR_LIMIT,
                      "%s:%u: more than %u elements and attributes in one document", parse->file,
                      line, CONFIG_NODES_MAX);
}

static bool convert_attributes(Parse *parse, ConfigNode *node, const xmlNode *from, GError **err)
{
    for (const xmlNs *ns = from->nsDef; ns; ns = ns->next) {
        if (!count_node(parse, node->line, err))
            return false;
        append_attribute(node,
                         ns->prefix ? g_strdup_printf("xmlns:%s", (const char *)ns->prefix)
                                    : g_strdup("xmlns"),
                         g_strdup(ns->href ? (const char *)ns->href : ""));
    }
    for (const xmlAttr *a = from->properties; a; a = a->next) {
        if (!count_node(parse, node->line, err))
            return false;
        xmlChar *value = xmlNodeListGetString(from->doc, a->children, 1);
        append_attribute(node, qualified(a->ns, a->name), g_strdup(value ? (char *)value : ""));
        xmlFree(value);
    }
    return true;
}

static bool is_blank(const char *text)
{
    return text[strspn(text, " \t\r\n")] == '\0';
}

static void convert_text(ConfigNode *node, GString *pending, bool between)
{
    if (pending->len == 0)
        return;
    if (!between && !is_blank(pending->str)) {
        node->text = g_strdup(pending->str);
    } else if (between && !is_blank(pending->str)) {
        ConfigNode *piece = config_node_new(NULL);
        piece->text = g_strdup(pending->str);
        config_node_append(node, piece);
    }
    g_string_truncate(pending, 0);
}

static ConfigNode *convert(Parse *parse, const xmlNode *from, unsigned depth, GError **err)
{
    g_autoptr(ConfigNode) node = config_node_new(NULL);
    g_autoptr(GString) pending = g_string_new(NULL);

    node->name = qualified(from->ns, from->name);
    long line = xmlGetLineNo(from);
    node->line = line > 0 ? (unsigned)line : 0;
    if (depth > CONFIG_DEPTH_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s:%u: more than %u elements inside each other",
                   parse->file, node->line, CONFIG_DEPTH_MAX);
        return NULL;
    }
    if (!count_node(parse, node->line, err) || !convert_attributes(parse, node, from, err))
        return NULL;
    for (const xmlNode *child = from->children; child; child = child->next) {
        if ((child->type == XML_TEXT_NODE || child->type == XML_CDATA_SECTION_NODE) &&
            child->content) {
            g_string_append(pending, (const char *)child->content);
        } else if (child->type == XML_ELEMENT_NODE) {
            convert_text(node, pending, true);
            ConfigNode *converted = convert(parse, child, depth + 1, err);
            if (!converted)
                return NULL;
            config_node_append(node, converted);
        }
    }
    convert_text(node, pending, node->children != NULL);
    return g_steal_pointer(&node);
}

static ConfigNode *parse_with(xmlParserCtxtPtr ctxt, Parse *parse, const char *data, size_t size,
                              GError **err)
{
    ctxt->_private = parse;
    ctxt->sax->internalSubset = on_doctype;
    ctxt->sax->serror = on_error;
    /* The encoding was checked by the caller: what the document declares does not matter. */
    xmlDocPtr doc = xmlCtxtReadMemory(ctxt, data, (int)size, NULL, "UTF-8",
                                      XML_PARSE_NONET | XML_PARSE_BIG_LINES | XML_PARSE_NOCDATA);
    const xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;
    ConfigNode *node = NULL;
    if (parse->doctype_line)
        lodge_fail(err, LODGE_ERROR_XML,
                   "%s:%d: a DOCTYPE is not allowed in this document; remove it", parse->file,
                   parse->doctype_line);
    else if (parse->error || !root || !ctxt->wellFormed || !ctxt->nsWellFormed)
        lodge_fail(err, LODGE_ERROR_XML, "%s:%d: %s", parse->file, MAX(parse->error_line, 1),
                   parse->error ? parse->error : "this is not an XML document");
    else
        node = convert(parse, root, 1, err);
    xmlFreeDoc(doc);
    return node;
}

static unsigned line_of(const char *data, const char *at)
{
    unsigned line = 1;
    for (const char *p = data; p < at; p++)
        line += *p == '\n';
    return line;
}

/* libxml2 2.9 compares each attribute with all others of its element: bound their number first. */
static bool check_tag_sizes(const char *data, size_t size, const char *file, GError **err)
{
    unsigned equals = 0;
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '<')
            equals = 0;
        else if (data[i] == '=' && ++equals > CONFIG_ATTRIBUTES_MAX)
            return lodge_fail(err, LODGE_ERROR_LIMIT, "%s:%u: more than %u attributes", file,
                              line_of(data, data + i), CONFIG_ATTRIBUTES_MAX);
    }
    return true;
}

ConfigNode *config_node_parse(const char *data, size_t size, const char *file, GError **err)
{
    Parse parse = {.file = file};
    if (size > CONFIG_DOCUMENT_MAX) {
        lodge_fail(err, LODGE_ERROR_LIMIT, "%s: the document is larger than %u bytes", file,
                   CONFIG_DOCUMENT_MAX);
        return NULL;
    }
    if (size == 0) {
        lodge_fail(err, LODGE_ERROR_XML, "%s:1: the document is empty", file);
        return NULL;
    }
    const char *bad;
    if (!g_utf8_validate_len(data, size, &bad)) {
        lodge_fail(err, LODGE_ERROR_XML, "%s:%u: a byte that is not UTF-8; save it as UTF-8", file,
                   line_of(data, bad));
        return NULL;
    }
    if (!check_tag_sizes(data, size, file, err))
        return NULL;
    xmlParserCtxtPtr ctxt = xmlNewParserCtxt();
    if (!ctxt) {
        lodge_fail(err, LODGE_ERROR_INTERNAL, "%s: cannot make an XML parser", file);
        return NULL;
    }
    ConfigNode *node = parse_with(ctxt, &parse, data, size, err);
    xmlFreeParserCtxt(ctxt);
    g_free(parse.error);
    return node;
}

ConfigNode *config_node_parse_file(const char *path, GError **err)
{
    bool from_stdin = strcmp(path, "-") == 0;
    FILE *f = from_stdin ? stdin : fopen(path, "re");
    if (!f) {
        lodge_fail_errno(err, errno, "%s: cannot open the document", path);
        return NULL;
    }
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    guint8 block[16384];
    size_t n;
    /* One byte over the limit is enough for config_node_parse to say so. */
    while (bytes->len <= CONFIG_DOCUMENT_MAX && (n = fread(block, 1, sizeof(block), f)) > 0)
        g_byte_array_append(bytes, block, (guint)n);
    int errnum = ferror(f) ? errno : 0;
    if (!from_stdin)
        fclose(f);
    if (errnum) {
        lodge_fail_errno(err, errnum, "%s: cannot read the document", path);
        return NULL;
    }
    return config_node_parse((const char *)bytes->data, bytes->len,
                             from_stdin ? "standard input" : path, err);
}

/* ---- writing */

/* libvirt prints its own elements with single quotes and metadata as libxml2 dumps it. */
static void escape(GString *out, const char *text, bool metadata, bool attribute)
{
    for (const char *p = text; *p; p++) {
        switch (*p) {
        case '&':
            g_string_append(out, "&amp;");
            break;
        case '<':
            g_string_append(out, "&lt;");
            break;
        case '>':
            g_string_append(out, "&gt;");
            break;
        case '"':
            g_string_append(out, metadata && !attribute ? "\"" : "&quot;");
            break;
        case '\'':
            g_string_append(out, metadata ? "'" : "&apos;");
            break;
        case '\r':
            g_string_append(out, "&#13;");
            break;
        case '\n':
            g_string_append(out, attribute ? "&#10;" : "\n");
            break;
        case '\t':
            g_string_append(out, attribute ? "&#9;" : "\t");
            break;
        default:
            g_string_append_c(out, *p);
        }
    }
}

static bool is_mixed(const ConfigNode *node)
{
    for (unsigned i = 0; i < config_node_count(node); i++)
        if (!config_node_nth(node, i)->name)
            return true;
    return false;
}

/* @indent < 0: inside mixed content, where white space would change the text. */
static void write_node(GString *out, const ConfigNode *node, int indent, bool metadata)
{
    if (!node->name) {
        escape(out, node->text, metadata, false);
        return;
    }
    char quote = metadata ? '"' : '\'';
    const char *line_end = indent < 0 ? "" : "\n";
    g_string_append_printf(out, "%*s<%s", MAX(indent, 0), "", node->name);
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        const ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        g_string_append_printf(out, " %s=%c", a->name, quote);
        escape(out, a->value, metadata, true);
        g_string_append_c(out, quote);
    }
    bool inside = metadata || strcmp(node->name, "metadata") == 0;
    if (config_node_count(node) > 0) {
        bool mixed = indent < 0 || is_mixed(node);
        g_string_append_printf(out, ">%s", mixed ? "" : "\n");
        for (unsigned i = 0; i < config_node_count(node); i++)
            write_node(out, config_node_nth(node, i), mixed ? -1 : indent + 2, inside);
        g_string_append_printf(out, "%*s</%s>%s", mixed ? 0 : indent, "", node->name, line_end);
    } else if (node->text && *node->text) {
        g_string_append_c(out, '>');
        escape(out, node->text, metadata, false);
        g_string_append_printf(out, "</%s>%s", node->name, line_end);
    } else {
        g_string_append_printf(out, "/>%s", line_end);
    }
}

char *config_node_to_string(const ConfigNode *node)
{
    GString *out = g_string_new(NULL);
    write_node(out, node, 0, false);
    return g_string_free(out, FALSE);
}

/* ---- comparing */

static bool text_equal(const char *a, const char *b)
{
    g_autofree char *x = g_strstrip(g_strdup(a ? a : ""));
    g_autofree char *y = g_strstrip(g_strdup(b ? b : ""));
    return strcmp(x, y) == 0;
}

static bool attributes_within(const ConfigNode *a, const ConfigNode *b, char **where)
{
    for (guint i = 0; a->attributes && i < a->attributes->len; i++) {
        const ConfigAttribute *x = &g_array_index(a->attributes, ConfigAttribute, i);
        const char *y = config_node_attribute(b, x->name);
        if (!y || strcmp(x->value, y) != 0) {
            *where = g_strdup_printf("%s/@%s", a->name, x->name);
            return false;
        }
    }
    return true;
}

static bool same_name(const ConfigNode *a, const ConfigNode *b)
{
    return g_strcmp0(a->name, b->name) == 0;
}

/* The @nth child of @node named like @like. */
static const ConfigNode *child_like(const ConfigNode *node, const ConfigNode *like, unsigned nth)
{
    for (unsigned i = 0; i < config_node_count(node); i++)
        if (same_name(config_node_nth(node, i), like) && nth-- == 0)
            return config_node_nth(node, i);
    return NULL;
}

bool config_node_equal(const ConfigNode *a, const ConfigNode *b, char **where)
{
    *where = NULL;
    if (!same_name(a, b) || !text_equal(a->text, b->text) ||
        config_node_count(a) != config_node_count(b)) {
        *where = g_strdup(a->name ? a->name : "text");
        return false;
    }
    if (!attributes_within(a, b, where) || !attributes_within(b, a, where))
        return false;
    for (unsigned i = 0; i < config_node_count(a); i++) {
        const ConfigNode *child = config_node_nth(a, i);
        unsigned nth = 0;
        for (unsigned k = 0; k < i; k++)
            nth += same_name(config_node_nth(a, k), child);
        const ConfigNode *other = child_like(b, child, nth);
        g_autofree char *inner = NULL;
        if (!other || !config_node_equal(child, other, &inner)) {
            *where = g_strdup_printf("%s/%s", a->name,
                                     inner ? inner : (child->name ? child->name : "text"));
            return false;
        }
    }
    return true;
}
