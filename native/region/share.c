/* share: the msharefs region through which readers see the memory, and what it is like to lose it.
 *
 * Who may write maps the memory itself. A reader attaches the region that the keeper made: its tables
 * are linked into the reader, one unit of address space at a time, by the first touch in each. Until
 * then the kernel's own users of user pages (futexes, direct I/O, process_vm_readv) fail there, so one
 * present page of each unit is touched at once, after a fork too. Those pages are never given back.
 *
 * When the keeper's main thread ends, the region is empty, and whoever touches it dies of SIGSEGV.
 * Nothing can prevent that; but the library looks at the keeper's word before it hands out anything
 * more, and says RegionLost.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>

_Static_assert(offsetof(struct sr_members_head, mh_keeper) == SR_KEEPER_MARK_AT, "where the keeper leaves its mark");
_Static_assert(SR_KEEPER_FIND == (int)SR_SHARE_FIND && SR_KEEPER_MAKE == (int)SR_SHARE_MAKE && SR_KEEPER_SIZE == (int)SR_SHARE_SIZE,
               "the keeper's steps");

int sr_region__plan_share(struct sr_head *h, const struct sr_region_spec *spec, struct sr_error *e)
{
    if (!spec->backend->shared_tables) return 0;
    if (spec->msharefs == NULL) return sr_fail(e, SR_E_UNAVAILABLE, -ENOENT, "no msharefs mount is known");
    struct sr_msharefs m;
    int got = sr_msharefs_find(spec->msharefs, &m);
    if (got < 0) return sr_share_failed(e, SR_SHARE_FIND, got, spec->msharefs);
    h->hd_share_unit = m.unit;
    h->hd_share_size = sr_align_up(h->hd_mapped, m.unit);
    /* Room for files that are mapped beside the memory: address space costs nothing. */
    if (h->hd_share_size - h->hd_mapped < m.unit / 2) h->hd_share_size += m.unit;
    return 0;
}

bool sr_region__share_ok(const struct sr_head *h, const struct sr_backend *b)
{
    if (!b->shared_tables) return true;
    uint64_t unit = h->hd_share_unit;
    return unit >= SR_LARGE_PAGE && unit <= INT64_MAX / 2 && (unit & (unit - 1)) == 0 && sr_is_aligned(h->hd_share_size, unit) &&
           h->hd_share_size >= h->hd_mapped && h->hd_share_size <= INT64_MAX / 2 && h->hd_share_ino != 0;
}

int sr_region__make_share(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e)
{
    char path[SR_SOCKET_PATH];
    uint32_t step;
    sr_region__socket_path(path, r->head.hd_id);
    sr_sys_close(&r->share_fd);
    r->share_fd = sr_keeper_fetch_share(path, sr_sys_uid(), true, &step);
    if (r->share_fd < 0 && step) return sr_share_failed(e, (enum sr_share_step)step, r->share_fd, spec->msharefs);
    if (r->share_fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, r->share_fd, "the keeper of region '%s' does not answer", r->name);
    struct stat st;
    int got = sr_sys->fstat(r->share_fd, &st);
    if (got < 0 || (uint64_t)st.st_size != r->head.hd_share_size) return sr_share_failed(e, SR_SHARE_SIZE, got < 0 ? got : -EINVAL, spec->msharefs);
    r->head.hd_share_dev = st.st_dev;
    r->head.hd_share_ino = st.st_ino;
    uint64_t all = spec->commit_all ? sr_align_up(spec->size, r->head.hd_granule) : r->head.hd_granule;
    got = sr_share_show(r->share_fd, r->data_fd, 0, all, e);
    if (got == 0) got = sr_share_check(r->share_fd, r->head.hd_share_size, r->head.hd_share_unit, r->data.at, e);
    if (got < 0 && e) e->code = SR_E_UNAVAILABLE;
    return got < 0 ? SR_E_UNAVAILABLE : 0;
}

int sr_region__open_share(const struct sr_head *head, uint32_t uid, bool writable)
{
    char path[SR_SOCKET_PATH];
    uint32_t step;
    sr_region__socket_path(path, head->hd_id);
    SR_FD fd = sr_keeper_fetch_share(path, uid, writable, &step);
    if (fd < 0) return fd;
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return r;
    bool same = st.st_dev == head->hd_share_dev && st.st_ino == head->hd_share_ino && (uint64_t)st.st_size == head->hd_share_size;
    return same ? sr_sys_keep(&fd) : -EPROTO;
}

int sr_region__attach_share(struct sr_region *r, struct sr_map *map, struct sr_error *e)
{
    int fd = sr_region__share_fd(r);
    if (fd < 0) return sr_fail(e, SR_E_LOST, fd, "the keeper of region '%s' has ended, and nobody else can hand out its memory", r->name);
    int got = sr_msharefs_attach(fd, r->head.hd_share_size, r->head.hd_share_unit, map);
    if (got == -EINVAL) return sr_fail(e, SR_E_LOST, got, "the keeper of region '%s' has ended, and its memory can be attached no more", r->name);
    if (got < 0) return sr_share_failed(e, SR_SHARE_ATTACH, got, "");
    return 0;
}

