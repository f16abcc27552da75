/* msharefs: a memfd that all readers see through one set of page tables.
 *
 * The memory is a memfd: of reserved 2 MiB pages, or of shmem pages collapsed into large ones as thp
 * does it. Who may write maps the memfd. Readers attach an msharefs region in which the committed
 * parts of the memfd are shown read-only: the protection of an attached mapping is not enforced by
 * the kernel, that of an object in the region is, so that is where reading is made of reading only.
 * The region's address space is a multiple of a unit of 512 GiB and costs nothing; what is not
 * committed is not shown, and a touch of it is SIGSEGV. As the memory grows more of it is shown, and
 * every process that has the region attached sees it at once.
 *
 * The region lives as long as the thread that made it. That is the keeper's (native/keeper); the
 * memory itself is safe from its end, for those who map the memfd.
 */
#define _GNU_SOURCE
#include "sr_backend.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>

#define HUGETLB_MAGIC 0x958458f6

static bool of_hugetlb(int fd)
{
    struct statfs fs;
    return sr_sys->fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type == HUGETLB_MAGIC;
}

/* --- the memory ------------------------------------------------------------------------------- */

static int make(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e)
{
    if (place == SR_PLACE_HUGETLB) return sr_backend_hugetlb_2m.make(place, shm_dir, size, mode, e);
    return sr_backend__make_shmem(SR_PLACE_MEMFD, shm_dir, size, mode, e);
}

static int commit(int fd, const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    return (of_hugetlb(fd) ? &sr_backend_hugetlb_2m : &sr_backend_thp)->commit(fd, map, at, len, e);
}

/* At 1 GiB for hugetlb, so that writers share the tables of whole GiB. */
static int map_memory(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    return (of_hugetlb(fd) ? &sr_backend_hugetlb_2m : &sr_backend_thp)->map(fd, size, writable, map, e);
}

static int map_private(int fd, uint64_t at, uint64_t len, struct sr_map *map, struct sr_error *e)
{
    return (of_hugetlb(fd) ? &sr_backend_hugetlb_2m : &sr_backend_thp)->map_private(fd, at, len, map, e);
}

/* EINVAL is what the kernel says where there is nothing to collapse: reserved pages are large, and a
 * reader's mapping of the region has no say in what its pages are. */
static int repair(const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    struct sr_error why = {0};
    int got = sr_backend_thp.repair(map, at, len, &why);
    if (got == 0 || why.sys_errno == EINVAL) return 0;
    if (e) *e = why;
    return got;
}

const struct sr_backend sr_backend_msharefs = {
    .kind = SR_KIND_MSHAREFS,
    .name = "msharefs",
    .page = SR_LARGE_PAGE,
    .granule = SR_LARGE_PAGE,
    .align = SR_LARGE_PAGE,
    .pad = SR_LARGE_PAGE,
    .nameless = true,
    .shared_tables = true,
    .make = make,
    .commit = commit,
    .punch = sr_backend__punch,
    .map = map_memory,
    .map_private = map_private,
    .repair = repair,
};

/* --- the region that shows it ------------------------------------------------------------------ */

int sr_share_failed(struct sr_error *e, enum sr_share_step step, int neg_errno, const char *path)
{
    switch (step) {
    case SR_SHARE_FIND:
        if (neg_errno == -ENODEV) return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "%s is not an msharefs mount", path);
        if (neg_errno == -ERANGE) return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "the unit that %s/mshare_info names is absurd", path);
        return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "msharefs at %s cannot be looked at", path);
    case SR_SHARE_MAKE:
        return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "a region could not be made in %s", path);
    case SR_SHARE_SIZE:
        return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "msharefs refused the region's size");
    case SR_SHARE_PLACE:
        return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "memory could not be placed in the msharefs region: this kernel may have another interface");
    case SR_SHARE_ATTACH:
        if (neg_errno == -ENOMEM) return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "there is no address space for the msharefs region");
        return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "the msharefs region could not be attached");
    }
    return sr_fail(e, SR_E_UNAVAILABLE, neg_errno, "msharefs does not serve");
}

