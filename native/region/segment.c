/* segment: opening what exists. Making is in create.c, removing in reclaim.c.
 *
 * A region exists when its catalog has its name: that file is linked last and removed first, and a
 * replacement is one rename of it. The other segments are found through it, by name and then by
 * device and inode, so that files of another generation or of another program are never taken for
 * it. Between the two looks a region may be replaced; then everything is opened anew.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define ATTACH_TRIES 100
#define REMOVAL_SLICES 10000    /* of 0.1 ms: a keeper that is stopped is not waited for for ever */

void sr_region_pause(void)
{
    static _Atomic uint32_t nobody_wakes;
    const struct timespec slice = {.tv_nsec = 100000};
    sr_sys->futex_wait(&nobody_wakes, 0, &slice);
}

int sr_region__open_dir(struct sr_error *e)
{
    int dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    return dir >= 0 ? dir : sr_fail(e, SR_E_UNAVAILABLE, dir, SR_SHM_DIR " cannot be opened");
}

bool sr_region__same_file(int dir, const char *name, uint64_t dev, uint64_t ino)
{
    struct stat st;
    return sr_sys->fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_dev == dev && st.st_ino == ino;
}

/* --- the head --------------------------------------------------------------------------------- */

static int corrupt(struct sr_error *e, const char *name, const char *why)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the catalog of region '%s' %s", name, why);
}

/* Everything that is later used as a size or a bound is checked here, once; the copy is used. */
static int check_head(const struct sr_head *h, const char *name, uint64_t file_size, struct sr_error *e)
{
    if (h->hd_magic != SR_CATALOG_MAGIC) return corrupt(e, name, "is not one of this library's");
    if (h->hd_version != SR_FORMAT_VERSION || h->hd_stamp != SR_BUILD_STAMP)
        return sr_fail(e, SR_E_CORRUPT, 0, "region '%s' was made by another build (format %u, stamp %08x; here %u, %08x)",
                       name, h->hd_version, h->hd_stamp, SR_FORMAT_VERSION, SR_BUILD_STAMP);
    if (h->hd_crc != sr_crc32c(0, h, offsetof(struct sr_head, hd_crc))) return corrupt(e, name, "fails its checksum");
    const struct sr_backend *b = sr_backend_of_kind(h->hd_kind);
    if (b == NULL) return corrupt(e, name, "names a kind of memory that this build does not know");
    struct sr_shape shape;
    bool ok = sr_backend_shape(b, h->hd_size, &shape) && h->hd_mapped == shape.mapped && h->hd_granule == shape.granule &&
              h->hd_gens >= 1 && h->hd_gens <= SR_GEN_MAX && h->hd_rows == SR_ROWS_MAX &&
              h->hd_name_len <= SR_REGION_NAME_MAX && h->hd_name[h->hd_name_len] == '\0' &&
              h->hd_reason[sizeof h->hd_reason - 1] == '\0' && sr_is_aligned(h->hd_gen0, SR_PAGE) &&
              h->hd_gen0 >= SR_COMMIT_MAP_AT + sr_commit_map_size(h->hd_mapped, h->hd_granule) &&
              h->hd_gen0 <= INT64_MAX / 2 && h->hd_catalog_size >= sr_gen_at(h->hd_gen0, h->hd_gens);
    if (!ok || !sr_region__share_ok(h, b)) return corrupt(e, name, "contradicts itself");
    if (file_size < h->hd_catalog_size) return corrupt(e, name, "is truncated");
    return 0;
}

int sr_region__open_catalog(int dir, const char *name, bool writable, uint32_t owner, struct sr_head *head, struct sr_error *e)
{
    char file[SR_FILE_NAME];
    sr_region__file_name(file, name, SR_SEGMENT_CATALOG, 0);
    SR_FD fd = sr_sys->openat(dir, file, (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd == -ENOENT) return sr_fail(e, SR_E_NOT_FOUND, fd, "there is no region '%s'", name);
    if (fd == -EACCES || fd == -EPERM) return sr_fail(e, SR_E_DENIED, fd, "region '%s' may not be opened by user %u", name, sr_sys_uid());
    if (fd < 0) return sr_fail(e, SR_E_SYSTEM, fd, "the catalog of region '%s' cannot be opened", name);
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "the catalog of region '%s' cannot be examined", name);
    if (!S_ISREG(st.st_mode)) return corrupt(e, name, "is not a file");
    uint32_t expected = owner == SR_NO_OWNER ? sr_sys_uid() : owner;
    if (st.st_uid != expected)
        return sr_fail(e, SR_E_DENIED, -EACCES, "region '%s' belongs to user %u, not to %u", name, st.st_uid, expected);
    ssize_t n = sr_sys->pread(fd, head, sizeof *head, 0);
    if (n < 0) return sr_fail(e, SR_E_SYSTEM, (int)n, "the catalog of region '%s' cannot be read", name);
    if (n != sizeof *head) return corrupt(e, name, "is truncated");
    r = check_head(head, name, (uint64_t)st.st_size, e);
    if (r < 0) return r;
    if (strcmp(head->hd_name, name) != 0) return corrupt(e, name, "is that of another region");
    /* Whose pickles may be read follows from the owner, who can write what he likes into the head. */
    head->hd_uid = (uint32_t)st.st_uid;
    return sr_sys_keep(&fd);
}

