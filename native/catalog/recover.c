/* recover: everything that follows from the entries, made anew; and the check of it.
 *
 * Runs under the lock that a dead writer left. That writer may have stopped between any two stores,
 * so nothing is believed but entries: what is published (ent_seq), what is being filled by a living
 * owner (PENDING), what waits for its last pin (LIMBO). Every step may itself be cut off by a kill;
 * then the next one begins again from the same truth. Readers are not held up and never see a name
 * missing that is there: the index is mended slot by slot.
 */
#include "sr_catalog.h"

#include <stdlib.h>
#include <sys/mman.h>

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the catalog of region '%s' is damaged: %s", r->name, what);
}

struct plan {
    struct sr_region *r;
    struct sr_extent *used;    /* blocks that stay */
    size_t count;
    uint8_t *keep;             /* per entry: 1 stays, 2 stays as a continuation, 3 stays and has its slot */
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
        if (sr_state_of(sr_entry(r, more), more) != SR_ENTRY_MORE) break;
        p->keep[more] = 2;
        more = ((const struct sr_more *)sr_entry(r, more))->more_next;
    }
}

static void to_limbo(struct sr_region *r, uint32_t n)
{
    struct sr_state *s = sr_state(r);
    sr_entry__withdraw(r, n);
    atomic_store(&sr_entry(r, n)->ent_state, sr_state_pack(SR_ENTRY_LEAVING, n));
    sr_list__push(r, &s->st_limbo, n);
    s->st_limbo_count++;
}

/* Which entries stay, and in which list. Each has a checksum as long as it is neither free nor a
 * continuation: none is believed without. */
static int classify(struct plan *p, struct sr_error *e)
{
    struct sr_region *r = p->r;
    struct sr_state *s = sr_state(r);
    struct sr_found f;
    uint64_t last;
    s->st_pending = s->st_pending_count = s->st_limbo = s->st_limbo_count = s->st_objects = 0;
    if (!sr_word_unpack(atomic_load(&s->st_seq), SR_STATE_SALT(st_seq), &last)) return bad(r, e, "the last publication number");
    for (uint32_t n = 1; n < p->high; n++) {
        const struct sr_entry *entry = sr_entry(r, n);
        uint32_t state = sr_state_of(entry, n);
        uint64_t seq = sr_seq_of(entry, n);
        /* ent_seq is cleared before the state is left, and set after it is taken. */
        if (state == SR_ENTRY_BAD || seq == SR_SEQ_BAD || (state != SR_ENTRY_LIVE && seq != 0) || seq > last) return bad(r, e, "the state of an entry");
        if (state == SR_ENTRY_FREE || state == SR_ENTRY_MORE) continue;
        int got = sr_entry__sound(r, n, e);
        if (got < 0) return got;
        if (state == SR_ENTRY_LIVE && seq != 0) {
            got = sr_catalog__read_entry(r, n, seq, &f, e);
            if (got != 0) return got < 0 ? got : bad(r, e, "an entry");
            s->st_objects++;
            keep(p, n);
        } else if (state != SR_ENTRY_PENDING) {
            /* Not yet published, or just withdrawn; readers may hold it. */
            to_limbo(r, n);
            keep(p, n);
        } else if (sr_member_alive(r, entry->ent_owner, entry->ent_owner_gen)) {
            sr_list__push(r, &s->st_pending, n);
            s->st_pending_count++;
            keep(p, n);
        }
    }
    return 0;
}

/* Every slot leads to a living entry, every living entry has one slot, and of two of one name the
 * newer stays. */
