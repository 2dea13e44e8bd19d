/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The list of internal snapshots, as `info` and `snapshot -l` print it. */
#pragma once

#include "disk/image.h"

/* Nothing for an empty list. */
void image_print_snapshots(const BlockSnapshotInfo *snapshots, unsigned n);
