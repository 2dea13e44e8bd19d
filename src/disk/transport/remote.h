/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The transports that are modules, as transports.c lists them. */
#pragma once

#include "disk/transport/transport.h"

extern const BlockTransport block_transport_http;
extern const BlockTransport block_transport_https;
extern const BlockTransport block_transport_ftp;
extern const BlockTransport block_transport_ftps;
extern const BlockTransport block_transport_iscsi;
extern const BlockTransport block_transport_nfs;
extern const BlockTransport block_transport_rbd;
extern const BlockTransport block_transport_ssh; /* refused by name */
