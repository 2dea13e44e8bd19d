/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/standard-fds.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

bool standard_fds_open(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
            continue;
        /* The lowest free number: those below are open. */
        if (open("/dev/null", O_RDWR) != fd)
            return false;
    }
    return true;
}