/* --- the others ------------------------------------------------------------------------------- */

int sr_region__open_named(int dir, const struct sr_head *head, enum sr_segment segment, int flags, uint64_t dev, uint64_t ino)
{
    char file[SR_FILE_NAME];
    sr_region__file_name(file, head->hd_name, segment, head->hd_generation);
    SR_FD fd = sr_sys->openat(dir, file, flags | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd == -ENOENT) return -ESTALE;
    if (fd < 0) return fd;
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return r;
    return st.st_dev == dev && st.st_ino == ino ? sr_sys_keep(&fd) : -ESTALE;
}

int sr_region__open_members(int dir, const struct sr_head *head)
{
    return sr_region__open_named(dir, head, SR_SEGMENT_MEMBERS, O_RDWR, head->hd_members_dev, head->hd_members_ino);
}

int sr_region__open_data(int dir, const struct sr_head *head, uint32_t uid, bool writable)
{
    if (!(head->hd_flags & SR_HEAD_KEPT))
        return sr_region__open_named(dir, head, SR_SEGMENT_DATA, writable ? O_RDWR : O_RDONLY, head->hd_data_dev, head->hd_data_ino);
    char path[SR_SOCKET_PATH];
    sr_region__socket_path(path, head->hd_id);
    SR_FD fd = sr_keeper_fetch(path, uid, writable);
    if (fd < 0) return fd;
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return r;
    return st.st_dev == head->hd_data_dev && st.st_ino == head->hd_data_ino ? sr_sys_keep(&fd) : -EPROTO;
}

static int data_failed(const struct sr_region *r, int neg_errno, struct sr_error *e)
{
    bool kept = r->head.hd_flags & SR_HEAD_KEPT;
    if (neg_errno == -EACCES || neg_errno == -EPERM)
        return sr_fail(e, SR_E_DENIED, neg_errno, "the memory of region '%s' is not for user %u", r->name, sr_sys_uid());
    if (kept && (neg_errno == -ENOENT || neg_errno == -ECONNREFUSED))
        return sr_fail(e, SR_E_LOST, neg_errno, "the keeper of region '%s' has ended, and nobody else can hand out its memory", r->name);
    if (kept) return sr_fail(e, SR_E_LOST, neg_errno, "the keeper of region '%s' does not answer", r->name);
    return sr_fail(e, SR_E_SYSTEM, neg_errno, "the data segment of region '%s' cannot be opened", r->name);
}

static int check_size(int fd, uint64_t least, const char *name, const char *what, struct sr_error *e)
{
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "region '%s' cannot be examined", name);
    if ((uint64_t)st.st_size < least) return sr_fail(e, SR_E_CORRUPT, 0, "the %s segment of region '%s' is truncated", what, name);
    return 0;
}

int sr_region__map_small(int fd, uint64_t len, bool writable, struct sr_map *map, struct sr_error *e)
{
    uint64_t align = len >= SR_LARGE_PAGE ? SR_LARGE_PAGE : SR_PAGE;
    int r = sr_sys_map(map, len, align, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE, fd, 0);
    return r == 0 ? 0 : sr_fail(e, SR_E_UNAVAILABLE, r, "%llu bytes of address space could not be mapped", (unsigned long long)len);
}

static int check_members(const struct sr_region *r, struct sr_error *e)
{
    const struct sr_members_head *m = sr_members(r);
    bool ok = m->mh_magic == SR_MEMBERS_MAGIC && m->mh_version == SR_FORMAT_VERSION && m->mh_stamp == SR_BUILD_STAMP &&
              memcmp(m->mh_id, r->head.hd_id, sizeof m->mh_id) == 0 && m->mh_rows == r->head.hd_rows &&
              m->mh_crc == sr_crc32c(0, m, offsetof(struct sr_members_head, mh_crc));
    return ok ? 0 : sr_fail(e, SR_E_CORRUPT, 0, "the members segment of region '%s' contradicts its catalog", r->name);
}

