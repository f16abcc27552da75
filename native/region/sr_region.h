/* region: three segments under one name, the members that hold them, and the lock.
 *
 * Room 3, above backend. What the bytes mean stands in sr_format.h. This room makes, opens, maps and
 * names the segments; keeps the caller's rows in the members segment (liveness, pins, tickets); and
 * gives the one writers' lock. It knows nothing of blocks and entries.
 *
 * Words: a region handle (struct sr_region) is one member of a region in one process. A process may
 * hold several handles of one region; each is a member of its own.
 */
#ifndef SR_REGION_H
#define SR_REGION_H

#include <pthread.h>

#include "sr_backend.h"
#include "sr_format.h"

/* An offset into the data segment. Not a pointer, and not convertible to one by accident. */
typedef struct { uint64_t at; } sr_off;

#define SR_NO_OWNER UINT32_MAX   /* sr_region_attach: the caller's own effective uid */

struct sr_region_spec {
    const char *name;
    uint64_t size;                       /* bytes for objects, at least 1                   */
    const struct sr_backend *backend;
    enum sr_place place;
    unsigned mode;                       /* permission bits, as for open(2)                 */
    bool persist, replace, commit_all;
    const char *reason;                  /* shown by every member                           */
    const char *keeper;                  /* path of the keeper's executable                 */
    const char *msharefs;                /* where it is mounted; for that backend           */
};

/* --- local bookkeeping of pins: which block sits in which slot, how often --------------------- */

struct sr_pin_slot { uint32_t block, count, place, entry; uint64_t seq; };
struct sr_held_row {
    struct sr_map hold;          /* holds the lock on the row's byte */
    struct sr_row *row;          /* the same page */
    uint32_t number;
    uint32_t high, tickets;      /* as row_high says, from this side */
};

struct sr_region {
    char name[SR_REGION_NAME_MAX + 1];
    struct sr_head head;         /* a checked copy: nothing is believed twice               */
    const struct sr_backend *backend;
    bool writable;
    bool open;
    bool onlooker;               /* no member: catalog and members are copies (onlook.c)    */
    /* Mapped small at first, whole when more is needed (view.c): small mappings fit between others
     * and cost a worker no page table of their own. Old ones stay until the end: pointers live. */
    struct sr_map catalog, members, data;
    struct sr_map small_catalog, small_members;
    _Atomic uint32_t mapped_gens, mapped_rows;
    pthread_mutex_t growth;
    int members_fd;              /* to probe liveness                                       */
    int catalog_fd, data_fd;     /* to map more and to commit; a reader has no data_fd      */
    int share_fd;                /* a writer's: the msharefs region that shows the memory   */
    struct sr_map share;         /* a writer's, once it looks at a file that is mapped there */
    _Atomic uint64_t files_end;  /* where the last file ends that was shown through this handle */
    _Atomic bool lost;           /* the keeper that owned that region has ended             */
    uint64_t catalog_dev, catalog_ino;

    pthread_mutex_t local;       /* guards what follows                                     */
    struct sr_held_row *rows;
    uint32_t rows_count;
    struct sr_pin_slot *pins;    /* open addressing by block; power of two; block 0: empty  */
    uint32_t pins_cap, pins_count;
    uint32_t *spare;             /* free places: (index in rows) * SR_ROW_PINS + slot       */
    uint32_t spare_count, spare_cap;
    uint32_t own_row, own_gen;   /* of rows[0]; change only at a join and in a forked child     */
    struct sr_row *own;
    _Atomic bool row_was_dirty;  /* the row taken had a writer that did not leave cleanly   */

    pthread_mutex_t writers;     /* the threads of this process, before the shared lock     */

    struct sr_held_row *child_rows;      /* between prepare and the two sides of fork       */
    struct sr_region *next, **link;      /* all open handles, for fork                      */
};

/* --- making and opening (segment.c) ----------------------------------------------------------- */

/* Make the segments, nameless, with this process as their first member; fill in what the rooms above
 * keep in them; then give them their name, after which they are seen. SR_E_EXISTS. A region that
 * could not be published is closed by the caller. */