static int mend_index(struct plan *p, struct sr_error *e)
{
    struct sr_region *r = p->r;
    struct sr_state *s = sr_state(r);
    unsigned level = 0;
    int got = sr_index__level(r, &level, e);
    if (got < 0) return got;
    _Atomic uint64_t *slots = sr_slots(r, level);
    uint64_t count = sr_slots_count(level);
    s->st_slots_used = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t value = sr_slot_load(slots, level, i);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot of the index");
        if (value == SR_SLOT_EMPTY) continue;
        s->st_slots_used++;
        uint32_t n = sr_slot_entry(value);
        bool lives = n != 0 && n < p->high && p->keep[n] == 1 && sr_seq_of(sr_entry(r, n), n) != 0 &&
                     sr_slot_matches(value, sr_entry(r, n)->ent_hash);
        if (lives) p->keep[n] = 3;
        /* The second of two came about when slots were moved: the first on the way is the one that is found. */
        else if (n != 0) sr_slot_store(slots, level, i, SR_SLOT_TOMB);
    }
    struct sr_found f;
    for (uint32_t n = 1; n < p->high; n++) {
        uint64_t seq = p->keep[n] & 1 ? sr_seq_of(sr_entry(r, n), n) : 0;
        if (seq == 0) continue;
        if (sr_catalog__read_entry(r, n, seq, &f, e) != 0) return bad(r, e, "an entry");
        uint64_t hash = sr_entry(r, n)->ent_hash;
        uint32_t other = 0, loser = 0;
        uint64_t slot;
        got = sr_index__find(r, hash, (char *)f.text, f.name_len, &slot, &other, e);
        if (got == 0 && other == n) continue;
        if (got == SR_E_NO_OBJECT) slot = SR_NO_SLOT;
        else if (got < 0) return got;
        else loser = sr_seq_of(sr_entry(r, other), other) < seq ? other : n;
        if (loser != n) got = sr_index__store(r, hash, slot, n, e);
        if (loser != n && got < 0) return got;
        if (loser == 0) continue;
        s->st_objects--;
        to_limbo(r, loser);
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct sr_extent *)a)->off, y = ((const struct sr_extent *)b)->off;
    return x < y ? -1 : x > y;
}

/* First their states, then their links: these lie where a continuation has text, and an unfinished
 * object of a dead process has its checksum until it is free itself. */
