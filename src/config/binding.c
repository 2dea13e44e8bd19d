/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "config/binding.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* Something of the document without a row, or the rest of an element whose row takes only part. */
typedef struct ConfigKept {
    int after;        /* row of the last known element before it; -1: before all */
    ConfigNode *node; /* name NULL: attributes of the element itself */
    bool merge;       /* attributes and children to add to the element that row @after writes */
} ConfigKept;

static void kept_free(gpointer data)
{
    ConfigKept *kept = data;
    config_node_free(kept->node);
    g_free(kept);
}

static void keep(ConfigObject *object, int after, ConfigNode *node, bool merge)
{
    if (!object->kept)
        object->kept = g_ptr_array_new_with_free_func(kept_free);
    ConfigKept *kept = g_new(ConfigKept, 1);
    *kept = (ConfigKept){after, node, merge};
    g_ptr_array_add(object->kept, kept);
}

static void *slot_of(const void *object, const ConfigField *field)
{
    return (char *)(uintptr_t)object + field->offset;
}

/* ---- life */

static void free_node(gpointer node)
{
    config_node_free(node);
}

void *config_object_new(const ConfigSchema *schema)
{
    void *object = g_malloc0(schema->size);
    for (const ConfigField *f = schema->fields; f->name; f++) {
        void *slot = slot_of(object, f);
        if (f->kind == FIELD_UINT)
            *(int64_t *)slot = -1;
        else if (f->kind == FIELD_LIST)
            *(GPtrArray **)slot = g_ptr_array_new();
        else if (f->kind == FIELD_NODES)
            *(GPtrArray **)slot = g_ptr_array_new_with_free_func(free_node);
        else if (f->kind == FIELD_CUSTOM)
            ((const ConfigCustom *)f->detail)->init(slot);
    }
    return object;
}

static void clear_list(const ConfigField *f, GPtrArray **list)
{
    for (guint i = 0; f->kind == FIELD_LIST && i < (*list)->len; i++)
        config_object_free(f->detail, (*list)->pdata[i]);
    g_clear_pointer(list, g_ptr_array_unref);
}

void config_object_free(const ConfigSchema *schema, void *object)
{
    if (!object)
        return;
    for (const ConfigField *f = schema->fields; f->name; f++) {
        void *slot = slot_of(object, f);
        switch (f->kind) {
        case FIELD_STRING:
        case FIELD_UUID:
            g_free(*(char **)slot);
            break;
        case FIELD_OBJECT:
            config_object_free(f->detail, *(void **)slot);
            break;
        case FIELD_LIST:
        case FIELD_NODES:
            clear_list(f, slot);
            break;
        case FIELD_NODE:
            config_node_free(*(ConfigNode **)slot);
            break;
        case FIELD_CUSTOM:
            ((const ConfigCustom *)f->detail)->clear(slot);
            break;
        case FIELD_UINT:
        case FIELD_ENUM:
        case FIELD_KIB:
        case FIELD_FLAG:
            break;
        }
    }
    g_clear_pointer(&((ConfigObject *)object)->kept, g_ptr_array_unref);
    g_free(object);
}

/* ---- context */

size_t config_path_push(ConfigContext *ctx, const char *name, unsigned nth)
{
    size_t mark = ctx->path->len;
    if (mark)
        g_string_append_c(ctx->path, '/');
    g_string_append(ctx->path, name);
    if (nth)
        g_string_append_printf(ctx->path, "[%u]", nth);
    return mark;
}

void config_path_pop(ConfigContext *ctx, size_t mark)
{
    g_string_truncate(ctx->path, mark);
}

bool config_invalid(ConfigContext *ctx, unsigned line, GError **err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *message = g_strdup_vprintf(format, args);
    va_end(args);
    return lodge_fail(err, LODGE_ERROR_XML, "%s:%u: %s: %s", ctx->file, line, ctx->path->str,
                      message);
}

