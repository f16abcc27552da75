/* steps: what a kill leaves after every single instruction of an operation, and that the region is
 * put in order from there: no object lost or changed, no block leaked, operations go on.
 *
 * A history is a few random operations, then one that is stepped, instruction by instruction, in a
 * child (PTRACE_SINGLESTEP). After each instruction that changed a byte of the three segments, and
 * after each instruction address that was not seen before, the bytes are copied into segments of
 * another name in which every member is dead (or all but one, which holds pins), and this process
 * recovers the copy and checks everything. What is checked is a state that a kill at that point
 * leaves: memory that is shared keeps its stores in the order in which the instructions end.
 *
 * Some states are given to a second child whose recovery is stepped in its turn: death while
 * putting in order. At some points the child stays stopped, alive, and this process does whole
 * operations on the region itself; then the child goes on.
 *
 * Options: histories, seed, jobs, seconds (stop then), verbose.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define NAMES 10
#define OBJECTS_MAX 2048
#define CATALOG_MAX (4 * SR_MIB)
#define DATA_MAX (256 * SR_KIB)
#define ROWS_SEEN 24u
#define MEMBERS_SEEN ((ROWS_SEEN + 1) * SR_PAGE)
#define MEMBERS_SIZE (SR_PAGE * (1 + (uint64_t)SR_ROWS_MAX))
#define CODE_MAX (8 * SR_MIB)

/* --- what there should be --------------------------------------------------------------------- */

struct object {
    char name[SR_OBJECT_NAME_MAX + 1];
    uint64_t len, seed;
    uint16_t meta_len;
    uint8_t flags;
    bool there;
};

/* Committed objects, and for the one that the stepped operation changes, what it may be. */
struct expected {
    struct object objects[OBJECTS_MAX];
    uint32_t count;
    struct object may[4];      /* of one name; `there` false: it may be absent */
    uint32_t may_count;
};

enum kind {
    PUT_NEW, PUT_OVER, DELETE, BEGIN, PUBLISH, DROP, BUMP, ATTACH, ATTACH_READER, CLOSE, CLOSE_LAST, GET, UNPIN, SWEEP,
    TRIM, FORK, TICKET, SEAL, STATS, WAIT, KINDS,
};
static const char *const kind_names[] = {
    "put", "put over", "delete", "begin", "publish", "drop", "bump", "attach", "attach reader", "close", "close last",
    "get", "unpin", "sweep", "trim", "fork", "ticket", "seal", "stats", "wait",
};

struct step { enum kind kind; struct object object; bool by_other; };

struct history {
    uint64_t seed, size;
    struct step setup[24];
    uint32_t setup_count;
    uint32_t prefill;          /* tiny objects before everything else: growth of the catalog      */
    bool other, other_writes;  /* a second member                                                 */
    struct step stepped;
};

/* What the child tells. */
struct control {
    bool done[24];             /* setup steps that succeeded                                      */
    uint32_t prefilled;
    int result;
    uint32_t other_row;
    uint32_t pins;
    struct { uint64_t off, len, seed; } pinned[16];
    bool other_draft, other_open;
};

/* Counters of all jobs. */
struct figures {
    _Atomic uint64_t histories, steps, points, changed, recoveries, twice, paused_held, paused_free, name_kills, with_pins;
    _Atomic uint64_t by_kind[KINDS], points_by_kind[KINDS];
    _Atomic uint32_t failed;
    _Atomic uint8_t code[CODE_MAX];    /* 1 executed and checked, 2 changed bytes */
};

static struct figures *figures;
static struct control *control;
static char region_name[80];
static char where[256];        /* what to say when something is wrong */
#define BAD(...) (fprintf(stderr, "%s\n", where), FAIL(__VA_ARGS__))
#define NEED(cond, ...) do { if (!(cond)) { fprintf(stderr, "%s\n", where); FAIL("not so: " #cond " | " __VA_ARGS__); } } while (0)
#define NEED_OK(call) do { int g_ = (call); if (g_ != 0) { fprintf(stderr, "%s\n", where); FAIL(#call " gave %d: %s", g_, error.what); } } while (0)

static struct object *find_object(struct expected *x, const char *name)
{
    for (uint32_t i = 0; i < x->count; i++)
        if (strcmp(x->objects[i].name, name) == 0) return &x->objects[i];
    return NULL;
}

static void set_object(struct expected *x, const struct object *o)
{
    struct object *at = find_object(x, o->name);
    if (at == NULL && !o->there) return;
    if (at == NULL) {
        EXPECT(x->count < OBJECTS_MAX, "too many objects in a history");
        at = &x->objects[x->count++];
    }
    if (o->there) *at = *o;
    else *at = x->objects[--x->count];
}

static uint64_t block_of(uint64_t len) { return sr_max(sr_align_up(len, SR_BLOCK_UNIT), SR_BLOCK_UNIT); }

/* --- code addresses --------------------------------------------------------------------------- */

static uintptr_t code_base;
static uint8_t *room_of;       /* per byte of code: 0 none, else 1 + index in functions */
static struct function { char name[48]; uint32_t at, size; } functions[1024];
static uint32_t functions_count;

static int find_base(struct dl_phdr_info *info, size_t size, void *out)
{
    (void)size;
    *(uintptr_t *)out = info->dlpi_addr;
    return 1;    /* the first is the program itself */
}

static bool our_file(const char *file)
{
    static const char *const files[] = {"alloc.c", "names.c", "segment.c", "create.c", "reclaim.c", "member.c", "lock.c", "state.c", "view.c", "files.c",
                                        "entries.c", "index.c", "store.c", "recover.c"};
    for (size_t i = 0; i < SR_ARRAY_LEN(files); i++)
        if (strcmp(file, files[i]) == 0) return true;
    return false;
}

