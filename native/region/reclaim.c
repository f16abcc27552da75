/* reclaim: removing names, by the last member, by unlink, and after those who were killed. */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>

#define NAME_TRIES 20000    /* of 0.1 ms */

int sr_region__lock_name(int dir, const char *region, bool alone)
{
    char file[SR_FILE_NAME];
    sr_region__file_name(file, region, SR_SEGMENT_CATALOG, 0);
    for (int tries = 0; tries < NAME_TRIES; tries++) {
        SR_FD fd = sr_sys->openat(dir, file, (alone ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK, 0);
        if (fd < 0) return fd;
        struct stat st;
        int got = alone ? sr_sys_lock(fd, 0, 1, false) : sr_sys_lock_shared(fd, 0, 1);
        if (got < 0 && got != -EAGAIN) return got;
        if (got == 0 && sr_sys->fstat(fd, &st) == 0 && sr_region__same_file(dir, file, st.st_dev, st.st_ino)) return sr_sys_keep(&fd);
        if (got < 0) sr_region_pause();
    }
    return -EAGAIN;
}

int sr_region__remove_names(int dir, const struct sr_head *head)
{
    int result = 0;
    char file[SR_FILE_NAME];
    /* The catalog first: without it there is no region, and what remains is told by its lock. Its
     * name may by now be another generation's, whose members and data then have other names. */
    sr_region__file_name(file, head->hd_name, SR_SEGMENT_CATALOG, 0);
    struct sr_head now;
    SR_FD locked = sr_region__lock_name(dir, head->hd_name, false);
    ssize_t n = locked < 0 ? locked : sr_sys->pread(locked, &now, sizeof now, 0);
    if (n == sizeof now && now.hd_magic == SR_CATALOG_MAGIC && memcmp(now.hd_id, head->hd_id, sizeof now.hd_id) == 0)
        result = sr_sys->unlinkat(dir, file, 0);
    else if (n < 0)
        result = (int)n;
    /* As long as the catalog has its name the others keep theirs: the region is whole, and the next
     * one to come by can remove it. */
    if (result < 0 && result != -ENOENT) return result;
    sr_region__file_name(file, head->hd_name, SR_SEGMENT_DATA, head->hd_generation);
    if (!(head->hd_flags & SR_HEAD_KEPT) && sr_region__same_file(dir, file, head->hd_data_dev, head->hd_data_ino))
        result = sr_sys->unlinkat(dir, file, 0);
    /* Members go after data, whose name alone would be taken for that of a region being made. */
    if (result < 0 && result != -ENOENT) return result;
    sr_region__file_name(file, head->hd_name, SR_SEGMENT_MEMBERS, head->hd_generation);
    if (sr_region__same_file(dir, file, head->hd_members_dev, head->hd_members_ino)) result = sr_sys->unlinkat(dir, file, 0);
    return result;
}

/* Whether the catalog that has the name now may be that of these files. */
static bool catalog_claims(int dir, const char *name, uint32_t generation)
{
    char file[SR_FILE_NAME];
    struct sr_head head;
    sr_region__file_name(file, name, SR_SEGMENT_CATALOG, 0);
    SR_FD fd = sr_sys->openat(dir, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd == -ENOENT) return false;
    bool read = fd >= 0 && sr_sys->pread(fd, &head, sizeof head, 0) == sizeof head && head.hd_magic == SR_CATALOG_MAGIC &&
                head.hd_crc == sr_crc32c(0, &head, offsetof(struct sr_head, hd_crc));
    return !read || head.hd_generation == generation;
}

int sr_region__remove_half_made(int dir, const char *name, uint32_t generation, bool look)
{
    char members[SR_FILE_NAME], data[SR_FILE_NAME];
    sr_region__file_name(members, name, SR_SEGMENT_MEMBERS, generation);
    sr_region__file_name(data, name, SR_SEGMENT_DATA, generation);
    struct stat st, named;
    SR_FD fd = sr_sys->openat(dir, members, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd == -ENOENT) {
        /* Members are linked before data and removed after it: such data is nobody's. */
        if (sr_sys->fstatat(dir, data, &st, AT_SYMLINK_NOFOLLOW) < 0 || catalog_claims(dir, name, generation)) return 0;
        return look || sr_sys->unlinkat(dir, data, 0) == 0 ? 1 : 0;
    }
    if (fd < 0 || sr_sys->fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) return 0;
    /* The maker holds its row from before it links. With the lock on all rows nobody else can be
     * about to remove the same names. */
    if (look ? sr_sys_held(fd, 0, SR_ROWS_MAX) != 0 : sr_sys_lock(fd, 0, SR_ROWS_MAX, false) < 0) return 0;
    if (sr_sys->fstatat(dir, members, &named, AT_SYMLINK_NOFOLLOW) < 0 || named.st_ino != st.st_ino) return 0;
    /* Asked now that no maker is at work: one that has just published, and left a region that persists,
     * has its catalog in place. */
    if (catalog_claims(dir, name, generation)) return 0;
    if (look) return 1;
    sr_sys->unlinkat(dir, data, 0);
    return sr_sys->unlinkat(dir, members, 0) == 0 ? 1 : 0;
}

int sr_region_reclaim(const char *name, bool look, struct sr_error *e) { return sr_region_reclaim_of(name, SR_NO_OWNER, look, e); }

int sr_region_reclaim_of(const char *name, uint32_t owner, bool look, struct sr_error *e)
{
    int got = sr_region_check_name(name, strlen(name), e);
    if (got < 0) return got;
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    struct sr_head head;
    SR_FD catalog = sr_region__open_catalog(dir, name, false, owner, &head, e);
    if (catalog == SR_E_NOT_FOUND) return sr_region__remove_half_made(dir, name, 1, look);
    if (catalog < 0) return catalog;
    if (head.hd_flags & SR_HEAD_PERSIST) {
        /* Memory without a name is gone with its keeper, and a keeper is gone with its machine. */
        char path[SR_SOCKET_PATH];
        sr_region__socket_path(path, head.hd_id);
        if (!(head.hd_flags & SR_HEAD_KEPT)) return 0;
        SR_FD data = sr_keeper_fetch(path, head.hd_uid, false);
        if (data != -ECONNREFUSED && data != -ENOENT) return 0;
    }
    char file[SR_FILE_NAME];
    sr_region__file_name(file, name, SR_SEGMENT_MEMBERS, head.hd_generation);
    SR_FD members = sr_region__open_members(dir, &head);
    if (members >= 0) {
        int held = sr_sys_held(members, 0, head.hd_rows);
        if (held > 1) {
            sr_region__await_removal(members, head.hd_rows);
            return sr_region__same_file(dir, file, head.hd_members_dev, head.hd_members_ino) ? 0 : 1;
        }
        if (held != 0) return 0;
        if (look) return 1;
        if (sr_sys_lock(members, 0, head.hd_rows, false) < 0) return 0;
    } else if (members != -ESTALE) {
        return sr_fail(e, SR_E_SYSTEM, members, "region '%s' cannot be examined", name);
    } else if (look) {
        return 1;
    } else {
        /* A member of the old generation between two steps of replace would find the name new. */
        struct sr_head again;
        SR_FD second = sr_region__open_catalog(dir, name, false, owner, &again, NULL);
        if (second < 0 || memcmp(&again, &head, sizeof head) != 0) return 0;
    }
    sr_region__remove_names(dir, &head);
    if (head.hd_flags & SR_HEAD_KEPT) {
        char socket[SR_FILE_NAME];
        sr_region__socket_name(socket, head.hd_id);
        sr_sys->unlinkat(dir, socket, 0);
    }
    return 1;
}

int sr_region_unlink(const char *name, uint32_t owner, struct sr_error *e)
{
    int got = sr_region_check_name(name, strlen(name), e);
    if (got < 0) return got;
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    struct sr_head head;
    char file[SR_FILE_NAME];
    SR_FD catalog = sr_region__open_catalog(dir, name, false, owner, &head, e);
    SR_FD members = catalog >= 0 ? sr_region__open_members(dir, &head) : -1;
    if (catalog == SR_E_CORRUPT) {
        /* Unlink is the remedy for a damaged region: its catalog goes by name. */
        sr_region__file_name(file, name, SR_SEGMENT_CATALOG, 0);
        got = sr_sys->unlinkat(dir, file, 0);
        if (got < 0) return sr_fail(e, SR_E_SYSTEM, got, "region '%s' could not be unlinked", name);
        sr_region__remove_half_made(dir, name, 1, false);
        return 0;
    }
    if (catalog < 0) return catalog;
    got = sr_region__remove_names(dir, &head);
    if (got == -EACCES || got == -EPERM)
        return sr_fail(e, SR_E_DENIED, got, "region '%s' may not be unlinked by user %u", name, sr_sys_uid());
    if (got < 0 && got != -ENOENT) return sr_fail(e, SR_E_SYSTEM, got, "region '%s' could not be unlinked", name);
    if (head.hd_flags & SR_HEAD_KEPT) {
        /* Its keeper ends when the last member has gone; one of a persistent region is told to look.
         * If nobody has it open, its memory is free when this returns. */
        char path[SR_SOCKET_PATH];
        sr_region__socket_path(path, head.hd_id);
        int told = sr_keeper_fetch(path, head.hd_uid, false);
        sr_sys_close(&told);
        if (members >= 0 && sr_sys_held(members, 0, head.hd_rows) != 1) sr_region__await_keeper(dir, members, &head);
    }
    return 0;
}

int sr_region_remove_half_made(const char *name, uint32_t generation, bool look)
{
    if (sr_region_check_name(name, strlen(name), NULL) < 0) return 0;
    SR_FD dir = sr_region__open_dir(NULL);
    return dir < 0 ? 0 : sr_region__remove_half_made(dir, name, generation, look);
}

/* --- what has no catalog ---------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

#define REFUSALS 100    /* of 0.1 ms: more than lies between bind and listen */

/* A socket that nobody listens at. The keeper's is bound and listens before a region has its name, and
 * connecting tells it nothing but that somebody may have unlinked the region. */
static bool keeper_is_gone(int dir, const char *file)
{
    struct stat st;
    char path[SR_SOCKET_PATH];
    struct sr_text t = {.at = path, .cap = sizeof path};
    sr_text_add(&t, SR_SHM_DIR "/%s", file);
    if (sr_sys->fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISSOCK(st.st_mode)) return false;
    for (int refusals = 0; refusals < REFUSALS; refusals++) {
        SR_FD data = sr_keeper_fetch(path, st.st_uid, false);
        if (data != -ECONNREFUSED) return false;
        sr_region_pause();
    }
    return true;
}

/* A catalog on its way to its name. Whoever puts it there is a member of it. */
static bool maker_is_gone(int dir, const char *file, struct sr_head *head)
{
    struct stat st;
    SR_FD fd = sr_sys->openat(dir, file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (fd < 0 || sr_sys->fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink == 0) return false;
    if (sr_sys->pread(fd, head, sizeof *head, 0) != sizeof *head || head->hd_magic != SR_CATALOG_MAGIC) return false;
    if (head->hd_crc != sr_crc32c(0, head, offsetof(struct sr_head, hd_crc)) || head->hd_name_len > SR_REGION_NAME_MAX ||
        head->hd_name[head->hd_name_len] != '\0' || sr_region_check_name(head->hd_name, head->hd_name_len, NULL) < 0)
        return false;
    SR_FD members = sr_region__open_named(dir, head, SR_SEGMENT_MEMBERS, O_RDONLY, head->hd_members_dev, head->hd_members_ino);
    return members == -ESTALE || (members >= 0 && sr_sys_held(members, 0, SR_ROWS_MAX) == 0);
}

int sr_region_remove_leftover(const char *file, bool look)
{
    SR_FD dir = sr_region__open_dir(NULL);
    if (dir < 0) return 0;
    if (ends_with(file, ".keeper")) {
        if (!keeper_is_gone(dir, file)) return 0;
        return look || sr_sys->unlinkat(dir, file, 0) == 0 ? 1 : 0;
    }
    struct sr_head head;
    if (!ends_with(file, ".new") || !maker_is_gone(dir, file, &head)) return 0;
    if (look) return 1;
    if (sr_sys->unlinkat(dir, file, 0) < 0) return 0;
    /* Its members and data have the names of a generation that no catalog speaks of. */
    sr_region__remove_half_made(dir, head.hd_name, head.hd_generation, false);
    return 1;
}
