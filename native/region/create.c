/* create: making the segments and giving them their names.
 *
 * Nothing has a name until it is complete. Then members and data are linked, and the catalog last:
 * from that moment the region exists. A replacement gives its members and data the names of the
 * next generation and renames its catalog over the old one, one step that cannot be half done.
 * Files without a catalog are those of a maker at work, which holds its row, or of a dead one.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <stdio.h>

#define REPLACE_TRIES 1000

static void plan_head(struct sr_head *h, const struct sr_region_spec *spec, const struct sr_shape *shape)
{
    const struct sr_backend *b = spec->backend;
    *h = (struct sr_head){
        .hd_magic = SR_CATALOG_MAGIC,
        .hd_version = SR_FORMAT_VERSION,
        .hd_stamp = SR_BUILD_STAMP,
        .hd_size = spec->size,
        .hd_mapped = shape->mapped,
        .hd_kind = b->kind,
        .hd_generation = 1,
        .hd_created_ns = sr_sys_wall(),
        .hd_uid = sr_sys_uid(),
        .hd_mode = spec->mode,
        .hd_granule = shape->granule,
        .hd_rows = SR_ROWS_MAX,
    };
    h->hd_flags = (spec->persist ? SR_HEAD_PERSIST : 0) | (spec->commit_all ? SR_HEAD_COMMITTED : 0) |
                  (b->nameless || spec->place == SR_PLACE_MEMFD ? SR_HEAD_KEPT : 0);
    h->hd_gen0 = SR_COMMIT_MAP_AT + sr_align_up(sr_commit_map_size(h->hd_mapped, h->hd_granule), SR_PAGE);
    /* Bytes are the limit, not entries: one for each smallest block, and some for long names. */
    uint64_t entries = spec->size / SR_BLOCK_UNIT + 1024;
    while (h->hd_gens < SR_GEN_MAX && sr_entries_limit(h->hd_gens) < entries) h->hd_gens++;
    h->hd_catalog_size = sr_gen_at(h->hd_gen0, h->hd_gens);
    if (h->hd_catalog_size > SR_LARGE_PAGE) h->hd_catalog_size = sr_align_up(h->hd_catalog_size, SR_LARGE_PAGE);
    h->hd_name_len = (uint32_t)strlen(spec->name);
    memcpy(h->hd_name, spec->name, h->hd_name_len);
    if (spec->reason) {
        snprintf(h->hd_reason, sizeof h->hd_reason, "%s", spec->reason);
        sr_end_on_character(h->hd_reason);
    }
}

static int make_members(struct sr_region *r, int dir, unsigned mode, struct sr_error *e)
{
    uint64_t size = SR_PAGE * (1 + (uint64_t)r->head.hd_rows);
    /* Whoever may read the region writes here: pins are how readers hold what they look at. */
    unsigned open_to = (mode & 0666) | ((mode & 0444) >> 1);
    r->members_fd = sr_sys_shm_unnamed(dir, size, 2 * SR_PAGE, open_to);
    if (r->members_fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, r->members_fd, "the members segment could not be made in " SR_SHM_DIR);
    return 0;
}

static void fill_members(struct sr_region *r)
{
    struct sr_members_head *m = sr_members(r);
    m->mh_magic = SR_MEMBERS_MAGIC;
    m->mh_version = SR_FORMAT_VERSION;
    m->mh_stamp = SR_BUILD_STAMP;
    memcpy(m->mh_id, r->head.hd_id, sizeof m->mh_id);
    m->mh_rows = r->head.hd_rows;
    atomic_store(&m->mh_rows_high, sr_half_pack(0, SR_ROWS_HIGH_SALT));
    m->mh_crc = sr_crc32c(0, m, offsetof(struct sr_members_head, mh_crc));
}

static int make_catalog(struct sr_region *r, int dir, unsigned mode, struct sr_error *e)
{
    r->catalog_fd = sr_sys_shm_unnamed(dir, r->head.hd_catalog_size, r->head.hd_gen0 + SR_GEN_UNIT, mode);
    if (r->catalog_fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, r->catalog_fd, "the catalog segment could not be made in " SR_SHM_DIR);
    return 0;
}

static void fill_catalog(struct sr_region *r)
{
    sr_state_init(sr_state(r));
    sr_lock_init(r);
}

static int note_file(int fd, uint64_t *dev, uint64_t *ino, struct sr_error *e)
{
    struct stat st;
    int got = sr_sys->fstat(fd, &st);
    if (got < 0) return sr_fail(e, SR_E_SYSTEM, got, "a new segment cannot be examined");
    *dev = st.st_dev;
    *ino = st.st_ino;
    return 0;
}

