/* msharefs: the interfaces of the proposed series, and the choice between them by trying.
 *
 * Series v3 (20 August 2025), seen on a kernel that carries it. A file system "msharefs"; a region is
 * a file in it:
 *
 *   open(O_CREAT)          makes the region; this very thread is its owner from now on
 *   ftruncate(size)        once, a multiple of what the file mshare_info says (512 GiB); ftruncate(0)
 *                          and O_TRUNC on a new file leave it useless for good
 *   ioctl(CREATE_MAPPING)  maps a file in the region. Flags must have MAP_SHARED | MAP_FIXED, and
 *                          MAP_FIXED alone replaces silently; an unaligned file offset is rounded
 *                          down silently; prot is what all sharers get, whatever they attach with
 *   ioctl(UNMAP)           any pages; part of a huge page is EINVAL
 *   mmap(size, MAP_SHARED) attaches all of it, at an address that is a multiple of the unit
 *
 * A file that was unlinked works on as long as a descriptor or mapping of it is left. So a region
 * loses its name at once: nothing is left behind whoever is killed, and nobody can open or remove it
 * by name (the root directory of the mount is open to all, without a sticky bit).
 */
#define _GNU_SOURCE
#include "msharefs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

struct sr_msharefs_abi {
    const char *name;
    int (*unit)(const char *path, uint64_t *unit);    /* -ENODEV: not mine; path "": is one needed? */
    int (*make)(const char *path, unsigned mode);
    bool (*mine)(int region);
    int (*size)(int region, uint64_t size);
    int (*reader)(int region);
    int (*place)(int region, uint64_t at, uint64_t len, int fd, uint64_t from);
    int (*remove)(int region, uint64_t at, uint64_t len);
    int (*attach)(int region, uint64_t size, uint64_t unit, struct sr_map *map);
};

/* --- series v3 -------------------------------------------------------------------------------- */

#define V3_MAGIC 0x4D534852    /* statfs */
#define V3_NAMES 8             /* random names tried */

struct v3_create {
    uint64_t region_offset;    /*  0 */
    uint64_t size;             /*  8 */
    uint64_t offset;           /* 16  in the file */
    uint32_t prot;             /* 24 */
    uint32_t flags;            /* 28 */
    int32_t fd;                /* 32 */
    uint32_t pad;              /* 36 */
};
struct v3_range {
    uint64_t region_offset;
    uint64_t size;
};
SR_ASSERT_SIZE(struct v3_create, 40);
SR_ASSERT_SIZE(struct v3_range, 16);
#define V3_CREATE_MAPPING _IOW('x', 0, struct v3_create)
#define V3_UNMAP _IOW('x', 1, struct v3_range)
_Static_assert(V3_CREATE_MAPPING == 0x40287800 && V3_UNMAP == 0x40107801, "the numbers that were seen");

static bool v3_mine(int fd)
{
    struct statfs fs;
    return sr_sys->fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type == V3_MAGIC;
}

static int v3_open(const char *path)
{
    if (*path == '\0') return -ENODEV;    /* a file system has a place */
    SR_FD dir = sr_sys->openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
    if (dir < 0) return dir;
    return v3_mine(dir) ? sr_sys_keep(&dir) : -ENODEV;
}

static int v3_unit(const char *path, uint64_t *unit)
{
    SR_FD dir = v3_open(path);
    if (dir < 0) return dir;
    char text[32], *end;
    ssize_t n = sr_sys_read_text(dir, "mshare_info", text, sizeof text);
    if (n < 0) return (int)n;
    *unit = strtoull(text, &end, 10);
    return end != text && *end == '\n' ? 0 : -ERANGE;
}

static int v3_make(const char *path, unsigned mode)
{
    SR_FD dir = v3_open(path);
    if (dir < 0) return dir;
    char name[48];
    int fd = -EEXIST;
    for (int tries = 0; tries < V3_NAMES && fd == -EEXIST; tries++) {
        uint64_t nonce[2];
        int r = sr_sys->getrandom(nonce, sizeof nonce);
        if (r < 0) return r;
        snprintf(name, sizeof name, "sharedregion.%016llx%016llx", (unsigned long long)nonce[0], (unsigned long long)nonce[1]);
        fd = sr_sys->openat(dir, name, O_CREAT | O_EXCL | O_RDWR, mode);
    }
    SR_FD made = fd;
    if (made < 0) return made;
    int r = sr_sys->unlinkat(dir, name, 0);
    return r < 0 ? r : sr_sys_keep(&made);
}

/* Never 0: that succeeds, and leaves the file without a size for good. A file that is so already says
 * that it has none. */
