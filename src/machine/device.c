/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Devices: creation from a configuration item, options, state. */
#include "machine/device.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/machine-internal.h"

/* Every PCI device has it without a row of its own. */
static const DeviceOption pci_address_option = {
    .name = "addr",
    .type = OPTION_PCI_ADDRESS,
    .optional = true,
    .help = "slot on the PCI bus: BB:SS.F or SS.F",
};

static const DeviceOption *option_find(const DeviceType *type, const char *name)
{
    for (const DeviceOption *o = type->options; o && o->name; o++)
        if (g_str_equal(o->name, name))
            return o;
    return type->bus == DEVICE_BUS_PCI && g_str_equal(name, "addr") ? &pci_address_option : NULL;
}

static char *option_names(const DeviceType *type)
{
    GString *names = g_string_new(NULL);
    for (const DeviceOption *o = type->options; o && o->name; o++)
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", o->name);
    if (type->bus == DEVICE_BUS_PCI && !strstr(names->str, "addr"))
        g_string_append_printf(names, "%saddr", names->len ? ", " : "");
    return g_string_free(names, FALSE);
}

/* ---- values
 * ----------------------------------------------------------------------------------------- */

static bool parse_uint(const char *text, bool size, uint64_t *value)
{
    char *end;
    if (!g_ascii_isdigit(*text))
        return false;
    errno = 0;
    uint64_t v = g_ascii_strtoull(text, &end, text[0] == '0' && text[1] == 'x' ? 16 : 10);
    if (errno)
        return false;
    if (size && *end && !end[1]) {
        const char *units = "KMGT";
        const char *unit = strchr(units, g_ascii_toupper(*end));
        uint64_t factor = unit ? UINT64_C(1024) << (10 * (unit - units)) : 0;
        if (!unit || !mul_u64(v, factor, &v))
            return false;
        end++;
    }
    *value = v;
    return *end == '\0';
}

static bool parse_bool(const char *text, bool *value)
{
    static const char *const yes[] = {"on", "yes", "true", NULL};
    static const char *const no[] = {"off", "no", "false", NULL};
    *value = g_strv_contains(yes, text);
    return *value || g_strv_contains(no, text);
}

static bool is_mac(const char *text)
{
    for (unsigned i = 0; i < 17; i++)
        if (i % 3 == 2 ? text[i] != ':' : !g_ascii_isxdigit(text[i]))
            return false;
    return text[17] == '\0';
}

bool device_parse_pci_address(const char *text, unsigned *bus, unsigned *slot, unsigned *function)
{
    unsigned part[3] = {0}, n = 0;
    static const char separators[] = ":.";
    /* Without a bus the first part is the slot. */
    unsigned first = strchr(text, ':') ? 0 : 1;
    for (n = first; n < 3; n++) {
        char *end;
        if (!g_ascii_isxdigit(*text))
            return false;
        part[n] = (unsigned)strtoul(text, &end, 16);
        if (end - text > 2 || (n < 2 ? *end != separators[n] : *end != '\0'))
            return false;
        text = end + 1;
    }
    *bus = part[0];
    *slot = part[1];
    *function = part[2];
    return part[1] < 32 && part[2] < 8;
}