static int make_data(struct sr_region *r, int dir, const struct sr_region_spec *spec, struct sr_error *e)
{
    r->data_fd = r->backend->make(spec->place, dir, r->head.hd_mapped, spec->mode, e);
    if (r->data_fd < 0) return r->data_fd;
    int got = note_file(r->data_fd, &r->head.hd_data_dev, &r->head.hd_data_ino, e);
    if (got == 0) got = r->backend->map(r->data_fd, r->head.hd_mapped, true, &r->data, e);
    /* The first of it is what an msharefs region is tried on, and what readers touch. */
    if (got == 0 && !spec->commit_all && r->backend->shared_tables) return sr_region_commit(r, (sr_off){0}, 1, e);
    if (got < 0 || !spec->commit_all) return got;
    uint64_t all = sr_align_up(spec->size, r->head.hd_granule);
    got = r->backend->commit(r->data_fd, &r->data, 0, all, e);
    if (got == 0) sr_region__mark(r, 0, all / r->head.hd_granule, true);
    if (got == SR_E_FULL)
        return sr_fail(e, SR_E_UNAVAILABLE, -(e ? e->sys_errno : ENOSPC), "%llu bytes of %s memory are not to be had",
                       (unsigned long long)all, r->backend->name);
    return got;
}

static int make_all(struct sr_region *r, const struct sr_region_spec *spec, const struct sr_shape *shape, struct sr_error *e)
{
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    plan_head(&r->head, spec, shape);
    r->backend = spec->backend;
    r->writable = true;
    int got = sr_region__plan_share(&r->head, spec, e);
    if (got < 0) return got;
    got = sr_sys->getrandom(r->head.hd_id, sizeof r->head.hd_id);
    if (got < 0) return sr_fail(e, SR_E_SYSTEM, got, "no random numbers are to be had");
    got = make_members(r, dir, spec->mode, e);
    if (got == 0) got = make_catalog(r, dir, spec->mode, e);
    if (got == 0) got = sr_region__view(r, e);
    if (got < 0) return got;
    fill_members(r);
    fill_catalog(r);
    got = make_data(r, dir, spec, e);
    if (got == 0) got = note_file(r->members_fd, &r->head.hd_members_dev, &r->head.hd_members_ino, e);
    if (got == 0) got = note_file(r->catalog_fd, &r->catalog_dev, &r->catalog_ino, e);
    if (got == 0) got = sr_member_join(r, e);
    r->open = got == 0;
    return got;
}

int sr_region_make(struct sr_region **out, const struct sr_region_spec *spec, struct sr_error *e)
{
    int got = sr_region_check_name(spec->name, strlen(spec->name), e);
    if (got < 0) return got;
    struct sr_shape shape;
    if (!sr_backend_shape(spec->backend, spec->size, &shape))
        return sr_fail(e, SR_E_INVALID, -EINVAL, "a region cannot have %llu bytes", (unsigned long long)spec->size);
    struct sr_region *r = sr_region__new(spec->name, e);
    if (r == NULL) return SR_E_NO_MEMORY;
    got = make_all(r, spec, &shape, e);
    if (got < 0) {
        sr_region__free(r);
        return got;
    }
    sr_region__track(r);
    *out = r;
    return 0;
}

/* --- names ------------------------------------------------------------------------------------ */

static void write_head(struct sr_region *r)
{
    r->head.hd_crc = sr_crc32c(0, &r->head, offsetof(struct sr_head, hd_crc));
    memcpy(r->catalog.at, &r->head, sizeof r->head);
}

static int start_keeper(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e)
{
    char path[SR_SOCKET_PATH], socket[SR_FILE_NAME], catalog[SR_FILE_NAME], members[SR_FILE_NAME];
    sr_region__socket_path(path, r->head.hd_id);
    sr_region__socket_name(socket, r->head.hd_id);
    sr_region__file_name(catalog, r->name, SR_SEGMENT_CATALOG, r->head.hd_generation);
    sr_region__file_name(members, r->name, SR_SEGMENT_MEMBERS, r->head.hd_generation);
    SR_FD listener = sr_keeper_listen(path, spec->mode);
    if (listener < 0) return sr_fail(e, SR_E_UNAVAILABLE, listener, "a socket for the keeper could not be made in " SR_SHM_DIR);
    SR_FD data_ro = sr_sys_reopen(r->data_fd, O_RDONLY);
    SR_FD catalog_ro = sr_sys_reopen(r->catalog_fd, O_RDONLY);
    int got = data_ro < 0 ? data_ro : catalog_ro < 0 ? catalog_ro : 0;
    if (got == 0) {
        struct sr_keeper_task task = {
            .path = spec->keeper, .region = r->name, .names = {catalog, members, socket},
            .listener = listener, .members = r->members_fd, .data_rw = r->data_fd, .data_ro = data_ro,
            .catalog = catalog_ro, .rows = r->head.hd_rows, .mode = spec->mode, .persist = spec->persist,
            .msharefs = r->backend->shared_tables ? spec->msharefs : NULL, .share_size = r->head.hd_share_size,
        };
        got = spec->keeper ? sr_keeper_start(&task) : -ENOENT;
    }
    if (got == 0) return 0;
    SR_FD dir = sr_region__open_dir(NULL);
    if (dir >= 0) sr_sys->unlinkat(dir, socket, 0);
    return sr_fail(e, SR_E_UNAVAILABLE, got, "the keeper of region '%s' could not be started", r->name);
}

