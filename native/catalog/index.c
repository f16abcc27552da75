/* index: open addressing with linear probing over 8-byte slots, read without a lock.
 *
 * Why a reader that looks for a name that is there all the while always finds it: a slot's word is
 * changed by one store; an entry never moves; a slot becomes empty only if the next one is, so a
 * chain is never cut before its end; a larger index is filled in another place before st_level says
 * so; and where slots are moved within one index (tidy), st_level counts it between the copy and the
 * removal. A reader that finds nothing looks whether st_level has changed meanwhile. And each word on
 * its way says of itself that it is sound, the empty one at the end too: a damaged one is met, not
 * taken for the end of the chain.
 */
#include "sr_catalog.h"

#define LEVEL_BITS 8

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the index of region '%s' is damaged: %s", r->name, what);
}

static uint64_t level_word(struct sr_region *r) { return atomic_load_explicit(&sr_state(r)->st_level, memory_order_acquire); }

static int level_in(struct sr_region *r, uint64_t word, unsigned *level, struct sr_error *e)
{
    uint64_t value;
    if (!sr_word_unpack(word, SR_STATE_SALT(st_level), &value)) return bad(r, e, "its level");
    *level = value & ((1u << LEVEL_BITS) - 1);
    if (*level >= r->head.hd_gens) return bad(r, e, "its level");
    if (!sr_gens_ok(r, *level + 1)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the index of region '%s'", r->name);
    return 0;
}

int sr_index__level(struct sr_region *r, unsigned *level, struct sr_error *e) { return level_in(r, level_word(r), level, e); }

static void set_level(struct sr_region *r, unsigned level)
{
    uint64_t value = level_word(r) >> (16 + LEVEL_BITS);    /* how often slots were moved, and this time */
    sr_state_put(&sr_state(r)->st_level, (value + 1) << LEVEL_BITS | level, SR_STATE_SALT(st_level));
}

/* --- writers ---------------------------------------------------------------------------------- */

int sr_index__find(struct sr_region *r, uint64_t hash, const char *name, size_t len, uint64_t *slot, uint32_t *entry, struct sr_error *e)
{
    unsigned level = 0;
    int got = sr_index__level(r, &level, e);
    if (got < 0) return got;
    uint64_t mask = sr_slots_count(level) - 1;
    _Atomic uint64_t *slots = sr_slots(r, level);
    struct sr_found f;
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t value = sr_slot_load(slots, level, i);
        if (value == SR_SLOT_EMPTY) break;
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        uint32_t n = sr_slot_entry(value);
        if (n == 0 || !sr_slot_matches(value, hash)) continue;
        if (!sr_entry_ok(r, n)) return bad(r, e, "a slot");
        uint64_t seq = sr_seq_of(sr_entry(r, n), n);
        if (seq == 0) continue;
        /* All of it is checked: a name that was damaged would be another. */
        if (seq == SR_SEQ_BAD || sr_catalog__read_entry(r, n, seq, &f, e) != 0) return bad(r, e, "an entry fails its checks");
        if (f.name_len != len || memcmp(f.text, name, len) != 0) continue;
        *entry = n;
        *slot = i;
        return 0;
    }
    return SR_E_NO_OBJECT;
}

/* 1 placed where nothing was, 0 where something had been, SR_E_CORRUPT. */
static int insert(struct sr_region *r, _Atomic uint64_t *slots, unsigned level, uint64_t hash, uint32_t entry, struct sr_error *e)
{
    uint64_t mask = sr_slots_count(level) - 1;
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t value = sr_slot_load(slots, level, i);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        if (value != SR_SLOT_EMPTY && sr_slot_entry(value) != 0) continue;
        sr_slot_store(slots, level, i, sr_slot_value(hash, entry));
        return value == SR_SLOT_EMPTY;
    }
    return bad(r, e, "no slot is empty");
}