static bool our_name(const char *name)
{
    static const char *const prefixes[] = {"sr_alloc_", "sr_catalog_", "sr_draft_", "sr_index__", "sr_entry__", "sr_list__",
        "sr_limbo__", "sr_pending__", "sr_region_", "sr_member_", "sr_pin", "sr_unpin", "sr_ticket", "sr_lock", "sr_unlock", "sr_view_"};
    for (size_t i = 0; i < SR_ARRAY_LEN(prefixes); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return false;
}

/* Which addresses belong to region, alloc and catalog: by the program's own symbol table. */
static void read_symbols(void)
{
    dl_iterate_phdr(find_base, &code_base);
    SR_FD fd = sr_sys->openat(AT_FDCWD, "/proc/self/exe", O_RDONLY, 0);
    struct stat st;
    EXPECT(fd >= 0 && sr_sys->fstat(fd, &st) == 0, "the program cannot read itself");
    const char *file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    EXPECT(file != MAP_FAILED, "the program cannot map itself");
    room_of = calloc(CODE_MAX, 1);
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + elf->e_shoff);
    for (int i = 0; i < elf->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *strings = file + sections[sections[i].sh_link].sh_offset, *source = "";
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            const Elf64_Sym *s = &symbols[k];
            const char *name = strings + s->st_name;
            if (ELF64_ST_TYPE(s->st_info) == STT_FILE) source = name;
            if (ELF64_ST_TYPE(s->st_info) != STT_FUNC || s->st_size == 0 || s->st_value + s->st_size > CODE_MAX) continue;
            bool file_scope = ELF64_ST_BIND(s->st_info) == STB_LOCAL && source[0] != '\0';
            if (!(file_scope && our_file(source)) && !our_name(name)) continue;
            struct function *f = &functions[functions_count++];
            EXPECT(functions_count < SR_ARRAY_LEN(functions), "too many functions");
            *f = (struct function){.at = (uint32_t)s->st_value, .size = (uint32_t)s->st_size};
            snprintf(f->name, sizeof f->name, "%.47s", name);
            memset(room_of + s->st_value, 1, s->st_size);
        }
    }
    EXPECT(functions_count > 50, "the program was stripped of its symbols");
}

/* --- segments --------------------------------------------------------------------------------- */

struct segments {
    unsigned char *catalog, *members, *data;
    int members_fd;
    char name[80];
};

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

static void open_segments(struct segments *s, const char *name, bool make, uint64_t data_size)
{
    snprintf(s->name, sizeof s->name, "%s", name);
    s->catalog = map_file(name, "catalog", make, CATALOG_MAX, NULL);
    s->members = map_file(name, "members", make, MEMBERS_SIZE, &s->members_fd);
    s->data = map_file(name, "data", make, data_size, NULL);
}

static void close_segments(struct segments *s, uint64_t data_size)
{
    munmap(s->catalog, CATALOG_MAX);
    munmap(s->members, MEMBERS_SIZE);
    munmap(s->data, data_size);
    close(s->members_fd);
}

static void unlink_segments(const char *name)
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
static bool names_gone(const char *name)
{
    for (int slice = 0; slice < 2000; slice++) {
        if (!any_name_left(name)) return true;
        usleep(1000);
        sr_region_reclaim(name, false, NULL);
    }
    return false;
}

/* The bytes in use, as they were at the last look. */
struct snapshot {
    unsigned char *catalog, *members, *data;
    uint64_t catalog_len, members_len, data_len;
};

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

static bool update(struct snapshot *shot, const struct segments *s, uint64_t data_len)
{
    bool changed = update_part(shot->catalog, &shot->catalog_len, s->catalog, catalog_in_use(s->catalog));
    changed |= update_part(shot->members, &shot->members_len, s->members, members_in_use(s->members));
    changed |= update_part(shot->data, &shot->data_len, s->data, data_len);
    return changed;
}

static void new_snapshot(struct snapshot *shot)
{
    shot->catalog = calloc(1, CATALOG_MAX);
    shot->members = calloc(1, MEMBERS_SEEN);
    shot->data = calloc(1, DATA_MAX);
    shot->catalog_len = shot->members_len = shot->data_len = 0;
}

static void clear_snapshot(struct snapshot *shot) { shot->catalog_len = shot->members_len = shot->data_len = 0; }

/* Put the bytes into segments of another name: everything is the same but that the region persists,
 * so that it can be attached though all its members are dead. */
static void restore(struct segments *to, const struct snapshot *shot)
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

/* --- the check of one crash point ------------------------------------------------------------- */

/* Whether what the region says of the name is this. */
static bool is_object(struct sr_region *r, const struct object *o, bool hold)
{
    static struct sr_found f;
    struct sr_error error = {0};
    uint8_t meta[SR_META_MAX];
    int got = sr_catalog_get(r, o->name, strlen(o->name), hold, &f, &error);
    if (got == SR_E_NO_OBJECT) return !o->there;
    if (got != 0) BAD("get of '%.20s': %d %s", o->name, got, error.what);
    bool same = o->there && f.len == o->len && f.meta_len == o->meta_len && f.flags == o->flags;
    if (same) {
        t_fill(meta, o->meta_len, ~o->seed);
        same = memcmp(f.text + f.name_len, meta, o->meta_len) == 0 && t_differs(r->data.at + f.off.at, o->len, o->seed) == o->len;
    }
    if (hold) sr_unpin(r, f.block);
    return same;
}

