/* member: rows, liveness, pins, tickets, and what fork does to them.
 *
 * Rules that the rest relies on:
 *   - A row is changed by its owner alone, except that a claimer lowers a ticket.
 *   - A pin is published before the reader looks again at what it pins (sr_pin has the fence); a
 *     writer withdraws first and then looks for pins. So one of the two sees the other.
 *   - Bytes of the members segment may delay reuse and nothing else: they are never an index into
 *     anything without a bound, never an address, never a size.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <stdlib.h>

#define DEAD_ROWS_TRIED 8u    /* at a join: keeps rows of the killed from piling up, at 0.7 us each */

/* --- rows ------------------------------------------------------------------------------------- */

static uint32_t rows_high(const struct sr_region *r)
{
    uint32_t high = atomic_load(&sr_members(r)->mh_rows_high);
    return high < r->head.hd_rows ? high : r->head.hd_rows;
}

static void raise_rows_high(struct sr_region *r, uint32_t to)
{
    _Atomic uint32_t *high = &sr_members(r)->mh_rows_high;
    uint32_t seen = atomic_load(high);
    while (seen < to && !atomic_compare_exchange_weak(high, &seen, to)) continue;
}

static void mark_clean(struct sr_region *r, uint32_t n, bool clean)
{
    uint64_t bit = UINT64_C(1) << (n % 64);
    if (clean) atomic_fetch_or(&sr_members(r)->mh_clean[n / 64], bit);
    else atomic_fetch_and(&sr_members(r)->mh_clean[n / 64], ~bit);
}

/* 0 taken, 1 not to be had, or -errno. */
static int take_row(struct sr_region *r, uint32_t n, struct sr_held_row *held)
{
    uint64_t at = SR_PAGE * (1 + (uint64_t)n);
    int fd = sr_region__members_fd(r);
    int got = fd < 0 ? fd : sr_sys_commit(fd, at, SR_PAGE);
    if (got == 0) got = sr_sys_hold(fd, n, at, SR_PAGE, &held->hold);
    if (got == -EAGAIN) return 1;
    if (got < 0) return got;
    /* A dead owner of this row has the lock. Held by a member that does not know it, the row's byte
     * would say that the holder lives, and writers would wait for ever. Only a writer who joins may
     * have it: it puts the catalog in order first of all (sr_catalog_attach). */
    if (sr_lock_names_row(r, n) && !(r->writable && r->rows_count == 0)) {
        sr_sys_unmap(&held->hold);
        return 1;
    }
    struct sr_row *row = (struct sr_row *)held->hold.at;
    bool dirty = atomic_load(&row->row_state) != SR_ROW_CLEAN;
    bool writer = atomic_load(&row->row_access) != SR_ROW_READER;
    if (dirty && writer && !r->writable) {
        /* What a dead writer left is put in order by a writer. */
        sr_sys_unmap(&held->hold);
        return 1;
    }
    r->row_was_dirty |= dirty && writer;
    uint32_t gen = atomic_load(&row->row_gen) + 1;
    memset((char *)row + offsetof(struct sr_row, row_tickets), 0, sizeof *row - offsetof(struct sr_row, row_tickets));
    atomic_store(&row->row_tickets_used, 0);
    atomic_store(&row->row_pins_high, 0);
    row->row_pid = sr_sys_pid();
    row->row_uid = sr_sys_uid();
    row->row_joined_ns = sr_sys_wall();
    /* Dirty with a writer's mark stays so until it is settled, should this process die at once. */
    if (!(dirty && writer)) atomic_store(&row->row_access, r->writable ? SR_ROW_WRITER : SR_ROW_READER);
    atomic_store(&row->row_gen, gen);
    atomic_store(&row->row_state, SR_ROW_USED);
    mark_clean(r, n, false);
    raise_rows_high(r, n + 1);
    held->row = row;
    held->number = n;
    return 0;
}

/* Rows that were left cleanly first, then a few whose owner may have been killed, then a new one.
 * The rows themselves are not looked at until one is locked: a worker that joins a thousand others
 * must not pay for the page tables of a thousand rows. */