int sr_index__store(struct sr_region *r, uint64_t hash, uint64_t slot, uint32_t entry, struct sr_error *e)
{
    unsigned level = 0;
    int got = sr_index__level(r, &level, e);
    if (got < 0) return got;
    _Atomic uint64_t *slots = sr_slots(r, level);
    if (slot != SR_NO_SLOT) {
        sr_slot_store(slots, level, slot, sr_slot_value(hash, entry));
        return 0;
    }
    got = insert(r, slots, level, hash, entry, e);
    if (got < 0) return got;
    sr_state(r)->st_slots_used += (uint32_t)got;
    return 0;
}

/* The end of a chain was reached at i: this slot, and tombstones before it, can be empty again. */
static void empty_back(struct sr_region *r, _Atomic uint64_t *slots, unsigned level, uint64_t i)
{
    struct sr_state *s = sr_state(r);
    uint64_t mask = sr_slots_count(level) - 1;
    do {
        sr_slot_store(slots, level, i, SR_SLOT_EMPTY);
        s->st_slots_used -= s->st_slots_used > 0;
        i = (i - 1) & mask;
    } while (sr_slot_load(slots, level, i) == SR_SLOT_TOMB);
}

/* `i` is one that sr_index__find has just given: its level is sound. */
void sr_index__clear(struct sr_region *r, uint64_t i)
{
    unsigned level = 0;
    if (sr_index__level(r, &level, NULL) < 0) return;
    _Atomic uint64_t *slots = sr_slots(r, level);
    uint64_t mask = sr_slots_count(level) - 1;
    if (sr_slot_load(slots, level, (i + 1) & mask) == SR_SLOT_EMPTY) empty_back(r, slots, level, i);
    else sr_slot_store(slots, level, i, SR_SLOT_TOMB);
}

static void fill_empty(_Atomic uint64_t *slots, unsigned level)
{
    for (uint64_t i = 0; i < sr_slots_count(level); i++)
        atomic_store_explicit(&slots[i], sr_word_pack(SR_SLOT_EMPTY, sr_slot_salt(level, i)), memory_order_relaxed);
}

void sr_index__init(struct sr_region *r) { fill_empty(sr_slots(r, 0), 0); }

static int hash_of(struct sr_region *r, uint32_t n, uint64_t *hash, struct sr_error *e)
{
    if (!sr_entry_ok(r, n)) return bad(r, e, "a slot");
    *hash = sr_entry(r, n)->ent_hash;
    return sr_entry__sound(r, n, e);
}

/* Tombstones go: each name moves to the first of them on its way, and what follows no way is empty.
 * Begun behind an empty slot, so that no way crosses the beginning. */
static int tidy(struct sr_region *r, unsigned level, struct sr_error *e)
{
    _Atomic uint64_t *slots = sr_slots(r, level);
    uint64_t count = sr_slots_count(level), mask = count - 1, start = 0, hash = 0;
    while (start < count && sr_slot_load(slots, level, start) != SR_SLOT_EMPTY) start++;
    if (start == count) return bad(r, e, "no slot is empty");
    for (uint64_t k = 1; k < count; k++) {
        uint64_t i = (start + k) & mask, value = sr_slot_load(slots, level, i);
        uint32_t n = sr_slot_entry(value);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        if (n == 0) continue;
        int got = hash_of(r, n, &hash, e);
        if (got < 0) return got;
        uint64_t to = hash & mask;
        while (to != i && sr_slot_load(slots, level, to) != SR_SLOT_TOMB) to = (to + 1) & mask;
        if (to == i) continue;
        sr_slot_store(slots, level, to, value);
        set_level(r, level);
        sr_slot_store(slots, level, i, SR_SLOT_TOMB);
    }
    uint32_t used = 0;
    for (uint64_t k = 1; k < count; k++) {
        uint64_t i = (start + k) & mask;
        if (sr_slot_load(slots, level, i) == SR_SLOT_TOMB) sr_slot_store(slots, level, i, SR_SLOT_EMPTY);
        else used += sr_slot_load(slots, level, i) != SR_SLOT_EMPTY;
    }
    sr_state(r)->st_slots_used = used;
    return 0;
}

