/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/balloon.h"

#include "base/error.h"

typedef struct Balloon {
    Machine *machine;
    const MachineBalloonOps *ops;
    void *opaque;
} Balloon;

/* One row a machine; the lock guards the table, the machine lock the rows' use. */
static GMutex table_lock;
static GArray *table;

static bool find(Machine *m, Balloon *found)
{
    bool ok = false;
    g_mutex_lock(&table_lock);
    for (guint i = 0; table && i < table->len; i++) {
        Balloon *b = &g_array_index(table, Balloon, i);
        if (b->machine == m) {
            *found = *b;
            ok = true;
            break;
        }
    }
    g_mutex_unlock(&table_lock);
    return ok;
}

bool machine_balloon_register(Machine *m, const MachineBalloonOps *ops, void *opaque, GError **err)
{
    Balloon b;
    if (find(m, &b))
        return lodge_fail(err, LODGE_ERROR_EXISTS, "the machine has a balloon already");
    b = (Balloon){m, ops, opaque};
    g_mutex_lock(&table_lock);
    if (!table)
        table = g_array_new(FALSE, FALSE, sizeof(Balloon));
    g_array_append_val(table, b);
    g_mutex_unlock(&table_lock);
    return true;
}

void machine_balloon_unregister(Machine *m, void *opaque)
{
    g_mutex_lock(&table_lock);
    for (guint i = 0; table && i < table->len; i++) {
        Balloon *b = &g_array_index(table, Balloon, i);
        if (b->machine == m && b->opaque == opaque) {
            g_array_remove_index_fast(table, i);
            break;
        }
    }
    if (table && table->len == 0)
        g_clear_pointer(&table, g_array_unref);
    g_mutex_unlock(&table_lock);
}

bool machine_balloon_set(Machine *m, uint64_t bytes, GError **err)
{
    Balloon b;
    if (!find(m, &b))
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "no balloon device has been activated");
    return b.ops->set_target(b.opaque, bytes, err);
}

bool machine_balloon_actual(Machine *m, uint64_t *bytes, GError **err)
{
    Balloon b;
    if (!find(m, &b))
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "no balloon device has been activated");
    *bytes = b.ops->actual(b.opaque);
    return true;
}

bool machine_balloon_stats(Machine *m, MachineBalloonStats *stats, GError **err)
{
    Balloon b;
    if (!find(m, &b))
        return lodge_fail(err, LODGE_ERROR_NOT_FOUND, "no balloon device has been activated");
    if (!b.ops->stats(b.opaque, stats))
        return lodge_fail(err, LODGE_ERROR_STATE, "the guest has told no memory statistics yet");
    return true;
}