int sr_region_make(struct sr_region **out, const struct sr_region_spec *spec, struct sr_error *e);
int sr_region_publish(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e);
int sr_region_attach(struct sr_region **out, const char *name, bool writable, uint32_t owner, struct sr_error *e);
/* Leave, unmap and free. The last member of a region that does not persist removes its names.
 * Nothing may point into the mappings any more. */
void sr_region_close(struct sr_region *r);
/* At the end of the process, when pointers into the mappings may remain: remove the names if no
 * other member lives, and leave the rest to the kernel. */
void sr_region_retire(struct sr_region *r);
/* Remove the name; who has the region open keeps it. */
int sr_region_unlink(const char *name, uint32_t owner, struct sr_error *e);
/* Remove what is left of a region that no living process holds; 1 if something was removed. With
 * `look`, only say whether there is something. */
int sr_region_reclaim(const char *name, bool look, struct sr_error *e);
/* The same for a region of the user `owner`, for root. */
int sr_region_reclaim_of(const char *name, uint32_t owner, bool look, struct sr_error *e);
/* Segments of that name and generation that no catalog speaks of and no living process holds: 1 if
 * removed, or with `look` if that could be done. */
int sr_region_remove_half_made(const char *name, uint32_t generation, bool look);
/* The head of a region, checked, without joining it. *live: whether any member lives. */
int sr_region_peek(const char *name, struct sr_head *head, bool *live, struct sr_error *e);
int sr_region_check_name(const char *name, size_t len, struct sr_error *e);

/* Look at a region, whoever it belongs to, without joining it: a handle over copies, for sr_catalog_next,
 * sr_catalog_stats, rows and liveness, and for nothing else (onlook.c). */
int sr_region_look(struct sr_region **out, const char *name, struct sr_error *e);
void sr_region_look_away(struct sr_region *r);
/* Bytes of memory behind the data segment now; -ENOENT where it has no name to be asked by. */
int sr_region_backed(const struct sr_region *r, uint64_t *bytes);
/* What somebody killed in the middle of a `replace`, or a keeper, left in SR_SHM_DIR under `file`
 * ("sharedregion.ID.new", "sharedregion.ID.keeper"): 1 if it is nobody's, and removed unless `look`. */
int sr_region_remove_leftover(const char *file, bool look);

/* A tenth of a millisecond, for what others are about to do. */
void sr_region_pause(void);

/* --- parts ------------------------------------------------------------------------------------ */

/* Where a segment is mapped, which another thread may just be moving (view.c). */
static inline unsigned char *sr_mapped(const struct sr_map *map) { return __atomic_load_n(&map->at, __ATOMIC_ACQUIRE); }

static inline struct sr_state *sr_state(const struct sr_region *r) { return (struct sr_state *)(sr_mapped(&r->catalog) + SR_STATE_AT); }
static inline struct sr_members_head *sr_members(const struct sr_region *r) { return (struct sr_members_head *)sr_mapped(&r->members); }
static inline struct sr_row *sr_row(const struct sr_region *r, uint32_t n)
{
    return (struct sr_row *)(sr_mapped(&r->members) + SR_PAGE * (1 + (uint64_t)n));
}
/* `n` must have passed sr_entry_ok, sr_block_ok; `level` sr_gens_ok(level + 1); a row sr_rows_ok. */
static inline struct sr_entry *sr_entry(const struct sr_region *r, uint32_t n)
{
    return (struct sr_entry *)(sr_mapped(&r->catalog) + sr_entry_at(r->head.hd_gen0, n));
}
static inline struct sr_block *sr_block(const struct sr_region *r, uint32_t n)
{
    return (struct sr_block *)(sr_mapped(&r->catalog) + sr_block_at(r->head.hd_gen0, n));
}
static inline _Atomic uint64_t *sr_slots(const struct sr_region *r, unsigned level)
{
    return (_Atomic uint64_t *)(sr_mapped(&r->catalog) + sr_slots_at(r->head.hd_gen0, level));
}

