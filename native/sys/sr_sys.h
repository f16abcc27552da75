/* sys: the only room that talks to the kernel.
 *
 * Room 1, above base. Two layers:
 *
 *   struct sr_sys      one pointer for each kernel call that the project makes, so that a test can
 *                      make any of them fail. Nothing in the project calls the kernel otherwise.
 *   sr_sys_*           what takes several calls and is the same wherever it is needed: a mapping
 *                      at an alignment, a shared memory file that never has a name half made, a
 *                      lock that lives as long as a mapping, descriptors by SCM_RIGHTS, a
 *                      detached process.
 *
 * Error rule: 0 or a count on success, -errno on failure, and then nothing is left open, mapped or
 * named that was not before. This room decides nothing: sizes, names and policy come from above.
 */
#ifndef SR_SYS_H
#define SR_SYS_H

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>

#include "sr_base.h"

union bpf_attr;
struct rlimit;

/* --- the table ------------------------------------------------------------------------------- */

struct sr_sys {
    /* files; every descriptor is opened close-on-exec */
    int (*openat)(int dir, const char *path, int flags, unsigned mode);
    int (*close)(int fd);
    ssize_t (*read)(int fd, void *buf, size_t len);
    ssize_t (*pread)(int fd, void *buf, size_t len, off_t at);
    ssize_t (*write)(int fd, const void *buf, size_t len);
    int (*fstat)(int fd, struct stat *st);
    int (*fstatat)(int dir, const char *path, struct stat *st, int flags);
    int (*fstatfs)(int fd, struct statfs *st);
    int (*ftruncate)(int fd, off_t size);
    int (*fallocate)(int fd, int mode, off_t at, off_t len);
    int (*fchmod)(int fd, mode_t mode);
    int (*fchmodat)(int dir, const char *path, mode_t mode);
    int (*linkat)(int from_dir, const char *from, int to_dir, const char *to, int flags);
    int (*renameat)(int from_dir, const char *from, int to_dir, const char *to);
    int (*unlinkat)(int dir, const char *path, int flags);
    ssize_t (*readlinkat)(int dir, const char *path, char *buf, size_t len);
    ssize_t (*getdents)(int fd, void *buf, size_t len);      /* struct linux_dirent64           */
    int (*fcntl)(int fd, int cmd, long arg);
    int (*fcntl_lock)(int fd, int cmd, struct flock *lock);  /* F_OFD_*; -EINTR is passed on    */
    int (*ioctl)(int fd, unsigned long request, void *arg);
    /* memory; mmap takes the hint in *at and puts the address there */
    int (*mmap)(void **at, size_t len, int prot, int flags, int fd, off_t offset);
    int (*munmap)(void *at, size_t len);
    int (*madvise)(void *at, size_t len, int advice);
    int (*memfd_create)(const char *name, unsigned flags);
    /* waiting; `timeout` is relative, NULL waits for ever; -ETIMEDOUT, -EAGAIN, -EINTR */
    int (*futex_wait)(const _Atomic uint32_t *word, uint32_t expected, const struct timespec *timeout);
    int (*futex_wake)(const _Atomic uint32_t *word, int count);
    int (*clock_gettime)(clockid_t clock, struct timespec *now);
    int (*set_robust_list)(void *head, size_t len);          /* linux/futex.h                   */
    /* sockets */
    int (*socket)(int domain, int type, int protocol);
    int (*bind)(int fd, const struct sockaddr *addr, socklen_t len);
    int (*listen)(int fd, int backlog);
    int (*accept)(int fd);
    int (*connect)(int fd, const struct sockaddr *addr, socklen_t len);
    int (*getsockopt)(int fd, int level, int name, void *value, socklen_t *len);
    int (*setsockopt)(int fd, int level, int name, const void *value, socklen_t len);
    ssize_t (*sendmsg)(int fd, const struct msghdr *msg, int flags);
    ssize_t (*recvmsg)(int fd, struct msghdr *msg, int flags);
    int (*poll)(struct pollfd *fds, unsigned count, int timeout_ms);
    /* the rest */
    int (*getrandom)(void *buf, size_t len);
    int (*bpf)(int cmd, union bpf_attr *attr, unsigned size);
    int (*prctl)(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d);
    int (*capget)(void *header, void *data);                 /* linux/capability.h              */
    int (*capset)(void *header, const void *data);
    int (*setrlimit)(int resource, const struct rlimit *limit);
    /* posix-like spawn of a process that is nobody's child: see sr_sys_spawn_detached */
    int (*spawn_detached)(const char *path, char *const argv[], const int *fds, int count);
};

