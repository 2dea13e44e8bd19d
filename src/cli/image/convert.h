/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Inside the command convert: what its files share. */
#pragma once

#include "cli/image/image.h"
#include "disk/copy/copy.h"

typedef struct Convert {
    ImageArguments arguments;
    const char *target, *target_format; /* format NULL: the target's own options say it */
    const char *backing, *backing_format;
    GPtrArray *texts;   /* of -o */
    GPtrArray *sources; /* BlockNode, owned */
    char *snapshot;
    bool no_create, target_image_opts, bitmaps, skip_broken, sparse_given, help;
    bool created; /* the target is a file that was made here */
    uint64_t size;
    BlockCopy copy;
    BlockNode *to;
    json_t *secrets; /* options that the target is opened with */
} Convert;

/* "lodge-img: warning: TEXT" */
void image_warn(const char *text);

/* convert-target.c. False after a message. */
bool image_convert_make_target(Convert *c);
bool image_convert_open_target(Convert *c);
bool image_convert_copy_bitmaps(Convert *c);