static void rebuild_free_entries(struct plan *p)
{
    struct sr_state *s = sr_state(p->r);
    s->st_free_entry = 0;
    for (uint32_t n = 1; n < p->high; n++) {
        if (p->keep[n]) continue;
        atomic_store(&sr_entry(p->r, n)->ent_seq, sr_seq_pack(0, n));
        atomic_store(&sr_entry(p->r, n)->ent_state, sr_state_pack(SR_ENTRY_FREE, n));
    }
    for (uint32_t n = p->high; n-- > 1;) {
        if (p->keep[n]) continue;
        sr_entry(p->r, n)->ent_next = s->st_free_entry;
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
    if (got == 0) sr_alloc_discard(p->r);
    if (got == 0) s->st_recoveries++;
    return got;
}

int sr_catalog__recover(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    struct plan p = {.r = r, .high = sr_entries_high(r)};
    if (p.high == 0) return bad(r, e, "number of entries");
    if (!sr_gens_ok(r, r->head.hd_gens)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
    /* At least these have memory, and to commit what has it already is no harm. */
    s->st_entries_committed = p.high;
    /* By the table of kernel calls: a lack of memory can then be tried like any other. */
    const size_t used = sr_align_up(p.high * sizeof *p.used, SR_PAGE), all = used + sr_align_up(p.high, SR_PAGE);
    void *at = NULL;
    int got = sr_sys->mmap(&at, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got < 0) return sr_fail(e, SR_E_NO_MEMORY, got, "out of memory");
    p.used = at;
    p.keep = (uint8_t *)at + used;
    got = recover(&p, e);
    sr_sys->munmap(at, all);
    return got;
}

/* --- the check -------------------------------------------------------------------------------- */

static int check_locked(struct sr_region *r, struct sr_error *e)
{
    if (!sr_gens_ok(r, r->head.hd_gens)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
    const struct sr_state *s = sr_state(r);
    uint32_t counts[SR_ENTRY_BAD] = {0}, live = 0, high = sr_entries_high(r);
    struct sr_found f;
    uint64_t slot;
    unsigned level = 0;
    int got = sr_index__level(r, &level, e);
    if (got < 0) return got;
    if (high == 0 || high > s->st_entries_committed) return bad(r, e, "number of entries");
    uint64_t used = 0;
    for (uint32_t n = 1; n < high; n++) {
        const struct sr_entry *entry = sr_entry(r, n);
        uint32_t state = sr_state_of(entry, n);
        uint64_t seq = sr_seq_of(entry, n);
        if (state == SR_ENTRY_BAD || seq == SR_SEQ_BAD) return bad(r, e, "the state of an entry");
        counts[state]++;
        if ((state == SR_ENTRY_LIVE) != (seq != 0) || state == SR_ENTRY_LEAVING) return bad(r, e, "an entry between two states");
        if (state == SR_ENTRY_FREE || state == SR_ENTRY_MORE) continue;
        uint32_t block, found = 0;
        got = sr_entry__sound(r, n, e);
        if (got == 0) got = sr_entry__block(r, n, &block, e);
        if (got < 0) return got;
        used += sr_block(r, block)->blk_len_state & ~UINT64_C(63);
        if (state != SR_ENTRY_LIVE) continue;
        if (sr_catalog__read_entry(r, n, seq, &f, e) != 0) return bad(r, e, "an entry");
        if (sr_index__find(r, entry->ent_hash, (char *)f.text, f.name_len, &slot, &found, e) != 0 || found != n)
            return bad(r, e, "an object that the index does not find");
        live++;
    }
    if (live != s->st_objects) return bad(r, e, "number of objects");
    if (used != s->st_used) return bad(r, e, "bytes in use");
    if (counts[SR_ENTRY_LIMBO] != s->st_limbo_count) return bad(r, e, "number of withdrawn objects");
    if (counts[SR_ENTRY_PENDING] != s->st_pending_count) return bad(r, e, "number of unfinished objects");
    const struct { uint32_t head, state; } lists[] = {
        {s->st_free_entry, SR_ENTRY_FREE}, {s->st_pending, SR_ENTRY_PENDING}, {s->st_limbo, SR_ENTRY_LIMBO}};
    for (size_t k = 0; k < SR_ARRAY_LEN(lists); k++) {
        uint32_t seen = 0;
        for (uint32_t n = lists[k].head; n != 0; n = sr_entry(r, n)->ent_next)
            if (!sr_entry_ok(r, n) || sr_state_of(sr_entry(r, n), n) != lists[k].state || seen++ > high)
                return bad(r, e, "a list of entries");
        if (seen != counts[lists[k].state]) return bad(r, e, "an entry in no list");
    }
    uint64_t slots_used = 0, slots_live = 0;
    for (uint64_t i = 0; i < sr_slots_count(level); i++) {
        uint64_t value = sr_slot_load(sr_slots(r, level), level, i);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot of the index");
        slots_used += value != SR_SLOT_EMPTY;
        slots_live += sr_slot_entry(value) != 0;
    }
    if (slots_live != live) return bad(r, e, "a slot that leads to no object");
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
    if (r->head.hd_flags & SR_HEAD_COMMITTED) return 0;
    return sr_catalog_give_back(r, UINT64_MAX, bytes, e);
}

int sr_catalog_repair(struct sr_region *r, struct sr_error *e)
{
    if (r->backend->repair == NULL) return 0;
    uint64_t granule = r->head.hd_granule;
    for (uint64_t at = 0; at < r->head.hd_mapped; at += granule) {
        if (sr_region_uncommitted(r, (sr_off){at}, 1)) continue;
        int got = r->backend->repair(&r->data, at, granule, e);
        /* Or was it given back in the meantime? */
        if (got < 0 && !sr_region_uncommitted(r, (sr_off){at}, 1)) return got;
    }
    return 0;
}
