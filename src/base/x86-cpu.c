/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/x86-cpu.h"

#include <string.h>

#include "base/error.h"

const char *const x86_models[] = {"max", "x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4", NULL};
const char *const x86_policy_names[] = {"force", "require", "optional", "disable", "forbid", NULL};
static const char *const match_names[] = {"exact", "minimum", "strict", NULL};

/* ---- names ---- */

static char plain(char c)
{
    return c == '-' || c == '.' ? '_' : g_ascii_tolower(c);
}

static bool same_name(const char *a, const char *b)
{
    while (*a && plain(*a) == plain(*b)) {
        a++;
        b++;
    }
    return *a == '\0' && *b == '\0';
}

const X86Feature *x86_feature_find(const char *name)
{
    for (const X86Feature *f = x86_features; f->name; f++)
        if (same_name(f->name, name) || (f->alias && same_name(f->alias, name)))
            return f;
    return NULL;
}

static int find_in(const char *const *names, const char *text)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

/* Model names of libvirt and QEMU, by prefix, with the psABI level that such processors have. */
static const struct {
    const char *prefix;
    unsigned level;
} known_models[] = {
    {"qemu64", 1},         {"kvm64", 1},         {"core2duo", 1},        {"coreduo", 1},
    {"Conroe", 1},         {"Penryn", 1},        {"Opteron_G1", 1},      {"Opteron_G2", 1},
    {"Opteron_G3", 1},     {"phenom", 1},        {"Nehalem", 2},         {"Westmere", 2},
    {"SandyBridge", 2},    {"IvyBridge", 2},     {"Opteron_G4", 2},      {"Opteron_G5", 2},
    {"Snowridge", 2},      {"Denverton", 2},     {"Haswell", 3},         {"Broadwell", 3},
    {"Skylake-Client", 3}, {"EPYC-Genoa", 4},    {"EPYC", 3},            {"Dhyana", 3},
    {"Skylake-Server", 4}, {"Cascadelake", 4},   {"Cooperlake", 4},      {"Icelake", 4},
    {"SapphireRapids", 4}, {"KnightsMill", 3},
};

const char *x86_model_closest(const char *name)
{
    int ours = find_in(x86_models, name);
    if (ours >= 0)
        return x86_models[ours];
    if (strcmp(name, "host") == 0)
        return x86_models[0];
    for (unsigned i = 0; i < G_N_ELEMENTS(known_models); i++)
        if (g_str_has_prefix(name, known_models[i].prefix))
            return x86_models[known_models[i].level];
    return NULL;
}

/* ---- parsing ---- */

void x86_cpu_free(X86CpuSpec *spec)
{
    if (!spec)
        return;
    g_array_unref(spec->features);
    g_free(spec);
}

static bool parse_model(X86CpuSpec *spec, const char *text, GError **err)
{
    int i = find_in(x86_models, text);
    g_autofree char *names = g_strjoinv(", ", (char **)x86_models);
    if (i < 0)
        return lodge_fail(err, LODGE_ERROR_INVALID, "no CPU model is called '%s' (there are: %s)",
                          text, names);
    spec->model = x86_models[i];
    return true;
}

static bool parse_setting(X86CpuSpec *spec, const char *key, const char *value, GError **err)
{
    if (strcmp(key, "match") == 0) {
        int match = find_in(match_names, value);
        if (match < 0)
            return lodge_fail(err, LODGE_ERROR_INVALID, "match=%s: exact, minimum or strict", value);
        spec->match = (X86Match)match;
        return true;
    }
    if (strcmp(key, "check") == 0) {
        spec->unchecked = strcmp(value, "off") == 0;
        return spec->unchecked || strcmp(value, "on") == 0 ||
               lodge_fail(err, LODGE_ERROR_INVALID, "check=%s: on or off", value);
    }
    X86CpuFeature feature = {.feature = x86_feature_find(key)};
    int policy = find_in(x86_policy_names, value);
    if (!feature.feature)
        return lodge_fail(err, LODGE_ERROR_INVALID, "no CPU feature is called '%s'", key);
    if (policy < 0)
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "%s=%s: force, require, optional, disable or forbid", key, value);
    feature.policy = (X86Policy)policy;
    g_array_append_val(spec->features, feature);
    return true;
}

X86CpuSpec *x86_cpu_parse(const char *text, GError **err)
{
    g_auto(GStrv) pieces = g_strsplit(text, ",", -1);
    g_autoptr(X86CpuSpec) spec = g_new0(X86CpuSpec, 1);
    spec->features = g_array_new(FALSE, FALSE, sizeof(X86CpuFeature));
    if (!parse_model(spec, pieces[0] ? pieces[0] : "", err))
        return NULL;
    for (unsigned i = 1; pieces[i]; i++) {
        char *equals = strchr(pieces[i], '=');
        if (!equals) {
            lodge_fail(err, LODGE_ERROR_INVALID, "'%s' is not a FEATURE=POLICY pair", pieces[i]);
            return NULL;
        }
        *equals = '\0';
        if (!parse_setting(spec, pieces[i], equals + 1, err))
            return NULL;
    }
    return g_steal_pointer(&spec);
}

/* ---- what it comes to ---- */

static void put(X86FeatureSet *set, const X86Feature *f, bool have)
{
    uint32_t bit = 1u << f->bit;
    set->word[f->word] = have ? set->word[f->word] | bit : set->word[f->word] & ~bit;
}

static bool in_model(const X86Feature *f, unsigned level)
{
    return f->class == X86_CLASS_SYSTEM || (f->class >= X86_CLASS_LEVEL && f->class <= level);
}

