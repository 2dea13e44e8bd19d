/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A backup as a qcow2 image that holds what differs from the backup before, its backing file. */
#pragma once

#include "disk/image.h"

typedef struct BackupOverlay {
    BlockNode *source; /* nothing writes to it meanwhile */
    const char *target;            /* the new image; must not be there */
    const char *base, *base_format; /* the backup before, as the new image shall name it */
    const char *bitmap; /* what was written since then; NULL: both are read and compared */
    BlockProgress progress;
} BackupOverlay;

/* Until it is whole the new image has the name TARGET.partial; a failure removes it. */
bool backup_overlay(const BackupOverlay *what, GError **err);
