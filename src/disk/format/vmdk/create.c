/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* New VMDK images: the descriptor and its extents, under the names that qemu-img gives them. */
#include "base/bytes.h"
#include "base/error.h"
#include "disk/format/vmdk/vmdk.h"
#include "disk/transport/transport.h"

#include <errno.h>
#include <string.h>

#define TABLE_COVERS ((uint64_t)VMDK_TABLE_ENTRIES * VMDK_GRAIN_SECTORS * VMDK_SECTOR)

const BlockOption vmdk_create_options[] = {
    {"size", BLOCK_OPTION_SIZE, "Virtual disk size", NULL},
    {"adapter_type", BLOCK_OPTION_STRING,
     "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX", NULL},
    {"backing_file", BLOCK_OPTION_STRING, "File name of a base image", NULL},
    {"backing_fmt", BLOCK_OPTION_STRING, "Must be 'vmdk' if present", NULL},
    {"compat6", BLOCK_OPTION_BOOL, "VMDK version 6 image", "off"},
    {"hwversion", BLOCK_OPTION_STRING, "VMDK hardware version", "undefined"},
    {"toolsversion", BLOCK_OPTION_STRING, "VMware guest tools version", NULL},
    {"subformat", BLOCK_OPTION_STRING,
     "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | "
     "twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
     NULL},
    {"zeroed_grain", BLOCK_OPTION_BOOL,
     "Enable efficient zero writes using the zeroed-grain GTE feature", NULL},
    {NULL, 0, NULL, NULL},
};

/* What the options come to. */
typedef struct Plan {
    uint64_t size;
    const char *subformat, *adapter, *hardware, *tools;
    bool flat, split, compress, zero_grain;
    uint32_t parent_cid;
} Plan;

static const char *one_of(const char *text, const char *const *names, size_t count, GError **err)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(names[i], text ? text : names[0]))
            return names[i];
    }
    lodge_fail(err, LODGE_ERROR_INVALID, "invalid parameter value: %s", text);
    return NULL;
}

/* The first of each is the default. */
static bool choose(const BlockCreate *c, Plan *p, GError **err)
{
    static const char *const subformats[] = {"monolithicSparse", "monolithicFlat",
                                             "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
                                             "streamOptimized"};
    static const char *const adapters[] = {"ide", "buslogic", "lsilogic", "legacyESX"};
    p->adapter = one_of(block_option_string(c->options, NULL, "adapter_type"), adapters,
                        G_N_ELEMENTS(adapters), err);
    if (!p->adapter)
        return false;
    p->subformat = one_of(block_option_string(c->options, NULL, "subformat"), subformats,
                          G_N_ELEMENTS(subformats), err);
    if (!p->subformat)
        return false;
    p->split = g_str_has_prefix(p->subformat, "twoGb");
    p->flat = g_str_has_suffix(p->subformat, "Flat");
    p->compress = !strcmp(p->subformat, "streamOptimized");
    return true;
}

static bool make_plan(const BlockCreate *c, Plan *p, GError **err)
{
    bool compat6 = false;
    *p = (Plan){.size = align_up(c->size, VMDK_SECTOR), .parent_cid = VMDK_CID_NONE};
    if (c->backing && c->backing_format && strcmp(c->backing_format, "vmdk"))
        return lodge_fail(err, LODGE_ERROR_INVALID, "backing_file must be a vmdk image");
    if (!block_option_bool(c->options, NULL, "compat6", &compat6, err) ||
        !block_option_bool(c->options, NULL, "zeroed_grain", &p->zero_grain, err) ||
        !choose(c, p, err))
        return false;
    p->hardware = block_option_string(c->options, NULL, "hwversion");
    p->tools = block_option_string(c->options, NULL, "toolsversion");
    if (p->hardware && !strcmp(p->hardware, "undefined"))
        p->hardware = NULL;
    if (compat6 && p->hardware)
        return lodge_fail(err, LODGE_ERROR_INVALID, "compat6 cannot be enabled with hwversion set");
    if (!p->hardware)
        p->hardware = compat6 ? "6" : "4";
    if (!p->tools)
        p->tools = "2147483647";
    if (p->flat && c->backing)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Flat image can't have backing file");
    if (p->flat && p->zero_grain)
        return lodge_fail(err, LODGE_ERROR_UNSUPPORTED, "Flat image can't enable zeroed grain");
    if (!p->flat && !p->split && p->size / TABLE_COVERS >= GRAINS_TABLES_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The image size is too large for file format 'vmdk'");
    if (p->split && p->size / VMDK_SPLIT_BYTES >= VMDK_EXTENTS_MAX)
        return lodge_fail(err, LODGE_ERROR_LIMIT,
                          "The image size is too large for file format 'vmdk'");
    const char *texts[] = {p->hardware, p->tools, c->backing ? c->backing : ""};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        if (strpbrk(texts[i], "\"\r\n") || strlen(texts[i]) > 511)
            return lodge_fail(err, LODGE_ERROR_INVALID,
                              "'%s' cannot stand in a VMDK descriptor: at most 511 bytes, without "
                              "quotes or line ends, can",
                              texts[i]);
    }
    return true;
}