/* 0, -EEXIST if a living maker has the name, or -errno. */
static int link_segment(int dir, int fd, const struct sr_region *r, enum sr_segment segment)
{
    char file[SR_FILE_NAME];
    sr_region__file_name(file, r->name, segment, r->head.hd_generation);
    int got = sr_sys_shm_link(fd, dir, file);
    if (got != -EEXIST) return got;
    /* Our members have their name, and members are linked before data: such data is nobody's. */
    if (segment == SR_SEGMENT_DATA) sr_sys->unlinkat(dir, file, 0);
    else if (sr_region__remove_half_made(dir, r->name, r->head.hd_generation, false) != 1) return -EEXIST;
    return sr_sys_shm_link(fd, dir, file);
}

/* Put the catalog in the place of whatever has its name. */
static int rename_over(int dir, const struct sr_region *r)
{
    char file[SR_FILE_NAME], temporary[SR_FILE_NAME];
    sr_region__file_name(file, r->name, SR_SEGMENT_CATALOG, 0);
    sr_region__socket_name(temporary, r->head.hd_id);
    memcpy(temporary + strlen(temporary) - 6, "new", 4);    /* sharedregion.<id>.new */
    SR_FD old = sr_region__lock_name(dir, r->name, true);
    if (old < 0 && old != -ENOENT) return old;
    int got = sr_sys_shm_link(r->catalog_fd, dir, temporary);
    if (got < 0) return got;
    got = sr_sys->renameat(dir, temporary, dir, file);
    if (got < 0) sr_sys->unlinkat(dir, temporary, 0);
    return got;
}

static int name_segments(struct sr_region *r, int dir, bool replace, const struct sr_region_spec *spec, struct sr_error *e)
{
    int got = link_segment(dir, r->members_fd, r, SR_SEGMENT_MEMBERS);
    if (got == 0 && (r->head.hd_flags & SR_HEAD_KEPT)) {
        int started = start_keeper(r, spec, e);
        if (started == 0 && r->backend->shared_tables) {
            started = sr_region__make_share(r, spec, e);
            write_head(r);
        }
        if (started < 0) {
            sr_region__remove_names(dir, &r->head);
            return started == SR_E_UNAVAILABLE ? -ENOLINK : -EIO;
        }
    }
    if (got == 0 && !(r->head.hd_flags & SR_HEAD_KEPT)) got = link_segment(dir, r->data_fd, r, SR_SEGMENT_DATA);
    if (got == 0) got = replace ? rename_over(dir, r) : link_segment(dir, r->catalog_fd, r, SR_SEGMENT_CATALOG);
    if (got < 0) sr_region__remove_names(dir, &r->head);
    return got;
}

static int publish_once(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e)
{
    SR_FD dir = sr_region__open_dir(e);
    if (dir < 0) return dir;
    /* What has the name now? */
    struct sr_head old;
    SR_FD catalog = sr_region__open_catalog(dir, r->name, false, SR_NO_OWNER, &old, e);
    bool there = catalog >= 0 || catalog == SR_E_CORRUPT;
    if (catalog == SR_E_DENIED)
        return sr_fail(e, SR_E_EXISTS, -EACCES, "a region '%s' exists and belongs to another user", r->name);
    if (catalog < 0 && !there && catalog != SR_E_NOT_FOUND) return catalog;
    if (catalog >= 0 && !spec->replace) {
        if (sr_region_reclaim(r->name, false, NULL) != 1)
            return sr_fail(e, SR_E_EXISTS, -EEXIST, "a region '%s' exists", r->name);
        there = false;
    }
    if (catalog == SR_E_CORRUPT && !spec->replace)
        return sr_fail(e, SR_E_EXISTS, -EEXIST, "a region '%s' exists, and is damaged or of another build", r->name);
    if (there && catalog >= 0) r->head.hd_generation = old.hd_generation + 1;
    /* Of a damaged one the generation is not known: take one that nobody will have. */
    if (there && catalog < 0) memcpy(&r->head.hd_generation, r->head.hd_id, sizeof r->head.hd_generation);
    if (r->head.hd_generation < 2 && there) r->head.hd_generation = 2;

    write_head(r);
    int got = name_segments(r, dir, spec->replace, spec, e);
    if (got == -ENOLINK) return SR_E_UNAVAILABLE;    /* the keeper; e says why */
    if (got == -EEXIST) return sr_fail(e, SR_E_EXISTS, got, "a region '%s' exists or is being made", r->name);
    if (got < 0) return sr_fail(e, SR_E_SYSTEM, got, "region '%s' could not be named", r->name);
    /* Members of the old generation keep it; only its names go. */
    if (there && catalog >= 0) sr_region__remove_names(dir, &old);
    return 0;
}

int sr_region_publish(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e)
{
    int got = SR_E_EXISTS;
    /* Several who replace at once take turns: each finds what the one before has put there. */
    for (int tries = 0; tries < (spec->replace ? REPLACE_TRIES : 1) && got == SR_E_EXISTS; tries++) {
        if (tries) sr_region_pause();
        r->head.hd_generation = 1;
        got = publish_once(r, spec, e);
        if (e && e->sys_errno == EACCES) break;
    }
    return got;
}