static int map_data(struct sr_region *r, struct sr_error *e)
{
    if (r->share_fd >= 0) return sr_region__attach_share(r, &r->data, e);
    int got = check_size(r->data_fd, r->head.hd_mapped, r->name, "data", e);
    return got < 0 ? got : r->backend->map(r->data_fd, r->head.hd_mapped, r->writable, &r->data, e);
}

/* Map what the descriptors refer to and join. */
static int map_and_join(struct sr_region *r, struct sr_error *e)
{
    int got = check_size(r->members_fd, SR_PAGE * (1 + (uint64_t)r->head.hd_rows), r->name, "members", e);
    if (got == 0) got = sr_region__view(r, e);
    if (got == 0) got = check_members(r, e);
    if (got == 0 && r->writable && (sr_state_flags(sr_state(r)) & SR_STATE_SEALED))
        got = sr_fail(e, SR_E_READ_ONLY, -EPERM, "region '%s' is sealed: it can be attached for reading", r->name);
    if (got == 0) got = map_data(r, e);
    if (got == 0) got = sr_member_join(r, e);
    if (got == 0) sr_region__touch_share(r);
    return got;
}

/* --- handles ---------------------------------------------------------------------------------- */

struct sr_region *sr_region__new(const char *name, struct sr_error *e)
{
    struct sr_region *r = calloc(1, sizeof *r);
    if (r == NULL) {
        sr_fail(e, SR_E_NO_MEMORY, -ENOMEM, "out of memory");
        return NULL;
    }
    memcpy(r->name, name, strlen(name));
    r->members_fd = r->catalog_fd = r->data_fd = r->share_fd = -1;
    pthread_mutex_init(&r->local, NULL);
    pthread_mutex_init(&r->writers, NULL);
    pthread_mutex_init(&r->growth, NULL);
    return r;
}

void sr_region__free(struct sr_region *r)
{
    r->open = false;
    sr_member_leave(r);
    sr_sys_unmap(&r->data);
    sr_sys_unmap(&r->share);
    sr_sys_unmap(&r->members);
    sr_sys_unmap(&r->catalog);
    sr_sys_unmap(&r->small_members);
    sr_sys_unmap(&r->small_catalog);
    sr_region__close_own(&r->data_fd, r->head.hd_data_dev, r->head.hd_data_ino);
    sr_region__close_own(&r->share_fd, r->head.hd_share_dev, r->head.hd_share_ino);
    sr_region__close_own(&r->catalog_fd, r->catalog_dev, r->catalog_ino);
    sr_region__close_own(&r->members_fd, r->head.hd_members_dev, r->head.hd_members_ino);
    pthread_mutex_destroy(&r->local);
    pthread_mutex_destroy(&r->writers);
    pthread_mutex_destroy(&r->growth);
    free(r);
}

void sr_region__await_removal(int members_fd, uint32_t rows)
{
    for (int slice = 0; slice < REMOVAL_SLICES && sr_sys_held(members_fd, 0, rows) > 1; slice++) sr_region_pause();
}

/* The keeper gives the memory back and removes the names; its socket goes last. Waiting for that
 * makes close() mean what it says: the next region finds the huge pages free. */
void sr_region__await_keeper(int dir, int members_fd, const struct sr_head *head)
{
    char socket[SR_FILE_NAME];
    struct stat st;
    sr_region__socket_name(socket, head->hd_id);
    for (int slice = 0; slice < REMOVAL_SLICES; slice++) {
        if (sr_sys->fstatat(dir, socket, &st, AT_SYMLINK_NOFOLLOW) < 0) return;
        if (sr_sys_held(members_fd, 0, head->hd_rows) == 1) return;    /* somebody has joined */
        sr_region_pause();
    }
}

/* -EMFILE and the like if it could not be done. */
static int leave_names(const struct sr_head *head, int members_fd)
{
    SR_FD dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    if (dir < 0) return dir;
    /* Granted only when no member is left; and as long as it is held, nobody can become one. */
    int got = sr_sys_lock(members_fd, 0, head->hd_rows, false);
    if (got < 0 && sr_sys_held(members_fd, 0, head->hd_rows) == 1) return 0;
    if (!(head->hd_flags & SR_HEAD_KEPT)) {
        if (got == 0) return sr_region__remove_names(dir, head);
        sr_region__await_removal(members_fd, head->hd_rows);
        return 0;
    }
    char path[SR_SOCKET_PATH];
    sr_region__socket_path(path, head->hd_id);
    if (got == 0) {
        int probe = sr_keeper_fetch(path, head->hd_uid, false);
        bool dead = probe == -ECONNREFUSED || probe == -ENOENT;
        sr_sys_close(&probe);
        if (dead) {
            sr_region__remove_names(dir, head);
            sr_sys->unlinkat(AT_FDCWD, path, 0);
            return 0;
        }
        sr_sys_unlock(members_fd, 0, head->hd_rows);
    }
    sr_region__await_keeper(dir, members_fd, head);
    return 0;
}