/* The table in force. Set it only in tests, before any thread is started. */
extern const struct sr_sys *sr_sys;
extern const struct sr_sys sr_sys_linux;

#ifdef SR_FAULTS
/* For tests, in builds with -Dfault_injection=true (faults.c). Count all calls from now on. */
void sr_faults_watch(void);
/* The same, and the nth call of that name (from 1) gives -error instead. -EINVAL. */
int sr_faults_arm(const char *name, unsigned nth, int error);
/* The kernel's own answers again. */
void sr_faults_disarm(void);
/* Name and count of one call of the table; NULL beyond the last. */
const char *sr_faults_counted(unsigned call, unsigned *count);
#endif

/* --- mapping ---------------------------------------------------------------------------------- */

/* A mapping and what was asked for. */
struct sr_map {
    unsigned char *at;   /* NULL: not mapped */
    size_t len;
};

/* Map `len` bytes of `fd` from `offset` at an address that is congruent to `offset` modulo `align`
 * (a power of two, at least a page). The kernel chooses its default address by size, not by the
 * large page or the 1 GiB that a page table covers, so address space is reserved first and the
 * file mapped over it; what is left over at both ends is given back. */
int sr_sys_map(struct sr_map *map, size_t len, size_t align, int prot, int flags, int fd, off_t offset);
int sr_sys_unmap(struct sr_map *map);

/* --- shared memory files ---------------------------------------------------------------------- */

/* The tmpfs that POSIX shared memory lives in (shm_open(3)). */
#define SR_SHM_DIR "/dev/shm"

/* A file of `size` bytes in `dir` that has no name yet, with `committed` bytes of memory behind
 * its start, mode `mode`. -ENOSPC if the file system has no room: memory is taken now, or not at
 * all, since a page that is missing later is a SIGBUS. Returns the descriptor. */
int sr_sys_shm_unnamed(int dir, uint64_t size, uint64_t committed, unsigned mode);
/* Give an unnamed file its name; -EEXIST if there is one. Whole from its first moment. */
int sr_sys_shm_link(int fd, int dir, const char *name);
/* Commit [at, at + len), extending nothing. */
int sr_sys_commit(int fd, uint64_t at, uint64_t len);
/* Give the memory of [at, at + len) back; the range reads as zeros, or faults, afterwards. */
int sr_sys_punch(int fd, uint64_t at, uint64_t len);
/* A second, independent open file description of what `fd` refers to (O_RDONLY or O_RDWR). */
int sr_sys_reopen(int fd, int flags);

/* --- locks that say "alive" ------------------------------------------------------------------- */

/* An open file description lock (fcntl(2), F_OFD_SETLK) belongs to the description, and a mapping
 * holds its description. So a lock taken through a description of its own, whose descriptor is
 * closed once the page is mapped, lives exactly as long as the mapping: it is gone at munmap, exec
 * and death of the process (0.15 ms after SIGKILL), it survives close_range(), threads that end and
 * a setuid, and no pid is involved, so that namespaces do not matter. */

/* Lock byte `row` of the file behind `fd` and map `len` bytes at `offset` of it, read-write.
 * -EAGAIN: another holds it. The mapping is inherited by fork; sr_sys_hold_private changes that. */