int sr_share_show(int region, int memory, uint64_t at, uint64_t len, struct sr_error *e)
{
    int r = sr_msharefs_place(region, at, len, memory, at);
    /* Part of it may be shown by now: another writer has just committed it. One granule at a time. */
    for (uint64_t off = 0; r == -EEXIST && off < len; off += SR_LARGE_PAGE) {
        int one = sr_msharefs_place(region, at + off, sr_min(SR_LARGE_PAGE, len - off), memory, at + off);
        if (one < 0 && one != -EEXIST) r = one;
    }
    if (r == 0 || r == -EEXIST) return 0;
    if (r == -ENOMEM) return sr_fail(e, SR_E_FULL, r, "the msharefs region can show no further memory");
    return sr_share_failed(e, SR_SHARE_PLACE, r, "");
}

int sr_share_hide(int region, uint64_t at, uint64_t len, struct sr_error *e)
{
    int r = sr_msharefs_remove(region, at, len);
    return r == 0 ? 0 : sr_fail(e, SR_E_SYSTEM, r, "memory could not be taken out of the msharefs region");
}

/* Through the kernel, which answers EFAULT where this process would die of SIGSEGV. */
static int peek(int scratch, const void *at, uint64_t *value)
{
    ssize_t n = sr_sys->write(scratch, at, sizeof *value);
    if (n < 0) return (int)n;
    SR_FD again = sr_sys_reopen(scratch, O_RDONLY);
    if (again < 0) return again;
    struct stat st;
    int r = sr_sys->fstat(again, &st);
    if (r < 0) return r;
    n = sr_sys->pread(again, value, sizeof *value, st.st_size - (off_t)sizeof *value);
    return n == sizeof *value ? 0 : n < 0 ? (int)n : -EIO;
}

static int check(const struct sr_map *map, unsigned char *page, struct sr_error *e)
{
    SR_FD scratch = sr_sys->memfd_create("sharedregion-try", 0);
    if (scratch < 0) return sr_share_failed(e, SR_SHARE_ATTACH, scratch, "");
    _Atomic uint64_t *word = (_Atomic uint64_t *)page;
    const uint64_t marks[] = {UINT64_C(0x7365654E69745279), 0};
    for (size_t i = 0; i < SR_ARRAY_LEN(marks); i++) {
        uint64_t seen = 0;
        atomic_store(word, marks[i]);
        int r = peek(scratch, map->at, &seen);
        atomic_store(word, 0);
        if (r < 0) return sr_fail(e, SR_E_UNAVAILABLE, r, "memory that was placed in the msharefs region cannot be read there");
        if (seen != marks[i]) return sr_fail(e, SR_E_UNAVAILABLE, -EIO, "what is written to the memory is not seen in the msharefs region");
    }
    /* The bytes on the way are a zero that stays a zero, should it get through. */
    SR_FD again = sr_sys_reopen(scratch, O_RDONLY);
    ssize_t n = again < 0 ? again : sr_sys->pread(again, map->at, sizeof(uint64_t), sizeof(uint64_t));
    if (n == -EFAULT) return 0;
    return sr_fail(e, SR_E_UNAVAILABLE, n < 0 ? (int)n : -EPERM, "the msharefs region does not keep writers out");
}

int sr_share_check(int region, uint64_t size, uint64_t unit, unsigned char *page, struct sr_error *e)
{
    struct sr_map map;
    int r = sr_msharefs_attach(region, size, unit, &map);
    if (r < 0) return sr_share_failed(e, SR_SHARE_ATTACH, r, "");
    r = check(&map, page, e);
    sr_sys_unmap(&map);
    return r;
}

int sr_share_try(const char *path, struct sr_msharefs *found, struct sr_error *e)
{
    int r = sr_msharefs_find(path, found);
    if (r < 0) return sr_share_failed(e, SR_SHARE_FIND, r, path);
    SR_FD memory = sr_backend__make_shmem(SR_PLACE_MEMFD, -1, SR_LARGE_PAGE, 0600, e);
    if (memory < 0) return memory;
    struct sr_map map = {0};
    SR_FD region = sr_msharefs_make(found, 0600);
    if (region < 0) return sr_share_failed(e, SR_SHARE_MAKE, region, path);
    r = sr_msharefs_size(region, found->unit);
    if (r < 0) return sr_share_failed(e, SR_SHARE_SIZE, r, path);
    r = sr_backend_shm.commit(memory, NULL, 0, SR_PAGE, e);
    if (r == 0) r = map_memory(memory, SR_LARGE_PAGE, true, &map, e);
    if (r == 0) r = sr_share_show(region, memory, 0, SR_LARGE_PAGE, e);
    if (r == 0) r = sr_share_check(region, found->unit, found->unit, map.at, e);
    sr_sys_unmap(&map);
    return r;
}