/* Everything that is committed is there and whole; returns the bytes that it occupies. */
static uint32_t seen_may;    /* which of the two it was that look_at_all found */

static uint64_t look_at_all(struct sr_region *r, const struct expected *x, bool hold)
{
    static struct sr_found f;
    struct sr_error error = {0};
    uint64_t bytes = 0;
    uint32_t count = x->count, cursor = 0, listed = 0;
    for (uint32_t i = 0; i < x->count; i++) {
        NEED(is_object(r, &x->objects[i], hold), "object '%.20s' of %u bytes is not as it was committed", x->objects[i].name, (unsigned)x->objects[i].len);
        bytes += block_of(x->objects[i].len);
    }
    if (x->may_count) {
        uint32_t k = 0;
        while (k < x->may_count && !is_object(r, &x->may[k], hold)) k++;
        NEED(k < x->may_count, "object '%.20s' is neither old nor new", x->may[0].name);
        seen_may = k;
        if (x->may[k].there) bytes += block_of(x->may[k].len), count++;
    }
    int got;
    while ((got = sr_catalog_next(r, &cursor, &f, &error)) == 0) listed++;
    NEED(got == SR_E_NO_OBJECT, "listing: %d %s", got, error.what);
    /* Between publishing and withdrawing, both publications of a replaced name are entries. */
    if (r->writable) NEED(listed == count, "%u objects listed, %u expected", listed, count);
    else NEED(listed >= count && listed <= count + 1, "%u objects listed, %u expected", listed, count);
    return bytes;
}

static void put(struct sr_region *r, const struct object *o, int *result)
{
    struct sr_error error = {0};
    uint8_t meta[SR_META_MAX], bytes[8192];
    uint64_t seq;
    struct sr_desc d = t_desc(o->name, o->len, o->seed, o->meta_len, meta, o->flags);
    t_fill(bytes, o->len, o->seed);
    *result = sr_catalog_put(r, &d, bytes, &seq, &error);
    if (*result != 0 && *result != SR_E_FULL) BAD("put: %d %s", *result, error.what);
}

static struct segments copy, second;    /* where a crash point is checked; whose recovery is stepped */

/* Everything free is taken with junk: what a living member holds must not be touched. */
static void fill_up(struct sr_region *r)
{
    struct sr_error error = {0};
    struct object junk = {.len = 2048, .seed = 99, .there = true};
    uint32_t made = 0;
    int got;
    while (junk.len) {
        snprintf(junk.name, sizeof junk.name, "junk-%u", made);
        put(r, &junk, &got);
        if (got == 0) made++;
        else junk.len = junk.len > 64 ? junk.len / 4 : 0;
    }
    for (uint32_t i = 0; i < control->pins; i++)
        NEED(t_differs(r->data.at + control->pinned[i].off, control->pinned[i].len, control->pinned[i].seed) == control->pinned[i].len,
             "a block that a living member holds was used again");
    while (made--) {
        snprintf(junk.name, sizeof junk.name, "junk-%u", made);
        NEED_OK(sr_catalog_delete(r, junk.name, strlen(junk.name), 0, &error));
    }
}

/* `lives`: whether the other member does; in a recovery that is stepped it did or did not all along. */
enum lives { DEAD, ALIVE, EITHER };
static void check_point(const struct expected *x, const struct snapshot *shot, enum lives lives, uint64_t *random)
{
    struct sr_error error = {0};
    struct sr_stats stats;
    restore(&copy, shot);
    alarm(60);    /* no recovery waits: one that does is ended, and with it the run */
    struct sr_members_head *m = (struct sr_members_head *)copy.members;
    uint32_t choice = (uint32_t)t_random(random);
    bool sealed = sr_state_flags(sr_state(&(struct sr_region){.catalog = {copy.catalog, 0}})) & SR_STATE_SEALED;
    /* The recoverer comes with a row of its own as often as with the row of the dead. */
    if (choice & 1) {
        m->mh_rows_high = sr_half_pack((uint32_t)sr_max(m->mh_rows_high >> 16, 18), SR_ROWS_HIGH_SALT);
        m->mh_clean[0] |= UINT64_C(1) << 17;
    }
    bool held = control->other_open && (lives == EITHER ? (choice & 2) != 0 : lives == ALIVE);
    if (held) NEED(sr_sys_lock(copy.members_fd, control->other_row, 1, false) == 0, "the row of the other member");

    if (choice & 4) {    /* a reader first: it waits for nobody */
        struct sr_region *reader = NULL;
        NEED_OK(sr_catalog_attach(&reader, copy.name, false, SR_NO_OWNER, &error));
        look_at_all(reader, x, choice & 8);
        sr_region_close(reader);
    }
    bool new_was_seen = (choice & 4) && x->may_count == 2 && seen_may == 1;
    struct sr_region *r = NULL;
    NEED_OK(sr_catalog_attach(&r, copy.name, true, SR_NO_OWNER, &error));
    NEED_OK(sr_catalog_sweep(r, &error));
    NEED_OK(sr_catalog_check(r, &error));
    uint64_t bytes = look_at_all(r, x, true);
    NEED(!new_was_seen || seen_may == 1, "a reader had seen the new object, and after the recovery it is the old one again");
    if (held) {
        if (!sealed) fill_up(r);
        NEED_OK(sr_catalog_check(r, &error));
        NEED(sr_sys_unlock(copy.members_fd, control->other_row, 1) == 0, "the row of the other member");
        NEED_OK(sr_catalog_sweep(r, &error));
        atomic_fetch_add(&figures->with_pins, 1);
    }
    sr_catalog_stats(r, &stats);
    atomic_fetch_add(&figures->recoveries, stats.recoveries > 0);
    NEED(stats.pending == 0 && stats.limbo == 0, "%u unfinished, %u withdrawn objects are left", stats.pending, stats.limbo);
    NEED(stats.used == bytes, "%llu bytes in use, the objects have %llu", (unsigned long long)stats.used, (unsigned long long)bytes);
    if (!sealed) {
        struct object after = {.name = "after", .len = 100, .seed = t_random(random), .there = true};
        int got;
        put(r, &after, &got);
        if (got == 0) {
            NEED(is_object(r, &after, true), "an object put after the recovery");
            after.seed++;
            put(r, &after, &got);
            NEED(got != 0 || is_object(r, &after, true), "an object replaced after the recovery");
            NEED_OK(sr_catalog_delete(r, after.name, strlen(after.name), 0, &error));
        }
        if ((choice & 0xF0) == 0) {
            static struct sr_found f;
            uint32_t cursor = 0;
            while (sr_catalog_next(r, &cursor, &f, &error) == 0) NEED_OK(sr_catalog_delete(r, (char *)f.text, f.name_len, f.seq, &error));
            bytes = 0;
        }
        NEED_OK(sr_catalog_check(r, &error));
        sr_catalog_stats(r, &stats);
        NEED(stats.used == bytes, "bytes in use after further operations");
        NEED(bytes || (stats.objects == 0 && stats.largest == stats.size), "an empty region is not one free block");
    }
    sr_region_close(r);
    alarm(0);
    atomic_fetch_add(&figures->points, 1);
}