/* Room for one more: at most half of the slots are used, so that chains stay short. */
int sr_index__grow(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    unsigned level = 0;
    int got = sr_index__level(r, &level, e);
    if (got < 0 || (uint64_t)s->st_slots_used * 2 < sr_slots_count(level)) return got;
    /* Mostly tombstones: there is room. In the last level there is always, of four slots for each entry. */
    if ((uint64_t)s->st_objects * 4 < sr_slots_count(level) || level + 1 >= r->head.hd_gens)
        return s->st_objects < s->st_slots_used ? tidy(r, level, e) : 0;
    unsigned next = level + 1;
    uint64_t at = sr_slots_at(r->head.hd_gen0, next), count = sr_slots_count(next), hash = 0;
    got = sr_region_commit_catalog(r, at, count * sizeof(uint64_t), e);
    if (got < 0) return got;
    if (!sr_gens_ok(r, next + 1)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the index of region '%s'", r->name);
    _Atomic uint64_t *from = sr_slots(r, level), *to = sr_slots(r, next);
    fill_empty(to, next);    /* whatever a predecessor that died at this has left */
    uint32_t used = 0;
    for (uint64_t i = 0; i < sr_slots_count(level); i++) {
        uint64_t value = sr_slot_load(from, level, i);
        uint32_t n = sr_slot_entry(value);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        if (n == 0) continue;
        got = hash_of(r, n, &hash, e);
        if (got == 0) got = insert(r, to, next, hash, n, e);
        if (got < 0) return got;
        used += (uint32_t)got;
    }
    s->st_slots_used = used;
    set_level(r, next);
    return 0;
}

/* --- readers ---------------------------------------------------------------------------------- */

#define EXACT_TRIES 5000    /* of 0.1 ms, or less */
#define RETRIES 200000000    /* each is the progress of some writer; a bound against what no one thought of */

static int missing(struct sr_region *r, const char *name, size_t len, struct sr_error *e)
{
    return sr_fail(e, SR_E_NO_OBJECT, 0, "region '%s' has no object '%.*s'", r->name, (int)len, name);
}

/* One pass over a chain. 0 found and held; 1 begin again; SR_E_NO_OBJECT; SR_E_CORRUPT. */
static int look_once(struct sr_region *r, uint64_t hash, const char *name, size_t len, bool hold, struct sr_found *f, struct sr_error *e)
{
    unsigned level = 0;
    uint64_t of_level = level_word(r);
    int got = level_in(r, of_level, &level, e);
    if (got < 0) return got;
    uint64_t mask = sr_slots_count(level) - 1;
    const _Atomic uint64_t *slots = sr_slots(r, level);
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t value = sr_slot_load(slots, level, i);
        if (value == SR_SLOT_EMPTY) break;
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        uint32_t n = sr_slot_entry(value);
        if (n == 0 || !sr_slot_matches(value, hash)) continue;
        if (!sr_entry_ok(r, n)) return bad(r, e, "a slot");
        uint64_t seq = sr_seq_of(sr_entry(r, n), n);
        if (seq == SR_SEQ_BAD) return bad(r, e, "the publication number of an entry");
        if (seq == 0) {
            /* Replaced (then the slot has changed) or withdrawn (then this name is not there). */
            if (sr_slot_load(slots, level, i) != value) return 1;
            continue;
        }
        got = sr_catalog__read_entry(r, n, seq, f, e);
        if (got != 0) {
            /* An entry that was freed and used again while its old slot was still in hand. */
            if (got == 1 || sr_slot_load(slots, level, i) != value) return 1;
            return got;
        }
        if (f->name_len != len || memcmp(f->text, name, len) != 0) {
            if (sr_slot_load(slots, level, i) != value) return 1;
            continue;
        }
        if (!hold) return 0;
        got = sr_pin(r, f->block, n, seq, e);
        if (got < 0) return got;
        if (sr_seq_of(sr_entry(r, n), n) == seq) return 0;
        sr_unpin(r, f->block);
        return 1;
    }
    return level_word(r) != of_level ? 1 : missing(r, name, len, e);
}

