/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lodge: the command line. */
#include <stdlib.h>

#include "base/standard-fds.h"
#include "cli/cli.h"

int main(int argc, char **argv)
{
    if (!standard_fds_open())
        return EXIT_FAILURE;
    return standard_output_end(cli_main(argc, argv));
}
