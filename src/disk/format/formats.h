/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The formats that formats.c lists; each is one const struct of its own folder or file. */
#pragma once

#include "disk/node.h"

extern const BlockFormat block_format_bochs;
extern const BlockFormat block_format_cloop;
extern const BlockFormat block_format_dmg;
extern const BlockFormat block_format_luks;
extern const BlockFormat block_format_qcow1;
extern const BlockFormat block_format_parallels;
extern const BlockFormat block_format_qcow2;
extern const BlockFormat block_format_qed;
extern const BlockFormat block_format_raw;
extern const BlockFormat block_format_vdi;
extern const BlockFormat block_format_vhdx;
extern const BlockFormat block_format_vmdk;
extern const BlockFormat block_format_vpc;