static void unknown_free(gpointer data)
{
    ConfigUnknown *unknown = data;
    g_free(unknown->path);
    g_free(unknown);
}

GPtrArray *config_unknown_list_new(void)
{
    return g_ptr_array_new_with_free_func(unknown_free);
}

void config_note_unknown(ConfigContext *ctx, const ConfigNode *parent, const char *name,
                         unsigned line)
{
    ConfigUnknown *unknown = g_new(ConfigUnknown, 1);
    unknown->path = g_strdup_printf("%s/%s", ctx->path->str, name);
    unknown->line = line;
    g_ptr_array_add(ctx->unknown, unknown);
}

/* ---- scalars */

bool config_parse_uint(const char *text, uint64_t *value)
{
    g_autofree char *stripped = g_strstrip(g_strdup(text));
    const char *p = stripped;
    unsigned base = 10;
    if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X')) {
        base = 16;
        p += 2;
    }
    uint64_t n = 0;
    if (!*p)
        return false;
    for (; *p; p++) {
        int digit = g_ascii_xdigit_value(*p);
        if (digit < 0 || (unsigned)digit >= base || !mul_u64(n, base, &n) ||
            !add_u64(n, (uint64_t)digit, &n))
            return false;
    }
    *value = n;
    return true;
}

const char CONFIG_UNITS_ALLOWED[] =
    "b, bytes, KB, KiB (or k), MB, MiB (or M), GB, GiB (or G), TB, TiB (or T)";

static bool unit_bytes(const char *unit, uint64_t *bytes)
{
    static const char letters[] = "kmgtpe";
    if (!g_ascii_strcasecmp(unit, "b") || !g_ascii_strcasecmp(unit, "byte") ||
        !g_ascii_strcasecmp(unit, "bytes")) {
        *bytes = 1;
        return true;
    }
    const char *letter = *unit ? strchr(letters, g_ascii_tolower(*unit)) : NULL;
    if (!letter)
        return false;
    uint64_t base = 1024;
    if (!g_ascii_strcasecmp(unit + 1, "b"))
        base = 1000;
    else if (unit[1] && g_ascii_strcasecmp(unit + 1, "ib"))
        return false;
    *bytes = 1;
    for (const char *l = letters; l <= letter; l++)
        *bytes *= base; /* at most 2^60 */
    return true;
}

bool config_parse_kib(const char *text, const char *unit, uint64_t *kib)
{
    uint64_t n, scale, bytes;
    if (!config_parse_uint(text, &n) || !unit_bytes(unit ? unit : "KiB", &scale) ||
        !mul_u64(n, scale, &bytes) || !add_u64(bytes, 1023, &bytes))
        return false;
    *kib = bytes / 1024;
    return true;
}

static bool parse_enum(const ConfigField *f, int *slot, const char *text, unsigned line,
                       ConfigContext *ctx, GError **err)
{
    const char *const *list = f->detail;
    for (int i = 1; list[i]; i++) {
        if (strcmp(list[i], text) == 0) {
            *slot = i;
            return true;
        }
    }
    g_autofree char *allowed = g_strjoinv(", ", (char **)(uintptr_t)(list + 1));
    return config_invalid(ctx, line, err, "'%.64s' is not one of: %s", text, allowed);
}

static bool parse_uuid(char **slot, const char *text, unsigned line, ConfigContext *ctx,
                       GError **err)
{
    GString *uuid = g_string_new(NULL);
    g_autofree char *stripped = g_strstrip(g_strdup(text));
    unsigned digits = 0;
    bool good = true;
    for (const char *p = stripped; *p && good; p++) {
        if (*p == '-')
            continue;
        good = g_ascii_isxdigit(*p) && digits < 32;
        if (digits == 8 || digits == 12 || digits == 16 || digits == 20)
            g_string_append_c(uuid, '-');
        g_string_append_c(uuid, g_ascii_tolower(*p));
        digits++;
    }
    if (!good || digits != 32) {
        g_string_free(uuid, TRUE);
        return config_invalid(ctx, line, err,
                              "'%.64s' is not a UUID; 32 hexadecimal digits are needed", text);
    }
    g_free(*slot);
    *slot = g_string_free(uuid, FALSE);
    return true;
}

