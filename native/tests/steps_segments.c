/* steps, segments: those of the stepped child, their bytes at a moment, and copies of another name. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

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

void open_segments(struct segments *s, const char *name, bool make, uint64_t data_size)
{
    snprintf(s->name, sizeof s->name, "%s", name);
    s->catalog = map_file(name, "catalog", make, CATALOG_MAX, NULL);
    s->members = map_file(name, "members", make, MEMBERS_SIZE, &s->members_fd);
    s->data = map_file(name, "data", make, data_size, NULL);
}

void close_segments(struct segments *s, uint64_t data_size)
{
    munmap(s->catalog, CATALOG_MAX);
    munmap(s->members, MEMBERS_SIZE);
    munmap(s->data, data_size);
    close(s->members_fd);
}

void unlink_segments(const char *name)
{
    static const char *const suffixes[] = {"catalog", "members", "data"};
    char path[160];
    for (int i = 0; i < 3; i++) {
        shm_path(path, name, suffixes[i]);
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

bool update(struct snapshot *shot, const struct segments *s, uint64_t data_len)
{
    bool changed = update_part(shot->catalog, &shot->catalog_len, s->catalog, catalog_in_use(s->catalog));
    changed |= update_part(shot->members, &shot->members_len, s->members, members_in_use(s->members));
    changed |= update_part(shot->data, &shot->data_len, s->data, data_len);
    return changed;
}

void new_snapshot(struct snapshot *shot)
{
    shot->catalog = calloc(1, CATALOG_MAX);
    shot->members = calloc(1, MEMBERS_SEEN);
    shot->data = calloc(1, DATA_MAX);
    shot->catalog_len = shot->members_len = shot->data_len = 0;
}

void clear_snapshot(struct snapshot *shot) { shot->catalog_len = shot->members_len = shot->data_len = 0; }

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
    memcpy(to->data, shot->data, shot->data_len);
    struct sr_head *h = (struct sr_head *)to->catalog;
    struct stat st;
    char path[160];
    memset(h->hd_name, 0, sizeof h->hd_name);
    h->hd_name_len = (uint32_t)strlen(to->name);
    memcpy(h->hd_name, to->name, h->hd_name_len);
    h->hd_flags |= SR_HEAD_PERSIST;
    shm_path(path, to->name, "members");
    NEED(stat(path, &st) == 0, "%s", path);
    h->hd_members_dev = st.st_dev;
    h->hd_members_ino = st.st_ino;
    shm_path(path, to->name, "data");
    NEED(stat(path, &st) == 0, "%s", path);
    h->hd_data_dev = st.st_dev;
    h->hd_data_ino = st.st_ino;
    h->hd_crc = sr_crc32c(0, h, offsetof(struct sr_head, hd_crc));
}
