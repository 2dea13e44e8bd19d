/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disk images on the command line. */
#include <stdlib.h>

#include "base/standard-fds.h"
#include "cli/image/image.h"

int main(int argc, char **argv)
{
    if (!standard_fds_open())
        return EXIT_FAILURE;
    return image_main(argc, argv);
}
