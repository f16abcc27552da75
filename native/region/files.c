/* files: the descriptors of a handle, which the application may close behind our back.
 *
 * Programs that become daemons close every descriptor that they find, and their next files get the
 * same numbers. A number is therefore compared with the device and inode that it should be before
 * each use, is never closed when it has become somebody else's, and is opened anew where the segment
 * still has its name or a keeper. Where liveness cannot be told any more, everybody counts as alive.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>

bool sr_region__is(int fd, uint64_t dev, uint64_t ino)
{
    struct stat st;
    return fd >= 0 && sr_sys->fstat(fd, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

void sr_region__close_own(int *fd, uint64_t dev, uint64_t ino)
{
    /* No inode has the number 0: of a segment that was made just now it is not noted yet. */
    if (*fd >= 0 && (ino == 0 || sr_region__is(*fd, dev, ino))) sr_sys->close(*fd);
    *fd = -1;
}

/* Put `fresh` in the place of what *fd was when it was found wanting; the first one wins. */
static int install(int *fd, int seen, int fresh)
{
    if (fresh < 0) return fresh;
    if (__atomic_compare_exchange_n(fd, &seen, fresh, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return fresh;
    sr_sys->close(fresh);
    return seen;
}

static int reopen_named(struct sr_region *r, enum sr_segment segment, int flags, uint64_t dev, uint64_t ino)
{
    SR_FD dir = sr_region__open_dir(NULL);
    return dir < 0 ? -EBADF : sr_region__open_named(dir, &r->head, segment, flags, dev, ino);
}

int sr_region__members_fd(struct sr_region *r)
{
    int fd = __atomic_load_n(&r->members_fd, __ATOMIC_SEQ_CST);
    const struct sr_head *h = &r->head;
    if (sr_region__is(fd, h->hd_members_dev, h->hd_members_ino)) return fd;
    return install(&r->members_fd, fd, reopen_named(r, SR_SEGMENT_MEMBERS, O_RDWR, h->hd_members_dev, h->hd_members_ino));
}

int sr_region__catalog_fd(struct sr_region *r)
{
    int fd = __atomic_load_n(&r->catalog_fd, __ATOMIC_SEQ_CST);
    if (sr_region__is(fd, r->catalog_dev, r->catalog_ino)) return fd;
    return install(&r->catalog_fd, fd,
                   reopen_named(r, SR_SEGMENT_CATALOG, r->writable ? O_RDWR : O_RDONLY, r->catalog_dev, r->catalog_ino));
}

int sr_region__data_fd(struct sr_region *r)
{
    int fd = __atomic_load_n(&r->data_fd, __ATOMIC_SEQ_CST);
    const struct sr_head *h = &r->head;
    if (sr_region__is(fd, h->hd_data_dev, h->hd_data_ino)) return fd;
    if (!(h->hd_flags & SR_HEAD_KEPT))
        return install(&r->data_fd, fd, reopen_named(r, SR_SEGMENT_DATA, O_RDWR, h->hd_data_dev, h->hd_data_ino));
    char path[SR_SOCKET_PATH];
    sr_region__socket_path(path, h->hd_id);
    return install(&r->data_fd, fd, sr_keeper_fetch(path, h->hd_uid, true));
}

int sr_region__share_fd(struct sr_region *r)
{
    int fd = __atomic_load_n(&r->share_fd, __ATOMIC_SEQ_CST);
    const struct sr_head *h = &r->head;
    if (sr_region__is(fd, h->hd_share_dev, h->hd_share_ino)) return fd;
    return install(&r->share_fd, fd, sr_region__open_share(h, h->hd_uid, r->writable));
}

int sr_rows_held(struct sr_region *r, uint32_t row, uint32_t count)
{
    int fd = sr_region__members_fd(r);
    int held = fd < 0 ? fd : sr_sys_held(fd, row, count);
    return held < 0 ? 1 : held;
}
