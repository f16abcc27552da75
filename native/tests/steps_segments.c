/* steps, segments: those of the stepped child, their bytes at a moment, and copies of another name. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sr_region_private.h"
#include "steps.h"

static void shm_path(char out[160], const char *region, const char *suffix) { snprintf(out, 160, "/dev/shm/sharedregion.%s.%s", region, suffix); }

static unsigned char *map_file(const char *region, const char *suffix, bool make, uint64_t size, int *keep)
{
    char path[160];
    shm_path(path, region, suffix);
    int fd = open(path, O_RDWR | O_CLOEXEC | (make ? O_CREAT | O_EXCL : 0), 0600);
    NEED(fd >= 0, "%s: %s", path, strerror(errno));
    if (make) NEED(ftruncate(fd, (off_t)size) == 0, "%s", path);
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    NEED(at != MAP_FAILED, "%s", path);
    if (keep) *keep = fd;
    else close(fd);
    return at;
}

/* The memory has no name there: the keeper hands it out, and what shows it to readers. */
static void open_kept(struct segments *s)
{
    memcpy(&s->head, s->catalog, sizeof s->head);
    memcpy(&s->members_head, s->members, sizeof s->members_head);
    s->data_fd = sr_region__open_data(-1, &s->head, s->head.hd_uid, true);
    s->share_fd = sr_region__open_share(&s->head, s->head.hd_uid, true);
    NEED(s->data_fd >= 0 && s->share_fd >= 0, "the keeper: %d, %d", s->data_fd, s->share_fd);
    s->data_size = s->head.hd_mapped;
    s->data = mmap(NULL, s->data_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->data_fd, 0);
    NEED(s->data != MAP_FAILED, "the data segment");
}

void open_segments(struct segments *s, const char *name, bool make, uint64_t data_size)
{
    *s = (struct segments){.data_fd = -1, .share_fd = -1, .data_size = data_size};
    snprintf(s->name, sizeof s->name, "%s", name);
    struct sr_region *r = make && on_msharefs ? t_create(name, &sr_backend_msharefs, GROWING, false) : NULL;
    s->catalog = map_file(name, "catalog", make && !r, CATALOG_MAX, NULL);
    s->members = map_file(name, "members", make && !r, MEMBERS_SIZE, &s->members_fd);
    if (on_msharefs) open_kept(s);
    else s->data = map_file(name, "data", make, data_size, NULL);
    if (r == NULL) return;
    /* A region of its own. Its keeper takes who holds the last row for a member: it ends with this process. */
    NEED(sr_sys_lock(s->members_fd, SR_ROWS_MAX - 1, 1, false) == 0, "the last row");
    sr_region_close(r);
}

void close_segments(struct segments *s)
{
    munmap(s->catalog, CATALOG_MAX);
    munmap(s->members, MEMBERS_SIZE);
    munmap(s->data, s->data_size);
    sr_sys_close(&s->members_fd);
    sr_sys_close(&s->data_fd);
    sr_sys_close(&s->share_fd);
}

/* With a keeper, the names go with it. */
void unlink_segments(struct segments *s)
{
    static const char *const suffixes[] = {"catalog", "members", "data"};
    char path[160];
    close_segments(s);
    if (on_msharefs) NEED(names_gone(s->name), "names of the copy are left");
    else for (int i = 0; i < 3; i++) {
        shm_path(path, s->name, suffixes[i]);
        unlink(path);
    }
}

static bool any_name_left(const char *name)
{
    char start[100];
    bool left = false;
    snprintf(start, sizeof start, "sharedregion.%s.", name);
    DIR *dir = opendir("/dev/shm");
    for (struct dirent *d; dir && (d = readdir(dir));)
        if (strncmp(d->d_name, start, strlen(start)) == 0) left = true;
    if (dir) closedir(dir);
    return left;
}

/* No name is left; a moment later if need be: whoever reads /proc/PID/maps of a killed process keeps
 * its mappings, and so its locks, until it has read them. Then it is the next one's to remove them. */
bool names_gone(const char *name)
{
    for (int slice = 0; slice < 2000; slice++) {
        if (!any_name_left(name)) return true;
        usleep(1000);
        sr_region_reclaim(name, false, NULL);
    }
    return false;
}

