/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/netdev/netdev-type.h"

const NetdevType *const netdev_types[] = {
    &netdev_type_user,
    &netdev_type_tap_fd,
    NULL,
};
