/* faults: any kernel call made to fail once, for tests. Built with -Dfault_injection=true only.
 *
 * A second table in front of the kernel counts the calls by name, and answers the n-th call of one
 * name with an error instead of making it. What the kernel does even when it reports an error is
 * done here too: close(2) releases the descriptor.
 */
#define _GNU_SOURCE
#include "sr_sys.h"
#include "sr_sys_private.h"

#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* --- a stand-in for msharefs ------------------------------------------------------------------ */

/* No released kernel has msharefs, so tests bring a file system in user space that answers as it
 * does (tests/support). Two things such a file system cannot do by itself: the kernel gives FUSE's
 * magic number for it, and does not ask it before it maps a file. It is known by its count of files. */
#define FUSE_MAGIC 0x65735546
#define MSHAREFS_MAGIC 0x4D534852

struct double_map { uint64_t length, process; };    /* in: length; out: a process and its descriptor */
#define DOUBLE_MAP _IOWR('x', 0xFF, struct double_map)

static int double_fstatfs(int fd, struct statfs *st)
{
    int r = sr_sys_linux.fstatfs(fd, st);
    if (r == 0 && st->f_type == FUSE_MAGIC && st->f_files == MSHAREFS_MAGIC) st->f_type = MSHAREFS_MAGIC;
    return r;
}

static int double_mmap(void **at, size_t len, int prot, int flags, int fd, off_t offset)
{
    struct statfs st;
    if (fd < 0 || double_fstatfs(fd, &st) < 0 || st.f_type != MSHAREFS_MAGIC) return sr_sys_linux.mmap(at, len, prot, flags, fd, offset);
    struct double_map ask = {.length = len};
    int r = sr_sys_linux.ioctl(fd, DOUBLE_MAP, &ask);
    if (r < 0) return r;
    /* What is passed through is told at open; of hugetlb nothing can be, and its own file is mapped. */
    char path[64];
    if (ask.process) snprintf(path, sizeof path, "/proc/%u/fd/%u", (unsigned)ask.process, (unsigned)(ask.process >> 32));
    else snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = sr_sys_linux.openat(AT_FDCWD, path, O_RDONLY, 0);
    if (own < 0) return own;
    r = sr_sys_linux.mmap(at, len, prot, flags, own, offset);
    sr_sys_linux.close(own);
    return r;
}

/* --- every call ------------------------------------------------------------------------------- */

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
    X(set_robust_list, int, (void *a, size_t b), (a, b)) \
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
        result done = sr_sys__double.name arguments; \
        return error ? -error : done; \
    }
#define EVEN_SO(call) ((call) == CALL_close)
CALLS(WRAPPER)

#define POINTER(name, result, parameters, arguments) .name = faulty_##name,
static const struct sr_sys faulty = {CALLS(POINTER)};

#define AS_LINUX(name, result, parameters, arguments) \
    __attribute__((unused)) static result plain_##name parameters { return sr_sys_linux.name arguments; }
CALLS(AS_LINUX)
#define plain_fstatfs double_fstatfs
#define plain_mmap double_mmap
#define DOUBLE_POINTER(name, result, parameters, arguments) .name = plain_##name,
const struct sr_sys sr_sys__double = {CALLS(DOUBLE_POINTER)};

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
    sr_sys = &sr_sys__double;
}

const char *sr_faults_counted(unsigned call, unsigned *count)
{
    if (call >= CALL_COUNT) return NULL;
    *count = atomic_load(&counts[call]);
    return names[call];
}