/* Make the slots, entries and blocks of `gens` generations, or `rows` rows, addressable (view.c).
 * False if there is no address space. */
bool sr_view_gens(struct sr_region *r, unsigned gens);
bool sr_view_rows(struct sr_region *r, uint32_t rows);

/* A number from shared memory becomes an address only after these: it is in bounds, and mapped. */
static inline bool sr_gens_ok(struct sr_region *r, unsigned gens)
{
    return gens <= r->head.hd_gens && (SR_LIKELY(gens <= atomic_load_explicit(&r->mapped_gens, memory_order_acquire)) || sr_view_gens(r, gens));
}
static inline bool sr_entry_ok(struct sr_region *r, uint32_t n)
{
    return n != 0 && n < sr_entries_limit(r->head.hd_gens) && sr_gens_ok(r, sr_entry_gen(n) + 1);
}
static inline bool sr_block_ok(struct sr_region *r, uint32_t n)
{
    return n != 0 && n < sr_blocks_limit(r->head.hd_gens) && sr_gens_ok(r, sr_block_gen(n) + 1);
}
static inline bool sr_rows_ok(struct sr_region *r, uint32_t rows)
{
    return rows <= r->head.hd_rows && (SR_LIKELY(rows <= atomic_load_explicit(&r->mapped_rows, memory_order_acquire)) || sr_view_rows(r, rows));
}

/* Memory behind [at, at + len) of the catalog segment; large pages once it is large. */
int sr_region_commit_catalog(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e);

/* --- memory behind the data segment (commit.c) -------------------------------------------------- */

/* Memory behind [off, off + len), by whole granules, recorded in the commit map. Call without the
 * lock: it may take long, and is safe beside others, as long as a block lies there. */
int sr_region_commit(struct sr_region *r, sr_off off, uint64_t len, struct sr_error *e);
/* Bytes of the granules of [off, off + len) that are not committed yet. */
uint64_t sr_region_uncommitted(const struct sr_region *r, sr_off off, uint64_t len);
/* How many of the granules [from, to) are committed and could be given back. */
uint64_t sr_region_marked(const struct sr_region *r, uint64_t from, uint64_t to);
/* The last run of such granules in [from, to), of `most` at most; empty if there is none. */
struct sr_granules { uint64_t from, to; };
struct sr_granules sr_region_last_marked(const struct sr_region *r, uint64_t from, uint64_t to, uint64_t most);
/* Give granules [from, to) back; under the lock, and no block touches them. */
int sr_region_uncommit(struct sr_region *r, uint64_t from, uint64_t to, struct sr_error *e);
/* The same, of memory that the map does not know of: left by who died or failed in the middle. */
void sr_region_discard(struct sr_region *r, uint64_t from, uint64_t to);

/* Let the kernel refuse new mappings that could be written through, and holes, where it can: memory
 * without a name. Writers keep theirs. */
void sr_region_seal_memory(struct sr_region *r);

/* Map [off, off + len) of the data segment, by whole pages, so that this process can write to it and
 * nobody sees it; *skip is how far off lies in the mapping. The caller holds the block, and unmaps
 * before it lets go. May be a copy at once. SR_E_FULL (hugetlb: no free pages), SR_E_LOST, SR_E_UNAVAILABLE.
 * (private.c) */
int sr_region_map_private(struct sr_region *r, sr_off off, uint64_t len, struct sr_map *map, uint64_t *skip, struct sr_error *e);

/* --- msharefs (share.c) ----------------------------------------------------------------------- */

bool sr_region__keeper_gone(struct sr_region *r);
/* Whether what readers see is gone, with the keeper that owned it. Costs one load while all is well. */
static inline bool sr_region_lost(struct sr_region *r)
{
    return SR_UNLIKELY(atomic_load_explicit(&sr_members(r)->mh_keeper, memory_order_relaxed) & SR_DEATH_MARK) &&
           r->backend->shared_tables && sr_region__keeper_gone(r);
}

/* Show `len` bytes of a file to all members, beside the memory, at the offset *at of the region, until
 * they are hidden again or the region ends. SR_E_UNAVAILABLE: this memory or that file cannot do it. */