static bool parse_kib(const ConfigNode *node, uint64_t *slot, ConfigContext *ctx, GError **err)
{
    const char *unit = config_node_attribute(node, "unit");
    uint64_t ignored;
    if (unit && !unit_bytes(unit, &ignored))
        return config_invalid(ctx, node->line, err, "unit '%.32s' is not one of: %s", unit,
                              CONFIG_UNITS_ALLOWED);
    if (!node->text || !config_parse_kib(node->text, unit, slot))
        return config_invalid(ctx, node->line, err,
                              "'%.64s' is not a size (a whole number below 16 EiB)",
                              node->text ? node->text : "");
    return true;
}

static bool parse_scalar(const ConfigField *f, void *slot, const char *text, unsigned line,
                         ConfigContext *ctx, GError **err)
{
    uint64_t n, max = f->max ? f->max : INT64_MAX;
    switch (f->kind) {
    case FIELD_STRING:
        g_free(*(char **)slot);
        *(char **)slot = g_strdup(text);
        return true;
    case FIELD_UUID:
        return parse_uuid(slot, text, line, ctx, err);
    case FIELD_ENUM:
        return parse_enum(f, slot, text, line, ctx, err);
    case FIELD_UINT:
        if (!config_parse_uint(text, &n) || n > max)
            return config_invalid(ctx, line, err,
                                  "'%.64s' is not a whole number from 0 to %" PRIu64, text, max);
        *(int64_t *)slot = (int64_t)n;
        return true;
    default:
        return lodge_fail(err, LODGE_ERROR_INTERNAL, "row '%s' is not a scalar", f->name);
    }
}

/* NULL: absent. The caller frees it. */
static char *format_scalar(const ConfigField *f, const void *slot)
{
    switch (f->kind) {
    case FIELD_STRING:
    case FIELD_UUID:
        return g_strdup(*(char *const *)slot);
    case FIELD_ENUM:
        return *(const int *)slot ? g_strdup(((const char *const *)f->detail)[*(const int *)slot])
                                  : NULL;
    case FIELD_UINT:
        return *(const int64_t *)slot >= 0 ? g_strdup_printf("%" PRId64, *(const int64_t *)slot)
                                           : NULL;
    default:
        return NULL;
    }
}

/* ---- parsing */

static int find_row(const ConfigSchema *schema, const char *name, bool attribute)
{
    for (int i = 0; schema->fields[i].name; i++) {
        const char *row = schema->fields[i].name;
        bool is_attribute = row[0] == '@';
        if (is_attribute == attribute && row[0] && strcmp(row + is_attribute, name) == 0)
            return i;
    }
    return -1;
}

static const ConfigField *text_row(const ConfigSchema *schema)
{
    for (const ConfigField *f = schema->fields; f->name; f++)
        if (!f->name[0])
            return f;
    return NULL;
}

static bool parse_attributes(const ConfigSchema *schema, ConfigObject *object,
                             const ConfigNode *node, ConfigContext *ctx, GError **err)
{
    const ConfigField *text = text_row(schema);
    ConfigNode *rest = NULL;
    for (guint i = 0; node->attributes && i < node->attributes->len; i++) {
        const ConfigAttribute *a = &g_array_index(node->attributes, ConfigAttribute, i);
        g_autofree char *shown = g_strconcat("@", a->name, NULL);
        int row = find_row(schema, a->name, true);
        if (row >= 0) {
            const ConfigField *f = &schema->fields[row];
            size_t mark = config_path_push(ctx, shown, 0);
            if (!parse_scalar(f, slot_of(object, f), a->value, node->line, ctx, err)) {
                config_node_free(rest);
                return false;
            }
            config_path_pop(ctx, mark);
        } else if (!(text && text->kind == FIELD_KIB && strcmp(a->name, "unit") == 0)) {
            if (!rest)
                rest = config_node_new(NULL);
            config_node_set_attribute(rest, a->name, a->value);
            if (strcmp(a->name, "xmlns") != 0 && !g_str_has_prefix(a->name, "xmlns:"))
                config_note_unknown(ctx, node, shown, node->line);
        }
    }
    if (rest)
        keep(object, -1, rest, false);
    return true;
}

