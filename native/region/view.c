/* view: how much of the small segments is mapped.
 *
 * A mapping of its own 2 MiB of addresses costs a worker a page table (4 KiB), and one of its own GiB
 * another, which is more than all the rest of a region costs on hugetlb. So the catalog is mapped up
 * to its first generation and the members up to a few rows: such mappings are placed close to the
 * process's libraries, in reach of tables that exist anyway. The first number beyond them maps the
 * whole. The small mapping stays: other threads may be looking through it, at the same bytes.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <sys/mman.h>

#define FIRST_ROWS 31u    /* with the head, 128 KiB */

static uint64_t rows_length(uint64_t rows) { return SR_PAGE * (1 + rows); }

int sr_region__view(struct sr_region *r, struct sr_error *e)
{
    uint32_t rows = (uint32_t)sr_min(FIRST_ROWS, r->head.hd_rows);
    int got = sr_region__map_small(r->catalog_fd, sr_gen_at(r->head.hd_gen0, 1), r->writable, &r->catalog, e);
    if (got == 0) got = sr_region__map_small(r->members_fd, rows_length(rows), true, &r->members, e);
    if (got < 0) return got;
    atomic_store(&r->mapped_gens, 1);
    atomic_store(&r->mapped_rows, rows);
    return 0;
}

/* Map all of `fd` in the place of *map, whose mapping is kept in *small. */
static bool whole(int fd, uint64_t len, bool writable, struct sr_map *map, struct sr_map *small)
{
    struct sr_map all;
    if (sr_region__map_small(fd, len, writable, &all, NULL) < 0) return false;
    *small = *map;
    map->len = all.len;
    __atomic_store_n(&map->at, all.at, __ATOMIC_RELEASE);
    return true;
}

bool sr_view_gens(struct sr_region *r, unsigned gens)
{
    pthread_mutex_lock(&r->growth);
    bool ok = gens <= atomic_load(&r->mapped_gens);
    if (!ok && r->onlooker) {
        ok = sr_region__copy_gens(r, atomic_load(&r->mapped_gens), gens);
        if (ok) atomic_store(&r->mapped_gens, gens);
    }
    if (!ok && !r->onlooker && r->small_catalog.at == NULL && whole(sr_region__catalog_fd(r), r->head.hd_catalog_size, r->writable, &r->catalog, &r->small_catalog)) {
        atomic_store(&r->mapped_gens, r->head.hd_gens);
        ok = true;
    }
    pthread_mutex_unlock(&r->growth);
    return ok;
}

bool sr_view_rows(struct sr_region *r, uint32_t rows)
{
    pthread_mutex_lock(&r->growth);
    bool ok = rows <= atomic_load(&r->mapped_rows);
    if (!ok && r->onlooker) {
        ok = sr_region__copy_rows(r, atomic_load(&r->mapped_rows), rows);
        if (ok) atomic_store(&r->mapped_rows, rows);
    }
    if (!ok && !r->onlooker && r->small_members.at == NULL && whole(sr_region__members_fd(r), rows_length(r->head.hd_rows), true, &r->members, &r->small_members)) {
        atomic_store(&r->mapped_rows, r->head.hd_rows);
        ok = true;
    }
    pthread_mutex_unlock(&r->growth);
    return ok;
}