bool vmdk_create_check(const BlockCreate *c, GError **err)
{
    Plan plan;
    return make_plan(c, &plan, err);
}

static bool read_parent_cid(const BlockCreate *c, Plan *p, GError **err)
{
    if (!c->backing)
        return true;
    g_autofree char *path = block_reference_path(c->path, c->backing);
    BlockOpen open = {.path = path, .read_only = true, .no_backing = true, .shared = true,
                      .objects = c->objects};
    g_autoptr(BlockNode) parent = block_open(&open, err);
    if (!parent)
        return false;
    return vmdk_cid_of(parent, &p->parent_cid) ||
           lodge_fail(err, LODGE_ERROR_INVALID, "Invalid backing file format: %s. Must be vmdk",
                      block_format(parent));
}

static void put_directory(uint8_t *at, uint64_t first_table, uint64_t tables)
{
    for (uint64_t i = 0; i < tables; i++)
        le32_put(at + i * 4, (uint32_t)(first_table + i * 4)); /* a table has four sectors */
}

/* Header, room for a descriptor, the redundant directory and its tables, then the other ones. */
static int write_sparse(BlockFile *file, const Plan *p, uint64_t size)
{
    uint64_t grains = (size / VMDK_SECTOR + VMDK_GRAIN_SECTORS - 1) / VMDK_GRAIN_SECTORS;
    uint64_t tables = (grains + VMDK_TABLE_ENTRIES - 1) / VMDK_TABLE_ENTRIES;
    uint64_t directory = (tables * 4 + VMDK_SECTOR - 1) / VMDK_SECTOR;
    uint64_t redundant = VMDK_DESC_SECTOR + VMDK_DESC_SECTORS;
    uint64_t primary = redundant + directory + tables * 4;
    uint64_t overhead = align_up(primary + directory + tables * 4, VMDK_GRAIN_SECTORS);
    uint32_t flags = VMDK_FLAG_NEWLINES | VMDK_FLAG_REDUNDANT;
    g_autofree uint8_t *raw = g_try_malloc0(directory * VMDK_SECTOR + VMDK_HEADER_BYTES);
    if (!raw)
        return -ENOMEM;
    if (p->compress)
        flags |= VMDK_FLAG_COMPRESSED | VMDK_FLAG_MARKERS;
    if (p->zero_grain)
        flags |= VMDK_FLAG_ZERO_GRAIN;
    memcpy(raw + VMDK_MAGIC, "KDMV", 4);
    le32_put(raw + VMDK_VERSION, p->compress ? 3 : p->zero_grain ? 2 : 1);
    le32_put(raw + VMDK_FLAGS, flags);
    le64_put(raw + VMDK_CAPACITY, size / VMDK_SECTOR);
    le64_put(raw + VMDK_GRAIN_SIZE, VMDK_GRAIN_SECTORS);
    le64_put(raw + VMDK_DESC_OFFSET, VMDK_DESC_SECTOR);
    le64_put(raw + VMDK_DESC_SIZE, VMDK_DESC_SECTORS);
    le32_put(raw + VMDK_TABLE_SIZE, VMDK_TABLE_ENTRIES);
    le64_put(raw + VMDK_REDUNDANT, redundant);
    le64_put(raw + VMDK_DIRECTORY, primary);
    le64_put(raw + VMDK_OVERHEAD, overhead);
    memcpy(raw + VMDK_NEWLINES, "\n \r\n", 4);
    le16_put(raw + VMDK_COMPRESSION, p->compress ? VMDK_DEFLATE : 0);
    int result = file->block_device ? file->ops->zero(file, 0, overhead * VMDK_SECTOR, true)
                                    : file->ops->truncate(file, overhead * VMDK_SECTOR);
    if (result == 0)
        result = block_file_write(file, 0, raw, VMDK_HEADER_BYTES);
    memset(raw, 0, VMDK_HEADER_BYTES);
    put_directory(raw, redundant + directory, tables);
    if (result == 0)
        result = block_file_write(file, redundant * VMDK_SECTOR, raw, directory * VMDK_SECTOR);
    put_directory(raw, primary + directory, tables);
    if (result == 0)
        result = block_file_write(file, primary * VMDK_SECTOR, raw, directory * VMDK_SECTOR);
    return result;
}

