/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disk images on the command line. */
#include <stdlib.h>

#include "base/log.h"
#include "base/standard-fds.h"
#include "cli/image/image.h"

int main(int argc, char **argv)
{
    if (!standard_fds_open())
        return EXIT_FAILURE;
    log_set_program("lodge-img");
    return standard_output_end(image_main(argc, argv));
}