/* A scalar or a flag written as an element may carry attributes of its own: they are kept. */
static void keep_rest(ConfigObject *object, int row, const ConfigField *f, const ConfigNode *child,
                      ConfigContext *ctx)
{
    g_autoptr(ConfigNode) rest = config_node_copy(child);
    size_t mark = config_path_push(ctx, child->name, 0);
    bool any = false;
    for (guint i = 0; child->attributes && i < child->attributes->len; i++) {
        const ConfigAttribute *a = &g_array_index(child->attributes, ConfigAttribute, i);
        g_autofree char *shown = g_strconcat("@", a->name, NULL);
        config_note_unknown(ctx, child, shown, child->line);
        any = true;
    }
    for (unsigned i = 0; i < config_node_count(child); i++) {
        const ConfigNode *inner = config_node_nth(child, i);
        config_note_unknown(ctx, child, inner->name ? inner->name : "text", child->line);
        any = true;
    }
    config_path_pop(ctx, mark);
    if (f->kind != FIELD_FLAG)
        g_clear_pointer(&rest->text, g_free);
    if (any || (f->kind == FIELD_FLAG && rest->text))
        keep(object, row, g_steal_pointer(&rest), true);
}

static bool parse_element(const ConfigField *f, void *slot, const ConfigNode *child,
                          ConfigContext *ctx, GError **err)
{
    switch (f->kind) {
    case FIELD_FLAG:
        *(bool *)slot = true;
        return true;
    case FIELD_OBJECT:
        *(void **)slot = config_object_parse(f->detail, child, ctx, err);
        return *(void **)slot != NULL;
    case FIELD_LIST: {
        void *object = config_object_parse(f->detail, child, ctx, err);
        if (object)
            g_ptr_array_add(*(GPtrArray **)slot, object);
        return object != NULL;
    }
    case FIELD_NODE:
        *(ConfigNode **)slot = config_node_copy(child);
        return true;
    case FIELD_NODES:
        g_ptr_array_add(*(GPtrArray **)slot, config_node_copy(child));
        return true;
    case FIELD_CUSTOM:
        return ((const ConfigCustom *)f->detail)->parse(slot, child, ctx, err);
    default:
        return parse_scalar(f, slot, child->text ? child->text : "", child->line, ctx, err);
    }
}

static bool is_scalar(const ConfigField *f)
{
    return f->kind == FIELD_STRING || f->kind == FIELD_UUID || f->kind == FIELD_ENUM ||
           f->kind == FIELD_UINT;
}

static bool parse_child(const ConfigSchema *schema, int row, ConfigObject *object,
                        const ConfigNode *node, const ConfigNode *child, unsigned *seen,
                        ConfigContext *ctx, GError **err)
{
    const ConfigField *f = &schema->fields[row];
    bool many = f->kind == FIELD_LIST || f->kind == FIELD_NODES;
    seen[row]++;
    size_t mark = config_path_push(ctx, child->name, many ? seen[row] : 0);
    if (!many && seen[row] > 1)
        return config_invalid(ctx, child->line, err, "this element may be given only once");
    if (!parse_element(f, slot_of(object, f), child, ctx, err))
        return false;
    config_path_pop(ctx, mark);
    if (f->flags & FIELD_UNAPPLIED)
        config_note_unknown(ctx, node, child->name, child->line);
    if (is_scalar(f) || f->kind == FIELD_FLAG)
        keep_rest(object, row, f, child, ctx);
    return true;
}

