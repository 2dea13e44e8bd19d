/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <libxml/parser.h>
#include <libxml/relaxng.h>
#include <string.h>

#include "base/error.h"
#include "config/domain.h"

#define SCHEMA_FILE "/usr/share/libvirt/schemas/domain.rng"

static char *golden_dir;

#define MINIMAL_OPEN                                                                               \
    "<domain type='kvm'><name>g</name><memory unit='MiB'>64</memory>"                              \
    "<os><type arch='x86_64' machine='q35'>hvm</type></os>"

#define MINIMAL(more)                                                                              \
    "<domain type='kvm'><name>g</name><memory unit='MiB'>64</memory>"                              \
    "<os><type arch='x86_64' machine='q35'>hvm</type></os>" more "</domain>"

static Domain *parse_good(const char *xml)
{
    g_autoptr(GError) err = NULL;
    Domain *domain = domain_parse(xml, strlen(xml), "t.xml", &err);
    g_assert_no_error(err);
    g_assert_nonnull(domain);
    return domain;
}

static void expect_error(const char *xml, const char *needle)
{
    g_autoptr(GError) err = NULL;
    Domain *domain = domain_parse(xml, strlen(xml), "t.xml", &err);
    g_assert_null(domain);
    g_assert_nonnull(err);
    if (!strstr(err->message, needle) || !g_str_has_prefix(err->message, "t.xml:"))
        g_error("'%s' lacks '%s'", err->message, needle);
}

/* ---- golden files: NAME.xml is read, NAME.out.xml (or itself) must come out. */

static void check_equal_meaning(const char *before, const char *after, const char *name)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *where = NULL;
    g_autoptr(ConfigNode) a = config_node_parse(before, strlen(before), name, &err);
    g_assert_no_error(err);
    g_autoptr(ConfigNode) b = config_node_parse(after, strlen(after), name, &err);
    g_assert_no_error(err);
    if (!config_node_equal(a, b, &where))
        g_error("%s: differs after a round trip at %s:\n%s", name, where, after);
}

static void test_golden_one(const char *name)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *path = g_build_filename(golden_dir, name, NULL);
    g_autofree char *input = NULL, *expected = NULL;
    g_assert_true(g_file_get_contents(path, &input, NULL, &err));
    g_autoptr(Domain) domain = domain_parse_file(path, &err);
    g_assert_no_error(err);
    g_autofree char *output = domain_format(domain);

    g_autofree char *base = g_strndup(name, strlen(name) - 4);
    g_autofree char *out_name = g_strconcat(base, ".out.xml", NULL);
    g_autofree char *out_path = g_build_filename(golden_dir, out_name, NULL);
    if (g_getenv("UPDATE_GOLDEN") && strcmp(output, input) != 0)
        g_assert_true(g_file_set_contents(out_path, output, -1, &err));
    bool own = g_file_test(out_path, G_FILE_TEST_EXISTS);
    g_assert_true(g_file_get_contents(own ? out_path : path, &expected, NULL, &err));
    g_assert_cmpstr(output, ==, expected);
    if (!own)
        check_equal_meaning(input, output, name);
    /* What was written means the same again. */
    g_autoptr(Domain) again = domain_parse(output, strlen(output), "written", &err);
    g_assert_no_error(err);
    g_autofree char *twice = domain_format(again);
    g_assert_cmpstr(twice, ==, output);
}

static void test_golden(void)
{
    g_autoptr(GDir) dir = g_dir_open(golden_dir, 0, NULL);
    unsigned n = 0;
    g_assert_nonnull(dir);
    for (const char *name; (name = g_dir_read_name(dir));) {
        if (!g_str_has_suffix(name, ".xml") || g_str_has_suffix(name, ".out.xml"))
            continue;
        test_golden_one(name);
        n++;
    }
    g_assert_cmpuint(n, >=, 4);
}

static void ignore_message(void *opaque, const char *format, ...)
{
}

