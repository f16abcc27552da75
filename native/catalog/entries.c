/* entries: taking and freeing them, their lists, their text and checksum. Under the lock, but for
 * sr_catalog__read_entry. */
#include "sr_catalog.h"

#include <errno.h>

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the catalog of region '%s' is damaged: %s", r->name, what);
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Over what a reader relies on: 32..128, the number of the entry (a copy of it elsewhere is none), and
 * the text that goes on elsewhere. */
uint32_t sr_catalog__crc(const struct sr_entry *copy, uint32_t n, const uint8_t *tail, size_t tail_len)
{
    uint32_t crc = sr_crc32c(n, (const char *)copy + offsetof(struct sr_entry, ent_owner), sizeof *copy - offsetof(struct sr_entry, ent_owner));
    return tail_len ? sr_crc32c(crc, tail, tail_len) : crc;
}

/* The entry's text, and whether the checksum over all of it is right. Plain loads that may race with
 * a writer: what is torn fails the checksum, or is told by ent_seq. */
__attribute__((no_sanitize("thread")))
static bool copy_sound(struct sr_region *r, uint32_t n, struct sr_entry *copy, uint8_t text[SR_TEXT_MAX])
{
    memcpy(copy, sr_entry(r, n), sizeof *copy);
    if (copy->ent_name_len > SR_OBJECT_NAME_MAX || copy->ent_meta_len > SR_META_MAX) return false;
    const size_t text_len = (size_t)copy->ent_name_len + copy->ent_meta_len, inlined = sizeof copy->ent_text;
    size_t have = sr_min(text_len, inlined);
    memcpy(text, copy->ent_text, have);
    for (uint32_t more = copy->ent_more; have < text_len;) {
        if (!sr_entry_ok(r, more)) return false;
        const struct sr_more *m = (const struct sr_more *)sr_entry(r, more);
        size_t piece = sr_min(text_len - have, sizeof m->more_text);
        memcpy(text + have, m->more_text, piece);
        more = m->more_next;
        have += piece;
    }
    return sr_catalog__crc(copy, n, text + inlined, text_len > inlined ? text_len - inlined : 0) == copy->ent_crc;
}

/* A copy whose text is in f->text: whether it makes sense, and then the rest of *f. */
static bool take_copy(struct sr_region *r, uint32_t n, const struct sr_entry *copy, struct sr_found *f)
{
    if (!sr_block_ok(r, copy->ent_block) || !sr_range_ok(copy->ent_off, copy->ent_len, r->head.hd_mapped) ||
        !sr_is_aligned(copy->ent_off, SR_BLOCK_UNIT) || copy->ent_hash != sr_hash64(f->text, copy->ent_name_len))
        return false;
    f->len = copy->ent_len;
    f->off = (sr_off){copy->ent_off};
    f->entry = n;
    f->block = copy->ent_block;
    f->name_len = copy->ent_name_len;
    f->meta_len = copy->ent_meta_len;
    f->type = copy->ent_type;
    f->flags = copy->ent_flags;
    return true;
}

/* Copy, check, then use. `seq` is what the caller read from ent_seq. 0; 1 if the entry changed
 * meanwhile; SR_E_CORRUPT. */
int sr_catalog__read_entry(struct sr_region *r, uint32_t n, uint64_t seq, struct sr_found *f, struct sr_error *e)
{
    const struct sr_entry *entry = sr_entry(r, n);
    struct sr_entry copy;
    uint64_t version = atomic_load(&entry->ent_version);
    bool ok = copy_sound(r, n, &copy, f->text);
    atomic_thread_fence(memory_order_acquire);
    if (sr_seq_of(entry, n) != seq) return 1;
    /* The state is set before ent_seq, and left after it is cleared. */
    if (!ok || sr_state_of(&copy, n) != SR_ENTRY_LIVE || !take_copy(r, n, &copy, f)) return bad(r, e, "an entry fails its checks");
    if (!sr_version_unpack(version, seq, &f->version)) return bad(r, e, "the version of an entry");
    f->seq = seq;
    return 0;
}

bool sr_entry__is_withdrawn(const struct sr_entry *entry, uint32_t n, uint64_t seq)
{
    return sr_state_of(entry, n) == SR_ENTRY_LIMBO && atomic_load(&entry->ent_version) == sr_withdrawn_pack(seq, n);
}

bool sr_entry__was(const struct sr_entry *entry, uint32_t n, uint64_t seq)
{
    uint32_t state = sr_state_of(entry, n);
    uint64_t word = atomic_load(&entry->ent_version), version;
    return (state == SR_ENTRY_LIVE || state == SR_ENTRY_LEAVING || state == SR_ENTRY_LIMBO) && sr_seq_of(entry, n) == 0 &&
           (word == sr_withdrawn_pack(seq, n) || (state == SR_ENTRY_LIVE && sr_version_unpack(word, seq, &version)));
}

int sr_catalog__read_withdrawn(struct sr_region *r, uint32_t n, uint64_t seq, struct sr_found *f, struct sr_error *e)
{
    const struct sr_entry *entry = sr_entry(r, n);
    struct sr_entry copy;
    if (!sr_entry__is_withdrawn(entry, n, seq)) return 1;
    bool ok = copy_sound(r, n, &copy, f->text);
    atomic_thread_fence(memory_order_acquire);
    if (!sr_entry__is_withdrawn(entry, n, seq)) return 1;
    if (!ok || !take_copy(r, n, &copy, f)) return bad(r, e, "a withdrawn entry fails its checks");
    f->seq = f->version = seq;
    return 0;
}

