/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest CPU models: the names of x86 CPU features, where CPUID has them, the models that are made
 * of them, and what a specification comes to on an engine. Knows no engine and no document.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* ---- features ---- */

/* Registers of CPUID that hold feature bits. */
typedef enum X86Word {
    X86_1_ECX,
    X86_1_EDX,
    X86_6_EAX,
    X86_7_EBX,
    X86_7_ECX,
    X86_7_EDX,
    X86_7_1_EAX,
    X86_D_1_EAX,
    X86_KVM_EAX, /* 40000001H */
    X86_EXT1_ECX, /* 80000001H */
    X86_EXT1_EDX,
    X86_EXT7_EDX,
    X86_EXT8_EBX,
    X86_EXT21_EAX, /* 80000021H */
    X86_WORDS
} X86Word;

typedef struct X86WordPlace {
    uint32_t leaf, subleaf;
    unsigned reg; /* 0 EAX, 1 EBX, 2 ECX, 3 EDX */
} X86WordPlace;
extern const X86WordPlace x86_word_places[X86_WORDS];

typedef struct X86FeatureSet {
    uint32_t word[X86_WORDS];
} X86FeatureSet;

/* Which models a feature belongs to. */
enum {
    X86_CLASS_EXTRA = 0,   /* max only */
    X86_CLASS_LEVEL = 1,   /* 1 to 4: this level of the x86-64 psABI and those above */
    X86_CLASS_SYSTEM = 16, /* every model where the engine has it: no instruction for applications */
};

typedef struct X86Feature {
    const char *name;  /* libvirt's and QEMU's; "-", "_" and "." are the same in it */
    const char *alias; /* another, or NULL */
    uint8_t word, bit, class;
    const char *needs; /* a feature that it makes no sense without, or NULL */
} X86Feature;
extern const X86Feature x86_features[]; /* ends with {0} */

/* NULL: there is no such name. */
const X86Feature *x86_feature_find(const char *name);
static inline bool x86_has(const X86FeatureSet *set, const X86Feature *f)
{
    return set->word[f->word] >> f->bit & 1;
}

/* ---- models ---- */

/* "max", "x86-64-v1", ...; NULL-terminated. "max" is all that the engine has. */
extern const char *const x86_models[];
/* The model of ours that is closest to one of libvirt's or QEMU's ("Haswell": "x86-64-v3"), one of ours by
 * itself; NULL: not known. */
const char *x86_model_closest(const char *name);

/* What libvirt's <feature policy=...> says. */
typedef enum X86Policy {
    X86_FORCE,    /* have it if the engine can; nobody minds if not */
    X86_REQUIRE,  /* have it, or do not start */
    X86_OPTIONAL, /* have it if the engine can */
    X86_DISABLE,  /* do not have it */
    X86_FORBID,   /* do not start where the engine has it */
    X86_POLICIES
} X86Policy;
extern const char *const x86_policy_names[]; /* as in the document; NULL-terminated */

/* <cpu match=...>: whether the guest may have more than the model, or the engine may. */
typedef enum X86Match { X86_EXACT, X86_MINIMUM, X86_STRICT } X86Match;

typedef struct X86CpuFeature {
    const X86Feature *feature;
    X86Policy policy;
} X86CpuFeature;

typedef struct X86CpuSpec {
    const char *model; /* of x86_models */
    GArray *features;  /* of X86CpuFeature */
    X86Match match;
    bool unchecked; /* what the engine lacks is left out (check='none') */
} X86CpuSpec;

/*
 * "MODEL[,FEATURE=POLICY]...[,match=exact|minimum|strict][,check=on|off]", what lodge-vmm's --cpu takes. The
 * caller frees it.
 */
X86CpuSpec *x86_cpu_parse(const char *text, GError **err);
void x86_cpu_free(X86CpuSpec *spec);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(X86CpuSpec, x86_cpu_free)

/*
 * What a guest with @spec (NULL: max) sees on an engine that has @have. False if the specification
 * cannot be met; *lacking (owned by the caller, may be NULL) lists what check=off left out.
 */
bool x86_cpu_resolve(const X86CpuSpec *spec, const X86FeatureSet *have, X86FeatureSet *result,
                     char **lacking, GError **err);
/* The bits of register @word that the guest may see: all of @result, and with max those without a name. */
uint32_t x86_word_mask(const X86CpuSpec *spec, const X86FeatureSet *result, X86Word word);