static uint64_t catalog_in_use(const unsigned char *catalog)
{
    const struct sr_head *h = (const struct sr_head *)catalog;
    const struct sr_state *s = (const struct sr_state *)(catalog + SR_STATE_AT);
    unsigned level = (uint8_t)(atomic_load(&s->st_level) >> 16), gens = level + (s->st_slots_used * UINT64_C(2) >= sr_slots_count(level) ? 1 : 0);
    gens = (unsigned)sr_max(gens, sr_entry_gen(s->st_entries_committed - 1));
    gens = (unsigned)sr_max(gens, sr_block_gen(s->st_blocks_committed - 1));
    return sr_min(sr_gen_at(h->hd_gen0, gens + 1), sr_min(h->hd_catalog_size, CATALOG_MAX));
}

static uint64_t members_in_use(const unsigned char *members)
{
    return SR_PAGE * (1 + sr_min((((const struct sr_members_head *)members)->mh_rows_high >> 16) + 1, ROWS_SEEN));
}

/* Bring up to date; whether anything was different. */
static bool update_part(unsigned char *shadow, uint64_t *known, const unsigned char *now, uint64_t len)
{
    bool changed = false;
    if (len > *known) {
        memset(shadow + *known, 0, len - *known);
        *known = len;
    }
    for (uint64_t at = 0; at < len; at += SR_PAGE) {
        uint64_t piece = sr_min(SR_PAGE, len - at);
        if (memcmp(shadow + at, now + at, piece) == 0) continue;
        memcpy(shadow + at, now + at, piece);
        changed = true;
    }
    return changed;
}

/* To look at memory that is not there would make it. */
static bool has_memory(const struct snapshot *shot, uint64_t at) { return shot->backed >> (at / SR_LARGE_PAGE) & 1; }

/* A part of the data segment; on msharefs, as much of it as has memory. */
static bool update_data(struct snapshot *shot, const struct segments *s, struct part part, unsigned char *shadow)
{
    bool changed = false;
    for (uint64_t at = part.from, end; at < part.from + part.len; at = end) {
        end = sr_min(sr_align_down(at, SR_LARGE_PAGE) + SR_LARGE_PAGE, part.from + part.len);
        uint64_t len = end - at, known = shot->data_known ? len : 0;
        if (!on_msharefs || has_memory(shot, at)) changed |= update_part(shadow + (at - part.from), &known, s->data + at, len);
        else memset(shadow + (at - part.from), 0, len);
    }
    return changed;
}

bool is_looked_at(struct window data, uint64_t at, uint64_t len)
{
    for (int i = 0; i < 2; i++)
        if (at >= data.parts[i].from && at + len <= data.parts[i].from + data.parts[i].len) return true;
    return false;
}

bool update(struct snapshot *shot, const struct segments *s, struct window data)
{
    bool changed = update_part(shot->catalog, &shot->catalog_len, s->catalog, catalog_in_use(s->catalog));
    changed |= update_part(shot->members, &shot->members_len, s->members, members_in_use(s->members));
    if (on_msharefs) {
        uint64_t shown = shot->shown, backed = t_backed(s->data_fd, s->data_size);
        uint32_t calls = atomic_load(&control->calls) + 1;
        if (shot->calls != calls) shown = t_shown(s->share_fd, s->data_fd, s->data_size);
        changed |= shown != shot->shown || backed != shot->backed;
        shot->shown = shown;
        shot->backed = backed;
        shot->calls = calls;
    }
    shot->data_of = data;
    changed |= update_data(shot, s, data.parts[0], shot->data);
    changed |= update_data(shot, s, data.parts[1], shot->data + data.parts[0].len);
    shot->data_known = true;
    return changed;
}

void new_snapshot(struct snapshot *shot)
{
    shot->catalog = calloc(1, CATALOG_MAX);
    shot->members = calloc(1, MEMBERS_SEEN);
    shot->data = calloc(1, DATA_MAX);
    shot->catalog_len = shot->members_len = 0;
    shot->data_known = false;
}

void clear_snapshot(struct snapshot *shot)
{
    shot->catalog_len = shot->members_len = shot->calls = 0;
    shot->data_known = false;
}

/* Memory behind the same granules, a page of each, and the same of them shown. */
static void restore_memory(const struct segments *to, const struct snapshot *shot)
{
    NEED(sr_msharefs_remove(to->share_fd, 0, to->data_size) == 0 && sr_sys_punch(to->data_fd, 0, to->data_size) == 0, "the copy's memory");
    for (uint64_t at = 0; at < to->data_size; at += SR_LARGE_PAGE) {
        uint64_t bit = UINT64_C(1) << (at / SR_LARGE_PAGE);
        if (shot->backed & bit) NEED(sr_sys_commit(to->data_fd, at, SR_PAGE) == 0, "no memory");
        if (shot->shown & bit) NEED(sr_msharefs_place(to->share_fd, at, SR_LARGE_PAGE, to->data_fd, at) == 0, "the copy's msharefs region");
    }
}

