/* recover: everything that follows from the entries, made anew; and the check of it.
 *
 * Runs under the lock that a dead writer left. That writer may have stopped between any two stores,
 * so nothing is believed but entries: what is published (ent_seq), what is being filled by a living
 * owner (PENDING), what waits for its last pin (LIMBO). Every step may itself be cut off by a kill;
 * then the next one begins again from the same truth. Readers are not held up and never see a name
 * missing that is there: the index is mended slot by slot.
 */
#include "sr_catalog.h"

#include <errno.h>
#include <stdlib.h>

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the catalog of region '%s' is damaged: %s", r->name, what);
}

struct plan {
    struct sr_region *r;
    struct sr_extent *used;    /* blocks that stay */
    size_t count;
    uint8_t *keep;             /* per entry: 1 stays, 2 stays as a continuation */
    uint32_t high;
};

static void keep(struct plan *p, uint32_t n)
{
    struct sr_region *r = p->r;
    const struct sr_entry *entry = sr_entry(r, n);
    p->keep[n] = 1;
    p->used[p->count++] = (struct sr_extent){entry->ent_off, sr_max(sr_align_up(entry->ent_len, SR_BLOCK_UNIT), SR_BLOCK_UNIT), entry->ent_block};
    uint32_t more = entry->ent_more;
    for (size_t k = 0; k <= SR_TEXT_MAX / 108 && sr_entry_ok(r, more) && more < p->high; k++) {
        const struct sr_more *m = (const struct sr_more *)sr_entry(r, more);
        if (atomic_load(&m->more_state) != SR_ENTRY_MORE) break;
        p->keep[more] = 2;
        more = m->more_next;
    }
}

/* Which entries stay, and in which list. */
static int classify(struct plan *p, struct sr_error *e)
{
    struct sr_region *r = p->r;
    struct sr_state *s = sr_state(r);
    struct sr_found f;
    s->st_pending = s->st_limbo = s->st_limbo_count = s->st_objects = 0;
    uint64_t newest = atomic_load(&s->st_seq);
    for (uint32_t n = 1; n < p->high; n++) {
        struct sr_entry *entry = sr_entry(r, n);
        uint32_t state = atomic_load(&entry->ent_state);
        uint64_t seq = atomic_load(&entry->ent_seq);
        /* ent_seq is cleared before the state is left, and set after it is taken. */
        if (state != SR_ENTRY_LIVE && seq != 0) return bad(r, e, "the state of an entry");
        if (state == SR_ENTRY_FREE || state == SR_ENTRY_MORE) continue;
        if (state == SR_ENTRY_LIVE && seq != 0) {
            int got = sr_catalog__read_entry(r, n, seq, &f, e);
            if (got != 0) return got < 0 ? got : bad(r, e, "an entry");
            newest = sr_max(newest, seq);
            s->st_objects++;
            keep(p, n);
        } else if (state == SR_ENTRY_LIVE || state == SR_ENTRY_LIMBO) {
            /* Not yet published, or just withdrawn; readers may hold it. */
            atomic_store(&entry->ent_seq, 0);
            atomic_store(&entry->ent_state, SR_ENTRY_LIMBO);
            sr_list__push(r, &s->st_limbo, n);
            s->st_limbo_count++;
            keep(p, n);
        } else if (state == SR_ENTRY_PENDING && sr_member_alive(r, entry->ent_owner, entry->ent_owner_gen)) {
            sr_list__push(r, &s->st_pending, n);
            keep(p, n);
        }
    }
    atomic_store(&s->st_seq, newest);
    return 0;
}

/* Every slot leads to a living entry, every living entry has a slot, and of two of one name the
 * newer stays. */
