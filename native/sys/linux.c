/* linux: the table of calls as Linux answers them. Nothing else in the project calls the kernel. */
#define _GNU_SOURCE
#include "sr_sys.h"
#include "sr_sys_private.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RESULT(call) ({ __typeof__(call) r_ = (call); r_ < 0 ? -errno : (int)r_; })
#define COUNT(call) ({ ssize_t n_ = (call); n_ < 0 ? -(ssize_t)errno : n_; })
/* A signal handler of the application must not show up as a failed call here. */
#define RETRY(expr) ({ __typeof__(expr) v_; do v_ = (expr); while (v_ == -EINTR); v_; })

static int do_openat(int dir, const char *path, int flags, unsigned mode)
{
    return RETRY(RESULT(openat(dir, path, flags | O_CLOEXEC, mode)));
}
/* Linux releases the descriptor even when close(2) says EINTR. */
static int do_close(int fd) { return RESULT(close(fd)); }
static ssize_t do_read(int fd, void *buf, size_t len) { return RETRY(COUNT(read(fd, buf, len))); }
static ssize_t do_pread(int fd, void *buf, size_t len, off_t at) { return RETRY(COUNT(pread(fd, buf, len, at))); }
static ssize_t do_write(int fd, const void *buf, size_t len) { return RETRY(COUNT(write(fd, buf, len))); }
static int do_fstat(int fd, struct stat *st) { return RESULT(fstat(fd, st)); }
static int do_fstatat(int dir, const char *path, struct stat *st, int flags) { return RESULT(fstatat(dir, path, st, flags)); }
static int do_fstatfs(int fd, struct statfs *st) { return RETRY(RESULT(fstatfs(fd, st))); }
static int do_ftruncate(int fd, off_t size) { return RETRY(RESULT(ftruncate(fd, size))); }
/* Interrupted, fallocate on tmpfs undoes what it did and says EINTR: begin again. */
static int do_fallocate(int fd, int mode, off_t at, off_t len) { return RETRY(RESULT(fallocate(fd, mode, at, len))); }
static int do_fchmod(int fd, mode_t mode) { return RESULT(fchmod(fd, mode)); }
static int do_fchmodat(int dir, const char *path, mode_t mode) { return RESULT(fchmodat(dir, path, mode, 0)); }
static int do_linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    return RESULT(linkat(from_dir, from, to_dir, to, flags));
}
static int do_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return RESULT(renameat(from_dir, from, to_dir, to));
}
static int do_unlinkat(int dir, const char *path, int flags) { return RESULT(unlinkat(dir, path, flags)); }
static ssize_t do_readlinkat(int dir, const char *path, char *buf, size_t len) { return COUNT(readlinkat(dir, path, buf, len)); }
static ssize_t do_getdents(int fd, void *buf, size_t len) { return COUNT(syscall(SYS_getdents64, fd, buf, len)); }
static int do_fcntl(int fd, int cmd, long arg) { return RESULT(fcntl(fd, cmd, arg)); }
static int do_fcntl_lock(int fd, int cmd, struct flock *lock) { return RESULT(fcntl(fd, cmd, lock)); }
static int do_ioctl(int fd, unsigned long request, void *arg) { return RETRY(RESULT(ioctl(fd, request, arg))); }

static int do_mmap(void **at, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *p = mmap(*at, len, prot, flags, fd, offset);
    if (p == MAP_FAILED) return -errno;
    *at = p;
    return 0;
}
static int do_munmap(void *at, size_t len) { return RESULT(munmap(at, len)); }
static int do_madvise(void *at, size_t len, int advice) { return RETRY(RESULT(madvise(at, len, advice))); }
static int do_memfd_create(const char *name, unsigned flags) { return RESULT(memfd_create(name, flags | MFD_CLOEXEC)); }

static int do_futex_wait(const _Atomic uint32_t *word, uint32_t expected, const struct timespec *timeout)
{
    return RESULT(syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout, NULL, 0));
}
static int do_futex_wake(const _Atomic uint32_t *word, int count)
{
    return RESULT(syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0));
}
static int do_clock_gettime(clockid_t clock, struct timespec *now) { return RESULT(clock_gettime(clock, now)); }