void sr_region_close(struct sr_region *r)
{
    sr_region__untrack(r);
    int members = r->rows_count ? sr_region__members_fd(r) : -1;
    struct sr_head head = r->head;
    if (members >= 0) r->members_fd = -1;    /* kept for what follows; the others make room for its descriptors */
    sr_region__free(r);
    if (members < 0) return;
    if (!(head.hd_flags & SR_HEAD_PERSIST)) {
        /* A description of its own, if one is to be had: that of a forked relative would share the lock. */
        SR_FD own = sr_sys_reopen(members, O_RDWR);
        int left = own >= 0 ? leave_names(&head, own) : -EMFILE;
        if (left == -EMFILE || left == -ENFILE) {
            sr_sys_close(&own);
            leave_names(&head, members);
            sr_sys_unlock(members, 0, head.hd_rows);
        }
    }
    sr_sys->close(members);
}

/* Whether a row is one of this process's own, by any handle of the same region. Under the list's lock. */
static bool others_live(struct sr_region *r)
{
    uint32_t high = sr_rows_high(r), state;
    for (uint32_t n = 0; n < high; n++) {
        if (sr_rows_held(r, n, 1) == 0) continue;
        /* Another that is just ending: whoever of the two looks last removes the names. */
        if (!sr_rows_ok(r, n + 1) || !sr_half_unpack(atomic_load(&sr_row(r, n)->row_state), SR_ROW_SALT(row_state, n), &state) || state != SR_ROW_LEAVING)
            return true;
    }
    return false;
}

void sr_region_retire(struct sr_region *r)
{
    /* A keeper sees the end of the last process by itself. */
    if (r->rows_count == 0 || (r->head.hd_flags & (SR_HEAD_PERSIST | SR_HEAD_KEPT))) return;
    for (uint32_t i = 0; i < r->rows_count; i++)
        atomic_store(&r->rows[i].row->row_state, sr_half_pack(SR_ROW_LEAVING, SR_ROW_SALT(row_state, r->rows[i].number)));
    atomic_thread_fence(memory_order_seq_cst);
    if (others_live(r)) return;
    SR_FD dir = sr_region__open_dir(NULL);
    if (dir >= 0) sr_region__remove_names(dir, &r->head);
}

enum { CHANGED = 1, LEAVING = 2 };

/* CHANGED: the region was replaced or removed while it was being opened. LEAVING: somebody holds all
 * rows to remove its names, and nobody can become a member any more. */
static int attach_once(struct sr_region *r, bool writable, uint32_t owner, struct sr_error *e)
{
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    r->writable = writable;
    r->catalog_fd = sr_region__open_catalog(dir, r->name, writable, owner, &r->head, e);
    if (r->catalog_fd < 0) return r->catalog_fd;
    struct stat st;
    if (sr_sys->fstat(r->catalog_fd, &st) == 0) r->catalog_dev = st.st_dev, r->catalog_ino = st.st_ino;
    r->backend = sr_backend_of_kind(r->head.hd_kind);
    r->members_fd = sr_region__open_members(dir, &r->head);
    if (r->members_fd == -ESTALE) return CHANGED;
    if (r->members_fd == -EACCES) return sr_fail(e, SR_E_DENIED, -EACCES, "region '%s' may not be joined by user %u", r->name, sr_sys_uid());
    if (r->members_fd < 0) return sr_fail(e, SR_E_SYSTEM, r->members_fd, "region '%s' cannot be joined", r->name);
    if (!(r->head.hd_flags & SR_HEAD_PERSIST)) {
        int live = sr_sys_held(r->members_fd, 0, r->head.hd_rows);
        if (live > 1) return LEAVING;
        if (live == 0) {
            /* Its last member was killed: it does not exist any more. */
            sr_region_reclaim(r->name, false, NULL);
            return sr_fail(e, SR_E_NOT_FOUND, -ENOENT, "there is no region '%s'", r->name);
        }
    }
    uint32_t uid = owner == SR_NO_OWNER ? sr_sys_uid() : owner;
    /* Readers on msharefs get the region that shows the memory, and not the memory. */
    bool share = r->backend->shared_tables && !writable;
    int *memory = share ? &r->share_fd : &r->data_fd;
    *memory = share ? sr_region__open_share(&r->head, uid, false) : sr_region__open_data(dir, &r->head, uid, writable);
    if (*memory < 0) {
        /* Gone together with its name: not lost, removed. */
        bool removed = sr_sys->fstat(r->catalog_fd, &st) == 0 && st.st_nlink == 0;
        return removed || *memory == -ESTALE ? CHANGED : data_failed(r, *memory, e);
    }
    int got = map_and_join(r, e);
    if (got == SR_E_FULL && sr_sys_held(r->members_fd, 0, r->head.hd_rows) > 1) return LEAVING;
    if (got < 0) return got;
    got = sr_sys->fstat(r->members_fd, &st);
    if (got < 0) return sr_fail(e, SR_E_SYSTEM, got, "region '%s' cannot be examined", r->name);
    return st.st_nlink == 0 ? CHANGED : 0;
}

