/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* QEMU's names of remote images, as options. False with @err when they cannot be meant. */
#pragma once

#include "disk/options.h"

/* iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN */
bool block_uri_iscsi(const char *uri, json_t *options, GError **err);
/* nfs://HOST/EXPORT/FILE[?uid=N&gid=N&tcp-syncnt=N&readahead=N&pagecache=N&debug=N] */
bool block_uri_nfs(const char *uri, json_t *options, GError **err);
/* rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][:KEY=VALUE...]; a backslash escapes / @ : = and itself */
bool block_uri_rbd(const char *uri, json_t *options, GError **err);
