/* index: open addressing with linear probing over 8-byte slots, read without a lock.
 *
 * Why a reader that looks for a name that is there all the while always finds it: a slot's word is
 * changed by one store; an entry never moves; a slot becomes empty only if the next one is, so a
 * chain is never cut before its end; and a larger index is filled in another place before st_level
 * says so. A reader that finds nothing looks whether st_level has changed meanwhile.
 */
#include "sr_catalog.h"

static bool has_name(struct sr_region *r, uint32_t n, uint64_t hash, const char *name, size_t len)
{
    const struct sr_entry *entry = sr_entry(r, n);
    if (entry->ent_hash != hash || entry->ent_name_len != len) return false;
    size_t have = sr_min(len, sizeof entry->ent_text);
    if (memcmp(entry->ent_text, name, have) != 0) return false;
    uint32_t more = entry->ent_more;
    while (have < len) {
        if (!sr_entry_ok(r, more)) return false;
        const struct sr_more *m = (const struct sr_more *)sr_entry(r, more);
        size_t piece = sr_min(len - have, sizeof m->more_text);
        if (memcmp(m->more_text, name + have, piece) != 0) return false;
        have += piece;
        more = m->more_next;
    }
    return true;
}

/* The generation whose slots are the index. Without address space to see it, the first one, in which
 * nothing will be found that has not been there before. */
static unsigned level_of(struct sr_region *r)
{
    uint32_t level = atomic_load_explicit(&sr_state(r)->st_level, memory_order_acquire);
    if (level >= r->head.hd_gens) level = r->head.hd_gens - 1;
    return sr_gens_ok(r, level + 1) ? level : 0;
}

/* The slot that holds `name`, under the lock; NULL if none. */
_Atomic uint64_t *sr_index__find(struct sr_region *r, uint64_t hash, const char *name, size_t len, uint32_t *entry)
{
    unsigned level = level_of(r);
    uint64_t mask = sr_slots_count(level) - 1;
    _Atomic uint64_t *slots = sr_slots(r, level);
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t word = atomic_load(&slots[i]);
        if (word == SR_SLOT_EMPTY) return NULL;
        uint32_t n = sr_slot_entry(word);
        if (!sr_slot_matches(word, hash) || !sr_entry_ok(r, n) || !has_name(r, n, hash, name, len)) continue;
        *entry = n;
        return &slots[i];
    }
    return NULL;
}

static bool insert(_Atomic uint64_t *slots, uint64_t mask, uint64_t hash, uint32_t entry, bool *was_empty)
{
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t word = atomic_load_explicit(&slots[i], memory_order_relaxed);
        if (word != SR_SLOT_EMPTY && sr_slot_entry(word) != 0) continue;
        *was_empty = word == SR_SLOT_EMPTY;
        atomic_store(&slots[i], sr_slot_pack(hash, entry));
        return true;
    }
    return false;
}

/* Point `name` at `entry`, in its slot if it has one. */
int sr_index__store(struct sr_region *r, uint64_t hash, const char *name, size_t len, uint32_t entry, struct sr_error *e)
{
    uint32_t old;
    _Atomic uint64_t *slot = sr_index__find(r, hash, name, len, &old);
    if (slot) {
        atomic_store(slot, sr_slot_pack(hash, entry));
        return 0;
    }
    struct sr_state *s = sr_state(r);
    unsigned level = level_of(r);
    bool was_empty;
    if (!insert(sr_slots(r, level), sr_slots_count(level) - 1, hash, entry, &was_empty))
        return sr_fail(e, SR_E_CORRUPT, 0, "the index of region '%s' has no empty slot", r->name);
    s->st_slots_used += was_empty;
    return 0;
}

void sr_index__clear(struct sr_region *r, _Atomic uint64_t *slot)
{
    struct sr_state *s = sr_state(r);
    unsigned level = level_of(r);
    _Atomic uint64_t *slots = sr_slots(r, level);
    uint64_t mask = sr_slots_count(level) - 1, i = (uint64_t)(slot - slots);
    if (atomic_load(&slots[(i + 1) & mask]) != SR_SLOT_EMPTY) {
        atomic_store(slot, SR_SLOT_TOMB);
        return;
    }
    /* The end of a chain: this slot, and tombstones before it, can be empty again. */
    do {
        atomic_store(&slots[i], SR_SLOT_EMPTY);
        s->st_slots_used -= s->st_slots_used > 0;
        i = (i - 1) & mask;
    } while (atomic_load(&slots[i]) == SR_SLOT_TOMB);
}