static bool init_extent(BlockFile *file, const Plan *p, uint64_t size, GError **err)
{
    int result = p->flat ? file->ops->truncate(file, size) : write_sparse(file, p, size);
    return result == 0 || lodge_fail_errno(err, -result, "%s: cannot write the extent", file->path);
}

/* folder/name.vmdk, 3 -> folder/name-s003.vmdk; a whole flat one is folder/name-flat.vmdk. */
static char *extent_path(const char *path, const Plan *p, unsigned number)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    int stem = (int)(dot ? dot - path : (gssize)strlen(path));
    if (!p->split)
        return g_strdup_printf("%.*s-flat%s", stem, path, dot ? dot : "");
    return g_strdup_printf("%.*s-%c%03u%s", stem, path, p->flat ? 'f' : 's', number,
                           dot ? dot : "");
}

static void add_line(GString *lines, const Plan *p, uint64_t size, const char *path)
{
    g_autofree char *name = g_path_get_basename(path);
    g_string_append_printf(lines, "RW %" G_GUINT64_FORMAT " %s \"%s\"%s\n", size / VMDK_SECTOR,
                           p->flat ? "FLAT" : "SPARSE", name, p->flat ? " 0" : "");
}

static bool make_extents(BlockFile *file, const BlockCreate *c, const Plan *p, GString *lines,
                         GError **err)
{
    if (!p->split && !p->flat) {
        add_line(lines, p, p->size, c->path);
        return init_extent(file, p, p->size, err);
    }
    uint64_t most = p->split ? VMDK_SPLIT_BYTES : p->size;
    unsigned number = 1;
    for (uint64_t done = 0; done < p->size; number++) {
        uint64_t part = MIN(p->size - done, most);
        g_autofree char *path = extent_path(c->path, p, number);
        g_autoptr(BlockFile) extent = block_transport_create(path, 0, c->objects, err);
        if (!extent || !init_extent(extent, p, part, err))
            return false;
        add_line(lines, p, part, path);
        done += part;
    }
    return true;
}

static char *describe(const BlockCreate *c, const Plan *p, const GString *lines)
{
    unsigned heads = strcmp(p->adapter, "ide") ? 255 : 16; /* as VMware has them */
    uint64_t cylinders = p->size / (63ull * heads * VMDK_SECTOR);
    g_autofree char *parent =
        c->backing ? g_strdup_printf("parentFileNameHint=\"%s\"", c->backing) : g_strdup("");
    return g_strdup_printf("# Disk DescriptorFile\n"
                           "version=1\n"
                           "CID=%08x\n"
                           "parentCID=%x\n"
                           "createType=\"%s\"\n"
                           "%s\n"
                           "# Extent description\n"
                           "%s\n"
                           "# The Disk Data Base\n"
                           "#DDB\n"
                           "\n"
                           "ddb.virtualHWVersion = \"%s\"\n"
                           "ddb.geometry.cylinders = \"%" G_GUINT64_FORMAT "\"\n"
                           "ddb.geometry.heads = \"%u\"\n"
                           "ddb.geometry.sectors = \"63\"\n"
                           "ddb.adapterType = \"%s\"\n"
                           "ddb.toolsVersion = \"%s\"\n",
                           g_random_int_range(0, G_MAXINT32), p->parent_cid, p->subformat, parent,
                           lines->str, p->hardware, cylinders, heads,
                           p->adapter, p->tools);
}

bool vmdk_create(BlockFile *file, const BlockCreate *c, GError **err)
{
    Plan plan;
    g_autoptr(GString) lines = g_string_new(NULL);
    if (!make_plan(c, &plan, err) || !read_parent_cid(c, &plan, err) ||
        !make_extents(file, c, &plan, lines, err))
        return false;
    g_autofree char *text = describe(c, &plan, lines);
    bool apart = plan.split || plan.flat;
    uint64_t at = apart ? 0 : (uint64_t)VMDK_DESC_SECTOR * VMDK_SECTOR;
    size_t length = strlen(text);
    if (!apart && length > (size_t)VMDK_DESC_SECTORS * VMDK_SECTOR)
        return lodge_fail(err, LODGE_ERROR_LIMIT, "%s: its descriptor is too long", c->path);
    int result = block_file_write(file, at, text, length);
    return result == 0 || lodge_fail_errno(err, -result, "Could not write description");
}