/* --- the child -------------------------------------------------------------------------------- */

static struct sr_region *self, *other;
static struct sr_draft draft, other_drafts;

static void other_pin(const struct object *o)
{
    static struct sr_found f;
    struct sr_error error = {0};
    if (control->pins >= SR_ARRAY_LEN(control->pinned)) return;
    if (sr_catalog_get(other, o->name, strlen(o->name), true, &f, &error) != 0) return;
    /* The last put of that name may have found no room: then these are the bytes of an earlier one. */
    if (t_differs(other->data.at + f.off.at, f.len, o->seed) != f.len) return;
    control->pinned[control->pins].off = f.off.at;
    control->pinned[control->pins].len = f.len;
    control->pinned[control->pins++].seed = o->seed;
}

/* One step of the setup: whether it succeeded. */
static bool prepare(const struct step *s)
{
    struct sr_error error = {0};
    struct sr_region *r = s->by_other ? other : self;
    const struct object *o = &s->object;
    uint8_t meta[SR_META_MAX];
    int got = 0;
    if (s->kind == PUT_NEW || s->kind == PUT_OVER) put(r, o, &got);
    else if (s->kind == DELETE) got = sr_catalog_delete(r, o->name, strlen(o->name), 0, &error);
    else if (s->kind == GET) {
        other_pin(o);
    } else if (s->kind == BEGIN) {
        struct sr_desc d = t_desc(o->name, o->len, o->seed, o->meta_len, meta, o->flags);
        struct sr_draft *to = s->by_other ? &other_drafts : &draft;
        got = sr_draft_begin(r, &d, to, &error);
        if (got == 0) t_fill(r->data.at + to->off.at, o->len, o->seed);
        if (got == 0 && s->by_other) control->other_draft = true;
    }
    return got == 0;
}

static int operate(const struct history *h, uint8_t *meta, const uint8_t *bytes)
{
    static struct sr_found f;
    struct sr_error error = {0};
    const struct object *o = &h->stepped.object;
    struct sr_region *more = NULL;
    uint64_t seq = 0;
    uint32_t row;
    struct sr_desc d = {.name = o->name, .meta = meta, .len = o->len, .name_len = (uint16_t)strlen(o->name), .meta_len = o->meta_len, .type = 7, .flags = o->flags};
    int got = 0;
    switch (h->stepped.kind) {
    case PUT_NEW: case PUT_OVER: return sr_catalog_put(self, &d, bytes, &seq, &error);
    case DELETE: return sr_catalog_delete(self, o->name, strlen(o->name), 0, &error);
    case BEGIN: return sr_draft_begin(self, &d, &draft, &error);
    case PUBLISH: return sr_draft_publish(self, &d, &draft, &seq, &error);
    case DROP: return sr_draft_drop(self, &d, &draft), 0;
    case BUMP: return sr_catalog_bump(self, o->name, strlen(o->name), &seq, &error);
    case ATTACH: return sr_catalog_attach(&more, region_name, true, SR_NO_OWNER, &error);
    case ATTACH_READER: return sr_catalog_attach(&more, region_name, false, SR_NO_OWNER, &error);
    case CLOSE: case CLOSE_LAST: return sr_region_close(self), 0;
    case GET: return sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
    case UNPIN:
        got = sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
        if (got == 0) sr_unpin(self, f.block);
        return got;
    case SWEEP: return sr_catalog_sweep(self, &error);
    case TRIM: return sr_catalog_trim(self, &seq, &error);
    case FORK: {
        pid_t pid = fork();
        if (pid == 0) _exit(0);
        waitpid(pid, NULL, 0);
        return 0;
    }
    case TICKET:
        got = sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
        if (got == 0) got = sr_ticket_issue(self, f.block, &row, &error);
        if (got == 0) sr_unpin(self, f.block);
        if (got == 0 && h->seed % 2) sr_ticket_claim(self, row, f.block);
        return got;
    case SEAL: return sr_catalog_seal(self, &error);
    case STATS: {
        struct sr_stats stats;
        sr_catalog_stats(self, &stats);
        return 0;
    }
    case WAIT: return sr_catalog_wait(self, o->name, strlen(o->name), 0, 1000, &seq, &error);
    default: return -1;
    }
}

