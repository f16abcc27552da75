/* shm: plain shared memory in 4 KiB pages.
 *
 * Serves everywhere. A worker that touches all of it pays 8 bytes of page table for each 4 KiB:
 * 2 MiB per GiB. Memory is taken by fallocate, which answers ENOSPC where a touch would raise
 * SIGBUS.
 */
#include "sr_backend.h"

#include <sys/mman.h>

static int commit(int fd, const struct sr_map *map, uint64_t at, uint64_t len, struct sr_error *e)
{
    (void)map;
    int r = sr_sys_commit(fd, at, len);
    return r == 0 ? 0 : sr_backend__commit_failed(r, len, e);
}

static int map_all(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map(&sr_backend_shm, 0, fd, size, writable, map, e);
}

/* MAP_NORESERVE: memory is taken page by page as it is written to. */
static int map_private(int fd, uint64_t at, uint64_t len, struct sr_map *map, struct sr_error *e)
{
    return sr_backend__map_private(&sr_backend_shm, MAP_NORESERVE, fd, at, len, map, e);
}

const struct sr_backend sr_backend_shm = {
    .kind = SR_KIND_SHM,
    .name = "shm",
    .page = SR_PAGE,
    .granule = 16 * SR_PAGE,
    .align = SR_PAGE,
    .pad = SR_PAGE,
    .make = sr_backend__make_shmem,
    .commit = commit,
    .punch = sr_backend__punch,
    .map = map_all,
    .map_private = map_private,
};
