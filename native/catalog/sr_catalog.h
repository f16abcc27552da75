/* catalog: names and what they stand for.
 *
 * Room 5, above alloc. An object is an entry (sr_format.h) that owns a block. Entries are the
 * truth; the index, the lists and the allocator follow from them and are made anew after a writer
 * died with the lock (sr_catalog_recover).
 *
 * How an object comes and goes, and what a kill leaves at each point:
 *
 *   begin     under the lock: block and entry taken, entry PENDING with its owner's row
 *   (fill)    without the lock; a dead owner's PENDING entry is freed by whoever comes by
 *   publish   under the lock: fields and checksum written, then ent_seq. From that store the object
 *             exists, also after a kill: recovery puts it into the index. Then its slot is stored,
 *             which is when readers see it; a replaced object's ent_seq is cleared after that.
 *   withdraw  under the lock: ent_seq cleared. From that store the object is gone, but for references
 *             to that publication, which stays noted in ent_version. Then the slot, then the entry goes
 *             to LIMBO until no living member holds its block.
 *
 * A reader takes no lock and writes nothing here: slot -> copy of the entry -> check -> pin in its
 * own row -> fence -> is ent_seq still the same? A writer clears ent_seq, fences, then looks for
 * pins. So either the reader sees that the object has gone and begins again, or the writer sees the
 * pin and leaves the block alone. No reader ever waits for a writer, whatever state that one
 * stopped in.
 */
#ifndef SR_CATALOG_H
#define SR_CATALOG_H

#include "sr_alloc.h"

#define SR_META_MAX 4096u
#define SR_TEXT_MAX (SR_OBJECT_NAME_MAX + SR_META_MAX)

/* What the upper rooms know of an object, and an entry says of it. */
struct sr_desc {
    const char *name;
    const uint8_t *meta;
    uint64_t len;
    uint16_t name_len, meta_len;
    uint8_t type, flags;
};

/* An object being filled. */
struct sr_draft { uint32_t entry, block; sr_off off; uint64_t len; };

/* A checked copy of an entry. `block` is held until sr_unpin if the call says so. */
struct sr_found {
    uint64_t seq, version, len;
    sr_off off;
    uint32_t entry, block;
    uint16_t name_len, meta_len;
    uint8_t type, flags;
    uint8_t text[SR_TEXT_MAX];    /* name, then meta */
};

struct sr_stats {
    uint64_t size, used, largest, committed;
    uint32_t objects, limbo, pending, members, recoveries, flags;
    bool sound;      /* false: what the catalog says of itself is damaged */
};

/* --- life ------------------------------------------------------------------------------------- */

int sr_catalog_create(struct sr_region **out, const struct sr_region_spec *spec, struct sr_error *e);
int sr_catalog_attach(struct sr_region **out, const char *name, bool writable, uint32_t owner, struct sr_error *e);

/* --- writing ---------------------------------------------------------------------------------- */

/* Take room for an object and commit its memory. The draft is published or dropped. */
int sr_draft_begin(struct sr_region *r, const struct sr_desc *desc, struct sr_draft *draft, struct sr_error *e);
int sr_draft_publish(struct sr_region *r, const struct sr_desc *desc, const struct sr_draft *draft, uint64_t *seq, struct sr_error *e);
void sr_draft_drop(struct sr_region *r, const struct sr_desc *desc, const struct sr_draft *draft);
/* All at once, for objects whose bytes are at hand: `data` has desc->len bytes. */
int sr_catalog_put(struct sr_region *r, const struct sr_desc *desc, const void *data, uint64_t *seq, struct sr_error *e);
/* Copy `len` bytes into a draft, with several threads once that pays. */
void sr_catalog_copy(void *to, const void *from, uint64_t len);
/* SR_E_NO_OBJECT. With `seq` not 0, only if it is that publication. */
int sr_catalog_delete(struct sr_region *r, const char *name, size_t len, uint64_t seq, struct sr_error *e);
/* A new version of a mutable object, in place. */
int sr_catalog_bump(struct sr_region *r, const char *name, size_t len, uint64_t *version, struct sr_error *e);
int sr_catalog_seal(struct sr_region *r, struct sr_error *e);

/* --- reading ---------------------------------------------------------------------------------- */

/* SR_E_NO_OBJECT, SR_E_CORRUPT. With `hold`, the block is pinned on success. */
int sr_catalog_get(struct sr_region *r, const char *name, size_t len, bool hold, struct sr_found *f, struct sr_error *e);
/* The publication that a reference names, withdrawn or not, as long as anybody holds it; pinned on success. */
int sr_catalog_get_exact(struct sr_region *r, uint32_t entry, uint64_t seq, struct sr_found *f, struct sr_error *e);
/* The next object by the index, for members: 0, SR_E_NO_OBJECT at the end, or 1: the index was moved, begin
 * again with a walk of zeros. Not pinned. A name that is there all the while is seen once, whatever is put
 * under it; one that is deleted and put again may be seen twice. */
struct sr_walk { uint64_t level, at; };
int sr_catalog_walk(struct sr_region *r, struct sr_walk *w, struct sr_found *f, struct sr_error *e);
/* The same by the entries, for an onlooker, whose copy has no index: the object at or after *cursor (begin
 * with 0). Of what is replaced meanwhile both may be seen, or neither. */
int sr_catalog_next(struct sr_region *r, uint32_t *cursor, struct sr_found *f, struct sr_error *e);
/* Sleep until a version of `name` above `newer_than` is there. timeout_ns UINT64_MAX: for ever.
 * SR_E_TIMEOUT. Returns 1 after `slice_ns` at the latest, so that signals can be looked at. */