/* A feature, and before it what it needs, as far as the engine has them. */
static bool add(X86FeatureSet *set, const X86FeatureSet *have, const X86Feature *f)
{
    if (!x86_has(have, f) || (f->needs && !add(set, have, x86_feature_find(f->needs))))
        return false;
    put(set, f, true);
    return true;
}

/* Drops what lost its ground; the table's chains are at most as long as the table. */
static void drop_dependents(X86FeatureSet *set)
{
    bool again;
    do {
        again = false;
        for (const X86Feature *f = x86_features; f->name; f++)
            if (f->needs && x86_has(set, f) && !x86_has(set, x86_feature_find(f->needs))) {
                put(set, f, false);
                again = true;
            }
    } while (again);
}

/* AMD repeats these bits of leaf 1 in 80000001H EDX (APM vol. 3 E.4.2). */
#define EXT1_EDX_REPEATED 0x0183f3ffu
/* 40000001H EAX: the clock's old MSRs (bit 0) come and go with the new ones (bit 3). */
#define KVM_EAX_CLOCK_OLD 1u
#define KVM_EAX_CLOCK     8u

uint32_t x86_word_mask(const X86CpuSpec *spec, const X86FeatureSet *result, X86Word word)
{
    uint32_t named = 0, mask = result->word[word];
    if (word == X86_EXT1_EDX)
        mask |= result->word[X86_1_EDX] & EXT1_EDX_REPEATED;
    if (word == X86_KVM_EAX && (mask & KVM_EAX_CLOCK))
        mask |= KVM_EAX_CLOCK_OLD;
    if (spec && spec->match != X86_MINIMUM && strcmp(spec->model, x86_models[0]) != 0)
        return mask;
    for (const X86Feature *f = x86_features; f->name; f++)
        if (f->word == word)
            named |= 1u << f->bit;
    if (word == X86_EXT1_EDX)
        named |= EXT1_EDX_REPEATED;
    if (word == X86_KVM_EAX)
        named |= KVM_EAX_CLOCK_OLD;
    return mask | ~named;
}

static void name_to(GString *list, const X86Feature *f)
{
    g_string_append_printf(list, "%s%s", list->len ? ", " : "", f->name);
}

static void start_from_model(unsigned level, const X86FeatureSet *have, X86FeatureSet *result,
                             GString *lacking)
{
    memset(result, 0, sizeof(*result));
    for (const X86Feature *f = x86_features; f->name; f++) {
        if (!in_model(f, level))
            continue;
        put(result, f, x86_has(have, f));
        if (f->class != X86_CLASS_SYSTEM && !x86_has(have, f))
            name_to(lacking, f);
    }
}

static bool apply_feature(const X86CpuFeature *c, const X86FeatureSet *have, X86FeatureSet *result,
                          GString *lacking, GError **err)
{
    switch (c->policy) {
    case X86_DISABLE:
        put(result, c->feature, false);
        return true;
    case X86_FORBID:
        return !x86_has(have, c->feature) ||
               lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                          "the CPU has feature '%s', which is forbidden", c->feature->name);
    default:
        if (!add(result, have, c->feature) && c->policy == X86_REQUIRE)
            name_to(lacking, c->feature);
        return true;
    }
}

/* Whether what was required is still there once others were disabled. */
static bool check_required(const X86CpuSpec *spec, const X86FeatureSet *have,
                           const X86FeatureSet *result, GError **err)
{
    for (guint i = 0; i < spec->features->len; i++) {
        const X86CpuFeature *c = &g_array_index(spec->features, X86CpuFeature, i);
        if (c->policy == X86_REQUIRE && x86_has(have, c->feature) && !x86_has(result, c->feature))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "CPU feature '%s' is required, but what it needs (%s) is disabled, or it "
                              "is itself",
                              c->feature->name, c->feature->needs ? c->feature->needs : "nothing");
    }
    return true;
}

static bool check_strict(const X86FeatureSet *have, const X86FeatureSet *result, GError **err)
{
    g_autoptr(GString) more = g_string_new(NULL);
    for (const X86Feature *f = x86_features; f->name; f++)
        if (x86_has(have, f) && !x86_has(result, f))
            name_to(more, f);
    return !more->len || lodge_fail(err, LODGE_ERROR_UNSUPPORTED,
                                    "the CPU has more than the document's, which must match "
                                    "strictly: %s",
                                    more->str);
}

bool x86_cpu_resolve(const X86CpuSpec *spec, const X86FeatureSet *have, X86FeatureSet *result,
                     char **lacking, GError **err)
{
    g_autoptr(GString) missing = g_string_new(NULL);
    *result = *have;
    if (!spec)
        return true;
    unsigned level = (unsigned)find_in(x86_models, spec->model); /* 0: max */
    if (level > 0)
        start_from_model(level, have, result, missing);
    if (spec->match == X86_MINIMUM)
        *result = *have;
    /* Twice, so that what is disabled stays so, whatever is named after it. */
    for (guint i = 0; i < 2 * spec->features->len; i++) {
        const X86CpuFeature *c =
            &g_array_index(spec->features, X86CpuFeature, i % spec->features->len);
        bool disable = c->policy == X86_DISABLE;
        if (disable == (i >= spec->features->len) && !apply_feature(c, have, result, missing, err))
            return false;
    }
    drop_dependents(result);
    if (missing->len && !spec->unchecked)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "CPU model %s: this host's CPU lacks %s",
                          spec->model, missing->str);
    if (missing->len && lacking)
        *lacking = g_strdup(missing->str);
    return check_required(spec, have, result, err) &&
           (spec->match != X86_STRICT || check_strict(have, result, err));
}