int sr_entry__sound(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_entry copy;
    uint8_t text[SR_TEXT_MAX];
    return copy_sound(r, n, &copy, text) ? 0 : bad(r, e, "an entry fails its checksum");
}

void sr_entry__withdraw(struct sr_region *r, uint32_t n)
{
    struct sr_entry *entry = sr_entry(r, n);
    uint64_t seq = sr_seq_of(entry, n);
    if (seq == 0 || seq == SR_SEQ_BAD) return;
    atomic_store(&entry->ent_seq, sr_seq_pack(0, n));
    atomic_store(&entry->ent_version, sr_withdrawn_pack(seq, n));
}

/* --- lists ------------------------------------------------------------------------------------ */

void sr_list__push(struct sr_region *r, uint32_t *head, uint32_t n)
{
    struct sr_entry *entry = sr_entry(r, n);
    entry->ent_prev = 0;
    entry->ent_next = *head;
    if (sr_entry_ok(r, *head)) sr_entry(r, *head)->ent_prev = n;
    *head = n;
}

int sr_list__remove(struct sr_region *r, uint32_t *head, uint32_t n, struct sr_error *e)
{
    struct sr_entry *entry = sr_entry(r, n);
    uint32_t prev = entry->ent_prev, next = entry->ent_next;
    if ((prev && (!sr_entry_ok(r, prev) || sr_entry(r, prev)->ent_next != n)) ||
        (next && (!sr_entry_ok(r, next) || sr_entry(r, next)->ent_prev != n)) || (!prev && *head != n))
        return bad(r, e, "a list of entries");
    if (next) sr_entry(r, next)->ent_prev = prev;
    if (prev) sr_entry(r, prev)->ent_next = next;
    else *head = next;
    entry->ent_prev = entry->ent_next = 0;
    return 0;
}

/* The block that an entry owns, whatever the entry's state. Both have to say the same. */
int sr_entry__block(struct sr_region *r, uint32_t n, uint32_t *block, struct sr_error *e)
{
    const struct sr_entry *entry = sr_entry(r, n);
    if (!sr_block_ok(r, entry->ent_block)) return bad(r, e, "the block of an entry");
    const struct sr_block *b = sr_block(r, entry->ent_block);
    if ((b->blk_len_state & 63) != SR_BLOCK_USED || b->blk_off != entry->ent_off || (b->blk_len_state & ~UINT64_C(63)) < entry->ent_len)
        return bad(r, e, "an entry and its block");
    *block = entry->ent_block;
    return 0;
}

/* --- taking and freeing ----------------------------------------------------------------------- */

static int commit_entries(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t n = s->st_entries_committed;
    if (n >= sr_entries_limit(r->head.hd_gens)) return sr_fail(e, SR_E_FULL, -ENOSPC, "region '%s' has all the objects it can have", r->name);
    uint32_t step = (uint32_t)sr_min(sr_entries_limit(sr_entry_gen(n) + 1) - n, SR_LARGE_PAGE / sizeof(struct sr_entry));
    int got = sr_region_commit_catalog(r, sr_entry_at(r->head.hd_gen0, n), (uint64_t)step * sizeof(struct sr_entry), e);
    if (got == 0) s->st_entries_committed = n + step;
    return got;
}

int sr_entry__new(struct sr_region *r, uint32_t *out, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t n = s->st_free_entry;
    if (n != 0) {
        if (!sr_entry_ok(r, n) || sr_state_of(sr_entry(r, n), n) != SR_ENTRY_FREE || sr_seq_of(sr_entry(r, n), n) != 0) return bad(r, e, "free entries");
        s->st_free_entry = sr_entry(r, n)->ent_next;
    } else {
        n = sr_entries_high(r);
        if (n == 0) return bad(r, e, "number of entries");
        if (n >= s->st_entries_committed) {
            int got = commit_entries(r, e);
            if (got < 0) return got;
        }
        if (!sr_entry_ok(r, n)) return bad(r, e, "number of entries");
        struct sr_entry *entry = sr_entry(r, n);
        /* Nothing yet, or what one that died here has written. */
        bool fresh = atomic_load(&entry->ent_seq) == 0 || sr_seq_of(entry, n) == 0;
        fresh = fresh && (atomic_load(&entry->ent_state) == 0 || sr_state_of(entry, n) == SR_ENTRY_FREE);
        if (!fresh) return bad(r, e, "number of entries");
        atomic_store(&entry->ent_seq, sr_seq_pack(0, n));
        atomic_store(&entry->ent_state, sr_state_pack(SR_ENTRY_FREE, n));
        sr_state_put(&s->st_entries_high, n + 1, SR_STATE_SALT(st_entries_high));
    }
    *out = n;
    return 0;
}

static void free_entry(struct sr_region *r, uint32_t n)
{
    struct sr_state *s = sr_state(r);
    struct sr_entry *entry = sr_entry(r, n);
    atomic_store(&entry->ent_state, sr_state_pack(SR_ENTRY_FREE, n));
    entry->ent_next = s->st_free_entry;
    s->st_free_entry = n;
}

/* The entry itself, then its continuations, bounded by what a text can need: the other way round, a
 * kill between would leave an entry whose text is another's. */
void sr_entry__free_chain(struct sr_region *r, uint32_t n)
{
    uint32_t more = sr_entry(r, n)->ent_more;
    free_entry(r, n);
    for (size_t k = 0; k <= SR_TEXT_MAX / sizeof ((struct sr_more *)0)->more_text && sr_entry_ok(r, more); k++) {
        uint32_t next = ((struct sr_more *)sr_entry(r, more))->more_next;
        if (sr_state_of(sr_entry(r, more), more) != SR_ENTRY_MORE) break;
        free_entry(r, more);
        more = next;
    }
}