static int v3_size(int region, uint64_t size)
{
    if (size == 0 || size > INT64_MAX) return -EINVAL;
    struct stat st;
    int r = sr_sys->ftruncate(region, (off_t)size);
    if (r == 0) r = sr_sys->fstat(region, &st);
    return r < 0 ? r : (uint64_t)st.st_size == size ? 0 : -EINVAL;
}

/* It may CREATE and UNMAP all the same: in v3 who may read may do everything. */
static int v3_reader(int region) { return sr_sys_reopen(region, O_RDONLY); }

static int v3_place(int region, uint64_t at, uint64_t len, int fd, uint64_t from)
{
    if (!sr_is_aligned(at | from, SR_PAGE)) return -EINVAL;
    /* NORESERVE: pages of a hugetlb file are taken by fallocate, and holes need none. */
    struct v3_create c = {
        .region_offset = at, .size = len, .offset = from, .fd = fd, .prot = PROT_READ,
        .flags = MAP_SHARED | MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_NORESERVE,
    };
    return sr_sys->ioctl(region, V3_CREATE_MAPPING, &c);
}

static int v3_remove(int region, uint64_t at, uint64_t len)
{
    struct v3_range range = {at, len};
    return sr_sys->ioctl(region, V3_UNMAP, &range);
}

static int v3_attach(int region, uint64_t size, uint64_t unit, struct sr_map *map)
{
    int r = sr_sys_map(map, size, unit, PROT_READ, MAP_SHARED | MAP_NORESERVE, region, 0);
    /* Of a file without a name the kernel would dump all 512 GiB: 138 s and as large a file. */
    if (r == 0) sr_sys->madvise(map->at, map->len, MADV_DONTDUMP);
    return r;
}

static const struct sr_msharefs_abi v3 = {
    .name = "v3", .unit = v3_unit, .make = v3_make, .mine = v3_mine, .size = v3_size, .reader = v3_reader,
    .place = v3_place, .remove = v3_remove, .attach = v3_attach,
};

/* --- the choice ------------------------------------------------------------------------------- */

#ifndef SR_MSHAREFS_SERIES    /* a test lists more */
#define SR_MSHAREFS_SERIES &v3
#endif
static const struct sr_msharefs_abi *const table[] = {SR_MSHAREFS_SERIES};

/* A power of two, from a large page to a quarter of the address space. */
static bool absurd(uint64_t unit) { return unit < SR_LARGE_PAGE || unit > UINT64_C(1) << 45 || (unit & (unit - 1)) != 0; }

int sr_msharefs_find(const char *path, struct sr_msharefs *found)
{
    int result = -ENODEV;
    for (size_t i = 0; i < SR_ARRAY_LEN(table); i++) {
        *found = (struct sr_msharefs){.abi = table[i], .path = path};
        int r = table[i]->unit(path, &found->unit);
        if (r == 0) return absurd(found->unit) ? -ERANGE : 0;
        if (r != -ENODEV) result = r;
    }
    return result;
}

const char *sr_msharefs_abi_name(const struct sr_msharefs *m) { return m->abi->name; }
int sr_msharefs_make(const struct sr_msharefs *m, unsigned mode) { return m->abi->make(m->path, mode); }

static const struct sr_msharefs_abi *abi_of(int region)
{
    for (size_t i = 0; i < SR_ARRAY_LEN(table); i++)
        if (table[i]->mine(region)) return table[i];
    return NULL;
}

int sr_msharefs_size(int region, uint64_t size)
{
    const struct sr_msharefs_abi *abi = abi_of(region);
    return abi ? abi->size(region, size) : -ENOTTY;
}

int sr_msharefs_reader(int region)
{
    const struct sr_msharefs_abi *abi = abi_of(region);
    return abi ? abi->reader(region) : -ENOTTY;
}

int sr_msharefs_place(int region, uint64_t at, uint64_t len, int fd, uint64_t from)
{
    const struct sr_msharefs_abi *abi = abi_of(region);
    return abi ? abi->place(region, at, len, fd, from) : -ENOTTY;
}

int sr_msharefs_remove(int region, uint64_t at, uint64_t len)
{
    const struct sr_msharefs_abi *abi = abi_of(region);
    return abi ? abi->remove(region, at, len) : -ENOTTY;
}

int sr_msharefs_attach(int region, uint64_t size, uint64_t unit, struct sr_map *map)
{
    const struct sr_msharefs_abi *abi = abi_of(region);
    return abi ? abi->attach(region, size, unit, map) : -ENOTTY;
}