/* Room for one more: at most half of the slots are used, so that chains stay short. */
int sr_index__grow(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    unsigned level = level_of(r);
    if ((uint64_t)s->st_slots_used * 2 < sr_slots_count(level) || level + 1 >= r->head.hd_gens) return 0;
    unsigned next = level + 1;
    uint64_t at = sr_slots_at(r->head.hd_gen0, next), count = sr_slots_count(next);
    int got = sr_region_commit_catalog(r, at, count * sizeof(uint64_t), e);
    if (got < 0) return got;
    if (!sr_gens_ok(r, next + 1)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the index of region '%s'", r->name);
    _Atomic uint64_t *from = sr_slots(r, level), *to = sr_slots(r, next);
    memset((void *)to, 0, count * sizeof(uint64_t));    /* a predecessor may have died at this */
    uint32_t used = 0;
    for (uint64_t i = 0; i < sr_slots_count(level); i++) {
        uint64_t word = atomic_load_explicit(&from[i], memory_order_relaxed);
        uint32_t n = sr_slot_entry(word);
        bool was_empty;
        if (n == 0 || !sr_entry_ok(r, n)) continue;
        if (insert(to, count - 1, sr_entry(r, n)->ent_hash, n, &was_empty)) used++;
    }
    s->st_slots_used = used;
    atomic_store(&s->st_level, next);
    return 0;
}

/* --- readers ---------------------------------------------------------------------------------- */

#define RETRIES 1000000    /* each is the progress of some writer; a bound against damage */

static int missing(struct sr_region *r, const char *name, size_t len, struct sr_error *e)
{
    return sr_fail(e, SR_E_NO_OBJECT, 0, "region '%s' has no object '%.*s'", r->name, (int)len, name);
}

/* One pass over a chain. 0 found and held; 1 begin again; SR_E_NO_OBJECT; SR_E_CORRUPT. */
static int look_once(struct sr_region *r, uint64_t hash, const char *name, size_t len, bool hold, struct sr_found *f, struct sr_error *e)
{
    unsigned level = level_of(r);
    uint64_t mask = sr_slots_count(level) - 1;
    const _Atomic uint64_t *slots = sr_slots(r, level);
    for (uint64_t k = 0, i = hash & mask; k <= mask; k++, i = (i + 1) & mask) {
        uint64_t word = atomic_load_explicit(&slots[i], memory_order_acquire);
        if (word == SR_SLOT_EMPTY) break;
        uint32_t n = sr_slot_entry(word);
        if (n == 0 || !sr_slot_matches(word, hash)) continue;
        if (!sr_entry_ok(r, n)) return sr_fail(e, SR_E_CORRUPT, 0, "the index of region '%s' is damaged", r->name);
        uint64_t seq = atomic_load_explicit(&sr_entry(r, n)->ent_seq, memory_order_acquire);
        if (seq == 0) {
            /* Replaced (then the slot has changed) or withdrawn (then this name is not there). */
            if (atomic_load(&slots[i]) != word) return 1;
            continue;
        }
        int got = sr_catalog__read_entry(r, n, seq, f, e);
        if (got != 0) {
            /* An entry that was freed and used again while its old slot was still in hand. */
            if (got == 1 || atomic_load(&slots[i]) != word) return 1;
            return got;
        }
        if (f->name_len != len || memcmp(f->text, name, len) != 0) {
            if (atomic_load(&slots[i]) != word) return 1;
            continue;
        }
        if (!hold) return 0;
        got = sr_pin(r, f->block, n, seq, e);
        if (got < 0) return got;
        if (atomic_load(&sr_entry(r, n)->ent_seq) == seq) return 0;
        sr_unpin(r, f->block);
        return 1;
    }
    return level_of(r) != level ? 1 : missing(r, name, len, e);
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
    bool there = seq != 0 && sr_entry_ok(r, n) && atomic_load(&sr_entry(r, n)->ent_seq) == seq;
    int got = there ? sr_catalog__read_entry(r, n, seq, f, e) : 1;
    if (got == 0) {
        got = sr_pin(r, f->block, n, seq, e);
        if (got == 0 && atomic_load(&sr_entry(r, n)->ent_seq) != seq) {
            sr_unpin(r, f->block);
            got = 1;
        }
    }
    return got == 1 ? sr_fail(e, SR_E_NO_OBJECT, 0, "the object of region '%s' that was referred to is gone", r->name) : got;
}

int sr_catalog_next(struct sr_region *r, uint32_t *cursor, struct sr_found *f, struct sr_error *e)
{
    uint32_t high = (uint32_t)sr_min(sr_state(r)->st_entries_high, sr_entries_limit(r->head.hd_gens));
    for (uint32_t n = *cursor + 1; n < high; n++) {
        *cursor = n;
        uint64_t seq;
        if (!sr_entry_ok(r, n)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog of region '%s'", r->name);
        /* A continuation has text where ent_seq would be. */
        if (atomic_load(&sr_entry(r, n)->ent_state) != SR_ENTRY_LIVE) continue;
        if ((seq = atomic_load(&sr_entry(r, n)->ent_seq)) == 0) continue;
        int got = sr_catalog__read_entry(r, n, seq, f, e);
        if (got < 0) return got;
        if (got == 0) return 0;
    }
    return SR_E_NO_OBJECT;
}
