/* hugetlb: pages of 2 MiB or 1 GiB from the reserved pool, page tables linked between processes.
 *
 * Linux links one PMD table into every process that maps the same GiB of a hugetlb file
 * (huge_pmd_share, mm/hugetlb.c) when the mapping is shared, covers the whole GiB, sits at an
 * address congruent to the file offset modulo 1 GiB, and the flags of the mappings are identical.
 * What follows for us:
 *   - the file and every mapping are padded to whole GiB; only what is committed takes pages;
 *   - addresses are 1 GiB-aligned, which mmap does not do by itself;
 *   - readers map an O_RDONLY description, and nobody calls mprotect or madvise on a part;
 *   - MAP_NORESERVE: the pool is not charged for the padding. So pages are taken by fallocate, which
 *     says ENOSPC, since a touch of what is not there would be SIGBUS.
 * With 1 GiB pages there is no PMD table at all: the entry sits in the PUD table.
 * memfd_create with MFD_HUGETLB needs no privilege; a hugetlbfs mount is not used.
 */
#define _GNU_SOURCE
#include "sr_backend.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#define MFD_HUGE_1GB (30u << 26)
#endif

static int make(unsigned page_flag, uint64_t size, unsigned mode, struct sr_error *e)
{
    SR_FD fd = sr_sys->memfd_create("sharedregion", MFD_ALLOW_SEALING | MFD_HUGETLB | page_flag);
    if (fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, fd, "this kernel has no hugetlb pages of that size");
    int r = sr_sys->ftruncate(fd, (off_t)size);
    if (r == 0) r = sr_sys->fchmod(fd, mode);
    if (r < 0) return sr_fail(e, SR_E_UNAVAILABLE, r, "a hugetlb file of %llu bytes could not be made", (unsigned long long)size);
    return sr_sys_keep(&fd);
}

static int make_2m(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e)
{
    (void)place, (void)shm_dir;
    return make(MFD_HUGE_2MB, size, mode, e);
}

static int make_1g(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e)
{
    (void)place, (void)shm_dir;
    return make(MFD_HUGE_1GB, size, mode, e);
}

static int commit(int fd, const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    (void)map;
    int r = sr_sys_commit(fd, at, len);
    return r == 0 ? 0 : sr_backend__commit_failed(r, len, e);
}

static int map_2m(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map(&sr_backend_hugetlb_2m, MAP_NORESERVE, fd, size, writable, map, e);
}

static int map_1g(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map(&sr_backend_hugetlb_1g, MAP_NORESERVE, fd, size, writable, map, e);
}

/* No MAP_NORESERVE here: a page for each one that may be written to is promised now, or the answer is
 * ENOMEM. Without the promise a write could find the pool empty, which is SIGBUS. The promise does
 * not pass to a forked child (hugetlb_dup_vma_private, mm/hugetlb.c). */
static int map_private_2m(int fd, uint64_t at, uint64_t len, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map_private(&sr_backend_hugetlb_2m, 0, fd, at, len, map, e);
}

const struct sr_backend sr_backend_hugetlb_2m = {
    .kind = SR_KIND_HUGETLB_2M,
    .name = "hugetlb-2m",
    .page = SR_LARGE_PAGE,
    .granule = SR_LARGE_PAGE,
    .align = SR_GIB,
    .pad = SR_GIB,
    .nameless = true,
    .make = make_2m,
    .commit = commit,
    .punch = sr_backend__punch,
    .map = map_2m,
    .map_private = map_private_2m,
};

const struct sr_backend sr_backend_hugetlb_1g = {
    .kind = SR_KIND_HUGETLB_1G,
    .name = "hugetlb-1g",
    .page = SR_GIB,
    .granule = SR_GIB,
    .align = SR_GIB,
    .pad = SR_GIB,
    .nameless = true,
    .fixed = true,
    .make = make_1g,
    .commit = commit,
    .punch = sr_backend__punch,
    .map = map_1g,
};
