/* backend: the table, and what its members share. */
#define _GNU_SOURCE
#include "sr_backend.h"

#include <errno.h>
#include <sys/mman.h>

static const struct sr_backend *const table[] = {
    &sr_backend_shm,
    &sr_backend_thp,
    &sr_backend_hugetlb_2m,
    &sr_backend_hugetlb_1g,
    &sr_backend_msharefs,
};

const struct sr_backend *sr_backend_of_kind(uint32_t kind)
{
    for (size_t i = 0; i < SR_ARRAY_LEN(table); i++)
        if ((uint32_t)table[i]->kind == kind) return table[i];
    return NULL;
}

const struct sr_backend *sr_backend_of_name(const char *name)
{
    for (size_t i = 0; i < SR_ARRAY_LEN(table); i++)
        if (strcmp(table[i]->name, name) == 0) return table[i];
    return NULL;
}

int sr_backend__make_shmem(enum sr_place place, int shm_dir, uint64_t size, unsigned mode, struct sr_error *e)
{
    if (place == SR_PLACE_SHM_DIR) {
        int fd = sr_sys_shm_unnamed(shm_dir, size, 0, mode);
        return fd >= 0 ? fd : sr_fail(e, SR_E_UNAVAILABLE, fd, "no file could be made in " SR_SHM_DIR);
    }
    SR_FD fd = sr_sys->memfd_create("sharedregion", MFD_ALLOW_SEALING);
    if (fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, fd, "memfd_create failed");
    int r = sr_sys->ftruncate(fd, (off_t)size);
    if (r == 0) r = sr_sys->fchmod(fd, mode);    /* a memfd is made with mode 0777 */
    if (r < 0) return sr_fail(e, SR_E_UNAVAILABLE, r, "a memfd of %llu bytes could not be made", (unsigned long long)size);
    return sr_sys_keep(&fd);
}

int sr_backend__commit_failed(int neg_errno, uint64_t len, struct sr_error *e)
{
    int code = neg_errno == -ENOSPC || neg_errno == -ENOMEM ? SR_E_FULL : SR_E_SYSTEM;
    return sr_fail(e, code, neg_errno, "%llu bytes of memory could not be committed", (unsigned long long)len);
}

int sr_backend__punch(int fd, uint64_t at, uint64_t len, struct sr_error *e)
{
    int r = sr_sys_punch(fd, at, len);
    return r == 0 ? 0 : sr_fail(e, SR_E_SYSTEM, r, "memory could not be given back");
}

int sr_backend__map(const struct sr_backend *b, int extra_flags, int fd, uint64_t size, bool writable,
                    struct sr_map *map, struct sr_error *e)
{
    int prot = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    int r = sr_sys_map(map, size, b->align, prot, MAP_SHARED | extra_flags, fd, 0);
    if (r == 0) return 0;
    return sr_fail(e, SR_E_UNAVAILABLE, r, "%llu bytes of address space could not be mapped", (unsigned long long)size);
}

int sr_backend__map_private(const struct sr_backend *b, int extra_flags, int fd, uint64_t at, uint64_t len,
                            struct sr_map *map, struct sr_error *e)
{
    int r = sr_sys_map(map, len, b->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | extra_flags, fd, (off_t)at);
    if (r == 0) return 0;
    return sr_fail(e, r == -ENOMEM ? SR_E_FULL : SR_E_UNAVAILABLE, r, "%llu bytes could not be mapped for copying on write", (unsigned long long)len);
}
