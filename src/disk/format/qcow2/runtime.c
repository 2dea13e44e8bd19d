/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options that tune QEMU's driver: sizes of its caches, which overlaps it looks for, when it
 * writes refcounts. They are looked at as QEMU does; nothing here depends on them: the caches have
 * a bound of their own, every overlap is looked for, refcounts are written with each change.
 */
#include "base/error.h"
#include "disk/format/qcow2/qcow2.h"

#include <string.h>

static bool check_switches(const json_t *options, GError **err)
{
    static const char *const names[] = {"lazy-refcounts", "pass-discard-request",
                                        "pass-discard-snapshot", "pass-discard-other"};
    bool value = false;
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        if (!block_option_bool(options, NULL, names[i], &value, err))
            return false;
    }
    return true;
}

static bool check_caches(const Qcow2 *q, const json_t *options, GError **err)
{
    uint64_t all = UINT64_MAX, l2 = 0, refcounts = 0, entry = q->cluster_size, interval = 0;
    if (!block_option_size(options, NULL, "cache-size", &all, err) ||
        !block_option_size(options, NULL, "l2-cache-size", &l2, err) ||
        !block_option_size(options, NULL, "refcount-cache-size", &refcounts, err) ||
        !block_option_size(options, NULL, "l2-cache-entry-size", &entry, err))
        return false;
    if (block_option_given(options, "cache-size") && block_option_given(options, "l2-cache-size") &&
        block_option_given(options, "refcount-cache-size"))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "cache-size, l2-cache-size and refcount-cache-size may not be set at the "
                          "same time");
    if (l2 > all || refcounts > all)
        return lodge_fail(err, LODGE_ERROR_INVALID, "%s may not exceed cache-size",
                          l2 > all ? "l2-cache-size" : "refcount-cache-size");
    if (entry < 512 || entry > q->cluster_size || (entry & (entry - 1)))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "L2 cache entry size must be a power of two between 512 and the cluster "
                          "size (%" G_GUINT64_FORMAT ")",
                          q->cluster_size);
    if (refcounts / q->cluster_size > INT32_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Refcount cache size too big");
    if (!block_option_given(options, "cache-clean-interval"))
        return true;
    if (!block_option_number(options, NULL, "cache-clean-interval", &interval, NULL) ||
        interval > UINT32_MAX)
        return lodge_fail(err, LODGE_ERROR_INVALID, "Cache clean interval too big");
    return true;
}

static bool check_overlap(const json_t *options, GError **err)
{
    static const char *const known[] = {"none", "constant", "cached", "all", NULL};
    const json_t *value = json_object_get(options, "overlap-check");
    const char *template = json_is_object(value) ? block_option_string(value, NULL, "template")
                                                 : json_string_value(value);
    if (template && !g_strv_contains(known, template))
        return lodge_fail(
            err, LODGE_ERROR_INVALID,
            "Unsupported value '%s' for qcow2 option 'overlap-check'. Allowed are any "
            "of the following: none, constant, cached, all",
            template);
    return true;
}

bool qcow2_runtime_check(const Qcow2 *q, const json_t *options, GError **err)
{
    return !options || (check_switches(options, err) && check_caches(q, options, err) &&
                        check_overlap(options, err));
}