static bool check_value(const DeviceType *type, const DeviceOption *o, const char *value,
                        GError **err)
{
    uint64_t number = 0;
    bool flag;
    unsigned bus, slot, function;
    const char *wanted = NULL;
    switch (o->type) {
    case OPTION_STRING:
        break;
    case OPTION_BOOL:
        wanted = parse_bool(value, &flag) ? NULL : "on or off";
        break;
    case OPTION_UINT:
        wanted = parse_uint(value, false, &number) ? NULL : "a number";
        break;
    case OPTION_SIZE:
        wanted = parse_uint(value, true, &number) ? NULL : "a size in bytes, or with K, M, G or T";
        break;
    case OPTION_MAC:
        wanted = is_mac(value) ? NULL : "an Ethernet address such as 52:54:00:12:34:56";
        break;
    case OPTION_PCI_ADDRESS:
        wanted = device_parse_pci_address(value, &bus, &slot, &function)
                     ? NULL
                     : "a PCI address such as 00:03.0 or 03.0, in hexadecimal";
        break;
    }
    if (wanted)
        return lodge_fail(err, LODGE_ERROR_INVALID, "device %s: %s=%s: must be %s", type->name,
                          o->name, value, wanted);
    if ((o->type == OPTION_UINT || o->type == OPTION_SIZE) && (o->min || o->max) &&
        (number < o->min || number > o->max))
        return lodge_fail(err, LODGE_ERROR_INVALID,
                          "device %s: %s=%s: must be %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                          type->name, o->name, value, o->min, o->max);
    return true;
}

bool device_check_options(const DeviceType *type, const MachineItem *item, GError **err)
{
    for (unsigned i = 0; item && i < item->options->len; i++) {
        const MachineOption *given = &g_array_index(item->options, MachineOption, i);
        const DeviceOption *o = option_find(type, given->key);
        if (!o) {
            g_autofree char *names = option_names(type);
            return lodge_fail(err, LODGE_ERROR_INVALID, "device %s has no option '%s'; it has: %s",
                              type->name, given->key, *names ? names : "none");
        }
        if (!check_value(type, o, given->value, err))
            return false;
    }
    for (const DeviceOption *o = type->options; o && o->name; o++) {
        if (!o->fallback && !o->optional && !(item && machine_item_get(item, o->name)))
            return lodge_fail(err, LODGE_ERROR_INVALID, "device %s needs the option '%s' (%s)",
                              type->name, o->name, o->help ? o->help : "");
    }
    return true;
}

const char *device_option(const Device *dev, const char *name)
{
    const char *value = dev->item ? machine_item_get(dev->item, name) : NULL;
    if (value)
        return value;
    const DeviceOption *o = option_find(dev->type, name);
    return o ? o->fallback : NULL;
}

uint64_t device_option_uint(const Device *dev, const char *name)
{
    const char *value = device_option(dev, name);
    const DeviceOption *o = option_find(dev->type, name);
    uint64_t number = 0;
    if (!value || !parse_uint(value, o && o->type == OPTION_SIZE, &number))
        return 0;
    return number;
}

bool device_option_bool(const Device *dev, const char *name)
{
    const char *value = device_option(dev, name);
    bool flag = false;
    return value && parse_bool(value, &flag) && flag;
}

/* ---- life
 * ------------------------------------------------------------------------------------------------
 */

Device *device_new(Machine *m, const DeviceType *type, const MachineItem *item, GError **err)
{
    g_assert(type->instance_size >= sizeof(Device));
    if (!device_check_options(type, item, err))
        return NULL;
    if (item && item->id && machine_find_device(m, item->id)) {
        lodge_fail(err, LODGE_ERROR_EXISTS, "there are two devices with the id '%s'", item->id);
        return NULL;
    }
    Device *dev = g_malloc0(type->instance_size);
    dev->type = type;
    dev->machine = m;
    dev->item = item;
    dev->id = item ? g_strdup(item->id) : NULL;
    machine_lock(m);
    bool ok = type->realize(dev, err);
    if (ok)
        g_ptr_array_add(m->devices, dev);
    machine_unlock(m);
    if (!ok) {
        g_free(dev->id);
        g_free(dev);
        return NULL;
    }
    return dev;
}

void device_free(Device *dev)
{
    if (!dev)
        return;
    if (dev->type->unrealize)
        dev->type->unrealize(dev);
    g_free(dev->id);
    g_free(dev);
}

Device *machine_find_device(Machine *m, const char *id)
{
    for (unsigned i = 0; i < m->devices->len; i++) {
        Device *dev = m->devices->pdata[i];
        if (dev->id && g_str_equal(dev->id, id))
            return dev;
    }
    return NULL;
}

void machine_foreach_device(Machine *m, void (*f)(Device *dev, void *opaque), void *opaque)
{
    for (unsigned i = 0; i < m->devices->len; i++)
        f(m->devices->pdata[i], opaque);
}

/* ---- state
 * --------------------------------------------------------------------------------------------------
 */

void device_save(Device *dev, GByteArray *to)
{
    state_save(dev->type->state, dev, to);
}

bool device_load(Device *dev, const uint8_t *data, size_t size, GError **err)
{
    size_t used = 0;
    if (!state_load(dev->type->state, dev, data, size, &used, err))
        return false;
    if (used != size)
        return lodge_fail(err, LODGE_ERROR_CORRUPT,
                          "saved state of device %s is %zu bytes, %zu were expected",
                          dev->type->name, size, used);
    return !dev->type->state_loaded || dev->type->state_loaded(dev, err);
}