static void test_schema(void)
{
    if (!g_file_test(SCHEMA_FILE, G_FILE_TEST_EXISTS)) {
        g_test_skip(SCHEMA_FILE " is not installed (package libvirt-daemon or libvirt0)");
        return;
    }
    xmlRelaxNGParserCtxtPtr parser = xmlRelaxNGNewParserCtxt(SCHEMA_FILE);
    xmlRelaxNGSetParserErrors(parser, ignore_message, ignore_message, NULL);
    xmlRelaxNGPtr schema = xmlRelaxNGParse(parser);
    g_assert_nonnull(schema);
    static const char *const names[] = {"debian9_libvirt.xml", "direct-boot.xml", "everything.xml"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) err = NULL;
        g_autofree char *path = g_build_filename(golden_dir, names[i], NULL);
        g_autoptr(Domain) domain = domain_parse_file(path, &err);
        g_assert_no_error(err);
        g_autofree char *xml = domain_format(domain);
        xmlDocPtr doc = xmlReadMemory(xml, (int)strlen(xml), NULL, NULL, XML_PARSE_NONET);
        xmlRelaxNGValidCtxtPtr valid = xmlRelaxNGNewValidCtxt(schema);
        int result = xmlRelaxNGValidateDoc(valid, doc);
        if (result != 0)
            g_error("%s does not validate against libvirt's schema after a round trip:\n%s",
                    names[i], xml);
        xmlRelaxNGFreeValidCtxt(valid);
        xmlFreeDoc(doc);
    }
    xmlRelaxNGFree(schema);
    xmlRelaxNGFreeParserCtxt(parser);
}

static void test_fixture_values(void)
{
    g_autoptr(GError) err = NULL;
    g_autofree char *path = g_build_filename(golden_dir, "debian9_libvirt.xml", NULL);
    g_autoptr(Domain) domain = domain_parse_file(path, &err);
    g_assert_no_error(err);
    g_assert_cmpstr(domain->name, ==, "debian9_libvirt");
    g_assert_cmpstr(domain->uuid, ==, "666d89b9-0c92-4b61-b152-20420345e83d");
    g_assert_false(domain->uuid_generated);
    uint8_t uuid[16];
    domain_uuid_bytes(domain, uuid);
    g_assert_cmpuint(uuid[0], ==, 0x66);
    g_assert_cmpuint(uuid[15], ==, 0x3d);
    g_assert_cmpuint(domain->memory->kib, ==, 524288);
    g_assert_cmpint(domain->vcpu->count, ==, 1);
    g_assert_cmpstr(domain->os->type->machine, ==, "pc-q35-4.2");
    g_assert_true(domain->features->acpi);
    g_assert_cmpuint(domain->clock->timers->len, ==, 3);
    g_assert_cmpuint(domain->unknown->len, ==, 0);
    g_assert_cmpuint(domain->devices.list->len, ==, 28);
    const DomainDevice *first = domain->devices.list->pdata[0];
    const DomainDisk *disk = first->object;
    g_assert_cmpstr(disk->source->file, ==, "/var/lib/libvirt/images/debian9_libvirt.qcow2");
    DomainPciAddress pci;
    g_assert_true(domain_pci_address(disk->address, &pci));
    g_assert_cmpuint(pci.bus, ==, 4);
    g_assert_cmpuint(first->line, ==, 36);
}

static void test_units(void)
{
    static const struct {
        const char *text, *unit;
        uint64_t kib;
    } good[] = {
        {"1", NULL, 1},       {"1024", "b", 1},       {"1025", "bytes", 2},
        {"1000", "KB", 977},  {"3", "k", 3},          {"3", "KiB", 3},
        {"1", "MB", 977},     {"1", "M", 1024},       {"2", "MiB", 2048},
        {"1", "GB", 976563},  {"1", "G", 1 << 20},    {" 0x10 ", "GiB", 16 << 20},
        {"1", "T", 1u << 30}, {"1", "TB", 976562500}, {"0", "EiB", 0},
    };
    uint64_t kib;
    for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
        g_assert_true(config_parse_kib(good[i].text, good[i].unit, &kib));
        g_assert_cmpuint(kib, ==, good[i].kib);
    }
    g_assert_false(config_parse_kib("-1", "KiB", &kib));
    g_assert_false(config_parse_kib("1.5", "GiB", &kib));
    g_assert_false(config_parse_kib("16", "EiB", &kib));
    g_assert_false(config_parse_kib("1", "XB", &kib));
    g_assert_false(config_parse_kib("1", "Kx", &kib));
    g_assert_false(config_parse_kib("", "KiB", &kib));
    g_assert_false(config_parse_kib("99999999999999999999", "b", &kib));
}

static void test_defaults(void)
{
    g_autoptr(Domain) domain = parse_good(MINIMAL(""));
    g_assert_true(domain->uuid_generated);
    g_assert_true(g_uuid_string_is_valid(domain->uuid));
    g_assert_cmpint(domain->vcpu->count, ==, 1);
    g_assert_cmpuint(domain->current_memory->kib, ==, 65536);
}