static void child(const struct history *h, bool on_second)
{
    struct sr_error error = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    if (on_second) {
        raise(SIGSTOP);
        struct sr_region *r = NULL;
        control->result = sr_catalog_attach(&r, second.name, true, SR_NO_OWNER, &error);
        if (control->result == 0) control->result = sr_catalog_sweep(r, &error);
        raise(SIGSTOP);
        _exit(0);
    }
    self = t_create(region_name, &sr_backend_shm, h->size, false);
    if (h->other) {
        other = t_attach(region_name, h->other_writes);
        control->other_row = sr_member_row(other);
        control->other_open = true;
    }
    for (uint32_t i = 0; i < h->prefill; i++) {
        struct object o = {.len = 8, .seed = i, .there = true};
        int got;
        snprintf(o.name, sizeof o.name, "p%u", i);
        put(self, &o, &got);
        if (got != 0) break;
        control->prefilled++;
    }
    for (uint32_t i = 0; i < h->setup_count; i++) control->done[i] = prepare(&h->setup[i]);
    if (h->stepped.kind == CLOSE_LAST && other) {
        sr_region_close(other);
        control->other_open = false;
        control->pins = 0;
    }
    uint8_t meta[SR_META_MAX], bytes[8192];
    t_fill(meta, h->stepped.object.meta_len, ~h->stepped.object.seed);
    t_fill(bytes, h->stepped.object.len, h->stepped.object.seed);
    raise(SIGSTOP);
    control->result = operate(h, meta, bytes);
    raise(SIGSTOP);
    _exit(0);
}

/* --- histories -------------------------------------------------------------------------------- */

static void random_object(struct object *o, const char *name, uint64_t *random)
{
    *o = (struct object){.seed = t_random(random), .there = true, .flags = t_below(random, 4) == 0 ? SR_ENTRY_MUTABLE : 0};
    snprintf(o->name, sizeof o->name, "%s", name);
    static const uint16_t lens[] = {0, 1, 8, 63, 64, 65, 100, 200, 500, 1000, 4096, 5000};
    o->len = lens[t_below(random, t_below(random, 8) ? 8 : SR_ARRAY_LEN(lens))];
    static const uint16_t metas[] = {0, 5, 20, 45, 60, 130, 400, 4096};
    o->meta_len = metas[t_below(random, t_below(random, 12) ? 5 : SR_ARRAY_LEN(metas))];
}

static void random_name(char *out, uint64_t *random)
{
    size_t len = t_below(random, 6) ? 1 + t_below(random, 12) : 1 + t_below(random, SR_OBJECT_NAME_MAX);
    for (size_t i = 0; i < len; i++) out[i] = (char)('a' + t_below(random, 26));
    out[len] = '\0';
}

static void make_history(struct history *h, uint64_t seed)
{
    uint64_t random = seed * 1000003 + 17;
    *h = (struct history){.seed = seed, .size = 40 * SR_KIB};
    static char names[NAMES][SR_OBJECT_NAME_MAX + 1];
    for (int i = 0; i < NAMES; i++) random_name(names[i], &random);
    /* Few histories step over the growth of entries, blocks and index: they are long. */
    if (seed % 64 == 63) {
        static const uint32_t fills[] = {244, 250, 253, 508, 511, 764};
        h->prefill = fills[t_below(&random, SR_ARRAY_LEN(fills))] + (uint32_t)t_below(&random, 4);
        h->size = 96 * SR_KIB;
    }
    if (seed % 1024 == 500) {
        h->prefill = 1019 + (uint32_t)t_below(&random, 4);
        h->size = 128 * SR_KIB;
    }
    h->other = t_below(&random, 2);
    h->other_writes = t_below(&random, 2);
    bool drafted = false;
    uint32_t count = (uint32_t)t_below(&random, 14);
    h->stepped.kind = (enum kind)t_below(&random, KINDS + 6);
    if (h->stepped.kind >= KINDS) h->stepped.kind = (enum kind[]){PUT_NEW, PUT_OVER, DELETE, PUBLISH, BEGIN, PUT_OVER}[h->stepped.kind - KINDS];
    if (seed % 1024 == 500) h->stepped.kind = PUT_NEW;
    for (uint32_t i = 0; i < count; i++) {
        struct step *s = &h->setup[h->setup_count++];
        uint64_t dice = t_below(&random, 10);
        s->kind = dice < 6 ? PUT_NEW : dice < 8 ? DELETE : dice < 9 && h->other ? GET : h->other && h->other_writes && !drafted ? BEGIN : PUT_OVER;
        s->by_other = s->kind == GET || s->kind == BEGIN;
        drafted |= s->kind == BEGIN;
        random_object(&s->object, names[t_below(&random, NAMES)], &random);
        s->object.there = s->kind != DELETE;
        /* A pin knows its bytes: those of the last put of that name. */
        if (s->kind == GET)
            for (uint32_t k = 0; k < i; k++)
                if ((h->setup[k].kind == PUT_NEW || h->setup[k].kind == PUT_OVER) && strcmp(h->setup[k].object.name, s->object.name) == 0)
                    s->object.seed = h->setup[k].object.seed;
    }
    random_object(&h->stepped.object, names[t_below(&random, NAMES)], &random);
    struct object *o = &h->stepped.object;
    if (h->stepped.kind == PUT_OVER || h->stepped.kind == BUMP || h->stepped.kind == DELETE || h->stepped.kind == GET || h->stepped.kind == UNPIN || h->stepped.kind == TICKET) {
        struct step *s = &h->setup[h->setup_count++];
        s->kind = PUT_NEW;
        random_object(&s->object, o->name, &random);
        if (h->stepped.kind == BUMP) s->object.flags = SR_ENTRY_MUTABLE;
        if (h->other && t_below(&random, 2)) {    /* and somebody looks at it */
            struct step *g = &h->setup[h->setup_count++];
            g->kind = GET;
            g->by_other = true;
            g->object = s->object;
        }
    }
    if (h->stepped.kind == PUBLISH || h->stepped.kind == DROP) {
        struct step *s = &h->setup[h->setup_count++];
        s->kind = BEGIN;
        s->object = *o;
    }
}