static int mend_index(struct plan *p, struct sr_error *e)
{
    struct sr_region *r = p->r;
    struct sr_state *s = sr_state(r);
    uint32_t level = atomic_load(&s->st_level);
    if (level >= r->head.hd_gens) return bad(r, e, "the level of the index");
    _Atomic uint64_t *slots = sr_slots(r, level);
    uint64_t count = sr_slots_count(level);
    s->st_slots_used = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t word = atomic_load(&slots[i]);
        if (word == SR_SLOT_EMPTY) continue;
        s->st_slots_used++;
        uint32_t n = sr_slot_entry(word);
        bool lives = n != 0 && n < p->high && p->keep[n] == 1 && atomic_load(&sr_entry(r, n)->ent_seq) != 0 &&
                     sr_slot_matches(word, sr_entry(r, n)->ent_hash);
        if (n != 0 && !lives) atomic_store(&slots[i], SR_SLOT_TOMB);
    }
    struct sr_found f;
    for (uint32_t n = 1; n < p->high; n++) {
        uint64_t seq = atomic_load(&sr_entry(r, n)->ent_seq);
        if (p->keep[n] != 1 || seq == 0) continue;
        if (sr_catalog__read_entry(r, n, seq, &f, e) != 0) return bad(r, e, "an entry");
        uint64_t hash = sr_entry(r, n)->ent_hash;
        uint32_t other = 0;
        sr_index__find(r, hash, (char *)f.text, f.name_len, &other);
        if (other == n) continue;
        uint32_t loser = 0;
        if (other) {
            loser = atomic_load(&sr_entry(r, other)->ent_seq) < seq ? other : n;
            s->st_objects--;
        }
        if (loser != n) {
            int got = sr_index__store(r, hash, (char *)f.text, f.name_len, n, e);
            if (got < 0) return got;
        }
        if (loser) {
            atomic_store(&sr_entry(r, loser)->ent_seq, 0);
            atomic_store(&sr_entry(r, loser)->ent_state, SR_ENTRY_LIMBO);
            sr_list__push(r, &s->st_limbo, loser);
            s->st_limbo_count++;
        }
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct sr_extent *)a)->off, y = ((const struct sr_extent *)b)->off;
    return x < y ? -1 : x > y;
}

static void rebuild_free_entries(struct plan *p)
{
    struct sr_state *s = sr_state(p->r);
    s->st_free_entry = 0;
    for (uint32_t n = p->high; n-- > 1;) {
        if (p->keep[n]) continue;
        struct sr_entry *entry = sr_entry(p->r, n);
        atomic_store(&entry->ent_seq, 0);
        atomic_store(&entry->ent_state, SR_ENTRY_FREE);
        entry->ent_next = s->st_free_entry;
        s->st_free_entry = n;
    }
}

static int recover(struct plan *p, struct sr_error *e)
{
    struct sr_state *s = sr_state(p->r);
    int got = classify(p, e);
    if (got == 0) got = mend_index(p, e);
    if (got < 0) return got;
    rebuild_free_entries(p);
    qsort(p->used, p->count, sizeof *p->used, by_offset);
    got = sr_alloc_rebuild(p->r, p->used, p->count, e);
    if (got == 0) got = sr_limbo__flush(p->r, e);
    if (got == 0) s->st_recoveries++;
    return got;
}