int sr_sys_hold(int fd, uint64_t row, uint64_t offset, size_t len, struct sr_map *map);
/* Keep a held mapping (and so its lock) out of children. */
int sr_sys_hold_private(const struct sr_map *map);
/* 0 if nobody holds a byte of [row, row + count), else how many bytes one of the locks there has. */
int sr_sys_held(int fd, uint64_t row, uint64_t count);
/* Take or wait for the bytes through `fd` itself (released when its description is closed). */
int sr_sys_lock(int fd, uint64_t row, uint64_t count, bool wait);
int sr_sys_unlock(int fd, uint64_t row, uint64_t count);
/* The same, shared with others who take it so; -EAGAIN. A read-only descriptor will do. */
int sr_sys_lock_shared(int fd, uint64_t row, uint64_t count);

/* The same for a single process, to be seen without a call: a word in shared memory that gets this bit
 * when the calling thread ends, however it ends. The kernel sets it (robust futexes) before it takes
 * the thread's memory and files apart. One word a thread; the thread must use no robust mutexes. */
#define SR_DEATH_MARK UINT32_C(0x40000000)
int sr_sys_mark_death(_Atomic uint32_t *word);

/* --- descriptors through sockets -------------------------------------------------------------- */

#define SR_FDS_MAX 8
/* Who is at the other end of a connected unix socket, as the kernel saw them connect or listen. */
struct sr_peer { pid_t pid; uid_t uid; gid_t gid; };
int sr_sys_peer(int fd, struct sr_peer *peer);
/* One message with `count` descriptors; -EPIPE and the like as -errno, never SIGPIPE. */
int sr_sys_send_fds(int fd, const void *data, size_t len, const int *fds, int count);
/* Receives at most `len` bytes and `max` descriptors (close-on-exec); returns the number of bytes
 * and sets *count. Surplus or truncated descriptors are closed and give -EPROTO. */
ssize_t sr_sys_recv_fds(int fd, void *data, size_t len, int *fds, int max, int *count);
/* The address of a socket in the file system; -ENAMETOOLONG. */
int sr_sys_unix_address(struct sockaddr_un *addr, socklen_t *len, const char *path);

/* --- processes -------------------------------------------------------------------------------- */

/* Start `path` as a process that is not a child of this one: nobody gets a SIGCHLD, it has a
 * session of its own, / as its directory, /dev/null as 0, 1 and 2, fds[0..count) as 3, 4, ... and
 * no other descriptor, default signal actions, nothing blocked, an empty environment.
 * 0 once exec has succeeded; the errno of the step that failed otherwise. */
static inline int sr_sys_spawn_detached(const char *path, char *const argv[], const int *fds, int count)
{
    return sr_sys->spawn_detached(path, argv, fds, count);
}

/* --- small ------------------------------------------------------------------------------------ */

/* Close *fd if it is open, keep errno-free, set it to -1. */
void sr_sys_close(int *fd);
/* Read a whole small file (procfs, sysfs) into buf, NUL-terminated; -EFBIG if it does not fit. */
ssize_t sr_sys_read_text(int dir, const char *path, char *buf, size_t cap);
/* Nanoseconds: monotonic, and since 1970. */
uint64_t sr_sys_now(void);
uint64_t sr_sys_wall(void);
/* Who we are; these cannot fail. */
uint32_t sr_sys_pid(void);
uint32_t sr_sys_uid(void);    /* effective */
uint32_t sr_sys_cpus(void);   /* that this thread may run on; at least 1 */
/* work(arg, at, len) for all of [0, len): in parts of whole units, by a few threads at once where each of
 * them gets `least` bytes (several units) or more. All parts are done; the first negative answer, in their order, else 0. */
int sr_sys_in_parts(uint64_t len, uint64_t unit, uint64_t least, int (*work)(void *arg, uint64_t at, uint64_t len), void *arg);

/* A descriptor that closes itself at the end of its scope: SR_FD fd = ...; */
static inline void sr_sys__close_guard(int *fd) { sr_sys_close(fd); }
#define SR_FD __attribute__((cleanup(sr_sys__close_guard))) int
/* Hand the descriptor out of its scope. */
static inline int sr_sys_keep(int *fd)
{
    int kept = *fd;
    *fd = -1;
    return kept;
}

#endif
