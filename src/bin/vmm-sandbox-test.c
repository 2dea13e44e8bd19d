/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the sandbox keeps from a process that was taken over, and what it leaves to it. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bin/vmm-sandbox.h"

static bool try_open(void)
{
    return open("/dev/null", O_RDONLY) >= 0 || errno != EPERM;
}

static bool try_write_file(void)
{
    return open("/dev/null", O_WRONLY) >= 0 || errno != EPERM;
}

static bool try_exec(void)
{
    char *const argv[] = {(char *)"true", NULL};
    execv("/bin/true", argv);
    return errno != EPERM;
}

static bool try_ptrace(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0 || errno != EPERM;
}

static bool try_other_memory(void)
{
    struct iovec piece = {&piece, 1};
    return process_vm_writev(getpid(), &piece, 1, &piece, 1, 0) >= 0 || errno != EPERM;
}

static bool try_socket(void)
{
    return socket(AF_UNIX, SOCK_STREAM, 0) >= 0 || errno != EPERM;
}

static bool try_fork(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid > 0 || errno != EPERM;
}

static bool try_typing(void)
{
    char key = ' ';
    return ioctl(STDIN_FILENO, TIOCSTI, &key) == 0 || errno != EPERM;
}

/* The kernel does not look at the upper half of a request. */
static bool try_typing_wide(void)
{
    char key = ' ';
    return ioctl(STDIN_FILENO, (1ul << 32) | TIOCSTI, &key) == 0 || errno != EPERM;
}

static bool try_code(void)
{
    return mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) !=
               MAP_FAILED ||
           errno != EPERM;
}

static bool try_code_later(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mprotect(p, 4096, PROT_READ | PROT_EXEC) == 0 || errno != EPERM;
}

static bool try_memory(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p != MAP_FAILED && mprotect(p, 4096, PROT_READ) == 0 && munmap(p, 4096) == 0;
}

static bool try_terminal(void)
{
    int waiting;
    return (ioctl(STDIN_FILENO, FIONREAD, &waiting) == 0 || errno != EPERM) &&
           (isatty(STDIN_FILENO) || errno != EPERM);
}

static bool try_new_privileges(void)
{
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != -1 || errno != EPERM;
}

static const struct {
    const char *name;
    bool (*attempt)(void);
    bool alone, network; /* possible without and with user-mode networking */
} attempts[] = {
    {"open", try_open, false, true},
    {"open-to-write", try_write_file, false, false},
    {"exec", try_exec, false, false},
    {"ptrace", try_ptrace, false, false},
    {"memory-of-others", try_other_memory, false, false},
    {"unix-socket", try_socket, false, false},
    {"fork", try_fork, false, false},
    {"typing", try_typing, false, false},
    {"typing-wide", try_typing_wide, false, false},
    {"code", try_code, false, false},
    {"code-later", try_code_later, false, false},
    {"prctl", try_new_privileges, false, false},
    {"memory", try_memory, true, true},
    {"terminal", try_terminal, true, true},
};

typedef struct Other {
    pthread_mutex_t lock;
    bool (*attempt)(void);
} Other;

static void *attempt_there(void *opaque)
{
    Other *other = opaque;
    pthread_mutex_lock(&other->lock);
    return GINT_TO_POINTER(other->attempt());
}

/* 0: refused, 1: possible, 2: no sandbox. In a process of its own, by a thread from before. */
static int attempt_in_sandbox(bool (*attempt)(void), bool network)
{
    pid_t pid = fork();
    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        Other other = {PTHREAD_MUTEX_INITIALIZER, attempt};
        pthread_t thread;
        void *result;
        pthread_mutex_lock(&other.lock);
        if (pthread_create(&thread, NULL, attempt_there, &other) ||
            !vmm_sandbox_enter(network, NULL))
            _exit(2);
        pthread_mutex_unlock(&other.lock);
        pthread_join(thread, &result);
        _exit(GPOINTER_TO_INT(result));
    }
    int status;
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_attempts(gconstpointer network)
{
    for (size_t i = 0; i < G_N_ELEMENTS(attempts); i++) {
        int possible = attempt_in_sandbox(attempts[i].attempt, network != NULL);
        if (possible == 2) {
            g_test_skip("this kernel takes no filter");
            return;
        }
        if (possible != (network ? attempts[i].network : attempts[i].alone))
            g_error("%s: %d", attempts[i].name, possible);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/vmm-sandbox/alone", NULL, test_attempts);
    g_test_add_data_func("/vmm-sandbox/network", "network", test_attempts);
    return g_test_run();
}
