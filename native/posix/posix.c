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

static int make(int dir, const char *name, int fd, uint64_t size, bool large, struct sr_map *map, struct sr_error *e)
{
    int r = sr_sys->ftruncate(fd, (off_t)size);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "a file of %llu bytes could not be made", (unsigned long long)size);
    r = sr_posix_map(fd, size, true, map, e);
    if (r == 0) r = commit(fd, map, size, large, e);
    if (r < 0) return r;
    r = sr_sys_shm_link(fd, dir, name);
    if (r == -EEXIST) return sr_fail(e, SR_E_EXISTS, r, "the name is taken");
    return r == 0 ? 0 : sr_fail(e, SR_E_SYSTEM, r, "the memory was there, but could not be named");
}

/* /proc/PID/maps and lsof show a mapping by the name under which its file was opened, and for a file
 * that had none a number. So it is opened and mapped once more now that it has its name. Where that
 * fails, or the name is another's already, the first mapping serves as well. */
static void take_name(int dir, const char *name, int *fd, uint64_t size, struct sr_map *map)
{
    SR_FD named = sr_sys->openat(dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    struct stat mine, there;
    if (named < 0 || sr_sys->fstat(*fd, &mine) < 0 || sr_sys->fstat(named, &there) < 0) return;
    if (mine.st_ino != there.st_ino || mine.st_dev != there.st_dev) return;
    struct sr_map again;
    if (sr_posix_map(named, size, true, &again, NULL) < 0) return;
    sr_sys_unmap(map);
    *map = again;
    sr_sys_close(fd);
    *fd = sr_sys_keep(&named);
}

int sr_posix_create(const char *name, uint64_t size, unsigned mode, bool large, struct sr_map *map, struct sr_error *e)
{
    *map = (struct sr_map){0};
    if (size == 0 || size > INT64_MAX) return sr_fail(e, SR_E_INVALID, -EINVAL, "a block cannot have %llu bytes", (unsigned long long)size);
    SR_FD dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    if (dir < 0) return sr_fail(e, SR_E_SYSTEM, dir, SR_SHM_DIR " cannot be opened");
    /* A name that is taken is found before the memory is filled; linkat decides. */
    struct stat st;
    if (sr_sys->fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0) return sr_fail(e, SR_E_EXISTS, -EEXIST, "the name is taken");
    SR_FD fd = sr_sys->openat(dir, ".", O_TMPFILE | O_RDWR, mode);
    if (fd < 0) return sr_fail(e, SR_E_SYSTEM, fd, "no file can be made in " SR_SHM_DIR);
    int r = make(dir, name, fd, size, large, map, e);
    if (r < 0) {
        sr_sys_unmap(map);
        return r;
    }
    take_name(dir, name, &fd, size, map);
    return sr_sys_keep(&fd);
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
