/* backend: the kinds of memory that a data segment can be made of.
 *
 * Room 2, above sys. A backend is one file with one `const struct sr_backend`, listed in the table
 * of backend.c. It knows how its memory is made, committed, given back and mapped so that its page
 * tables stay small. It does not choose: which kind is taken, and whether, is decided in Python.
 *
 * To add a backend:
 *   1. Take the next number of enum sr_kind. Numbers are stored in segments: never use one again.
 *   2. Write NAME.c with the operations below. Every operation leaves nothing behind when it fails.
 *   3. Add it to the table in backend.c and to native/backend/meson.build.
 *   4. Give sharedregion/_policy.py the rule for when it can serve, and docs its line in the table.
 *   5. tests/conformance runs on it without a change.
 */
#ifndef SR_BACKEND_H
#define SR_BACKEND_H

#include "msharefs.h"
#include "sr_sys.h"

enum sr_kind {
    SR_KIND_SHM = 1,
    SR_KIND_THP = 2,
    SR_KIND_HUGETLB_2M = 3,
    SR_KIND_HUGETLB_1G = 4,
    SR_KIND_MSHAREFS = 5,
};

/* Where the memory gets its descriptor from. */
enum sr_place {
    SR_PLACE_SHM_DIR = 1,    /* a file of SR_SHM_DIR that can be given a name */
    SR_PLACE_MEMFD = 2,      /* memory without a name; a keeper holds it      */
    SR_PLACE_HUGETLB = 3,    /* the same, of reserved 2 MiB pages (msharefs)  */
};

struct sr_backend {
    enum sr_kind kind;
    const char *name;        /* as Python knows it                                              */
    uint64_t page;           /* what one leaf entry of a page table maps, when all goes well    */
    uint64_t granule;        /* commit and punch work in whole granules                         */
    uint64_t align;          /* mapping addresses are congruent to file offsets modulo this     */
    uint64_t pad;            /* the file and every mapping of it are a multiple of this         */
    bool nameless;           /* cannot be SR_PLACE_SHM_DIR                                      */
    bool shared_tables;      /* readers attach an msharefs region that shows the memory         */
    bool fixed;              /* granules are too large to be moved: the file is no longer than the size */

    /* A descriptor, read-write, of `size` bytes (a multiple of pad), nothing committed. */
    int (*make)(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e);
    /* Make [at, at + len) present: a later access never faults for lack of memory. Whole granules,
     * idempotent, safe beside others who do the same. `map` is a writable mapping of the whole
     * segment. SR_E_FULL if the memory is not to be had; what was committed until then stays. */
    int (*commit)(int fd, const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e);
    /* Give whole granules back. The caller has seen to it that nobody looks at them. */
    int (*punch)(int fd, uint64_t at, uint64_t len, struct sr_error *e);
    /* Map all `size` bytes. `fd` is O_RDONLY for a read-only mapping: with a read-write
     * description the mapping could become writable, and Linux does not link its tables. */
    int (*map)(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e);
    /* Map [at, at + len), whole pages, so that it can be written to and what is written stays with
     * this process. SR_E_FULL if that needs memory now which is not to be had. NULL: it is to be copied. */
    int (*map_private)(int fd, uint64_t at, uint64_t len, struct sr_map *map, struct sr_error *e);
    /* Make the pages of [at, at + len) large again, where something split them. May be NULL. */
    int (*repair)(const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e);
};

/* NULL for a kind that this build does not know. */
const struct sr_backend *sr_backend_of_kind(uint32_t kind);
const struct sr_backend *sr_backend_of_name(const char *name);

/* The file and its mappings are twice as long as the region: memory moves in them by whole granules,
 * objects do not (sr_alloc.h). What has no memory costs nothing but addresses. */
#define SR_REACH 2u
#define SR_GRANULES_MAX (UINT64_C(1) << 20)    /* 176 KiB of commit map at most */

struct sr_shape {
    uint64_t mapped;     /* length of the file and of its mappings, whole granules              */
    uint64_t granule;    /* of the commit map; larger than the backend's for huge regions       */
    uint64_t pages;      /* granules that may have memory at a time: `size`, rounded up         */
};

/* Of a data segment for `size` bytes; false if no file can be that long. */
static inline bool sr_backend_shape(const struct sr_backend *b, uint64_t size, struct sr_shape *out)
{
    if (size == 0 || size > INT64_MAX / 16) return false;
    uint64_t length = b->fixed ? size : size * SR_REACH;
    out->granule = b->granule;
    while (length / out->granule > SR_GRANULES_MAX) out->granule *= 2;
    out->mapped = sr_align_up(length, sr_max(b->pad, out->granule));
    out->pages = sr_align_up(size, out->granule) / out->granule;
    return true;
}

/* The length of the file and of its mappings for bare memory of `size` bytes, in which nothing moves. */
static inline uint64_t sr_backend_padded(const struct sr_backend *b, uint64_t size)
{
    return sr_align_up(size, b->pad);
}

extern const struct sr_backend sr_backend_shm, sr_backend_thp, sr_backend_hugetlb_2m, sr_backend_hugetlb_1g,
    sr_backend_msharefs;

/* --- msharefs: the region through which readers see the memory (msharefs.c) -------------------- */

/* Say in one sentence why `step` failed; SR_E_UNAVAILABLE. */
enum sr_share_step { SR_SHARE_FIND = 1, SR_SHARE_MAKE, SR_SHARE_SIZE, SR_SHARE_PLACE, SR_SHARE_ATTACH };
int sr_share_failed(struct sr_error *e, enum sr_share_step step, int neg_errno, const char *path);

/* Show what is committed in [at, at + len) of `memory` to all who have the region attached, and take
 * it away again. Whole granules. Showing what is shown already is no error. */
int sr_share_show(int region, int memory, uint64_t at, uint64_t len, struct sr_error *e);
int sr_share_hide(int region, uint64_t at, uint64_t len, struct sr_error *e);
/* Whether a region of `size` bytes does what it should, tried on its first page, which holds zeros,
 * is shown, and is mapped for writing at `page`: what is written there is seen in the region, and
 * nothing can be written through the region. */
int sr_share_check(int region, uint64_t size, uint64_t unit, unsigned char *page, struct sr_error *e);
/* All of it on a region of one unit that is made for it and ends at once. */
int sr_share_try(const char *path, struct sr_msharefs *found, struct sr_error *e);

/* What the backends share; between the files of this room. */
int sr_backend__make_shmem(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e);
int sr_backend__commit_failed(int neg_errno, uint64_t len, struct sr_error *e);
int sr_backend__punch(int fd, uint64_t at, uint64_t len, struct sr_error *e);
int sr_backend__map(const struct sr_backend *b, int extra_flags, int fd, uint64_t size, bool writable,
                    struct sr_map *map, struct sr_error *e);
int sr_backend__map_private(const struct sr_backend *b, int extra_flags, int fd, uint64_t at, uint64_t len,
                            struct sr_map *map, struct sr_error *e);

#endif