int sr_catalog_wait(struct sr_region *r, const char *name, size_t len, uint64_t newer_than, uint64_t slice_ns, uint64_t *version, struct sr_error *e);
void sr_catalog_stats(struct sr_region *r, struct sr_stats *s);

/* --- putting in order ------------------------------------------------------------------------- */

/* What the dead left: their unfinished objects, and withdrawn blocks that nobody holds. */
int sr_catalog_sweep(struct sr_region *r, struct sr_error *e);
/* Memory that a put of that length would take now, beyond what its place already has. */
uint64_t sr_catalog_fresh(struct sr_region *r, uint64_t len);
/* Give memory of pages in which no block is back to the system, up to `bytes`. *given: how much. */
int sr_catalog_give_back(struct sr_region *r, uint64_t bytes, uint64_t *given, struct sr_error *e);
/* All of it; nothing where all memory was promised at creation. */
int sr_catalog_trim(struct sr_region *r, uint64_t *bytes, struct sr_error *e);
/* Make large pages large again where something split them. */
int sr_catalog_repair(struct sr_region *r, struct sr_error *e);
/* Every invariant: entries, index, lists, allocator. Takes the lock. 0 or SR_E_CORRUPT. */
int sr_catalog_check(struct sr_region *r, struct sr_error *e);

/* Between the files of this room. */
int sr_catalog__lock(struct sr_region *r, struct sr_error *e);
int sr_catalog__recover(struct sr_region *r, struct sr_error *e);
int sr_catalog__read_entry(struct sr_region *r, uint32_t n, uint64_t seq, struct sr_found *f, struct sr_error *e);
/* The same of an entry in LIMBO, if `seq` is what it was: 1 if it is not, or not any more. */
int sr_catalog__read_withdrawn(struct sr_region *r, uint32_t n, uint64_t seq, struct sr_found *f, struct sr_error *e);
uint32_t sr_catalog__crc(const struct sr_entry *copy, uint32_t n, const uint8_t *tail, size_t tail_len);
bool sr_entry__is_withdrawn(const struct sr_entry *entry, uint32_t n, uint64_t seq);
/* Whether it may just be on its way there. */
bool sr_entry__was(const struct sr_entry *entry, uint32_t n, uint64_t seq);
/* 0 if a text and what a reader relies on are as they were written, whatever the entry's state. */
int sr_entry__sound(struct sr_region *r, uint32_t n, struct sr_error *e);
/* The slot that holds `name`, under the lock: 0, SR_E_NO_OBJECT, SR_E_CORRUPT. Slots are numbers, not
 * addresses: another thread may map the catalog anew meanwhile (view.c). */
#define SR_NO_SLOT UINT64_MAX
int sr_index__find(struct sr_region *r, uint64_t hash, const char *name, size_t len, uint64_t *slot, uint32_t *entry, struct sr_error *e);
/* Point `name` at `entry`, in the slot that was found for it, or, with SR_NO_SLOT, in a new one. */
int sr_index__store(struct sr_region *r, uint64_t hash, uint64_t slot, uint32_t entry, struct sr_error *e);
void sr_index__clear(struct sr_region *r, uint64_t slot);
int sr_index__grow(struct sr_region *r, struct sr_error *e);
/* The slots of generation 0, empty. */
void sr_index__init(struct sr_region *r);
/* The level of the index, mapped. SR_E_CORRUPT, SR_E_UNAVAILABLE. */
int sr_index__level(struct sr_region *r, unsigned *level, struct sr_error *e);
/* Slot i of `level`; SR_SLOT_BAD if it is not sound. */
#define SR_SLOT_BAD UINT64_MAX
static inline uint64_t sr_slot_load(const _Atomic uint64_t *slots, unsigned level, uint64_t i)
{
    uint64_t value;
    return sr_word_unpack(atomic_load_explicit(&slots[i], memory_order_acquire), sr_slot_salt(level, i), &value) ? value : SR_SLOT_BAD;
}
static inline void sr_slot_store(_Atomic uint64_t *slots, unsigned level, uint64_t i, uint64_t value)
{
    atomic_store(&slots[i], sr_word_pack(value, sr_slot_salt(level, i)));
}
/* Entries below this were used at some time; 0 if the word is not sound. */
static inline uint32_t sr_entries_high(struct sr_region *r)
{
    uint64_t high;
    bool sound = sr_word_unpack(atomic_load(&sr_state(r)->st_entries_high), SR_STATE_SALT(st_entries_high), &high);
    return sound && high <= sr_entries_limit(r->head.hd_gens) ? (uint32_t)high : 0;
}
void sr_list__push(struct sr_region *r, uint32_t *head, uint32_t n);
int sr_list__remove(struct sr_region *r, uint32_t *head, uint32_t n, struct sr_error *e);
/* Clear ent_seq, if it is not yet clear, and note what it was. */
void sr_entry__withdraw(struct sr_region *r, uint32_t n);
int sr_entry__block(struct sr_region *r, uint32_t n, uint32_t *block, struct sr_error *e);
int sr_entry__new(struct sr_region *r, uint32_t *out, struct sr_error *e);
void sr_entry__free_chain(struct sr_region *r, uint32_t n);
int sr_limbo__flush(struct sr_region *r, struct sr_error *e);
int sr_pending__sweep(struct sr_region *r, struct sr_error *e);

#endif
