/* thp: shared memory collapsed into 2 MiB pages.
 *
 * MADV_COLLAPSE (Linux 6.1 for shared memory) makes large pages of a shmem file whatever
 * shmem_enabled says, unless it says deny, and needs no privilege. A mapping at an address that is
 * congruent to the file offset modulo 2 MiB then reaches each of them by one PMD entry: 4 KiB of
 * page table per GiB, made at the first fault, with no call by the worker.
 *
 * The cheap order is to have one 4 KiB page in each 2 MiB and to collapse that: the large page is
 * cleared once. Allocating all small pages first would clear, copy and free them. A range with no
 * page at all is refused (EINVAL), hence the one page; it is allocated by fallocate and not by a
 * touch, so that a full file system is ENOSPC and not SIGBUS. A collapse charges the file system
 * before it adds a page, so that its failure is harmless too: what stays small is then allocated in
 * small pages.
 */
#define _GNU_SOURCE
#include "sr_backend.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Collapse in slices, so that a signal or a failure wastes little. Clearing 2 MiB is most of making a
 * large page, and several threads do it to several pages at once. */
#define SLICE (64 * SR_MIB)

static int commit_slice(int fd, const struct sr_map *map, uint64_t at, uint64_t len)
{
    for (uint64_t off = at; off < at + len; off += SR_LARGE_PAGE) {
        int r = sr_sys_commit(fd, off, SR_PAGE);
        if (r < 0) return r;
    }
    if (sr_sys->madvise(map->at + at, len, MADV_COLLAPSE) == 0) return 0;
    /* No large page is free, or this process may not have them: small pages serve. */
    return sr_sys_commit(fd, at, len);
}

struct commitment { int fd; const struct sr_map *map; uint64_t from; };

static int commit_part(void *arg, uint64_t at, uint64_t len)
{
    const struct commitment *c = arg;
    int r = 0;
    for (uint64_t done = 0; done < len && r == 0; done += SLICE)
        r = commit_slice(c->fd, c->map, c->from + at + done, sr_min(SLICE, len - done));
    return r;
}

static int commit(int fd, const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    struct commitment c = {fd, map, at};
    int r = sr_sys_in_parts(len, SR_LARGE_PAGE, SLICE, commit_part, &c);
    return r == 0 ? 0 : sr_backend__commit_failed(r, len, e);
}

static int map_all(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map(&sr_backend_thp, 0, fd, size, writable, map, e);
}

/* MAP_NORESERVE: memory is taken page by page as it is written to. */
static int map_private(int fd, uint64_t at, uint64_t len, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map_private(&sr_backend_thp, MAP_NORESERVE, fd, at, len, map, e);
}

static int repair(const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    for (uint64_t off = at; off < at + len; off += SR_LARGE_PAGE) {
        int r = sr_sys->madvise(map->at + off, SR_LARGE_PAGE, MADV_COLLAPSE);
        if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "large pages could not be made");
    }
    return 0;
}

const struct sr_backend sr_backend_thp = {
    .kind = SR_KIND_THP,
    .name = "thp",
    .page = SR_LARGE_PAGE,
    .granule = SR_LARGE_PAGE,
    .align = SR_LARGE_PAGE,
    .pad = SR_LARGE_PAGE,
    .make = sr_backend__make_shmem,
    .commit = commit,
    .punch = sr_backend__punch,
    .map = map_all,
    .map_private = map_private,
    .repair = repair,
};