static bool parse_children(const ConfigSchema *schema, ConfigObject *object, const ConfigNode *node,
                           unsigned *seen, ConfigContext *ctx, GError **err)
{
    int last = -1;
    for (unsigned i = 0; i < config_node_count(node); i++) {
        const ConfigNode *child = config_node_nth(node, i);
        int row = child->name ? find_row(schema, child->name, false) : -1;
        if (row < 0) {
            keep(object, last, config_node_copy(child), false);
            config_note_unknown(ctx, node, child->name ? child->name : "text",
                                child->name ? child->line : node->line);
            continue;
        }
        if (!parse_child(schema, row, object, node, child, seen, ctx, err))
            return false;
        last = row;
    }
    return true;
}

static bool parse_text(const ConfigSchema *schema, ConfigObject *object, const ConfigNode *node,
                       ConfigContext *ctx, GError **err)
{
    const ConfigField *f = text_row(schema);
    if (f && f->kind == FIELD_KIB)
        return parse_kib(node, slot_of(object, f), ctx, err);
    if (f && node->text)
        return parse_scalar(f, slot_of(object, f), node->text, node->line, ctx, err);
    if (node->text) {
        ConfigNode *piece = config_node_new(NULL);
        piece->text = g_strdup(node->text);
        keep(object, -1, piece, true);
        config_note_unknown(ctx, node, "text", node->line);
    }
    return true;
}

static bool check_required(const ConfigSchema *schema, const ConfigNode *node, ConfigContext *ctx,
                           GError **err)
{
    for (const ConfigField *f = schema->fields; f->name; f++) {
        if (!(f->flags & FIELD_REQUIRED))
            continue;
        bool there = f->name[0] == '@'    ? config_node_attribute(node, f->name + 1) != NULL
                     : f->name[0] == '\0' ? node->text != NULL
                                          : config_node_child(node, f->name) != NULL;
        if (there)
            continue;
        if (f->name[0] == '\0')
            return config_invalid(ctx, node->line, err, "this element may not be empty");
        return config_invalid(ctx, node->line, err, "%s %s is missing",
                              f->name[0] == '@' ? "attribute" : "element",
                              f->name + (f->name[0] == '@'));
    }
    return true;
}

void *config_object_parse(const ConfigSchema *schema, const ConfigNode *node, ConfigContext *ctx,
                          GError **err)
{
    unsigned n_fields = 0;
    while (schema->fields[n_fields].name)
        n_fields++;
    g_autofree unsigned *seen = g_new0(unsigned, n_fields + 1);
    ConfigObject *object = config_object_new(schema);
    object->line = node->line;
    if (!check_required(schema, node, ctx, err) ||
        !parse_attributes(schema, object, node, ctx, err) ||
        !parse_text(schema, object, node, ctx, err) ||
        !parse_children(schema, object, node, seen, ctx, err) ||
        (schema->check && !schema->check(object, ctx, node, err))) {
        config_object_free(schema, object);
        return NULL;
    }
    return object;
}

/* ---- writing */

static void add_kept(ConfigNode *node, const ConfigObject *object, int after)
{
    for (guint i = 0; object->kept && i < object->kept->len; i++) {
        const ConfigKept *kept = object->kept->pdata[i];
        if (kept->after != after || (kept->merge && kept->node->name))
            continue;
        if (kept->merge)
            config_node_set_text(node, kept->node->text);
        else if (kept->node->name || kept->node->text)
            config_node_append(node, config_node_copy(kept->node));
    }
}