int sr_region_show_file(struct sr_region *r, int fd, uint64_t len, uint64_t *at, struct sr_error *e);
int sr_region_hide_file(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e);
/* Where [at, at + len) of a file that is shown lies in this process; SR_E_CORRUPT, SR_E_LOST. */
int sr_region_file_at(struct sr_region *r, uint64_t at, uint64_t len, unsigned char **found, struct sr_error *e);

/* --- members, pins, tickets (member.c) -------------------------------------------------------- */

int sr_member_join(struct sr_region *r, struct sr_error *e);
void sr_member_leave(struct sr_region *r);
/* Hold a block: visible to all writers before this returns (a full fence is in it). `entry` and
 * `seq` say where the block was found: if that is withdrawn when the last hold goes, writers are
 * told to look. */
int sr_pin(struct sr_region *r, uint32_t block, uint32_t entry, uint64_t seq, struct sr_error *e);
void sr_unpin(struct sr_region *r, uint32_t block);
/* Whether a living member holds the block, by pin or ticket. */
bool sr_pinned(struct sr_region *r, uint32_t block);
/* How many living members hold it. */
uint32_t sr_pin_holders(struct sr_region *r, uint32_t block);
/* A reference to `block` is under way; it holds the block until sr_ticket_claim(row, block). */
int sr_ticket_issue(struct sr_region *r, uint32_t block, uint32_t *row, struct sr_error *e);
void sr_ticket_claim(struct sr_region *r, uint32_t row, uint32_t block);
/* References to `block`, or with 0 to any, issued by this handle that nobody has claimed. */
uint32_t sr_tickets_open(struct sr_region *r, uint32_t block);
bool sr_member_alive(struct sr_region *r, uint32_t row, uint32_t gen);
/* As sr_sys_held, of the rows; 1 if that cannot be told. */
int sr_rows_held(struct sr_region *r, uint32_t row, uint32_t count);
/* Rows that were used at some time are below. Damaged, it is found anew from the locks on the rows. */
uint32_t sr_rows_high(struct sr_region *r);
/* What the member of a row says of itself: 1, 0 if there is none, or SR_E_CORRUPT. */
struct sr_who { uint64_t joined_ns; uint32_t pid, uid, pins; bool writer; };
int sr_member_who(struct sr_region *r, uint32_t row, struct sr_who *who);
/* Own row, as it stands in entries being filled. */
uint32_t sr_member_row(const struct sr_region *r);
uint32_t sr_member_gen(const struct sr_region *r);
/* Say that the row's former owner has been cleaned up after. */
void sr_member_settled(struct sr_region *r);

/* --- the lock (lock.c) ------------------------------------------------------------------------ */

/* Take the writers' lock. *abandoned: its holder died with it, or left the state otherwise than whole;
 * the caller puts the catalog in order before anything else. SR_E_LOST if liveness cannot be told any more. */
int sr_lock(struct sr_region *r, bool *abandoned, struct sr_error *e);
void sr_unlock(struct sr_region *r);
/* The same, of a catalog that the next one has to put in order. */
void sr_unlock_unsure(struct sr_region *r);
/* Whether the lock is held in the name of `row` (by a former owner of it). */
bool sr_lock_names_row(const struct sr_region *r, uint32_t row);
bool sr_lock_is_free(const struct sr_region *r);
/* The lock of a new region; the word of a holder, for tests. */
void sr_lock_init(struct sr_region *r);
uint64_t sr_lock_word(uint32_t row, uint32_t gen);

/* --- the state's words (state.c) -------------------------------------------------------------- */

void sr_state_init(struct sr_state *s);
/* Note what the state is, before the lock is given back; whether it is that still. */
void sr_state_seal(struct sr_state *s);
void sr_state_unseal(struct sr_state *s);
bool sr_state_is_sealed(const struct sr_state *s);

/* --- fork (member.c) -------------------------------------------------------------------------- */

void sr_region__track(struct sr_region *r);
void sr_region__untrack(struct sr_region *r);

#endif
