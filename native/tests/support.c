/* support: see support.h. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <unistd.h>

void t_die(const char *file, int line, const char *format, ...)
{
    const char *slash = strrchr(file, '/');
    fprintf(stderr, "%s:%d: ", slash ? slash + 1 : file, line);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    fflush(NULL);
    _exit(1);
}

void t_fill(void *at, uint64_t len, uint64_t seed)
{
    unsigned char *p = at;
    uint64_t state = seed;
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t word = t_random(&state);
        memcpy(p, &word, 8);
    }
    uint64_t word = t_random(&state);
    memcpy(p, &word, len);
}

uint64_t t_differs(const void *at, uint64_t len, uint64_t seed)
{
    const unsigned char *p = at;
    uint64_t state = seed, left = len;
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t word = t_random(&state);
        if (memcmp(p, &word, 8) != 0) return len - left;
    }
    uint64_t word = t_random(&state);
    return memcmp(p, &word, left) == 0 ? len : len - left;
}

const char *t_region_name(const char *what)
{
    static char name[64];
    uint32_t nonce;
    if (sr_sys->getrandom(&nonce, sizeof nonce) < 0) FAIL("no random numbers");
    snprintf(name, sizeof name, "test-%s-%u-%08x", what, sr_sys_pid(), nonce);
    return name;
}

/* The keeper of this very build. */
static const char *keeper(void)
{
    static char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    EXPECT(n > 0, "this program's own path");
    path[n] = '\0';
    for (int up = 0; up < 2; up++) *strrchr(path, '/') = '\0';
    strcat(path, "/keeper/sharedregion-keeper");
    return path;
}

struct sr_region *t_create(const char *name, const struct sr_backend *backend, uint64_t size, bool persist)
{
    struct sr_error error = {0};
    struct sr_region *r = NULL;
    struct sr_region_spec spec = {
        .name = name, .size = size, .backend = backend, .place = SR_PLACE_SHM_DIR, .mode = 0600, .persist = persist,
        .reason = "a test",
    };
    if (backend->shared_tables) spec.place = SR_PLACE_MEMFD, spec.keeper = keeper(), spec.msharefs = t_msharefs();
    OK(sr_catalog_create(&r, &spec, &error));
    return r;
}

struct sr_region *t_attach(const char *name, bool writable)
{
    struct sr_error error = {0};
    struct sr_region *r = NULL;
    OK(sr_catalog_attach(&r, name, writable, SR_NO_OWNER, &error));
    return r;
}

const char *t_msharefs(void)
{
    const char *path = getenv("SHAREDREGION_MSHAREFS");
    return path && *path ? path : NULL;
}

#define GRANULE SR_LARGE_PAGE    /* of every region on msharefs that is not huge */

uint64_t t_shown(int share, int memory, uint64_t length)
{
    uint64_t found = 0;
    for (uint64_t at = 0; at < length; at += GRANULE) {
        int r = sr_msharefs_place(share, at, GRANULE, memory, at);
        EXPECT(r == 0 || r == -EEXIST, "placing in the msharefs region: %d", r);
        if (r == 0) r = sr_msharefs_remove(share, at, GRANULE);
        else found |= UINT64_C(1) << (at / GRANULE), r = 0;
        EXPECT(r == 0, "removing from the msharefs region: %d", r);
    }
    return found;
}

uint64_t t_backed(int memory, uint64_t length)
{
    uint64_t found = 0;
    for (uint64_t at = 0; at < length; at += GRANULE) {
        off_t data = lseek(memory, (off_t)at, SEEK_DATA);
        if (data >= 0 && (uint64_t)data < at + GRANULE) found |= UINT64_C(1) << (at / GRANULE);
    }
    return found;
}

uint64_t t_marked(const struct sr_region *r)
{
    uint64_t found = 0;
    for (uint64_t at = 0; at < r->head.hd_mapped; at += GRANULE)
        if (sr_region_uncommitted(r, (sr_off){at}, 1) == 0) found |= UINT64_C(1) << (at / GRANULE);
    return found;
}

uint64_t t_staying(const struct sr_region *r)
{
    uint64_t found = 0;
    for (uint64_t at = 0; at < r->head.hd_mapped; at += r->head.hd_share_unit) found |= UINT64_C(1) << (at / GRANULE);
    return found;
}

struct sr_desc t_desc(const char *name, uint64_t len, uint64_t seed, uint16_t meta_len, uint8_t *meta, uint8_t flags)
{
    if (meta_len) t_fill(meta, meta_len, ~seed);
    return (struct sr_desc){
        .name = name, .meta = meta, .len = len, .name_len = (uint16_t)strlen(name), .meta_len = meta_len, .type = 7, .flags = flags,
    };
}

void t_entomb(struct sr_region *r, uint64_t far)
{
    struct sr_error error = {0};
    bool abandoned;
    uint32_t used = 0;
    OK(sr_lock(r, &abandoned, &error));
    _Atomic uint64_t *slots = sr_slots(r, 0);
    const uint64_t count = sr_slots_count(0), until = count / 2 + 100;
    /* From behind, so that the way between has no end before the name that is moved. */
    for (uint64_t i = until; i-- > 0;)
        if (sr_slot_load(slots, 0, i) == SR_SLOT_EMPTY) sr_slot_store(slots, 0, i, SR_SLOT_TOMB);
    for (uint64_t i = until - far; i-- > 0;) {
        uint64_t value = sr_slot_load(slots, 0, i);
        if (sr_slot_entry(value) == 0 || sr_slot_load(slots, 0, i + far) != SR_SLOT_TOMB) continue;
        sr_slot_store(slots, 0, i + far, value);
        sr_slot_store(slots, 0, i, SR_SLOT_TOMB);
    }
    for (uint64_t i = 0; i < count; i++) used += sr_slot_load(slots, 0, i) != SR_SLOT_EMPTY;
    sr_state(r)->st_slots_used = used;
    sr_unlock(r);
}

uint64_t t_option(int argc, char **argv, const char *name, uint64_t otherwise)
{
    size_t len = strlen(name);
    for (int i = 1; i < argc; i++)
        if (strncmp(argv[i], name, len) == 0 && argv[i][len] == '=') return strtoull(argv[i] + len + 1, NULL, 0);
    return otherwise;
}

double t_seconds(void) { return (double)sr_sys_now() / 1e9; }