static int find_row(struct sr_region *r, struct sr_held_row *held, struct sr_error *e)
{
    struct sr_members_head *head = sr_members(r);
    uint32_t high = rows_high(r);
    int got = 1;
    for (uint32_t word = 0; word * 64 < high && got == 1; word++)
        for (uint64_t bits = atomic_load(&head->mh_clean[word]); bits && got == 1; bits &= bits - 1) {
            uint32_t n = word * 64 + (uint32_t)__builtin_ctzll(bits);
            if (n < high) got = take_row(r, n, held);
        }
    for (uint32_t k = 0; k < sr_min(high, DEAD_ROWS_TRIED) && got == 1; k++) {
        uint32_t n = atomic_fetch_add(&head->mh_cursor, 1) % high;
        if (sr_rows_held(r, n, 1) == 0) got = take_row(r, n, held);
    }
    for (uint32_t n = high; n < r->head.hd_rows && got == 1; n++) got = take_row(r, n, held);
    for (uint32_t n = 0; n < high && got == 1; n++)
        if (sr_rows_held(r, n, 1) == 0) got = take_row(r, n, held);
    if (got == 0) return 0;
    if (got == 1) return sr_fail(e, SR_E_FULL, -EAGAIN, "region '%s' has all of its %u members", r->name, r->head.hd_rows);
    int code = got == -ENOSPC ? SR_E_FULL : SR_E_SYSTEM;
    return sr_fail(e, code, got, "region '%s' cannot be joined", r->name);
}

/* Writers name their row in the lock and in entries; meanwhile another thread's pin may move the
 * array of rows to make it longer. */
static void note_own_row(struct sr_region *r)
{
    r->own_row = r->rows[0].number;
    r->own_gen = atomic_load(&r->rows[0].row->row_gen);
}

static pthread_mutex_t fork_gate = PTHREAD_MUTEX_INITIALIZER;

static int add_row(struct sr_region *r, struct sr_error *e)
{
    struct sr_held_row *rows = realloc(r->rows, (r->rows_count + 1) * sizeof *rows);
    if (rows == NULL) return sr_fail(e, SR_E_NO_MEMORY, -ENOMEM, "out of memory");
    r->rows = rows;
    uint32_t cap = r->spare_cap + SR_ROW_PINS;
    uint32_t *spare = realloc(r->spare, cap * sizeof *spare);
    if (spare == NULL) return sr_fail(e, SR_E_NO_MEMORY, -ENOMEM, "out of memory");
    r->spare = spare;
    r->spare_cap = cap;
    struct sr_held_row held = {0};
    /* Between the lock on the row and the word that keeps it out of children, no fork: a child with
     * a copy of the mapping would keep this member alive after its death. */
    pthread_mutex_lock(&fork_gate);
    int got = find_row(r, &held, e);
    if (got == 0) sr_sys_hold_private(&held.hold);
    pthread_mutex_unlock(&fork_gate);
    if (got < 0) return got;
    /* Lowest places last, so that they are taken first and row_pins_high stays small. */
    for (uint32_t slot = SR_ROW_PINS; slot-- > 0;) r->spare[r->spare_count++] = r->rows_count * SR_ROW_PINS + slot;
    r->rows[r->rows_count++] = held;
    if (r->rows_count == 1) note_own_row(r);
    return 0;
}

int sr_member_join(struct sr_region *r, struct sr_error *e) { return add_row(r, e); }

static void drop_rows(struct sr_region *r, struct sr_held_row *rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct sr_row *row = rows[i].row;
        for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) atomic_store(&row->row_tickets[k], 0);
        uint32_t high = atomic_load(&row->row_pins_high);
        for (uint32_t k = 0; k < sr_min(high, SR_ROW_PINS); k++) atomic_store(&row->row_pins[k], 0);
        atomic_store(&row->row_pins_high, 0);
        atomic_store(&row->row_state, SR_ROW_CLEAN);
        sr_sys_unmap(&rows[i].hold);
        mark_clean(r, rows[i].number, true);
    }
}

void sr_member_leave(struct sr_region *r)
{
    /* A dirty row that was never settled stays dirty: the next writer will do it. */
    if (r->row_was_dirty) for (uint32_t i = 0; i < r->rows_count; i++) sr_sys_unmap(&r->rows[i].hold);
    else drop_rows(r, r->rows, r->rows_count);
    if (r->rows_count) atomic_fetch_add(&sr_members(r)->mh_releases, 1);
    free(r->rows);
    free(r->pins);
    free(r->spare);
    r->rows = NULL;
    r->pins = NULL;
    r->spare = NULL;
    r->rows_count = r->pins_cap = r->pins_count = r->spare_count = r->spare_cap = 0;
}

void sr_member_settled(struct sr_region *r)
{
    pthread_mutex_lock(&r->local);
    for (uint32_t i = 0; i < r->rows_count; i++) atomic_store(&r->rows[i].row->row_access, r->writable ? SR_ROW_WRITER : SR_ROW_READER);
    r->row_was_dirty = false;
    pthread_mutex_unlock(&r->local);
}