static int do_set_robust_list(void *head, size_t len) { return RESULT(syscall(SYS_set_robust_list, head, len)); }

static int do_socket(int domain, int type, int protocol) { return RESULT(socket(domain, type | SOCK_CLOEXEC, protocol)); }
static int do_bind(int fd, const struct sockaddr *addr, socklen_t len) { return RESULT(bind(fd, addr, len)); }
static int do_listen(int fd, int backlog) { return RESULT(listen(fd, backlog)); }
static int do_accept(int fd) { return RETRY(RESULT(accept4(fd, NULL, NULL, SOCK_CLOEXEC))); }
static int do_connect(int fd, const struct sockaddr *addr, socklen_t len) { return RETRY(RESULT(connect(fd, addr, len))); }
static int do_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    return RESULT(getsockopt(fd, level, name, value, len));
}
static int do_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    return RESULT(setsockopt(fd, level, name, value, len));
}
static ssize_t do_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    return RETRY(COUNT(sendmsg(fd, msg, flags | MSG_NOSIGNAL)));
}
static ssize_t do_recvmsg(int fd, struct msghdr *msg, int flags)
{
    return RETRY(COUNT(recvmsg(fd, msg, flags | MSG_CMSG_CLOEXEC)));
}
static int do_poll(struct pollfd *fds, unsigned count, int timeout_ms) { return RESULT(poll(fds, count, timeout_ms)); }
static int do_getrandom(void *buf, size_t len)
{
    ssize_t n = RETRY(COUNT(getrandom(buf, len, 0)));
    return n < 0 ? (int)n : (size_t)n == len ? 0 : -EIO;
}
static int do_bpf(int cmd, union bpf_attr *attr, unsigned size) { return RESULT(syscall(SYS_bpf, cmd, attr, size)); }
static int do_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
    return RESULT(prctl(option, a, b, c, d));
}
static int do_capget(void *header, void *data) { return RESULT(syscall(SYS_capget, header, data)); }
static int do_capset(void *header, const void *data) { return RESULT(syscall(SYS_capset, header, data)); }
static int do_setrlimit(int resource, const struct rlimit *limit) { return RESULT(setrlimit(resource, limit)); }

const struct sr_sys sr_sys_linux = {
    .openat = do_openat,
    .close = do_close,
    .read = do_read,
    .pread = do_pread,
    .write = do_write,
    .fstat = do_fstat,
    .fstatat = do_fstatat,
    .fstatfs = do_fstatfs,
    .ftruncate = do_ftruncate,
    .fallocate = do_fallocate,
    .fchmod = do_fchmod,
    .fchmodat = do_fchmodat,
    .linkat = do_linkat,
    .renameat = do_renameat,
    .unlinkat = do_unlinkat,
    .readlinkat = do_readlinkat,
    .getdents = do_getdents,
    .fcntl = do_fcntl,
    .fcntl_lock = do_fcntl_lock,
    .ioctl = do_ioctl,
    .mmap = do_mmap,
    .munmap = do_munmap,
    .madvise = do_madvise,
    .memfd_create = do_memfd_create,
    .futex_wait = do_futex_wait,
    .futex_wake = do_futex_wake,
    .clock_gettime = do_clock_gettime,
    .set_robust_list = do_set_robust_list,
    .socket = do_socket,
    .bind = do_bind,
    .listen = do_listen,
    .accept = do_accept,
    .connect = do_connect,
    .getsockopt = do_getsockopt,
    .setsockopt = do_setsockopt,
    .sendmsg = do_sendmsg,
    .recvmsg = do_recvmsg,
    .poll = do_poll,
    .getrandom = do_getrandom,
    .bpf = do_bpf,
    .prctl = do_prctl,
    .capget = do_capget,
    .capset = do_capset,
    .setrlimit = do_setrlimit,
    .spawn_detached = sr_sys__spawn_detached,
};

#ifdef SR_FAULTS
const struct sr_sys *sr_sys = &sr_sys__double;
#else
const struct sr_sys *sr_sys = &sr_sys_linux;
#endif
