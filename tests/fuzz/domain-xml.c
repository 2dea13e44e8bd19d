/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Domain XML from anywhere: refused, or parsed, written and parsed again to the same; and either
 * refused at start or turned into a command line.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "config/domain.h"
#include "launch/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) err = NULL;
    g_autoptr(Domain) domain = domain_parse((const char *)data, size, "input", &err);
    if (!domain != !!err)
        abort();
    if (!domain)
        return 0;
    g_autofree char *first = domain_format(domain);
    g_autoptr(Domain) again = domain_parse(first, strlen(first), "written", &err);
    if (!again)
        abort();
    g_autofree char *second = domain_format(again);
    if (strcmp(first, second) != 0)
        abort();
    LaunchOptions options = {.terminal_console = true};
    g_autoptr(LaunchPlan) plan = launch_plan_new(domain, &options, &err);
    if (!plan != !!err)
        abort();
    return 0;
}