uint32_t sr_member_row(const struct sr_region *r) { return r->own_row; }
uint32_t sr_member_gen(const struct sr_region *r) { return r->own_gen; }

bool sr_member_alive(struct sr_region *r, uint32_t row, uint32_t gen)
{
    if (row >= r->head.hd_rows) return false;
    if (!sr_rows_ok(r, row + 1)) return true;
    if ((atomic_load(&sr_row(r, row)->row_gen) & 0xFFFFu) != (gen & 0xFFFFu)) return false;
    return sr_rows_held(r, row, 1) != 0;
}

/* --- pins ------------------------------------------------------------------------------------- */

static uint32_t pin_home(const struct sr_region *r, uint32_t block) { return (block * 0x9E3779B1u) >> (32 - sr_log2_floor(r->pins_cap)); }

static struct sr_pin_slot *find_pin(const struct sr_region *r, uint32_t block)
{
    if (r->pins_cap == 0) return NULL;
    for (uint32_t i = pin_home(r, block);; i = (i + 1) & (r->pins_cap - 1)) {
        if (r->pins[i].block == block) return &r->pins[i];
        if (r->pins[i].block == 0) return NULL;
    }
}

static void place_pin(struct sr_region *r, struct sr_pin_slot pin)
{
    uint32_t i = pin_home(r, pin.block);
    while (r->pins[i].block != 0) i = (i + 1) & (r->pins_cap - 1);
    r->pins[i] = pin;
}

static int grow_pins(struct sr_region *r, struct sr_error *e)
{
    if (r->pins_count * 2 < r->pins_cap) return 0;
    uint32_t cap = r->pins_cap ? r->pins_cap * 2 : 16;
    struct sr_pin_slot *old = r->pins, *bigger = calloc(cap, sizeof *bigger);
    if (bigger == NULL) return sr_fail(e, SR_E_NO_MEMORY, -ENOMEM, "out of memory");
    uint32_t old_cap = r->pins_cap;
    r->pins = bigger;
    r->pins_cap = cap;
    for (uint32_t i = 0; i < old_cap; i++)
        if (old[i].block) place_pin(r, old[i]);
    free(old);
    return 0;
}

/* Knuth's deletion for linear probing (The Art of Computer Programming 6.4, algorithm R). */
static void remove_pin(struct sr_region *r, struct sr_pin_slot *pin)
{
    uint32_t mask = r->pins_cap - 1, hole = (uint32_t)(pin - r->pins);
    for (uint32_t i = (hole + 1) & mask; r->pins[i].block; i = (i + 1) & mask) {
        uint32_t home = pin_home(r, r->pins[i].block);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            r->pins[hole] = r->pins[i];
            hole = i;
        }
    }
    r->pins[hole].block = 0;
    r->pins_count--;
}

static int pin_new(struct sr_region *r, uint32_t block, uint32_t entry, uint64_t seq, struct sr_error *e)
{
    int got = grow_pins(r, e);
    if (got == 0 && r->spare_count == 0) got = add_row(r, e);
    if (got < 0) return got;
    uint32_t place = r->spare[--r->spare_count];
    struct sr_row *row = r->rows[place / SR_ROW_PINS].row;
    uint32_t slot = place % SR_ROW_PINS;
    if (atomic_load(&row->row_pins_high) <= slot) atomic_store(&row->row_pins_high, slot + 1);
    atomic_store(&row->row_pins[slot], block);
    place_pin(r, (struct sr_pin_slot){.block = block, .count = 1, .place = place, .entry = entry, .seq = seq});
    r->pins_count++;
    return 0;
}

int sr_pin(struct sr_region *r, uint32_t block, uint32_t entry, uint64_t seq, struct sr_error *e)
{
    int got = 0;
    pthread_mutex_lock(&r->local);
    if (!r->open) {
        got = sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    } else {
        struct sr_pin_slot *pin = find_pin(r, block);
        if (pin) {
            pin->count++;
            /* The block may be held from an earlier life of another entry. */
            pin->entry = entry;
            pin->seq = seq;
        } else {
            got = pin_new(r, block, entry, seq, e);
        }
    }
    pthread_mutex_unlock(&r->local);
    atomic_thread_fence(memory_order_seq_cst);
    return got;
}

