/* spawn: a process that is nobody's child.
 *
 * fork() is not used: it would run the application's at-fork handlers and copy the page tables of
 * a process that may map hundreds of gigabytes. Instead clone(2) with CLONE_VM | CLONE_VFORK and
 * exit signal 0: the intermediate shares our memory until it ends, raises no SIGCHLD, and is waited
 * for with __WALL. It clones the process that execs, and ends at once, so that the new process is
 * adopted by init or a subreaper. Between clone and exec only system calls are made, on a stack of
 * their own, with all signals blocked: a handler of the application must not run in shared memory.
 */
#define _GNU_SOURCE
#include "sr_sys.h"
#include "sr_sys_private.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK (64 * 1024)
#define FIRST_FD 3

struct spawn {
    const char *path;
    char *const *argv;
    const int *fds;
    int count;
    unsigned char *stack;      /* two of STACK bytes */
    volatile int error;        /* errno of what failed; shared memory carries it back */
};

/* Descriptors come as 3, 4, ...: first out of the way of the targets, then onto them. */
static int place_descriptors(const struct spawn *s)
{
    int high[SR_FDS_MAX];
    for (int i = 0; i < s->count; i++) {
        high[i] = fcntl(s->fds[i], F_DUPFD_CLOEXEC, FIRST_FD + SR_FDS_MAX + 1);
        if (high[i] < 0) return errno;
    }
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) return errno;
    int parked = fcntl(null, F_DUPFD_CLOEXEC, FIRST_FD + SR_FDS_MAX + 1);
    if (parked < 0) return errno;
    for (int i = 0; i < FIRST_FD; i++)
        if (dup2(parked, i) < 0) return errno;
    for (int i = 0; i < s->count; i++)
        if (dup2(high[i], FIRST_FD + i) < 0) return errno;
    if (syscall(SYS_close_range, FIRST_FD + s->count, ~0u, 0) < 0) return errno;
    return 0;
}

static int final_process(void *arg)
{
    struct spawn *s = arg;
    static char *const no_environment[] = {NULL};
    /* Own file table first: CLONE_FILES is not set, so this only touches the new process. */
    int e = place_descriptors(s);
    if (e == 0 && setsid() < 0) e = errno;
    if (e == 0 && chdir("/") < 0) e = errno;
    if (e == 0) {
        struct sigaction dfl = {.sa_handler = SIG_DFL};
        for (int sig = 1; sig < _NSIG; sig++) sigaction(sig, &dfl, NULL);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        umask(077);
        execve(s->path, s->argv, no_environment);
        e = errno;
    }
    s->error = e;
    _exit(127);
}

static int intermediate(void *arg)
{
    struct spawn *s = arg;
    /* CLONE_VFORK: the memory of the caller is not touched again before exec or exit. */
    if (clone(final_process, s->stack + 2 * STACK, CLONE_VM | CLONE_VFORK, s) < 0) s->error = errno;
    _exit(0);
}

int sr_sys__spawn_detached(const char *path, char *const argv[], const int *fds, int count)
{
    if (count < 0 || count > SR_FDS_MAX) return -EINVAL;
    unsigned char *stack = mmap(NULL, 2 * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return -errno;
    struct spawn s = {.path = path, .argv = argv, .fds = fds, .count = count, .stack = stack};

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = 0;
    pid_t pid = clone(intermediate, stack + STACK, CLONE_VM | CLONE_VFORK, &s);
    if (pid < 0) {
        result = -errno;
    } else {
        while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR) continue;
        result = -s.error;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    munmap(stack, 2 * STACK);
    return result;
}
