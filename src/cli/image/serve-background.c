/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A server in the background: the command line comes back once clients can connect. */
#include "cli/image/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Passes on what the child has to say until it is ready or gone; the exit status. */
static int wait_for(pid_t child, int from)
{
    char text[1024];
    bool said = false;
    ssize_t got;
    while ((got = read(from, text, sizeof(text))) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            break;
        if (text[got - 1] == '\0') /* the sign that it serves */
            return got > 1 ? (int)(write(STDERR_FILENO, text, (size_t)got - 1) < 0) : 0;
        said |= write(STDERR_FILENO, text, (size_t)got) > 0;
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (!said)
        image_fail("the server in the background died");
    return 1;
}

bool serve_fork(ServeBackground *background, bool verbose)
{
    int ends[2], null;
    if (pipe2(ends, O_CLOEXEC) < 0) {
        image_fail("Error setting up communication pipe: %s", g_strerror(errno));
        return false;
    }
    pid_t child = fork();
    if (child < 0) {
        image_fail("Failed to fork: %s", g_strerror(errno));
        return false;
    }
    if (child > 0) {
        close(ends[1]);
        _exit(wait_for(child, ends[0]));
    }
    close(ends[0]);
    setsid();
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    background->old_stderr = verbose ? fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3) : -1;
    background->ready = ends[1];
    if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(ends[1], STDERR_FILENO) < 0) {
        image_fail("Failed to daemonize: %s", g_strerror(errno));
        return false;
    }
    close(null);
    return true;
}

void serve_is_ready(ServeBackground *background)
{
    if (background->ready < 0)
        return;
    ssize_t put = write(background->ready, "", 1);
    (void)put; /* a parent that is gone does not wait */
    close(background->ready);
    dup2(STDIN_FILENO, STDOUT_FILENO); /* /dev/null */
    dup2(background->old_stderr >= 0 ? background->old_stderr : STDIN_FILENO, STDERR_FILENO);
    if (background->old_stderr >= 0)
        close(background->old_stderr);
    background->ready = background->old_stderr = -1;
}