static void add_kept_attributes(ConfigNode *node, const ConfigObject *object)
{
    for (guint i = 0; object->kept && i < object->kept->len; i++) {
        const ConfigKept *kept = object->kept->pdata[i];
        if (kept->node->name || !kept->node->attributes)
            continue;
        for (guint k = 0; k < kept->node->attributes->len; k++) {
            const ConfigAttribute *a = &g_array_index(kept->node->attributes, ConfigAttribute, k);
            config_node_set_attribute(node, a->name, a->value);
        }
    }
}

static void merge_rest(ConfigNode *child, const ConfigObject *object, int row)
{
    for (guint i = 0; object->kept && i < object->kept->len; i++) {
        const ConfigKept *kept = object->kept->pdata[i];
        if (!kept->merge || kept->after != row || !kept->node->name)
            continue;
        const ConfigNode *rest = kept->node;
        for (guint k = 0; rest->attributes && k < rest->attributes->len; k++) {
            const ConfigAttribute *a = &g_array_index(rest->attributes, ConfigAttribute, k);
            config_node_set_attribute(child, a->name, a->value);
        }
        for (unsigned k = 0; k < config_node_count(rest); k++)
            config_node_append(child, config_node_copy(config_node_nth(rest, k)));
        if (rest->text && !child->text)
            config_node_set_text(child, rest->text);
    }
}

static void format_kib(ConfigNode *node, uint64_t kib)
{
    char number[32];
    g_snprintf(number, sizeof(number), "%" PRIu64, kib);
    config_node_set_attribute(node, "unit", "KiB");
    config_node_set_text(node, number);
}

static void format_list(ConfigNode *node, const ConfigField *f, const GPtrArray *list)
{
    for (guint i = 0; i < list->len; i++) {
        if (f->kind == FIELD_LIST)
            config_node_append(node, config_object_format(f->detail, f->name, list->pdata[i]));
        else
            config_node_append(node, config_node_copy(list->pdata[i]));
    }
}

static ConfigNode *format_element(const ConfigField *f, const void *slot)
{
    g_autofree char *text = NULL;
    ConfigNode *child = NULL;
    switch (f->kind) {
    case FIELD_FLAG:
        return *(const bool *)slot ? config_node_new(f->name) : NULL;
    case FIELD_OBJECT:
        return *(void *const *)slot ? config_object_format(f->detail, f->name, *(void *const *)slot)
                                    : NULL;
    case FIELD_NODE:
        return *(ConfigNode *const *)slot ? config_node_copy(*(ConfigNode *const *)slot) : NULL;
    case FIELD_CUSTOM:
        return ((const ConfigCustom *)f->detail)->format(slot);
    default:
        text = format_scalar(f, slot);
        if (text) {
            child = config_node_new(f->name);
            config_node_set_text(child, text);
        }
        return child;
    }
}

static void format_row(ConfigNode *node, const ConfigObject *object, const ConfigField *f, int row)
{
    const void *slot = slot_of(object, f);
    if (f->name[0] == '@' || !f->name[0]) {
        g_autofree char *text = format_scalar(f, slot);
        if (f->kind == FIELD_KIB)
            format_kib(node, *(const uint64_t *)slot);
        else if (text && f->name[0])
            config_node_set_attribute(node, f->name + 1, text);
        else if (text)
            config_node_set_text(node, text);
        return;
    }
    if (f->kind == FIELD_LIST || f->kind == FIELD_NODES) {
        format_list(node, f, *(GPtrArray *const *)slot);
        return;
    }
    ConfigNode *child = format_element(f, slot);
    if (!child)
        return;
    merge_rest(child, object, row);
    config_node_append(node, child);
}

ConfigNode *config_object_format(const ConfigSchema *schema, const char *name, const void *object)
{
    ConfigNode *node = config_node_new(name);
    const ConfigObject *o = object;
    node->line = o->line;
    add_kept(node, o, -1);
    for (int i = 0; schema->fields[i].name; i++) {
        format_row(node, o, &schema->fields[i], i);
        add_kept(node, o, i);
    }
    add_kept_attributes(node, o);
    return node;
}
