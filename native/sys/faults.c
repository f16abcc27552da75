/* faults: any kernel call made to fail once, for tests. Built with -Dfault_injection=true only.
 *
 * A second table in front of sr_sys_linux counts the calls by name, and answers the n-th call of one
 * name with an error instead of making it. What the kernel does even when it reports an error is
 * done here too: close(2) releases the descriptor.
 */
#define _GNU_SOURCE
#include "sr_sys.h"

#include <errno.h>

/* name, result, parameters, arguments: one line for each pointer of struct sr_sys. */
#define CALLS(X) \
    X(openat, int, (int a, const char *b, int c, unsigned d), (a, b, c, d)) \
    X(close, int, (int a), (a)) \
    X(read, ssize_t, (int a, void *b, size_t c), (a, b, c)) \
    X(pread, ssize_t, (int a, void *b, size_t c, off_t d), (a, b, c, d)) \
    X(write, ssize_t, (int a, const void *b, size_t c), (a, b, c)) \
    X(fstat, int, (int a, struct stat *b), (a, b)) \
    X(fstatat, int, (int a, const char *b, struct stat *c, int d), (a, b, c, d)) \
    X(fstatfs, int, (int a, struct statfs *b), (a, b)) \
    X(ftruncate, int, (int a, off_t b), (a, b)) \
    X(fallocate, int, (int a, int b, off_t c, off_t d), (a, b, c, d)) \
    X(fchmod, int, (int a, mode_t b), (a, b)) \
    X(fchmodat, int, (int a, const char *b, mode_t c), (a, b, c)) \
    X(linkat, int, (int a, const char *b, int c, const char *d, int e), (a, b, c, d, e)) \
    X(renameat, int, (int a, const char *b, int c, const char *d), (a, b, c, d)) \
    X(unlinkat, int, (int a, const char *b, int c), (a, b, c)) \
    X(readlinkat, ssize_t, (int a, const char *b, char *c, size_t d), (a, b, c, d)) \
    X(getdents, ssize_t, (int a, void *b, size_t c), (a, b, c)) \
    X(fcntl, int, (int a, int b, long c), (a, b, c)) \
    X(fcntl_lock, int, (int a, int b, struct flock *c), (a, b, c)) \
    X(ioctl, int, (int a, unsigned long b, void *c), (a, b, c)) \
    X(mmap, int, (void **a, size_t b, int c, int d, int e, off_t f), (a, b, c, d, e, f)) \
    X(munmap, int, (void *a, size_t b), (a, b)) \
    X(madvise, int, (void *a, size_t b, int c), (a, b, c)) \
    X(memfd_create, int, (const char *a, unsigned b), (a, b)) \
    X(futex_wait, int, (const _Atomic uint32_t *a, uint32_t b, const struct timespec *c), (a, b, c)) \
    X(futex_wake, int, (const _Atomic uint32_t *a, int b), (a, b)) \
    X(clock_gettime, int, (clockid_t a, struct timespec *b), (a, b)) \
    X(socket, int, (int a, int b, int c), (a, b, c)) \
    X(bind, int, (int a, const struct sockaddr *b, socklen_t c), (a, b, c)) \
    X(listen, int, (int a, int b), (a, b)) \
    X(accept, int, (int a), (a)) \
    X(connect, int, (int a, const struct sockaddr *b, socklen_t c), (a, b, c)) \
    X(getsockopt, int, (int a, int b, int c, void *d, socklen_t *e), (a, b, c, d, e)) \
    X(setsockopt, int, (int a, int b, int c, const void *d, socklen_t e), (a, b, c, d, e)) \
    X(sendmsg, ssize_t, (int a, const struct msghdr *b, int c), (a, b, c)) \
    X(recvmsg, ssize_t, (int a, struct msghdr *b, int c), (a, b, c)) \
    X(poll, int, (struct pollfd *a, unsigned b, int c), (a, b, c)) \
    X(getrandom, int, (void *a, size_t b), (a, b)) \
    X(bpf, int, (int a, union bpf_attr *b, unsigned c), (a, b, c)) \
    X(prctl, int, (int a, unsigned long b, unsigned long c, unsigned long d, unsigned long e), (a, b, c, d, e)) \
    X(capget, int, (void *a, void *b), (a, b)) \
    X(capset, int, (void *a, const void *b), (a, b)) \
    X(setrlimit, int, (int a, const struct rlimit *b), (a, b)) \
    X(spawn_detached, int, (const char *a, char *const b[], const int *c, int d), (a, b, c, d))

#define NUMBER(name, result, parameters, arguments) CALL_##name,
enum call { CALLS(NUMBER) CALL_COUNT };

#define NAME(name, result, parameters, arguments) #name,
static const char *const names[] = {CALLS(NAME)};
_Static_assert(sizeof(struct sr_sys) == CALL_COUNT * sizeof(void (*)(void)), "every call of the table is listed");

static _Atomic unsigned counts[CALL_COUNT];
static struct { enum call call; unsigned nth; int error; } armed;

static int fails(enum call call)
{
    unsigned n = atomic_fetch_add(&counts[call], 1) + 1;
    return armed.error && call == armed.call && n == armed.nth ? armed.error : 0;
}

#define WRAPPER(name, result, parameters, arguments) \
    static result faulty_##name parameters \
    { \
        int error = fails(CALL_##name); \
        if (error && !EVEN_SO(CALL_##name)) return -error; \
        result done = sr_sys_linux.name arguments; \
        return error ? -error : done; \
    }
#define EVEN_SO(call) ((call) == CALL_close)
CALLS(WRAPPER)

#define POINTER(name, result, parameters, arguments) .name = faulty_##name,
static const struct sr_sys faulty = {CALLS(POINTER)};

int sr_faults_arm(const char *name, unsigned nth, int error)
{
    unsigned call = 0;
    while (call < CALL_COUNT && strcmp(names[call], name) != 0) call++;
    if (call == CALL_COUNT || nth == 0 || error <= 0) return -EINVAL;
    sr_faults_watch();
    armed.call = (enum call)call;
    armed.nth = nth;
    armed.error = error;
    return 0;
}

void sr_faults_watch(void)
{
    armed.error = 0;
    for (unsigned i = 0; i < CALL_COUNT; i++) atomic_store(&counts[i], 0);
    sr_sys = &faulty;
}

void sr_faults_disarm(void)
{
    armed.error = 0;
    sr_sys = &sr_sys_linux;
}

const char *sr_faults_counted(unsigned call, unsigned *count)
{
    if (call >= CALL_COUNT) return NULL;
    *count = atomic_load(&counts[call]);
    return names[call];
}