void sr_unpin(struct sr_region *r, uint32_t block)
{
    pthread_mutex_lock(&r->local);
    struct sr_pin_slot *pin = find_pin(r, block);
    if (pin && --pin->count == 0) {
        struct sr_row *row = r->rows[pin->place / SR_ROW_PINS].row;
        uint32_t slot = pin->place % SR_ROW_PINS;
        atomic_store(&row->row_pins[slot], 0);
        uint32_t high = atomic_load(&row->row_pins_high);
        if (high <= SR_ROW_PINS && slot + 1 == high) {
            while (high > 0 && atomic_load(&row->row_pins[high - 1]) == 0) high--;
            atomic_store(&row->row_pins_high, high);
        }
        r->spare[r->spare_count++] = pin->place;
        if (!sr_entry_ok(r, pin->entry) || atomic_load(&sr_entry(r, pin->entry)->ent_seq) != pin->seq)
            atomic_fetch_add(&sr_members(r)->mh_releases, 1);
        remove_pin(r, pin);
    }
    pthread_mutex_unlock(&r->local);
}

static bool row_holds(struct sr_row *row, uint32_t block)
{
    uint32_t high = atomic_load(&row->row_pins_high);
    for (uint32_t k = 0; k < sr_min(high, SR_ROW_PINS); k++)
        if (atomic_load(&row->row_pins[k]) == block) return true;
    uint32_t used = atomic_load(&row->row_tickets_used);
    for (uint32_t k = 0; k < sr_min(used, SR_ROW_TICKETS); k++)
        if (atomic_load(&row->row_tickets[k]) >> 32 == block) return true;
    return false;
}

static uint32_t count_holders(struct sr_region *r, uint32_t block, uint32_t enough)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t high = rows_high(r), found = 0;
    if (!sr_rows_ok(r, high)) return enough;    /* cannot look: held */
    for (uint32_t n = 0; n < high && found < enough; n++) {
        struct sr_row *row = sr_row(r, n);
        if (atomic_load(&row->row_state) == SR_ROW_CLEAN) continue;
        if (row_holds(row, block) && sr_rows_held(r, n, 1) != 0) found++;
    }
    return found;
}

bool sr_pinned(struct sr_region *r, uint32_t block) { return count_holders(r, block, 1) != 0; }
uint32_t sr_pin_holders(struct sr_region *r, uint32_t block) { return count_holders(r, block, UINT32_MAX); }

/* --- tickets ---------------------------------------------------------------------------------- */

/* Raise the count of `block` in slot k if it is there (or the slot is empty and `fresh`). */
static bool raise_ticket(struct sr_row *row, uint32_t k, uint32_t block, bool fresh)
{
    uint64_t seen = atomic_load(&row->row_tickets[k]);
    for (;;) {
        uint64_t next;
        if (seen != 0 && seen >> 32 == block && (uint32_t)seen != UINT32_MAX) next = seen + 1;
        else if (fresh && seen == 0) next = ((uint64_t)block << 32) | 1;
        else return false;
        if (atomic_compare_exchange_weak(&row->row_tickets[k], &seen, next)) return true;
    }
}

int sr_ticket_issue(struct sr_region *r, uint32_t block, uint32_t *row_number, struct sr_error *e)
{
    pthread_mutex_lock(&r->local);
    int got = 0;
    if (!r->open) {
        got = sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    } else {
        struct sr_row *row = r->rows[0].row;
        *row_number = r->rows[0].number;
        bool done = false;
        uint32_t used = (uint32_t)sr_min(atomic_load(&row->row_tickets_used), SR_ROW_TICKETS);
        for (uint32_t k = 0; k < used && !done; k++) done = raise_ticket(row, k, block, false);
        for (uint32_t k = 0; k < SR_ROW_TICKETS && !done; k++) {
            if (k >= used) atomic_store(&row->row_tickets_used, k + 1);
            done = raise_ticket(row, k, block, true);
        }
        /* All slots hold references to other blocks that nobody has claimed: the one at a place
         * that follows from the block gives way. Its claimer will find the object if it still
         * lives, or ObjectNotFound. */
        if (!done) atomic_store(&row->row_tickets[block % SR_ROW_TICKETS], ((uint64_t)block << 32) | 1);
    }
    pthread_mutex_unlock(&r->local);
    atomic_thread_fence(memory_order_seq_cst);
    return got;
}

void sr_ticket_claim(struct sr_region *r, uint32_t row_number, uint32_t block)
{
    if (row_number >= rows_high(r) || !sr_rows_ok(r, row_number + 1)) return;
    struct sr_row *row = sr_row(r, row_number);
    for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) {
        uint64_t seen = atomic_load(&row->row_tickets[k]);
        while (seen >> 32 == block && (uint32_t)seen != 0) {
            uint64_t next = (uint32_t)seen == 1 ? 0 : seen - 1;
            if (!atomic_compare_exchange_weak(&row->row_tickets[k], &seen, next)) continue;
            if (next == 0) atomic_fetch_add(&sr_members(r)->mh_releases, 1);
            return;
        }
    }
}

