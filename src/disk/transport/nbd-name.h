/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD servers by name: what QEMU's tools take. */
#pragma once

#include "disk/options.h"

/*
 * "nbd://HOST[:PORT][/EXPORT]", "nbd+unix:///EXPORT?socket=PATH",
 * "nbd:HOST:PORT[:exportname=EXPORT]", "nbd:unix:PATH[:exportname=EXPORT]" as options of the
 * transport.
 */
bool nbd_name_parse(const char *name, json_t *options, GError **err);
/* The other way round; free it. @path is of a UNIX socket, or NULL. */
char *nbd_name_of(const char *path, const char *host, const char *port, const char *export);