/* Each of these has its own in the place of the stepped one's. */
static void restore_identity(struct segments *to, struct sr_head *h)
{
    struct sr_members_head *m = (struct sr_members_head *)to->members;
    memcpy(h->hd_id, to->head.hd_id, sizeof h->hd_id);
    memcpy(m->mh_id, to->head.hd_id, sizeof m->mh_id);
    atomic_store(&m->mh_keeper, atomic_load(&to->members_head.mh_keeper));
    m->mh_crc = sr_crc32c(0, m, offsetof(struct sr_members_head, mh_crc));
    h->hd_members_dev = to->head.hd_members_dev, h->hd_members_ino = to->head.hd_members_ino;
    h->hd_data_dev = to->head.hd_data_dev, h->hd_data_ino = to->head.hd_data_ino;
    h->hd_share_dev = to->head.hd_share_dev, h->hd_share_ino = to->head.hd_share_ino;
    h->hd_share_size = to->head.hd_share_size;
}

static void note_file(const char *name, const char *suffix, uint64_t *dev, uint64_t *ino)
{
    struct stat st;
    char path[160];
    shm_path(path, name, suffix);
    NEED(stat(path, &st) == 0, "%s", path);
    *dev = st.st_dev;
    *ino = st.st_ino;
}

/* Put the bytes into segments of another name: everything is the same but that the region persists,
 * so that it can be attached though all its members are dead. */
void restore(struct segments *to, const struct snapshot *shot)
{
    uint64_t before = catalog_in_use(to->catalog);
    if (((struct sr_head *)to->catalog)->hd_magic == 0) before = 0;
    memcpy(to->catalog, shot->catalog, shot->catalog_len);
    if (before > shot->catalog_len) memset(to->catalog + shot->catalog_len, 0, before - shot->catalog_len);
    memcpy(to->members, shot->members, shot->members_len);
    memset(to->members + shot->members_len, 0, MEMBERS_SEEN - shot->members_len);
    if (on_msharefs) restore_memory(to, shot);
    const unsigned char *data = shot->data;
    for (int i = 0; i < 2; i++) {
        const struct part part = shot->data_of.parts[i];
        for (uint64_t at = part.from; at < part.from + part.len; at += SR_PAGE, data += SR_PAGE)
            if (!on_msharefs || has_memory(shot, at)) memcpy(to->data + at, data, SR_PAGE);
    }
    struct sr_head *h = (struct sr_head *)to->catalog;
    memset(h->hd_name, 0, sizeof h->hd_name);
    h->hd_name_len = (uint32_t)strlen(to->name);
    memcpy(h->hd_name, to->name, h->hd_name_len);
    h->hd_flags |= SR_HEAD_PERSIST;
    if (on_msharefs) {
        restore_identity(to, h);
    } else {
        note_file(to->name, "members", &h->hd_members_dev, &h->hd_members_ino);
        note_file(to->name, "data", &h->hd_data_dev, &h->hd_data_ino);
    }
    h->hd_crc = sr_crc32c(0, h, offsetof(struct sr_head, hd_crc));
}

void check_memory(const struct segments *s, const struct snapshot *shot)
{
    if (!on_msharefs) return;
    const struct sr_region r = {.catalog = {s->catalog, CATALOG_MAX}, .head = *(const struct sr_head *)s->catalog, .backend = &sr_backend_msharefs};
    uint64_t marked = t_marked(&r), stays = t_staying(&r);
    uint64_t shown = shot ? shot->shown : t_shown(s->share_fd, s->data_fd, s->data_size);
    uint64_t backed = shot ? shot->backed : t_backed(s->data_fd, s->data_size);
    NEED((marked & ~shown) == 0, "granules %#llx are marked and not shown", (unsigned long long)(marked & ~shown));
    NEED((marked & ~backed) == 0, "granules %#llx are marked and have no memory", (unsigned long long)(marked & ~backed));
    if (shot) return;
    NEED((shown & ~marked & ~stays) == 0, "granules %#llx are shown that are in no map", (unsigned long long)(shown & ~marked));
    NEED((backed & ~marked & ~stays) == 0, "granules %#llx have memory that is in no map", (unsigned long long)(backed & ~marked));
}
