/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A writer for the part of AML that static tables need. ACPI Specification 6.5, chapter 20
 * (encoding) and section 6.4 (resource descriptors). Scopes nest: every call named *_begin is
 * closed by aml_end. Names are NameSegs of up to four characters, joined by '.', optionally
 * after '\'.
 */
#pragma once

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define AML_DEPTH_MAX 16

typedef struct Aml {
    GByteArray *bytes;
    struct {
        guint start; /* of the content whose length goes in front */
        bool resources;
    } open[AML_DEPTH_MAX];
    unsigned depth;
} Aml;

Aml *aml_new(void);
void aml_free(Aml *aml);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Aml, aml_free)

void aml_scope_begin(Aml *aml, const char *name);
void aml_device_begin(Aml *aml, const char *name);
void aml_method_begin(Aml *aml, const char *name, unsigned n_arguments);
void aml_package_begin(Aml *aml, uint8_t n_elements);
void aml_resources_begin(Aml *aml); /* a buffer of descriptors; aml_end adds the end tag */
void aml_end(Aml *aml);

void aml_name(Aml *aml, const char *name); /* Name(name, what is written next) */
void aml_int(Aml *aml, uint64_t value);
void aml_string(Aml *aml, const char *text);
void aml_eisaid(Aml *aml, const char *id); /* "PNP0A08" */
void aml_return_argument(Aml *aml, unsigned argument);

/* Resource descriptors. */
void aml_io(Aml *aml, uint16_t port, uint8_t count);
void aml_irq(Aml *aml, unsigned irq); /* edge, active high, not shared */
void aml_memory32(Aml *aml, uint32_t base, uint32_t size);
void aml_bus_range(Aml *aml, uint16_t first, uint16_t last);
void aml_port_range(Aml *aml, uint16_t first, uint16_t last);
void aml_memory_range32(Aml *aml, uint32_t first, uint32_t last);
void aml_memory_range64(Aml *aml, uint64_t first, uint64_t last, bool prefetchable);