uint32_t sr_tickets_open(struct sr_region *r)
{
    uint32_t open = 0;
    pthread_mutex_lock(&r->local);
    for (uint32_t k = 0; r->rows_count && k < SR_ROW_TICKETS; k++) open += (uint32_t)atomic_load(&r->rows[0].row->row_tickets[k]);
    pthread_mutex_unlock(&r->local);
    return open;
}

/* --- fork ------------------------------------------------------------------------------------- */

/* The child's rows, with their locks and pins, are made before fork and handed over: made after it
 * by the child, there would be a time (0.24 ms was seen) in which the parent has dropped an array
 * that the child still looks at and nobody holds the block. The parent's own rows do not reach the
 * child (MADV_DONTFORK), since a lock held by two could not tell which of them died. */

static pthread_mutex_t all_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sr_region *all;

static void make_child_rows(struct sr_region *r)
{
    r->child_rows = calloc(r->rows_count, sizeof *r->child_rows);
    if (r->child_rows == NULL) return;
    bool dirty = r->row_was_dirty;
    for (uint32_t i = 0; i < r->rows_count; i++) {
        struct sr_held_row *child = &r->child_rows[i];
        if (find_row(r, child, NULL) < 0) {
            drop_rows(r, r->child_rows, i);
            free(r->child_rows);
            r->child_rows = NULL;
            break;
        }
        struct sr_row *from = r->rows[i].row;
        atomic_store(&child->row->row_pins_high, atomic_load(&from->row_pins_high));
        for (uint32_t k = 0; k < SR_ROW_PINS; k++)
            atomic_store(&child->row->row_pins[k], atomic_load(&from->row_pins[k]));
    }
    /* A dead writer's row may have been taken for the child. The parent settles the same things
     * when it next changes something, whoever's row they name. */
    r->row_was_dirty |= dirty;
    atomic_thread_fence(memory_order_seq_cst);
}

static void before_fork(void)
{
    pthread_mutex_lock(&all_mutex);
    for (struct sr_region *r = all; r; r = r->next) {
        pthread_mutex_lock(&r->writers);
        pthread_mutex_lock(&r->local);
        if (r->open) make_child_rows(r);
        /* Last, since it is taken inside the others: a child must not inherit it locked. */
        pthread_mutex_lock(&r->growth);
    }
    pthread_mutex_lock(&fork_gate);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&fork_gate);
    for (struct sr_region *r = all; r; r = r->next) {
        for (uint32_t i = 0; r->child_rows && i < r->rows_count; i++) sr_sys_unmap(&r->child_rows[i].hold);
        free(r->child_rows);
        r->child_rows = NULL;
        pthread_mutex_unlock(&r->growth);
        pthread_mutex_unlock(&r->local);
        pthread_mutex_unlock(&r->writers);
    }
    pthread_mutex_unlock(&all_mutex);
}

static void after_fork_in_child(void)
{
    pthread_mutex_unlock(&fork_gate);
    for (struct sr_region *r = all; r; r = r->next) {
        if (r->child_rows) {
            for (uint32_t i = 0; i < r->rows_count; i++) {
                r->rows[i] = r->child_rows[i];
                r->rows[i].row->row_pid = sr_sys_pid();
                sr_sys_hold_private(&r->rows[i].hold);
            }
            note_own_row(r);
            free(r->child_rows);
            r->child_rows = NULL;
            sr_region__touch_share(r);
        } else {
            /* No row was to be had: this child is no member, and its pins are nobody's. */
            r->open = false;
            r->rows_count = r->pins_count = 0;
            if (r->pins_cap) memset(r->pins, 0, r->pins_cap * sizeof *r->pins);
        }
        pthread_mutex_unlock(&r->growth);
        pthread_mutex_unlock(&r->local);
        pthread_mutex_unlock(&r->writers);
    }
    pthread_mutex_unlock(&all_mutex);
}

static void install_fork_handlers(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

void sr_region__track(struct sr_region *r)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_fork_handlers);
    pthread_mutex_lock(&all_mutex);
    r->next = all;
    r->link = &all;
    if (all) all->link = &r->next;
    all = r;
    pthread_mutex_unlock(&all_mutex);
}

void sr_region__untrack(struct sr_region *r)
{
    pthread_mutex_lock(&all_mutex);
    if (r->link) {
        *r->link = r->next;
        if (r->next) r->next->link = r->link;
    }
    r->link = NULL;
    pthread_mutex_unlock(&all_mutex);
}