/* What is committed when the stepped operation begins, and what its object may be. */
static void expect(const struct history *h, struct expected *x)
{
    x->count = 0;
    for (uint32_t i = 0; i < control->prefilled; i++) {
        struct object *o = &x->objects[x->count++];
        *o = (struct object){.len = 8, .seed = i, .there = true};
        snprintf(o->name, sizeof o->name, "p%u", i);
    }
    for (uint32_t i = 0; i < h->setup_count; i++) {
        const struct step *s = &h->setup[i];
        if (control->done[i] && (s->kind == PUT_NEW || s->kind == PUT_OVER || s->kind == DELETE)) set_object(x, &s->object);
    }
    const struct object *o = &h->stepped.object;
    enum kind k = h->stepped.kind;
    bool changes = k == PUT_NEW || k == PUT_OVER || k == DELETE || k == PUBLISH;
    x->may_count = 0;
    if (!changes) return;
    struct object *at = find_object(x, o->name);
    x->may[0] = at ? *at : (struct object){.there = false};
    x->may[1] = *o;
    x->may[1].there = k != DELETE;
    memcpy(x->may[0].name, o->name, sizeof o->name);
    x->may_count = 2;
    if (at) *at = x->objects[--x->count];
}

/* --- others while the child is stopped -------------------------------------------------------- */

static void others(const struct history *h, struct expected *x, uint64_t *random, uint32_t serial)
{
    struct sr_error error = {0};
    struct sr_region *reader = NULL;
    /* Whoever reads waits for nobody, wherever the child stopped. The last member may be on its
     * way out, or the region not named any more. */
    int got = sr_catalog_attach(&reader, region_name, false, SR_NO_OWNER, &error);
    if (got == SR_E_NOT_FOUND && (h->stepped.kind == CLOSE_LAST || h->stepped.kind == CLOSE)) return;
    if (got != 0) BAD("attach of a reader beside a stopped member: %d %s", got, error.what);
    look_at_all(reader, x, true);
    bool taken = !sr_lock_is_free(reader);
    bool sealed = sr_state_flags(sr_state(reader)) & SR_STATE_SEALED;
    sr_region_close(reader);
    if (taken) {
        atomic_fetch_add(&figures->paused_held, 1);
        return;    /* a writer would wait for the stopped one */
    }
    struct sr_region *w = NULL;
    NEED_OK(sr_catalog_attach(&w, region_name, true, SR_NO_OWNER, &error));
    NEED_OK(sr_catalog_sweep(w, &error));
    NEED_OK(sr_catalog_check(w, &error));
    look_at_all(w, x, true);
    if (!sealed) {
        struct object o = {.len = 32, .seed = t_random(random), .there = true};
        snprintf(o.name, sizeof o.name, "beside-%u", serial % 3);
        put(w, &o, &got);
        if (got == 0) {
            set_object(x, &o);
            if (serial % 2) {
                NEED_OK(sr_catalog_delete(w, o.name, strlen(o.name), 0, &error));
                o.there = false;
                set_object(x, &o);
            }
        }
        if (x->may_count && serial % 3 == 0) {    /* the very object that the child is changing */
            o = (struct object){.len = 16, .seed = t_random(random), .there = true};
            memcpy(o.name, x->may[1].name, sizeof o.name);
            put(w, &o, &got);
            if (got == 0) x->may[0] = o;
            if (got == 0 && x->may_count == 3) x->may_count = 2;
        }
    }
    NEED_OK(sr_catalog_check(w, &error));
    sr_region_close(w);
    atomic_fetch_add(&figures->paused_free, 1);
}

/* --- stepping --------------------------------------------------------------------------------- */

static int wait_stop(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR) BAD("waitpid");
    if (WIFSTOPPED(status)) return WSTOPSIG(status);
    BAD("the stepped child ended with status %x", status);
}

static pid_t start_child(const struct history *h, bool on_second)
{
    memset(control, 0, on_second ? 0 : sizeof *control);
    fflush(NULL);
    pid_t pid = fork();
    NEED(pid >= 0, "fork");
    if (pid == 0) child(h, on_second);
    int sig = wait_stop(pid);
    NEED(sig == SIGSTOP, "signal %d in the setup", sig);
    return pid;
}

static void end_child(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, __WALL) < 0 || !WIFSIGNALED(status)) continue;
}

static struct snapshot shots[2];
static bool verbose;

static void recover_stepped(const struct history *h, const struct expected *x, const struct snapshot *shot, uint64_t *random);