int sr_region_attach(struct sr_region **out, const char *name, bool writable, uint32_t owner, struct sr_error *e)
{
    int got = sr_region_check_name(name, strlen(name), e);
    if (got < 0) return got;
    for (int tries = 0; tries < ATTACH_TRIES; tries++) {
        struct sr_region *r = sr_region__new(name, e);
        if (r == NULL) return SR_E_NO_MEMORY;
        struct sr_error local = {0};
        got = attach_once(r, writable, owner, &local);
        if (got == 0) {
            /* A reader needs its descriptors to probe liveness and to map more of the catalog. */
            if (!writable) sr_sys_close(&r->data_fd), sr_sys_close(&r->share_fd);
            r->open = true;
            sr_region__track(r);
            *out = r;
            return 0;
        }
        if (got < 0 && e) *e = local;
        sr_region__free(r);
        if (got < 0) return got;
        sr_region_pause();
    }
    /* Who removes the names was stopped at it, or waits for a processor: the region is gone. */
    if (got == LEAVING) return sr_fail(e, SR_E_NOT_FOUND, -ENOENT, "there is no region '%s' any more: its last member is leaving", name);
    return sr_fail(e, SR_E_CORRUPT, -ESTALE, "region '%s' names segments that are not there", name);
}

int sr_region_peek(const char *name, struct sr_head *head, bool *live, struct sr_error *e)
{
    int got = sr_region_check_name(name, strlen(name), e);
    if (got < 0) return got;
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    struct stat st;
    char file[SR_FILE_NAME];
    sr_region__file_name(file, name, SR_SEGMENT_CATALOG, 0);
    /* Whoever it belongs to: looking is not joining. */
    uint32_t owner = sr_sys->fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) == 0 ? st.st_uid : SR_NO_OWNER;
    SR_FD catalog = sr_region__open_catalog(dir, name, false, owner, head, e);
    if (catalog < 0) return catalog;
    SR_FD members = sr_region__open_named(dir, head, SR_SEGMENT_MEMBERS, O_RDONLY, head->hd_members_dev, head->hd_members_ino);
    *live = members >= 0 && sr_sys_held(members, 0, head->hd_rows) == 1;
    return 0;
}

/* --- committing ------------------------------------------------------------------------------- */

int sr_region_commit_catalog(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e)
{
    int fd = sr_region__catalog_fd(r);
    if (fd < 0) return sr_fail(e, SR_E_LOST, fd, "the catalog of region '%s' cannot be opened any more: its descriptor was closed", r->name);
    /* Small while it is small; once a large page's worth is used anyway, whole large pages, so that
     * a catalog of a million entries costs its readers one table and not sixty. */
    if (r->head.hd_catalog_size >= SR_LARGE_PAGE && at >= SR_LARGE_PAGE && sr_gens_ok(r, r->head.hd_gens)) {
        uint64_t from = sr_align_down(at, SR_LARGE_PAGE);
        uint64_t to = sr_min(sr_align_up(at + len, SR_LARGE_PAGE), sr_align_down(r->catalog.len, SR_LARGE_PAGE));
        if (to >= at + len) return sr_backend_thp.commit(fd, &r->catalog, from, to - from, e);
    }
    uint64_t from = sr_align_down(at, SR_PAGE);
    int got = sr_sys_commit(fd, from, sr_align_up(at + len, SR_PAGE) - from);
    if (got == 0) return 0;
    return sr_fail(e, got == -ENOSPC || got == -ENOMEM ? SR_E_FULL : SR_E_SYSTEM, got, "the catalog of region '%s' cannot grow", r->name);
}