static bool has_unknown(const Domain *domain, const char *path)
{
    for (guint i = 0; i < domain->unknown->len; i++)
        if (strcmp(((ConfigUnknown *)domain->unknown->pdata[i])->path, path) == 0)
            return true;
    return false;
}

static void test_unknown(void)
{
    g_autoptr(Domain) domain =
        parse_good(MINIMAL("<frob a='1'><x/></frob><vcpu wibble='2'>3</vcpu><memtune/>"
                           "<title lang='en'>t</title><clock offset='utc'><flux/></clock>"
                           "<devices><gizmo/><disk type='file' colour='red'><target dev='vda'/>"
                           "<sheen/></disk></devices>"));
    static const char *const paths[] = {"domain/frob",
                                        "domain/vcpu/@wibble",
                                        "domain/memtune",
                                        "domain/title/@lang",
                                        "domain/clock/flux",
                                        "domain/devices/gizmo",
                                        "domain/devices/disk[1]/@colour",
                                        "domain/devices/disk[1]/sheen"};
    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++)
        if (!has_unknown(domain, paths[i]))
            g_error("%s is not in the list of what is unknown", paths[i]);
    g_assert_cmpuint(domain->unknown->len, ==, G_N_ELEMENTS(paths));
    g_autofree char *out = domain_format(domain);
    g_assert_nonnull(strstr(out, "  <frob a='1'>\n    <x/>\n  </frob>\n"));
    g_assert_nonnull(strstr(out, "<vcpu wibble='2'>3</vcpu>"));
    g_assert_nonnull(strstr(out, "<title lang='en'>t</title>"));
    g_assert_nonnull(strstr(out, "<clock offset='utc'>\n    <flux/>"));
    g_assert_nonnull(strstr(out, "<devices>\n    <gizmo/>\n"));
    g_assert_nonnull(strstr(out, "<sheen/>"));
    g_assert_nonnull(strstr(out, "colour='red'"));
}

static void test_errors(void)
{
    expect_error("", "t.xml:1: the document is empty");
    expect_error("<domain", "t.xml:1:");
    expect_error("<network/>", "described by <domain>");
    expect_error("<domain type='kvm'/>", "element name is missing");
    expect_error("<domain type='wine'/>", "domain: element name is missing");
    expect_error(MINIMAL("<name>h</name>"), "domain/name");
    expect_error(MINIMAL("<vcpu>0</vcpu>"), "at least one vCPU");
    expect_error(MINIMAL("<vcpu current='4'>2</vcpu>"), "more than the maximum");
    expect_error(MINIMAL("\n<uuid>nonsense</uuid>"),
                 "t.xml:2: domain/uuid: 'nonsense' is not a UUID");
    expect_error(MINIMAL("<on_reboot>maybe</on_reboot>"), "not one of: destroy, restart");
    expect_error(MINIMAL("<clock offset='timezone'/>"), "needs attribute timezone");
    expect_error(MINIMAL("<devices><disk/></devices>"), "domain/devices/disk[1]: element target");
    expect_error(MINIMAL("<devices><disk><target dev='a'/><address type='pci' slot='0x20'/></disk>"
                         "</devices>"),
                 "slot 0 to 0x1f");
    expect_error(MINIMAL("<devices><interface type='user'><mac address='01:00:00:00:00:00'/>"
                         "</interface></devices>"),
                 "multicast");
    expect_error("<domain type='kvm'><name>a/b</name><memory>1</memory><os><type>hvm</type></os>"
                 "</domain>",
                 "'/' and control characters");
    expect_error("<domain type='kvm'><name>a</name><memory unit='cups'>1</memory><os><type>hvm"
                 "</type></os></domain>",
                 "unit 'cups' is not one of");
}