/* Step to the end of the operation; every state on the way is checked. */
static void step_all(const struct history *h, struct expected *x, pid_t pid, struct segments *on, struct snapshot *shot, enum lives lives, uint64_t *random)
{
    uint64_t data_len = sr_align_up(h->size, SR_PAGE), steps = 0;
    bool twice = lives != EITHER;
    uint32_t serial = (uint32_t)t_random(random), pauses = 0;
    clear_snapshot(shot);
    update(shot, on, data_len);
    for (;;) {
        uintptr_t rip = (uintptr_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
        NEED(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "PTRACE_SINGLESTEP");
        int sig = wait_stop(pid);
        if (sig == SIGSTOP) break;
        if (sig == SIGCHLD) continue;
        NEED(sig == SIGTRAP, "signal %d in the stepped operation", sig);
        steps++;
        uintptr_t at = rip - code_base;
        bool ours = at < CODE_MAX && room_of[at];
        bool changed = update(shot, on, data_len);
        bool unseen = ours && figures->code[at] == 0;
        if (!changed && !unseen) {
            if (!twice && pauses < 4 && t_below(random, 1200) == 0) {
                pauses++;
                others(h, x, random, serial++);
                update(shot, on, data_len);
            }
            continue;
        }
        if (ours) figures->code[at] |= changed ? 3 : 1;
        snprintf(where, sizeof where, "history %llu (%s)%s, instruction %llu, at %s+%#lx", (unsigned long long)h->seed, kind_names[h->stepped.kind],
                 twice ? ", recovery" : "", (unsigned long long)steps, ours ? "ours" : "elsewhere", (unsigned long)at);
        check_point(x, shot, lives, random);
        atomic_fetch_add(&figures->changed, changed);
        atomic_fetch_add(&figures->points_by_kind[h->stepped.kind], 1);
        if (!twice && t_below(random, 800) == 0) recover_stepped(h, x, shot, random);
        if (!twice && pauses < 4 && t_below(random, 40) == 0) {
            pauses++;
            others(h, x, random, serial++);
            update(shot, on, data_len);
        }
    }
    atomic_fetch_add(&figures->steps, steps);
}

static void recover_stepped(const struct history *h, const struct expected *x, const struct snapshot *shot, uint64_t *random)
{
    if (h->prefill) return;    /* a recovery of hundreds of objects is long */
    char before[sizeof where];
    memcpy(before, where, sizeof before);
    restore(&second, shot);
    static struct expected y;
    y = *x;
    enum lives lives = control->other_open && t_below(random, 2) ? ALIVE : DEAD;
    if (lives == ALIVE) NEED(sr_sys_lock(second.members_fd, control->other_row, 1, false) == 0, "the row of the other member");
    pid_t pid = start_child(h, true);
    step_all(h, &y, pid, &second, &shots[1], lives, random);
    NEED(control->result == 0, "a recovery failed with %d", control->result);
    end_child(pid);
    if (lives == ALIVE) NEED(sr_sys_unlock(second.members_fd, control->other_row, 1) == 0, "the row of the other member");
    atomic_fetch_add(&figures->twice, 1);
    memcpy(where, before, sizeof where);
}

static void run_history(const struct history *h)
{
    static struct expected x;
    struct sr_error error = {0};
    uint64_t random = h->seed ^ UINT64_C(0xABCDEF);
    snprintf(where, sizeof where, "history %llu (%s), setup", (unsigned long long)h->seed, kind_names[h->stepped.kind]);
    pid_t pid = start_child(h, false);
    expect(h, &x);
    struct segments real;
    open_segments(&real, region_name, false, sr_align_up(h->size, SR_PAGE));
    step_all(h, &x, pid, &real, &shots[0], EITHER, &random);
    snprintf(where, sizeof where, "history %llu (%s), end, result %d", (unsigned long long)h->seed, kind_names[h->stepped.kind], control->result);
    if (verbose) fprintf(stderr, "%s\n", where);
    if (h->stepped.kind == CLOSE_LAST || (h->stepped.kind == CLOSE && !h->other)) {
        NEED(names_gone(region_name), "the last member has left and names are there");
        end_child(pid);
    } else {
        /* The operation has ended: its object is what it said. Then its process is killed. */
        struct sr_region *r = t_attach(region_name, true);
        look_at_all(r, &x, true);
        NEED_OK(sr_catalog_check(r, &error));
        end_child(pid);
        struct sr_stats stats;
        NEED_OK(sr_catalog_sweep(r, &error));
        uint64_t bytes = look_at_all(r, &x, true);
        sr_catalog_stats(r, &stats);
        NEED(stats.used == bytes && stats.pending == 0 && stats.limbo == 0, "something is left of the killed member");
        sr_region_close(r);
        NEED(names_gone(region_name), "the last member has left and names are there");
    }
    close_segments(&real, sr_align_up(h->size, SR_PAGE));
    atomic_fetch_add(&figures->histories, 1);
    atomic_fetch_add(&figures->by_kind[h->stepped.kind], 1);
}

/* --- names: killed for real while the region is made, joined for the last time, or left ------- */

static void kill_at_name(enum kind kind, uint64_t *random, uint64_t *longest)
{
    struct sr_error error = {0};
    fflush(NULL);
    pid_t pid = fork();
    NEED(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        struct sr_region *r = kind == PUT_NEW ? NULL : t_create(region_name, &sr_backend_shm, 65536, false);
        raise(SIGSTOP);
        if (kind == PUT_NEW) t_create(region_name, &sr_backend_shm, 65536, false);
        else sr_region_close(r);
        raise(SIGSTOP);
        _exit(0);
    }
    NEED(wait_stop(pid) == SIGSTOP, "setup");
    uint64_t stop = *longest ? t_below(random, *longest) : UINT64_MAX, steps = 0;
    for (; steps < stop; steps++) {
        NEED(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "PTRACE_SINGLESTEP");
        if (wait_stop(pid) == SIGSTOP) break;
    }
    if (*longest == 0) *longest = steps;
    snprintf(where, sizeof where, "%s, killed after %llu of %llu instructions", kind == PUT_NEW ? "create" : "close", (unsigned long long)steps, (unsigned long long)*longest);
    end_child(pid);
    int got = sr_region_reclaim(region_name, false, &error);
    NEED(got >= 0 || got == SR_E_NOT_FOUND, "reclaim: %d %s", got, error.what);
    NEED(names_gone(region_name), "names are left");
    atomic_fetch_add(&figures->name_kills, 1);
}

/* --- the run ---------------------------------------------------------------------------------- */

/* Tracer and child on one processor: a step is then a switch, and no wake-up of the other one. */
static void stay_on(unsigned job)
{
    cpu_set_t can, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof can, &can) != 0) return;
    unsigned skip = job % (unsigned)CPU_COUNT(&can);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &can) && skip-- == 0) {
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

static void run_job(uint64_t first, uint64_t count, uint64_t stride, uint64_t name_kills, double until)
{
    static struct history h;
    stay_on((unsigned)first);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(control != MAP_FAILED, "no memory");
    snprintf(region_name, sizeof region_name, "%s", t_region_name("steps"));
    char name[96];
    snprintf(name, sizeof name, "%.60s-copy", region_name);
    open_segments(&copy, name, true, DATA_MAX);
    snprintf(name, sizeof name, "%.60s-second", region_name);
    open_segments(&second, name, true, DATA_MAX);
    new_snapshot(&shots[0]);
    new_snapshot(&shots[1]);
    uint64_t random = first + 5, longest[2] = {0, 0};
    for (uint64_t i = 0; i < name_kills; i++) kill_at_name(i % 2 ? PUT_NEW : CLOSE, &random, &longest[i % 2]);
    for (uint64_t i = 0; i < count && t_seconds() < until; i++) {
        make_history(&h, first + i * stride);
        run_history(&h);
    }
    unlink_segments(copy.name);
    unlink_segments(second.name);
}

static void report(double seconds)
{
    uint64_t executed = 0, changing = 0, unreached = 0, code = 0;
    for (size_t i = 0; i < CODE_MAX; i++) {
        executed += figures->code[i] != 0;
        changing += (figures->code[i] & 2) != 0;
    }
    printf("histories %llu, instructions stepped %llu, crash points checked %llu (%llu after a change of bytes), in %.0f s\n",
           (unsigned long long)figures->histories, (unsigned long long)figures->steps, (unsigned long long)figures->points,
           (unsigned long long)figures->changed, seconds);
    printf("distinct instruction addresses of region, alloc and catalog: %llu executed, each a crash point that was checked; %llu of them change shared bytes\n",
           (unsigned long long)executed, (unsigned long long)changing);
    printf("recoveries of an abandoned lock %llu, beside a living member with pins %llu, recoveries stepped in their turn %llu\n",
           (unsigned long long)figures->recoveries, (unsigned long long)figures->with_pins, (unsigned long long)figures->twice);
    printf("pauses with whole operations of others: %llu, readers only beside a held lock: %llu; kills while names come and go: %llu\n",
           (unsigned long long)figures->paused_free, (unsigned long long)figures->paused_held, (unsigned long long)figures->name_kills);
    for (int k = 0; k < KINDS; k++) printf("%s%s %llu/%llu", k ? ", " : "histories/points: ", kind_names[k], (unsigned long long)figures->by_kind[k], (unsigned long long)figures->points_by_kind[k]);
    printf("\nfunctions that no operation reached:");
    for (uint32_t i = 0; i < functions_count; i++) {
        bool reached = false;
        for (uint32_t a = functions[i].at; a < functions[i].at + functions[i].size; a++) reached |= figures->code[a] != 0;
        code += functions[i].size;
        if (!reached) unreached++, printf(" %s", functions[i].name);
    }
    printf(" (%llu of %u)\n", (unsigned long long)unreached, functions_count);
}

/* Nobody sleeps here: who would wait a slice for a holder looks at once whether it lives. */
static int no_sleep(const _Atomic uint32_t *word, uint32_t expected, const struct timespec *timeout)
{
    (void)timeout;
    return atomic_load(word) == expected ? -ETIMEDOUT : -EAGAIN;
}

static void hung(int sig)
{
    (void)sig;
    static const char what[] = ": hung\n";
    if (write(2, where, strlen(where)) < 0 || write(2, what, sizeof what - 1) < 0) _exit(1);
    _exit(1);
}

int main(int argc, char **argv)
{
    signal(SIGALRM, hung);
    static struct sr_sys table;
    table = sr_sys_linux;
    table.futex_wait = no_sleep;
    sr_sys = &table;
    uint64_t histories = t_option(argc, argv, "histories", 64), jobs = t_option(argc, argv, "jobs", 2), seed = t_option(argc, argv, "seed", 0);
    uint64_t seconds = t_option(argc, argv, "seconds", 1000000), name_kills = t_option(argc, argv, "name_kills", 60);
    verbose = t_option(argc, argv, "verbose", 0);
    figures = mmap(NULL, sizeof *figures, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(figures != MAP_FAILED, "no memory");
    read_symbols();
    double start = t_seconds();
    if (jobs <= 1) {
        run_job(seed, histories, 1, name_kills, start + (double)seconds);
        report(t_seconds() - start);
        return 0;
    }
    for (uint64_t j = 0; j < jobs; j++) {
        fflush(NULL);
        pid_t pid = fork();
        EXPECT(pid >= 0, "fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run_job(seed + j, (histories + jobs - 1 - j) / jobs, jobs, name_kills / jobs, start + (double)seconds);
            _exit(0);
        }
    }
    int status, failed = 0;
    while (waitpid(-1, &status, 0) > 0) failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    report(t_seconds() - start);
    return failed ? 1 : 0;
}
