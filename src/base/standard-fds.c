/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/standard-fds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

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

int standard_output_end(int status)
{
    bool failed = ferror(stdout);
    errno = 0;
    if (fflush(stdout) == 0 && !failed)
        return status;
    log_error("cannot write to standard output: %s", strerror(errno ? errno : EIO));
    return status ? status : 1;
}