int sr_catalog__recover(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    struct plan p = {.r = r};
    p.high = (uint32_t)sr_min(sr_min(s->st_entries_high, s->st_entries_committed), sr_entries_limit(r->head.hd_gens));
    p.high = p.high ? p.high : 1;
    if (!sr_gens_ok(r, r->head.hd_gens)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
    s->st_entries_high = p.high;
    p.used = calloc(p.high, sizeof *p.used);
    p.keep = calloc(p.high, 1);
    int got = p.used && p.keep ? recover(&p, e) : sr_fail(e, SR_E_NO_MEMORY, -ENOMEM, "out of memory");
    free(p.used);
    free(p.keep);
    return got;
}

/* --- the check -------------------------------------------------------------------------------- */

static int check_locked(struct sr_region *r, struct sr_error *e)
{
    if (!sr_gens_ok(r, r->head.hd_gens)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
    const struct sr_state *s = sr_state(r);
    uint32_t counts[5] = {0}, live = 0;
    struct sr_found f;
    if (s->st_entries_high > s->st_entries_committed || s->st_entries_high > sr_entries_limit(r->head.hd_gens)) return bad(r, e, "number of entries");
    uint64_t used = 0;
    for (uint32_t n = 1; n < s->st_entries_high; n++) {
        struct sr_entry *entry = sr_entry(r, n);
        uint32_t state = atomic_load(&entry->ent_state);
        if (state > SR_ENTRY_MORE) return bad(r, e, "the state of an entry");
        counts[state]++;
        if (state == SR_ENTRY_FREE || state == SR_ENTRY_MORE) continue;
        uint64_t seq = atomic_load(&entry->ent_seq);
        if ((state == SR_ENTRY_LIVE) != (seq != 0)) return bad(r, e, "an entry between two states");
        uint32_t block;
        int got = sr_entry__block(r, n, &block, e);
        if (got < 0) return got;
        used += sr_block(r, block)->blk_len_state & ~UINT64_C(63);
        if (state != SR_ENTRY_LIVE) continue;
        if (sr_catalog__read_entry(r, n, seq, &f, e) != 0) return bad(r, e, "an entry");
        uint32_t found = 0;
        if (!sr_index__find(r, entry->ent_hash, (char *)f.text, f.name_len, &found) || found != n) return bad(r, e, "an object that the index does not find");
        live++;
    }
    if (live != s->st_objects) return bad(r, e, "number of objects");
    if (used != s->st_used) return bad(r, e, "bytes in use");
    if (counts[SR_ENTRY_LIMBO] != s->st_limbo_count) return bad(r, e, "number of withdrawn objects");
    const struct { uint32_t head, state; } lists[] = {
        {s->st_free_entry, SR_ENTRY_FREE}, {s->st_pending, SR_ENTRY_PENDING}, {s->st_limbo, SR_ENTRY_LIMBO}};
    for (size_t k = 0; k < SR_ARRAY_LEN(lists); k++) {
        uint32_t seen = 0;
        for (uint32_t n = lists[k].head; n != 0; n = sr_entry(r, n)->ent_next)
            if (!sr_entry_ok(r, n) || atomic_load(&sr_entry(r, n)->ent_state) != lists[k].state || seen++ > s->st_entries_high)
                return bad(r, e, "a list of entries");
        if (seen != counts[lists[k].state]) return bad(r, e, "an entry in no list");
    }
    uint64_t slots_used = 0, count = sr_slots_count(atomic_load(&s->st_level));
    for (uint64_t i = 0; i < count; i++) slots_used += atomic_load(&sr_slots(r, atomic_load(&s->st_level))[i]) != SR_SLOT_EMPTY;
    if (slots_used != s->st_slots_used) return bad(r, e, "number of slots in use");
    return sr_alloc_check(r, e);
}

int sr_catalog_check(struct sr_region *r, struct sr_error *e)
{
    int got = sr_catalog__lock(r, e);
    if (got < 0) return got;
    got = check_locked(r, e);
    sr_unlock(r);
    return got;
}

/* --- memory ----------------------------------------------------------------------------------- */

int sr_catalog_trim(struct sr_region *r, uint64_t *bytes, struct sr_error *e)
{
    *bytes = 0;
    int got = sr_catalog__lock(r, e);
    if (got < 0) return got;
    const struct sr_alloc_head *h = (const struct sr_alloc_head *)(sr_mapped(&r->catalog) + SR_ALLOC_AT);
    uint64_t granule = r->head.hd_granule;
    uint32_t left = sr_state(r)->st_blocks_high;
    for (uint32_t n = h->al_first; sr_block_ok(r, n) && left-- && got == 0; n = sr_block(r, n)->blk_next) {
        const struct sr_block *b = sr_block(r, n);
        if ((b->blk_len_state & 63) != SR_BLOCK_FREE) continue;
        uint64_t from = sr_align_up(b->blk_off, granule), to = sr_align_down(b->blk_off + (b->blk_len_state & ~UINT64_C(63)), granule);
        uint64_t freed = 0;
        if (from < to && to <= r->head.hd_mapped) got = sr_region_uncommit(r, (sr_off){from}, to - from, &freed, e);
        *bytes += freed;
    }
    sr_unlock(r);
    return got;
}

int sr_catalog_repair(struct sr_region *r, struct sr_error *e)
{
    if (r->backend->repair == NULL) return 0;
    uint64_t granule = r->head.hd_granule;
    for (uint64_t at = 0; at + SR_LARGE_PAGE <= r->head.hd_mapped; at += granule) {
        if (sr_region_uncommitted(r, (sr_off){at}, 1)) continue;
        int got = r->backend->repair(&r->data, at, sr_min(granule, r->head.hd_mapped - at), e);
        if (got < 0) return got;
    }
    return 0;
}
