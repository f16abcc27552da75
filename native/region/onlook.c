/* onlook: looking at a region without joining it, for ls, ps and gc.
 *
 * An onlooker holds no row, takes no lock and maps no shared memory: what it reads of catalog and
 * members is copied into memory of its own by pread(2). So it changes nothing (a load from a hole of
 * a mapped tmpfs file would take a page), keeps nobody from ending, and a file that another user
 * truncates meanwhile is a short read and not a SIGBUS. The copy is made piece by piece, as far as
 * numbers in it lead, and is not of one moment: an entry that fails its checks may have changed
 * under the copy, and is worth a second look.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PIECE (64 * SR_KIB)
#define LOOK_TRIES 100

static int no_space(const struct sr_region *r, int got, struct sr_error *e)
{
    return sr_fail(e, SR_E_UNAVAILABLE, got, "no memory to look at region '%s'", r->name);
}

/* Address space for a copy; nothing is taken until something is put there. */
static int reserve(struct sr_map *map, uint64_t len)
{
    void *at = NULL;
    int got = sr_sys->mmap(&at, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got < 0) return got;
    *map = (struct sr_map){.at = at, .len = len};
    return 0;
}

static bool all_zero(const unsigned char *at, size_t len) { return len == 0 || (at[0] == 0 && memcmp(at, at + 1, len - 1) == 0); }

/* Zeros are left out, so that a file of holes costs no memory. What is missing at the end of the file
 * stays zero too, and says by itself that nothing is there. */
static int copy(int fd, const struct sr_map *to, uint64_t from, uint64_t until)
{
    unsigned char *piece = malloc(PIECE);
    if (piece == NULL) return -ENOMEM;
    ssize_t n = 0;
    for (uint64_t at = from; at < until && at < to->len; at += (uint64_t)n) {
        n = sr_sys->pread(fd, piece, sr_min(PIECE, sr_min(until, to->len) - at), (off_t)at);
        if (n <= 0) break;
        if (!all_zero(piece, (size_t)n)) memcpy(to->at + at, piece, (size_t)n);
    }
    free(piece);
    return n < 0 ? (int)n : 0;
}

/* The slots of a generation, its last quarter, are the way in by name; who lists does without. */
bool sr_region__copy_gens(struct sr_region *r, unsigned from, unsigned until)
{
    for (unsigned g = from; g < until; g++) {
        uint64_t at = sr_gen_at(r->head.hd_gen0, g);
        if (copy(r->catalog_fd, &r->catalog, at, at + ((48 * SR_KIB) << g)) < 0) return false;
    }
    return true;
}

bool sr_region__copy_rows(struct sr_region *r, uint32_t from, uint32_t until)
{
    return copy(r->members_fd, &r->members, SR_PAGE * (1 + (uint64_t)from), SR_PAGE * (1 + (uint64_t)until)) == 0;
}

/* 0, 1 if the region was replaced meanwhile, or an error. */
static int look_once(struct sr_region *r, struct sr_error *e)
{
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    struct stat st;
    char file[SR_FILE_NAME];
    sr_region__file_name(file, r->name, SR_SEGMENT_CATALOG, 0);
    uint32_t owner = sr_sys->fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) == 0 ? st.st_uid : SR_NO_OWNER;
    r->catalog_fd = sr_region__open_catalog(dir, r->name, false, owner, &r->head, e);
    if (r->catalog_fd < 0) return r->catalog_fd;
    if (sr_sys->fstat(r->catalog_fd, &st) == 0) r->catalog_dev = st.st_dev, r->catalog_ino = st.st_ino;
    r->backend = sr_backend_of_kind(r->head.hd_kind);
    r->members_fd = sr_region__open_named(dir, &r->head, SR_SEGMENT_MEMBERS, O_RDONLY, r->head.hd_members_dev, r->head.hd_members_ino);
    if (r->members_fd == -ESTALE) return 1;
    if (r->members_fd < 0) return sr_fail(e, SR_E_DENIED, r->members_fd, "the members of region '%s' may not be looked at", r->name);
    int got = reserve(&r->catalog, sr_gen_at(r->head.hd_gen0, r->head.hd_gens));
    if (got == 0) got = reserve(&r->members, SR_PAGE * (1 + (uint64_t)r->head.hd_rows));
    if (got == 0) got = copy(r->catalog_fd, &r->catalog, 0, SR_COMMIT_MAP_AT);
    if (got == 0) got = copy(r->members_fd, &r->members, 0, SR_PAGE);
    if (got < 0) return no_space(r, got, e);
    const struct sr_members_head *m = sr_members(r);
    if (m->mh_magic != SR_MEMBERS_MAGIC || memcmp(m->mh_id, r->head.hd_id, sizeof m->mh_id) != 0)
        return sr_fail(e, SR_E_CORRUPT, 0, "the members segment of region '%s' contradicts its catalog", r->name);
    return 0;
}

int sr_region_look(struct sr_region **out, const char *name, struct sr_error *e)
{
    int got = sr_region_check_name(name, strlen(name), e);
    if (got < 0) return got;
    for (int tries = 0; tries < LOOK_TRIES; tries++) {
        struct sr_region *r = sr_region__new(name, e);
        if (r == NULL) return SR_E_NO_MEMORY;
        r->onlooker = true;
        got = look_once(r, e);
        if (got == 0) {
            *out = r;
            return 0;
        }
        sr_region__free(r);
        if (got < 0) return got;
        sr_region_pause();
    }
    return sr_fail(e, SR_E_CORRUPT, -ESTALE, "region '%s' names segments that are not there", name);
}

void sr_region_look_away(struct sr_region *r) { sr_region__free(r); }

int sr_region_backed(const struct sr_region *r, uint64_t *bytes)
{
    *bytes = 0;
    if (r->head.hd_flags & SR_HEAD_KEPT) return -ENOENT;
    SR_FD dir = sr_region__open_dir(NULL);
    char file[SR_FILE_NAME];
    struct stat st;
    sr_region__file_name(file, r->head.hd_name, SR_SEGMENT_DATA, r->head.hd_generation);
    int got = dir < 0 ? -ENOENT : sr_sys->fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW);
    if (got < 0) return got;
    if (st.st_dev != r->head.hd_data_dev || st.st_ino != r->head.hd_data_ino) return -ESTALE;
    *bytes = (uint64_t)st.st_blocks * 512;
    return 0;
}
