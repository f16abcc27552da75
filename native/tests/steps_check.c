/* steps, check: whether everything is there and whole at a crash point, and beside a stopped child. */
#define _GNU_SOURCE
#include <unistd.h>

#include "steps.h"

struct window looked_at;

/* Whether what the region says of the name is this. */
static bool is_object(struct sr_region *r, const struct object *o, bool hold)
{
    static struct sr_found f;
    struct sr_error error = {0};
    uint8_t meta[SR_META_MAX];
    int got = sr_catalog_get(r, o->name, strlen(o->name), hold, &f, &error);
    if (got == SR_E_NO_OBJECT) return !o->there;
    if (got != 0) BAD("get of '%.20s': %d %s", o->name, got, error.what);
    NEED(f.len >= FILLER_FROM || is_looked_at(looked_at, f.off.at, f.len), "'%.20s' lies at %llu, where no snapshot has it", o->name, (unsigned long long)f.off.at);
    bool same = o->there && f.len == o->len && f.meta_len == o->meta_len && f.flags == o->flags;
    if (same) {
        t_fill(meta, o->meta_len, ~o->seed);
        same = memcmp(f.text + f.name_len, meta, o->meta_len) == 0 &&
               (o->len >= FILLER_FROM || t_differs(r->data.at + f.off.at, o->len, o->seed) == o->len);
    }
    if (hold) sr_unpin(r, f.block);
    return same;
}

/* Everything that is committed is there and whole; returns the bytes that it occupies. */
uint32_t seen_may;    /* which of the two it was that look_at_all found */

uint64_t look_at_all(struct sr_region *r, const struct expected *x, bool hold)
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

#define JUNK_PARTS 20u    /* of a region, a piece of junk is one */

void put(struct sr_region *r, const struct object *o, int *result)
{
    struct sr_error error = {0};
    static uint8_t meta[SR_META_MAX], bytes[GROWING / JUNK_PARTS];
    uint64_t seq;
    struct sr_desc d = t_desc(o->name, o->len, o->seed, o->meta_len, meta, o->flags);
    if (o->len >= FILLER_FROM) {
        struct sr_draft draft;
        *result = sr_draft_begin(r, &d, &draft, &error);
        if (*result == 0) *result = sr_draft_publish(r, &d, &draft, &seq, &error);
    } else {
        t_fill(bytes, o->len, o->seed);
        *result = sr_catalog_put(r, &d, bytes, &seq, &error);
    }
    if (*result != 0 && *result != SR_E_FULL) BAD("put: %d %s", *result, error.what);
}

struct segments copy, second;    /* where a crash point is checked; whose recovery is stepped */

/* Everything free is taken with junk: what a living member holds must not be touched. */
static void fill_up(struct sr_region *r)
{
    struct sr_error error = {0};
    struct object junk = {.len = r->head.hd_size / JUNK_PARTS, .seed = 99, .there = true};
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

void check_point(const struct expected *x, const struct snapshot *shot, enum lives lives, uint64_t *random)
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
    if (sealed) {    /* nobody comes who could put anything in order, and nothing needs to be */
        NEED(sr_catalog_attach(&r, copy.name, true, SR_NO_OWNER, &error) == SR_E_READ_ONLY, "a writer came into a sealed region");
        NEED_OK(sr_catalog_attach(&r, copy.name, false, SR_NO_OWNER, &error));
        look_at_all(r, x, true);
        if (held) NEED(sr_sys_unlock(copy.members_fd, control->other_row, 1) == 0, "the row of the other member");
        sr_region_close(r);
        alarm(0);
        atomic_fetch_add(&figures->points, 1);
        return;
    }
    NEED_OK(sr_catalog_attach(&r, copy.name, true, SR_NO_OWNER, &error));
    NEED_OK(sr_catalog_sweep(r, &error));
    NEED_OK(sr_catalog_check(r, &error));
    uint64_t bytes = look_at_all(r, x, true);
    NEED(!new_was_seen || seen_may == 1, "a reader had seen the new object, and after the recovery it is the old one again");
    if (held) {
        fill_up(r);
        NEED_OK(sr_catalog_check(r, &error));
        NEED(sr_sys_unlock(copy.members_fd, control->other_row, 1) == 0, "the row of the other member");
        NEED_OK(sr_catalog_sweep(r, &error));
        atomic_fetch_add(&figures->with_pins, 1);
    }
    sr_catalog_stats(r, &stats);
    atomic_fetch_add(&figures->recoveries, stats.recoveries > 0);
    NEED(stats.pending == 0 && stats.limbo == 0, "%u unfinished, %u withdrawn objects are left", stats.pending, stats.limbo);
    NEED(stats.used == bytes, "%llu bytes in use, the objects have %llu", (unsigned long long)stats.used, (unsigned long long)bytes);
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
    check_memory(&copy, NULL);
    sr_region_close(r);
    alarm(0);
    atomic_fetch_add(&figures->points, 1);
}

/* --- others while the child is stopped -------------------------------------------------------- */

void others(const struct history *h, struct expected *x, uint64_t *random, uint32_t serial)
{
    struct sr_error error = {0};
    struct sr_region *reader = NULL;
    /* Whoever reads waits for nobody, wherever the child stopped. The last member may be on its
     * way out, or the region not named any more. */
    int got = sr_catalog_attach(&reader, region_name, false, SR_NO_OWNER, &error);
    if (got == SR_E_NOT_FOUND && (h->stepped.kind == CLOSE_LAST || h->stepped.kind == CLOSE || h->stepped.kind == RETIRE)) return;
    if (got != 0) BAD("attach of a reader beside a stopped member: %d %s", got, error.what);
    look_at_all(reader, x, true);
    bool taken = !sr_lock_is_free(reader);
    bool sealed = sr_state_flags(sr_state(reader)) & SR_STATE_SEALED;
    sr_region_close(reader);
    if (sealed) return;
    if (taken) {
        atomic_fetch_add(&figures->paused_held, 1);
        return;    /* a writer would wait for the stopped one */
    }
    struct sr_region *w = NULL;
    NEED_OK(sr_catalog_attach(&w, region_name, true, SR_NO_OWNER, &error));
    NEED_OK(sr_catalog_sweep(w, &error));
    NEED_OK(sr_catalog_check(w, &error));
    look_at_all(w, x, true);
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
    NEED_OK(sr_catalog_check(w, &error));
    sr_region_close(w);
    atomic_fetch_add(&control->calls, 1);
    atomic_fetch_add(&figures->paused_free, 1);
}