void sr_region__touch_share(struct sr_region *r)
{
    /* A writer has it for the sake of files, if at all. */
    const unsigned char *share = r->writable ? r->share.at : r->data.at;
    if (!r->backend->shared_tables || share == NULL) return;
    for (uint64_t at = 0; at < r->head.hd_mapped; at += r->head.hd_share_unit) {
        if (atomic_load(&sr_members(r)->mh_keeper) & SR_DEATH_MARK) return;
        if (sr_region_uncommitted(r, (sr_off){at}, 1) == 0) (void)*(const volatile unsigned char *)(share + at);
    }
}

int sr_region__show(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e)
{
    /* While the region is being made, it has no share yet; what is committed by then is shown later. */
    if (!r->backend->shared_tables || r->head.hd_share_ino == 0) return 0;
    int share = sr_region__share_fd(r), data = sr_region__data_fd(r);
    if (share < 0 || data < 0)
        return sr_fail(e, SR_E_LOST, share < 0 ? share : data, "the keeper of region '%s' has ended: its memory cannot grow any more", r->name);
    return sr_share_show(share, data, at, len, e);
}

int sr_region__hide(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e)
{
    if (!r->backend->shared_tables) return 0;
    int share = sr_region__share_fd(r);
    if (share < 0) return sr_fail(e, SR_E_LOST, share, "the keeper of region '%s' has ended: its memory cannot be given back", r->name);
    return sr_share_hide(share, at, len, e);
}

bool sr_region__stays(const struct sr_region *r, uint64_t at)
{
    return r->backend->shared_tables && sr_is_aligned(at, r->head.hd_share_unit);
}

bool sr_region__keeper_gone(struct sr_region *r)
{
    if (r->lost) return true;
    /* Any member can write to the word, so it is a reason to ask and no answer. */
    char path[SR_SOCKET_PATH];
    sr_region__socket_path(path, r->head.hd_id);
    int probe = sr_keeper_fetch(path, r->head.hd_uid, false);
    if (probe == -ECONNREFUSED || probe == -ENOENT || probe == -ECONNRESET || probe == -EPIPE) r->lost = true;
    sr_sys_close(&probe);
    return r->lost;
}

/* --- files beside the memory ------------------------------------------------------------------ */

/* They lie above the memory, by pages, and from a multiple of 2 MiB if they are as large, so that large
 * pages of the file can be mapped as such. The region itself knows what is taken: what is shown somewhere
 * cannot be shown over. */
static int show_file_from(struct sr_region *r, int share, int fd, uint64_t len, uint64_t from, bool leap, uint64_t *at)
{
    uint64_t align = len < SR_LARGE_PAGE ? SR_PAGE : SR_LARGE_PAGE, step = sr_align_up(len, align);
    for (*at = sr_align_up(from, align); sr_range_ok(*at, len, r->head.hd_share_size); *at += step) {
        int got = sr_msharefs_place(share, *at, len, fd, 0);
        if (got != -EEXIST) return got;
        if (leap) step *= 2;
    }
    return -ENOSPC;
}

int sr_region_show_file(struct sr_region *r, int fd, uint64_t len, uint64_t *at, struct sr_error *e)
{
    if (!r->backend->shared_tables) return sr_fail(e, SR_E_UNAVAILABLE, 0, "only msharefs regions can show a file");
    int share = sr_region__share_fd(r);
    if (share < 0) return sr_fail(e, SR_E_LOST, share, "the keeper of region '%s' has ended: nothing can be mapped any more", r->name);
    /* Behind the last one first: many files are placed one after the other. What other members have put
     * there may be long, and is left behind by leaps; every place is tried only where these lead to none. */
    uint64_t low = r->head.hd_mapped, next = sr_max(low, atomic_load(&r->files_end));
    int got = show_file_from(r, share, fd, len, next, true, at);
    if (got == -ENOSPC) got = show_file_from(r, share, fd, len, low, false, at);
    if (got == 0) atomic_store(&r->files_end, *at + sr_align_up(len, SR_PAGE));
    if (got == 0) return 0;
    if (got != -ENOSPC) return sr_fail(e, SR_E_UNAVAILABLE, got, "the file cannot be mapped into the msharefs region");
    return sr_fail(e, SR_E_UNAVAILABLE, -ENOSPC, "the msharefs region has no address space left for a file of %llu bytes", (unsigned long long)len);
}

int sr_region_hide_file(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e)
{
    if (!r->backend->shared_tables || at < r->head.hd_mapped) return sr_fail(e, SR_E_INVALID, -EINVAL, "no file is mapped there");
    return sr_region__hide(r, at, len, e);
}

int sr_region_file_at(struct sr_region *r, uint64_t at, uint64_t len, unsigned char **found, struct sr_error *e)
{
    if (!r->backend->shared_tables || at < r->head.hd_mapped || !sr_range_ok(at, len, r->head.hd_share_size))
        return sr_fail(e, SR_E_CORRUPT, 0, "a mapped file lies outside region '%s'", r->name);
    if (sr_region_lost(r)) return sr_fail(e, SR_E_LOST, 0, "the keeper of region '%s' has ended, and with it the files mapped there", r->name);
    struct sr_map *map = &r->data;
    int got = 0;
    if (r->writable) {
        map = &r->share;
        pthread_mutex_lock(&r->growth);
        if (map->at == NULL && (got = sr_region__attach_share(r, map, e)) == 0) sr_region__touch_share(r);
        pthread_mutex_unlock(&r->growth);
    }
    if (got == 0) *found = map->at + at;
    return got;
}
