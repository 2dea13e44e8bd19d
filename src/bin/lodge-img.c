/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Disk images on the command line. */
#include "cli/image/image.h"

int main(int argc, char **argv)
{
    return image_main(argc, argv);
}
