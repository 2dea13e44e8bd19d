/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the plan share. */
#pragma once

#include "launch/plan.h"

typedef struct Plan {
    LaunchPlan *out;
    const Domain *domain;
    const LaunchOptions *options;
    GPtrArray *refused; /* strings */
    /* Arguments of --device by when they must come: bridges, those with a place of their own, the
     * rest, which take the places that are left. */
    GPtrArray *bridges, *placed, *others;
    unsigned n_drives, n_chardevs, n_netdevs, n_serials, n_virtio_serials;
    bool terminal_taken;
} Plan;

/* "FILE:LINE: WHAT: message" to the list; @what like "<sound model='ich9'>". */
void plan_refuse(Plan *plan, unsigned line, const char *what, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
void plan_warn(Plan *plan, unsigned line, const char *what, const char *format, ...)
    G_GNUC_PRINTF(4, 5);
void plan_note(Plan *plan, unsigned line, const char *what, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* One argument "--option TYPE,key=value,..." in the making; commas in values are doubled. */
typedef struct PlanItem {
    Plan *plan;
    const char *option;
    GString *text;
} PlanItem;
PlanItem plan_item(Plan *plan, const char *option, const char *type);
void plan_item_set(PlanItem *item, const char *key, const char *value);
void plan_item_set_uint(PlanItem *item, const char *key, uint64_t value);
void plan_item_done(PlanItem *item);
void plan_option(Plan *plan, const char *option, const char *value); /* @value NULL: none */

/* launch/domain-rows.c */
void plan_domain(Plan *plan);
/* launch/cpu-plan.c: <cpu>'s model and features */
void plan_cpu_model(Plan *plan);
/* launch/device-rows.c */
void plan_devices(Plan *plan);
/* launch/chardev-rows.c */
void plan_serial(Plan *plan, const DomainDevice *device);
void plan_console(Plan *plan, const DomainDevice *device);
void plan_channel(Plan *plan, const DomainDevice *device);
void plan_virtio_serial_controller(Plan *plan, const DomainDevice *device);
/* "<disk device='cdrom'>": the element with the attributes that tell it apart. Caller frees. */
char *plan_device_label(const DomainDevice *device);
void plan_pci_address(Plan *plan, PlanItem *item, const DomainAddress *address, const char *what);
