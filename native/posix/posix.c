/* posix: blocks that other programs open by name. */
#define _GNU_SOURCE
#include "sr_posix.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* A signal makes fallocate undo its work and begin again: in slices, a program with a fast interval
 * timer still gets its memory. */
#define SLICE (4 * SR_MIB)
/* Try a range again that was busy: somebody may have held one of its pages for a moment. */
#define TRIES 3

static int commit_small(int fd, uint64_t at, uint64_t len, struct sr_error *e)
{
    for (uint64_t done = 0; done < len; done += SLICE) {
        int r = sr_sys_commit(fd, at + done, sr_min(SLICE, len - done));
        if (r < 0) return sr_backend__commit_failed(r, len, e);
    }
    return 0;
}

static int commit(int fd, const struct sr_map *map, uint64_t size, bool large, struct sr_error *e)
{
    uint64_t whole = large ? sr_align_down(size, SR_LARGE_PAGE) : 0;
    int r = whole ? sr_backend_thp.commit(fd, map, 0, whole, e) : 0;
    return r < 0 ? r : commit_small(fd, whole, size - whole, e);
}

int sr_posix_map(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    uint64_t align = size >= SR_LARGE_PAGE ? SR_LARGE_PAGE : SR_PAGE;
    int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    int r = sr_sys_map(map, size, align, prot, MAP_SHARED, fd, 0);
    return r == 0 ? 0 : sr_fail(e, SR_E_SYSTEM, r, "%llu bytes of address space could not be mapped", (unsigned long long)size);
}

int sr_posix_create(uint64_t size, unsigned mode, bool large, struct sr_map *map, struct sr_error *e)
{
    *map = (struct sr_map){0};
    if (size == 0 || size > INT64_MAX) return sr_fail(e, SR_E_INVALID, -EINVAL, "a block cannot have %llu bytes", (unsigned long long)size);
    SR_FD fd = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_TMPFILE | O_RDWR, mode);
    if (fd < 0) return sr_fail(e, SR_E_SYSTEM, fd, "no file can be made in " SR_SHM_DIR);
    int r = sr_sys->ftruncate(fd, (off_t)size);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "a file of %llu bytes could not be made", (unsigned long long)size);
    r = sr_posix_map(fd, size, true, map, e);
    if (r == 0) r = commit(fd, map, size, large, e);
    if (r == 0) return sr_sys_keep(&fd);
    sr_sys_unmap(map);
    return r;
}

/* A descriptor of the file under its name; -1 where that cannot be opened or is another's already. */
static int open_named(int fd, int dir, const char *name)
{
    SR_FD named = sr_sys->openat(dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    struct stat mine, there;
    if (named < 0 || sr_sys->fstat(fd, &mine) < 0 || sr_sys->fstat(named, &there) < 0) return -1;
    return mine.st_ino == there.st_ino && mine.st_dev == there.st_dev ? sr_sys_keep(&named) : -1;
}

int sr_posix_publish(int fd, const char *name, uint64_t size, struct sr_map *map, struct sr_error *e)
{
    *map = (struct sr_map){0};
    SR_FD dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    if (dir < 0) return sr_fail(e, SR_E_SYSTEM, dir, SR_SHM_DIR " cannot be opened");
    int r = sr_sys_shm_link(fd, dir, name);
    if (r == -EEXIST) return sr_fail(e, SR_E_EXISTS, r, "the name is taken");
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "the memory was there, but could not be named");
    SR_FD named = open_named(fd, dir, name);
    return named >= 0 && sr_posix_map(named, size, true, map, NULL) == 0 ? sr_sys_keep(&named) : fd;
}

static int collapse_one(unsigned char *at)
{
    int r = -EAGAIN;
    for (int tries = 0; tries < TRIES && (r == -EAGAIN || r == -EBUSY); tries++) r = sr_sys->madvise(at, SR_LARGE_PAGE, MADV_COLLAPSE);
    return r;
}

int sr_posix_collapse(int fd, uint64_t size, struct sr_posix_pages *pages, struct sr_error *e)
{
    *pages = (struct sr_posix_pages){0};
    uint64_t whole = sr_align_down(size, SR_LARGE_PAGE);
    if (whole == 0) return 0;
    struct sr_map map;
    int r = sr_posix_map(fd, whole, false, &map, e);
    if (r < 0) return r;
    for (uint64_t at = 0; at < whole; at += SR_LARGE_PAGE) {
        r = collapse_one(map.at + at);
        if (r == 0) pages->large++;
        else if (r == -EINVAL) pages->empty++;
        else pages->refused++, pages->why = -r;
    }
    sr_sys_unmap(&map);
    return 0;
}
