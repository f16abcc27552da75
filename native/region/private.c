/* private: views that a process writes to for itself.
 *
 * A MAP_PRIVATE mapping of the data segment shows the shared pages until this process writes to one,
 * which is then copied for it. It needs a descriptor, which a reader has closed: another is fetched
 * as at the attach, and kept only for the call. Of pages of 1 GiB it is a copy from the start, in memory
 * of this process: a view would take a whole page of the pool at the first write, and Linux 6.18 was
 * seen to lose such a page at a fork, so that the child saw what is shared instead.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static int no_descriptor(const struct sr_region *r, int neg_errno, struct sr_error *e)
{
    if (neg_errno == -ESTALE || neg_errno == -ENOENT || neg_errno == -ECONNREFUSED)
        return sr_fail(e, SR_E_LOST, neg_errno,
                       "the memory of region '%s' cannot be opened again for a private view: its name or its keeper is gone", r->name);
    return sr_fail(e, SR_E_SYSTEM, neg_errno, "the memory of region '%s' cannot be opened for a private view", r->name);
}

static int copy(const struct sr_region *r, sr_off off, uint64_t len, struct sr_map *map, struct sr_error *e)
{
    int got = sr_sys_map(map, len, len < SR_LARGE_PAGE ? SR_PAGE : SR_LARGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got < 0) return sr_fail(e, got == -ENOMEM ? SR_E_FULL : SR_E_SYSTEM, got, "%llu bytes could not be mapped for a copy", (unsigned long long)len);
    sr_sys->madvise(map->at, map->len, MADV_HUGEPAGE);    /* fewer faults, where it may be */
    memcpy(map->at, r->data.at + off.at, len);
    return 0;
}

int sr_region_map_private(struct sr_region *r, sr_off off, uint64_t len, struct sr_map *map, uint64_t *skip, struct sr_error *e)
{
    const struct sr_backend *b = r->backend;
    uint64_t from = sr_align_down(off.at, b->page), to = sr_align_up(off.at + len, b->page);
    if (!sr_range_ok(off.at, len, r->head.hd_mapped) || to > r->head.hd_mapped) return sr_fail(e, SR_E_CORRUPT, 0, "an object lies outside region '%s'", r->name);
    if (b->map_private == NULL) return *skip = 0, copy(r, off, len, map, e);
    *skip = off.at - from;
    if (r->writable) {
        int fd = sr_region__data_fd(r);
        return fd < 0 ? no_descriptor(r, fd, e) : b->map_private(fd, from, to - from, map, e);
    }
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    SR_FD fd = sr_region__open_data(dir, &r->head, r->head.hd_uid, false);
    return fd < 0 ? no_descriptor(r, fd, e) : b->map_private(fd, from, to - from, map, e);
}
