/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* lodge: the command line. */
#include "cli/cli.h"

int main(int argc, char **argv)
{
    return cli_main(argc, argv);
}
