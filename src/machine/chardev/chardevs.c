/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machine/chardev/chardev-type.h"

const ChardevType *const chardev_types[] = {
    &chardev_type_stdio,
    &chardev_type_file,
    &chardev_type_unix,
    &chardev_type_pty,
    &chardev_type_null,
    &chardev_type_fd,
    NULL,
};