static void test_hostile(void)
{
    expect_error("<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>", "DOCTYPE is not allowed");
    expect_error("<!DOCTYPE d SYSTEM 'http://192.0.2.1/x.dtd'><domain/>", "DOCTYPE is not allowed");
    expect_error("<domain>\xff</domain>", "not UTF-8");
    expect_error("<domain>&nope;</domain>", "t.xml:1:");
    expect_error("<x:domain/>", "t.xml:1:");

    g_autoptr(GString) deep = g_string_new(NULL);
    for (unsigned i = 0; i < CONFIG_DEPTH_MAX + 1; i++)
        g_string_append(deep, "<a>");
    for (unsigned i = 0; i < CONFIG_DEPTH_MAX + 1; i++)
        g_string_append(deep, "</a>");
    expect_error(deep->str, "inside each other");

    g_autoptr(GString) wide = g_string_new("<domain");
    for (unsigned i = 0; i < CONFIG_ATTRIBUTES_MAX + 1; i++)
        g_string_append_printf(wide, " a%u=''", i);
    g_string_append(wide, "/>");
    expect_error(wide->str, "attributes");

    g_autoptr(GString) many = g_string_new("<domain>");
    for (unsigned i = 0; i < CONFIG_NODES_MAX; i++)
        g_string_append(many, "<a/>");
    g_string_append(many, "</domain>");
    expect_error(many->str, "elements and attributes");

    /* Many of one list behind many of something else: linear, not quadratic. */
    g_autoptr(GString) mixed = g_string_new(NULL);
    for (unsigned i = 0; i < CONFIG_NODES_MAX / 4; i++)
        g_string_append(mixed, "<a/>");
    for (unsigned i = 0; i < CONFIG_NODES_MAX / 4; i++)
        g_string_append(mixed, "<feature name='x'/>");
    g_autofree char *cpu = g_strdup_printf(
        "<domain type='kvm'><name>g</name><memory>64</memory><os><type>hvm</type></os><cpu>%s</cpu>"
        "</domain>",
        mixed->str);
    gint64 start_us = g_get_monotonic_time();
    g_autoptr(Domain) linear = parse_good(cpu);
    g_assert_cmpuint(linear->cpu->features->len, ==, CONFIG_NODES_MAX / 4);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 5 * G_USEC_PER_SEC);

    g_autoptr(GString) crowd = g_string_new(MINIMAL_OPEN "<devices>");
    for (unsigned i = 0; i < 1025; i++)
        g_string_append(crowd, "<sound model='ich9'/>");
    g_string_append(crowd, "</devices></domain>");
    expect_error(crowd->str, "more than 1024 devices");

    g_autofree char *big = g_malloc0(CONFIG_DOCUMENT_MAX + 1);
    g_autoptr(GError) err = NULL;
    g_assert_null(domain_parse(big, CONFIG_DOCUMENT_MAX + 1, "t.xml", &err));
    g_assert_error(err, LODGE_ERROR, LODGE_ERROR_LIMIT);
}

static void test_escaping(void)
{
    g_autoptr(Domain) domain =
        parse_good(MINIMAL("<title>a &lt; b &amp; \"c\" 'd' \xc3\xa9</title>"
                           "<metadata><m:x xmlns:m='urn:m' q=\"'&quot;\">t <m:b>o</m:b> u</m:x>"
                           "</metadata>"));
    g_assert_cmpstr(domain->title, ==, "a < b & \"c\" 'd' \xc3\xa9");
    g_autofree char *out = domain_format(domain);
    g_assert_nonnull(
        strstr(out, "<title>a &lt; b &amp; &quot;c&quot; &apos;d&apos; \xc3\xa9</title>"));
    g_assert_nonnull(strstr(out, "<m:x xmlns:m=\"urn:m\" q=\"'&quot;\">t <m:b>o</m:b> u</m:x>"));
    g_autoptr(Domain) again = parse_good(out);
    g_assert_cmpstr(again->title, ==, domain->title);
}

static void test_kinds(void)
{
    unsigned n = 0;
    for (const DomainDeviceKind *kind = domain_device_kinds; kind->element; kind++, n++)
        g_assert_true(domain_device_kind_find(kind->element) == kind);
    g_assert_cmpuint(n, <=, 64);
    g_autoptr(Domain) domain = domain_new("x", 1024, 2);
    DomainDisk *disk = domain_add_device(domain, "disk");
    disk->target = config_object_new(&domain_disk_target_schema);
    disk->target->dev = g_strdup("vda");
    g_assert_cmpuint(domain->devices.list->len, ==, 1);
    domain_remove_device(domain, domain->devices.list->pdata[0]);
    g_assert_cmpuint(domain->devices.list->len, ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    golden_dir = g_build_filename(g_getenv("LODGE_SOURCE"), "tests/golden/domain", NULL);
    g_test_add_func("/config/golden", test_golden);
    g_test_add_func("/config/schema", test_schema);
    g_test_add_func("/config/fixture-values", test_fixture_values);
    g_test_add_func("/config/units", test_units);
    g_test_add_func("/config/defaults", test_defaults);
    g_test_add_func("/config/unknown", test_unknown);
    g_test_add_func("/config/errors", test_errors);
    g_test_add_func("/config/hostile", test_hostile);
    g_test_add_func("/config/escaping", test_escaping);
    g_test_add_func("/config/kinds", test_kinds);
    int status = g_test_run();
    g_free(golden_dir);
    return status;
}