int sr_catalog_get(struct sr_region *r, const char *name, size_t len, bool hold, struct sr_found *f, struct sr_error *e)
{
    if (!r->open) return sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    if (len > SR_OBJECT_NAME_MAX) return missing(r, name, len, e);
    uint64_t hash = sr_hash64(name, len);
    for (int tries = 0; tries < RETRIES; tries++) {
        int got = look_once(r, hash, name, len, hold, f, e);
        if (got != 1) return got;
        sr_cpu_relax();
    }
    return sr_fail(e, SR_E_CORRUPT, 0, "the index of region '%s' does not come to rest", r->name);
}

int sr_catalog_get_exact(struct sr_region *r, uint32_t n, uint64_t seq, struct sr_found *f, struct sr_error *e)
{
    if (!r->open) return sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    for (uint32_t tries = 0; seq != 0 && sr_entry_ok(r, n); tries++) {
        const struct sr_entry *entry = sr_entry(r, n);
        uint64_t is = sr_seq_of(entry, n);
        if (is == SR_SEQ_BAD && n < sr_entries_high(r)) return bad(r, e, "the publication number of an entry");
        int got = is == seq ? sr_catalog__read_entry(r, n, seq, f, e) : sr_catalog__read_withdrawn(r, n, seq, f, e);
        if (got == 0) {
            got = sr_pin(r, f->block, n, seq, e);
            if (got < 0) return got;
            if (is == seq ? sr_seq_of(entry, n) == seq : sr_entry__is_withdrawn(entry, n, seq)) return 0;
            sr_unpin(r, f->block);
        }
        if (got < 0) return got;
        /* Begin again while it is on its way into limbo, or looked at there: a moment, or until somebody mends
         * what a dead writer left. */
        if (tries > EXACT_TRIES || !(sr_seq_of(entry, n) == seq || sr_entry__was(entry, n, seq))) break;
        sr_region_pause();
    }
    return sr_fail(e, SR_E_NO_OBJECT, 0, "the object of region '%s' that was referred to is gone", r->name);
}

int sr_catalog_walk(struct sr_region *r, struct sr_walk *w, struct sr_found *f, struct sr_error *e)
{
    unsigned level = 0;
    uint64_t of_level = level_word(r);
    int got = level_in(r, of_level, &level, e);
    if (got < 0) return got;
    if (w->at == 0) w->level = of_level;
    if (w->level != of_level) return 1;
    const _Atomic uint64_t *slots = sr_slots(r, level);
    while (w->at < sr_slots_count(level)) {
        uint64_t value = sr_slot_load(slots, level, w->at);
        if (value == SR_SLOT_BAD) return bad(r, e, "a slot");
        uint32_t n = sr_slot_entry(value);
        if (n != 0 && !sr_entry_ok(r, n)) return bad(r, e, "a slot");
        uint64_t seq = n != 0 ? sr_seq_of(sr_entry(r, n), n) : 0;
        got = seq == 0 ? SR_E_NO_OBJECT : seq == SR_SEQ_BAD ? bad(r, e, "the publication number of an entry") : sr_catalog__read_entry(r, n, seq, f, e);
        /* What has another entry by now is looked at again: the name is the same. */
        if (got == 1 || sr_slot_load(slots, level, w->at) != value) continue;
        w->at++;
        if (got != SR_E_NO_OBJECT) return got;
    }
    return level_word(r) != w->level ? 1 : SR_E_NO_OBJECT;
}

int sr_catalog_next(struct sr_region *r, uint32_t *cursor, struct sr_found *f, struct sr_error *e)
{
    uint32_t high = sr_entries_high(r);
    if (high == 0) return bad(r, e, "number of entries");
    for (uint32_t n = *cursor + 1; n < high; n++) {
        *cursor = n;
        if (!sr_entry_ok(r, n)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
        uint64_t seq = sr_seq_of(sr_entry(r, n), n);
        if (seq == 0) continue;
        if (seq == SR_SEQ_BAD) return bad(r, e, "the publication number of an entry");
        int got = sr_catalog__read_entry(r, n, seq, f, e);
        if (got < 0) return got;
        if (got == 0) return 0;
    }
    return SR_E_NO_OBJECT;
}
