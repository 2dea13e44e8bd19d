/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The text form of VcpuTuning: "flush=7,chains=off". */
#include <stddef.h>

#include "base/error.h"
#include "vcpu/engine.h"

typedef struct TuningKey {
    const char *name;
    const char *word;     /* the value it must have; NULL: a number from 1 to max, if max is not 0 */
    uint32_t max;         /* 0 and no word: the key stands alone */
    size_t flag, number;  /* which member it sets */
} TuningKey;

#define FLAG(member) .flag = offsetof(VcpuTuning, member)
#define NUMBER(member) .number = offsetof(VcpuTuning, member)

static const TuningKey keys[] = {
    {"interpreter", NULL, 0, FLAG(interpreter)},
    {"kick", NULL, 0, FLAG(kick)},
    {"tlb", "1", 0, FLAG(tlb_one)},
    {"coalesce", "off", 0, FLAG(no_coalescing)},
    {"chains", "off", 0, FLAG(no_chains)},
    {"mirror", "off", 0, FLAG(no_mirror)},
    {"mirror", "now", 0, FLAG(mirror_now)},
    {"flush", NULL, 1u << 30, NUMBER(flush_blocks)},
    {"block", NULL, 64, NUMBER(block_ops)},
};

static bool apply(const TuningKey *key, const char *value, VcpuTuning *tuning)
{
    uint64_t n;
    if (key->max) {
        if (!value || !g_ascii_string_to_unsigned(value, 10, 1, key->max, &n, NULL))
            return false;
        *(uint32_t *)((char *)tuning + key->number) = (uint32_t)n;
        return true;
    }
    if (g_strcmp0(value, key->word) != 0)
        return false;
    *(bool *)((char *)tuning + key->flag) = true;
    return true;
}

static bool parse_word(char *word, VcpuTuning *tuning)
{
    char *value = strchr(word, '=');
    if (value)
        *value++ = '\0';
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++)
        if (strcmp(keys[i].name, word) == 0 && apply(&keys[i], value, tuning))
            return true;
    return false;
}

bool vcpu_tuning_parse(const char *text, VcpuTuning *tuning, GError **err)
{
    const char *first[] = {"", NULL};
    g_auto(GStrv) words = g_strsplit(text, ",", -1);
    for (char **w = *words ? words : (char **)first; *w; w++) {
        g_autofree char *word = g_strdup(*w);
        if (!parse_word(word, tuning))
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "'%s': a list of interpreter, kick, tlb=1, coalesce=off, chains=off, mirror=off, "
                              "mirror=now, flush=N and block=N (1 to 64)", *w);
    }
    return true;
}
