/* memory: mappings at an alignment, shared memory files, and locks held by mappings. */
#define _GNU_SOURCE
#include "sr_sys.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- mapping ---------------------------------------------------------------------------------- */

int sr_sys_map(struct sr_map *map, size_t len, size_t align, int prot, int flags, int fd, off_t offset)
{
    map->at = NULL;
    map->len = 0;
    if (len == 0 || len > SIZE_MAX - align) return -EINVAL;
    void *space = NULL;
    if (align <= SR_PAGE) {
        int r = sr_sys->mmap(&space, len, prot, flags, fd, offset);
        if (r < 0) return r;
        *map = (struct sr_map){space, len};
        return 0;
    }
    size_t reserve = len + align;
    int r = sr_sys->mmap(&space, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (r < 0) return r;
    uintptr_t start = (uintptr_t)space;
    uintptr_t at = start + (((uintptr_t)offset - start) & (align - 1));
    void *fixed = (void *)at;
    r = sr_sys->mmap(&fixed, len, prot, flags | MAP_FIXED, fd, offset);
    if (r < 0) {
        sr_sys->munmap(space, reserve);
        return r;
    }
    uintptr_t end = sr_align_up(at + len, SR_PAGE);
    if (at > start) sr_sys->munmap(space, at - start);
    if (start + reserve > end) sr_sys->munmap((void *)end, start + reserve - end);
    *map = (struct sr_map){fixed, len};
    return 0;
}

int sr_sys_unmap(struct sr_map *map)
{
    if (map->at == NULL) return 0;
    int r = sr_sys->munmap(map->at, map->len);
    *map = (struct sr_map){0};
    return r;
}

/* --- shared memory files ---------------------------------------------------------------------- */

int sr_sys_shm_unnamed(int dir, uint64_t size, uint64_t committed, unsigned mode)
{
    if (size > INT64_MAX || committed > size) return -EINVAL;
    SR_FD fd = sr_sys->openat(dir, ".", O_TMPFILE | O_RDWR, mode);
    if (fd < 0) return fd;
    int r = sr_sys->ftruncate(fd, (off_t)size);
    if (r == 0 && committed) r = sr_sys_commit(fd, 0, committed);
    if (r == 0) r = sr_sys->fchmod(fd, mode);    /* open(2) applies the umask */
    return r < 0 ? r : sr_sys_keep(&fd);
}

static void descriptor_path(char path[32], int fd) { snprintf(path, 32, "/proc/self/fd/%d", fd); }

int sr_sys_shm_link(int fd, int dir, const char *name)
{
    /* AT_EMPTY_PATH needs no /proc, but CAP_DAC_READ_SEARCH before Linux 6.10; without it the
     * answer is ENOENT. */
    int r = sr_sys->linkat(fd, "", dir, name, AT_EMPTY_PATH);
    if (r != -ENOENT && r != -EPERM) return r;
    char path[32];
    descriptor_path(path, fd);
    return sr_sys->linkat(AT_FDCWD, path, dir, name, AT_SYMLINK_FOLLOW);
}

int sr_sys_commit(int fd, uint64_t at, uint64_t len)
{
    return len == 0 ? 0 : sr_sys->fallocate(fd, 0, (off_t)at, (off_t)len);
}

int sr_sys_punch(int fd, uint64_t at, uint64_t len)
{
    return len == 0 ? 0 : sr_sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)len);
}

int sr_sys_reopen(int fd, int flags)
{
    char path[32];
    descriptor_path(path, fd);
    return sr_sys->openat(AT_FDCWD, path, flags, 0);
}

/* --- locks held by mappings ------------------------------------------------------------------- */

static struct flock lock_of(short type, uint64_t row, uint64_t count)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)row, .l_len = (off_t)count};
}

int sr_sys_lock(int fd, uint64_t row, uint64_t count, bool wait)
{
    struct flock lock = lock_of(F_WRLCK, row, count);
    int r;
    do r = sr_sys->fcntl_lock(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (r == -EINTR);
    return r == -EACCES ? -EAGAIN : r;
}

int sr_sys_lock_shared(int fd, uint64_t row, uint64_t count)
{
    struct flock lock = lock_of(F_RDLCK, row, count);
    int r = sr_sys->fcntl_lock(fd, F_OFD_SETLK, &lock);
    return r == -EACCES ? -EAGAIN : r;
}

int sr_sys_unlock(int fd, uint64_t row, uint64_t count)
{
    struct flock lock = lock_of(F_UNLCK, row, count);
    return sr_sys->fcntl_lock(fd, F_OFD_SETLK, &lock);
}

int sr_sys_held(int fd, uint64_t row, uint64_t count)
{
    /* A read lock conflicts with the holder's write lock, and F_OFD_GETLK with F_RDLCK is allowed
     * on a descriptor that is open for reading only. */
    struct flock lock = lock_of(F_RDLCK, row, count);
    int r = sr_sys->fcntl_lock(fd, F_OFD_GETLK, &lock);
    if (r < 0) return r;
    if (lock.l_type == F_UNLCK) return 0;
    return lock.l_len > 0 && lock.l_len < INT_MAX ? (int)lock.l_len : INT_MAX;
}

int sr_sys_hold(int fd, uint64_t row, uint64_t offset, size_t len, struct sr_map *map)
{
    *map = (struct sr_map){0};
    SR_FD own = sr_sys_reopen(fd, O_RDWR);
    if (own < 0) return own;
    int r = sr_sys_lock(own, row, 1, false);
    if (r < 0) return r;
    return sr_sys_map(map, len, SR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, own, (off_t)offset);
}

int sr_sys_hold_private(const struct sr_map *map)
{
    return sr_sys->madvise(map->at, map->len, MADV_DONTFORK);
}

int sr_sys_mark_death(_Atomic uint32_t *word)
{
    /* The list and its one entry are this thread's own; the kernel finds the word by its distance from
     * the entry, and marks it if it holds the number of the thread that ends. */
    static struct robust_list entry;
    static struct robust_list_head head;
    entry.next = &head.list;
    head.list.next = &entry;
    head.futex_offset = (long)((uintptr_t)word - (uintptr_t)&entry);
    head.list_op_pending = NULL;
    atomic_store(word, (uint32_t)gettid());
    return sr_sys->set_robust_list(&head, sizeof head);
}

/* --- small ------------------------------------------------------------------------------------ */

void sr_sys_close(int *fd)
{
    if (*fd >= 0) sr_sys->close(*fd);
    *fd = -1;
}

ssize_t sr_sys_read_text(int dir, const char *path, char *buf, size_t cap)
{
    SR_FD fd = sr_sys->openat(dir, path, O_RDONLY, 0);
    if (fd < 0) return fd;
    size_t len = 0;
    for (;;) {
        if (len + 1 >= cap) return -EFBIG;
        ssize_t n = sr_sys->read(fd, buf + len, cap - 1 - len);
        if (n < 0) return n;
        if (n == 0) break;
        len += (size_t)n;
    }
    buf[len] = '\0';
    return (ssize_t)len;
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec t;
    if (sr_sys->clock_gettime(clock, &t) < 0) return 0;
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

uint64_t sr_sys_now(void) { return nanoseconds(CLOCK_MONOTONIC); }
uint64_t sr_sys_wall(void) { return nanoseconds(CLOCK_REALTIME); }
uint32_t sr_sys_pid(void) { return (uint32_t)getpid(); }
uint32_t sr_sys_uid(void) { return (uint32_t)geteuid(); }
uint32_t sr_sys_cpus(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count > 0 ? (uint32_t)count : 1;
}
