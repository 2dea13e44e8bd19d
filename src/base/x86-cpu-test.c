/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/x86-cpu.h"

#include <string.h>

#include "base/error.h"

static bool has(const X86FeatureSet *set, const char *name)
{
    return x86_has(set, x86_feature_find(name));
}

/* An engine with everything up to @level, and what @more lists. */
static X86FeatureSet engine(unsigned level, const char *more)
{
    X86FeatureSet set = {0};
    g_auto(GStrv) names = g_strsplit(more, " ", -1);
    for (const X86Feature *f = x86_features; f->name; f++)
        if (f->class == X86_CLASS_SYSTEM || (f->class && f->class <= level) ||
            g_strv_contains((const char *const *)names, f->name))
            set.word[f->word] |= 1u << f->bit;
    return set;
}

/* Every name finds its own row, needs lead to a row, and no two features share a bit. */
static void test_table(void)
{
    X86FeatureSet seen = {0};
    for (const X86Feature *f = x86_features; f->name; f++) {
        g_assert_true(x86_feature_find(f->name) == f);
        g_assert_true(!f->alias || x86_feature_find(f->alias) == f);
        g_assert_true(!f->needs || x86_feature_find(f->needs));
        g_assert_false(x86_has(&seen, f));
        seen.word[f->word] |= 1u << f->bit;
    }
    g_assert_true(x86_feature_find("sse4_1") == x86_feature_find("sse4.1"));
    g_assert_true(x86_feature_find("SSE3") == x86_feature_find("pni"));
    g_assert_null(x86_feature_find("sse4"));
    g_assert_null(x86_feature_find(""));
    g_assert_cmpstr(x86_model_closest("Haswell-noTSX-IBRS"), ==, "x86-64-v3");
    g_assert_cmpstr(x86_model_closest("qemu64"), ==, "x86-64-v1");
    g_assert_cmpstr(x86_model_closest("x86-64-v2"), ==, "x86-64-v2");
    g_assert_null(x86_model_closest("486"));
}

static void test_parse(void)
{
    static const char *const bad[] = {"",          "x86-64-v9",         "max,aes",       "max,=require",
                                      "max,aes=1", "max,sse9=require",  "max,match=any", "max,check=",
                                      "max,",      "x86-64-v1,,aes=on", "v1",            "max,aes=require=x"};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) err = NULL;
        g_assert_null(x86_cpu_parse(bad[i], &err));
        g_assert_error(err, LODGE_ERROR, LODGE_ERROR_INVALID);
    }
    g_autoptr(GError) err = NULL;
    g_autoptr(X86CpuSpec) spec =
        x86_cpu_parse("x86-64-v2,sse4_1=disable,aes=require,match=minimum,check=off", &err);
    g_assert_no_error(err);
    g_assert_cmpstr(spec->model, ==, "x86-64-v2");
    g_assert_cmpuint(spec->features->len, ==, 2);
    g_assert_true(spec->unchecked && spec->match == X86_MINIMUM);
}

/* What @text comes to on an engine of v3 with aes; NULL: an error that has @error in it. */
static void resolve(const char *text, const char *with, const char *without, const char *error)
{
    X86FeatureSet have = engine(3, "aes vmx"), result;
    g_autoptr(GError) err = NULL;
    g_autofree char *lacking = NULL;
    g_autoptr(X86CpuSpec) spec = x86_cpu_parse(text, &err);
    g_assert_no_error(err);
    bool ok = x86_cpu_resolve(spec, &have, &result, &lacking, &err);
    if (error) {
        g_assert_false(ok);
        g_assert_nonnull(strstr(err->message, error));
        return;
    }
    g_assert_no_error(err);
    g_auto(GStrv) in = g_strsplit(with, " ", 0), out = g_strsplit(without, " ", 0);
    for (unsigned i = 0; in[i]; i++)
        g_assert_true(has(&result, in[i]));
    for (unsigned i = 0; out[i]; i++)
        g_assert_false(has(&result, out[i]));
    for (unsigned w = 0; w < X86_WORDS; w++)
        g_assert_cmphex(result.word[w] & ~have.word[w], ==, 0);
}

static void test_resolve(void)
{
    resolve("max", "aes vmx avx2 sse2 smep", "avx512f rdrand", NULL);
    resolve("x86-64-v1", "sse2 smep nx", "pni aes avx xsave osxsave", NULL);
    resolve("x86-64-v2", "popcnt sse4.2 lahf_lm", "avx aes", NULL);
    resolve("x86-64-v3", "avx2 bmi2 abm xsave", "aes", NULL);
    resolve("x86-64-v4", NULL, NULL, "avx512f");
    resolve("x86-64-v4,check=off", "avx2", "avx512f aes", NULL);
    resolve("x86-64-v1,avx2=require", "avx2 avx xsave", "fma bmi1", NULL);
    resolve("x86-64-v1,aes=optional,rdrand=optional", "aes", "rdrand", NULL);
    resolve("x86-64-v1,aes=force,rdrand=force", "aes", "rdrand", NULL);
    resolve("x86-64-v1,rdrand=require", NULL, NULL, "rdrand");
    resolve("max,xsave=disable", "sse4.2", "xsave avx avx2 fma f16c osxsave", NULL);
    resolve("max,avx=disable,avx2=require", NULL, NULL, "avx2");
    resolve("max,aes=require,aes=disable", NULL, NULL, "aes");
    resolve("max,vmx=forbid", NULL, NULL, "vmx");
    resolve("max,svm=forbid", "vmx", "svm", NULL);
    resolve("x86-64-v2,match=minimum", "avx2 aes", "avx512f", NULL);
    resolve("x86-64-v2,match=minimum,aes=disable", "avx2", "aes", NULL);
    resolve("x86-64-v2,match=strict", NULL, NULL, "avx2");
    resolve("max,match=strict", "avx2", "svm", NULL);
}

/* What CPUID may show: with a model only what it names, with max also bits that have no name. */
static void test_mask(void)
{
    X86FeatureSet have = engine(3, ""), result;
    g_autoptr(X86CpuSpec) v1 = x86_cpu_parse("x86-64-v1", NULL), max = x86_cpu_parse("max,de=disable", NULL);
    g_assert_true(x86_cpu_resolve(v1, &have, &result, NULL, NULL));
    g_assert_cmphex(x86_word_mask(v1, &result, X86_7_EBX) & (1u << 5), ==, 0);
    g_assert_cmphex(x86_word_mask(v1, &result, X86_EXT1_EDX) & 1, ==, 1); /* AMD's copy of FPU */
    g_assert_cmphex(x86_word_mask(v1, &result, X86_7_1_EAX), ==, 0);
    g_assert_true(x86_cpu_resolve(max, &have, &result, NULL, NULL));
    g_assert_cmphex(x86_word_mask(max, &result, X86_1_EDX) & 5, ==, 1);
    g_assert_cmphex(x86_word_mask(max, &result, X86_EXT1_EDX) & 5, ==, 1);
    g_assert_cmphex(x86_word_mask(max, &result, X86_7_1_EAX) & 1, ==, 1); /* no name */
    g_assert_cmphex(x86_word_mask(NULL, &have, X86_7_EBX) & (1u << 5), ==, 1u << 5);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/x86-cpu/table", test_table);
    g_test_add_func("/x86-cpu/parse", test_parse);
    g_test_add_func("/x86-cpu/resolve", test_resolve);
    g_test_add_func("/x86-cpu/mask", test_mask);
    return g_test_run();
}
