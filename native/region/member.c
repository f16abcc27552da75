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

/* The highest row that somebody holds, and one: by halves, since one probe answers for many rows. */
static uint32_t probe_rows(struct sr_region *r)
{
    int fd = sr_region__members_fd(r);
    uint32_t from = 0, to = r->head.hd_rows;    /* none is held at or above `to` */
    if (fd < 0) return to;
    while (from < to) {
        uint32_t middle = from + (to - from) / 2;
        int held = sr_sys_held(fd, middle, to - middle);
        if (held < 0) return r->head.hd_rows;
        if (held) from = middle + 1;
        else to = middle;
    }
    return to;
}

/* `seen` if it is sound; otherwise what replaces it. Somebody who takes a row meanwhile raises it after
 * that, and finds this or the damage. */
static uint32_t rows_high_of(struct sr_region *r, uint32_t seen)
{
    uint32_t high;
    if (SR_LIKELY(sr_half_unpack(seen, SR_ROWS_HIGH_SALT, &high) && high <= r->head.hd_rows)) return high;
    high = probe_rows(r);
    atomic_compare_exchange_strong(&sr_members(r)->mh_rows_high, &seen, sr_half_pack(high, SR_ROWS_HIGH_SALT));
    return high;
}

uint32_t sr_rows_high(struct sr_region *r) { return rows_high_of(r, atomic_load(&sr_members(r)->mh_rows_high)); }

static void raise_rows_high(struct sr_region *r, uint32_t to)
{
    _Atomic uint32_t *high = &sr_members(r)->mh_rows_high;
    for (;;) {
        uint32_t seen = atomic_load(high), is;
        if (!sr_half_unpack(seen, SR_ROWS_HIGH_SALT, &is)) {
            rows_high_of(r, seen);
            continue;
        }
        if (is >= to || atomic_compare_exchange_strong(high, &seen, sr_half_pack(to, SR_ROWS_HIGH_SALT))) return;
    }
}

static void mark_clean(struct sr_region *r, uint32_t n, bool clean)
{
    uint64_t bit = UINT64_C(1) << (n % 64);
    if (clean) atomic_fetch_or(&sr_members(r)->mh_clean[n / 64], bit);
    else atomic_fetch_and(&sr_members(r)->mh_clean[n / 64], ~bit);
}

static void put_half(_Atomic uint32_t *word, uint32_t value, uint64_t salt)
{
    atomic_store_explicit(word, sr_half_pack(value, salt), memory_order_release);
}

static uint32_t who_crc(const struct sr_row *row, uint32_t n)
{
    const size_t from = offsetof(struct sr_row, row_joined_ns), to = offsetof(struct sr_row, row_reserved1);
    return sr_crc32c(n, (const char *)row + from, to - from);
}

static void note_who(struct sr_row *row, uint32_t n)
{
    row->row_pid = sr_sys_pid();
    row->row_uid = sr_sys_uid();
    row->row_joined_ns = sr_sys_wall();
    row->row_who_crc = who_crc(row, n);
}

/* Never used: as the file is made. */
static bool is_fresh(const struct sr_row *row) { return atomic_load(&row->row_gen) == 0 && atomic_load(&row->row_state) == 0 && row->row_joined_ns == 0; }

/* 0 taken, 1 not to be had, or -errno. */
static int take_row(struct sr_region *r, uint32_t n, struct sr_held_row *held)
{
    uint64_t at = SR_PAGE * (1 + (uint64_t)n);
    int fd = sr_region__members_fd(r);
    int got = fd < 0 ? fd : sr_sys_hold(fd, n, at, SR_PAGE, &held->hold);
    if (got == -EAGAIN) return 1;
    if (got < 0) return got;
    got = sr_sys_commit(fd, at, SR_PAGE);
    if (got < 0) {
        sr_sys_unmap(&held->hold);
        return got;
    }
    /* A dead owner of this row has the lock. Held by a member that does not know it, the row's byte
     * would say that the holder lives, and writers would wait for ever. Only a writer who joins may
     * have it: it puts the catalog in order first of all (sr_catalog_attach). */
    if (sr_lock_names_row(r, n) && !(r->writable && r->rows_count == 0)) {
        sr_sys_unmap(&held->hold);
        return 1;
    }
    struct sr_row *row = (struct sr_row *)held->hold.at;
    uint32_t state, access, gen;
    bool dirty = !is_fresh(row) && !(sr_half_unpack(atomic_load(&row->row_state), SR_ROW_SALT(row_state, n), &state) && state == SR_ROW_CLEAN);
    bool writer = !(sr_half_unpack(atomic_load(&row->row_access), SR_ROW_SALT(row_access, n), &access) && access == SR_ROW_READER);
    if (dirty && writer && !r->writable) {
        /* What a dead writer left is put in order by a writer. */
        sr_sys_unmap(&held->hold);
        return 1;
    }
    r->row_was_dirty |= dirty && writer;
    if (is_fresh(row)) gen = 0;
    /* Not the former owner's, whose number is not known: the clock's is hardly that. */
    else if (!sr_half_unpack(atomic_load(&row->row_gen), SR_ROW_SALT(row_gen, n), &gen)) gen = (uint32_t)(sr_sys_wall() >> 10);
    /* Until all of it is written, the row holds at most more than it should. */
    for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) atomic_store_explicit(&row->row_tickets[k], sr_word_pack(0, sr_ticket_salt(n, k)), memory_order_release);
    for (uint32_t k = 0; k < SR_ROW_PINS; k++) atomic_store_explicit(&row->row_pins[k], sr_word_pack(0, sr_pin_salt(n, k)), memory_order_release);
    atomic_store(&row->row_high, sr_high_pack(0, 0, n));
    put_half(&row->row_lock, SR_ROW_OUT, SR_ROW_SALT(row_lock, n));
    note_who(row, n);
    /* Dirty with a writer's mark stays so until it is settled, should this process die at once. */
    put_half(&row->row_access, (dirty && writer) || r->writable ? SR_ROW_WRITER : SR_ROW_READER, SR_ROW_SALT(row_access, n));
    put_half(&row->row_gen, gen + 1, SR_ROW_SALT(row_gen, n));
    put_half(&row->row_state, SR_ROW_USED, SR_ROW_SALT(row_state, n));
    mark_clean(r, n, false);
    raise_rows_high(r, n + 1);
    held->row = row;
    held->number = n;
    held->high = held->tickets = 0;
    return 0;
}

/* Rows that were left cleanly first, then a few whose owner may have been killed, then a new one.
 * The rows themselves are not looked at until one is locked: a worker that joins a thousand others
 * must not pay for the page tables of a thousand rows. */
static int find_row(struct sr_region *r, struct sr_held_row *held, struct sr_error *e)
{
    struct sr_members_head *head = sr_members(r);
    uint32_t high = sr_rows_high(r);
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
    r->own = r->rows[0].row;
    r->own_row = r->rows[0].number;
    r->own_gen = atomic_load(&r->own->row_gen) >> 16;
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
    /* Lowest places last, so that they are taken first and row_high stays small. */
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
        uint32_t n = rows[i].number;
        for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) atomic_store(&row->row_tickets[k], sr_word_pack(0, sr_ticket_salt(n, k)));
        for (uint32_t k = 0; k < rows[i].high; k++) atomic_store(&row->row_pins[k], sr_word_pack(0, sr_pin_salt(n, k)));
        atomic_store(&row->row_high, sr_high_pack(0, 0, n));
        put_half(&row->row_state, SR_ROW_CLEAN, SR_ROW_SALT(row_state, n));
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
    r->own = NULL;
    r->rows_count = r->pins_cap = r->pins_count = r->spare_count = r->spare_cap = 0;
}

void sr_member_settled(struct sr_region *r)
{
    pthread_mutex_lock(&r->local);
    for (uint32_t i = 0; i < r->rows_count; i++)
        put_half(&r->rows[i].row->row_access, r->writable ? SR_ROW_WRITER : SR_ROW_READER, SR_ROW_SALT(row_access, r->rows[i].number));
    r->row_was_dirty = false;
    pthread_mutex_unlock(&r->local);
}

uint32_t sr_member_row(const struct sr_region *r) { return r->own_row; }
uint32_t sr_member_gen(const struct sr_region *r) { return r->own_gen; }

bool sr_member_alive(struct sr_region *r, uint32_t row, uint32_t gen)
{
    if (row >= r->head.hd_rows) return false;
    if (!sr_rows_ok(r, row + 1)) return true;
    if (sr_rows_held(r, row, 1) == 0) return false;
    /* Somebody has the row: the same one, unless it says soundly that it is another. */
    uint32_t is;
    return !sr_half_unpack(atomic_load(&sr_row(r, row)->row_gen), SR_ROW_SALT(row_gen, row), &is) || is == (gen & 0xFFFFu);
}

#define WHO_TRIES 100    /* of 0.1 ms: one that just joins is soon done */

int sr_member_who(struct sr_region *r, uint32_t n, struct sr_who *who)
{
    for (int tries = 0; tries < WHO_TRIES; tries++) {
        if (sr_rows_held(r, n, 1) == 0 || !sr_rows_ok(r, n + 1)) return 0;
        const struct sr_row *row = sr_row(r, n);
        uint32_t access;
        bool sound = sr_half_unpack(atomic_load(&row->row_access), SR_ROW_SALT(row_access, n), &access);
        *who = (struct sr_who){.joined_ns = row->row_joined_ns, .pid = row->row_pid, .uid = row->row_uid, .writer = access == SR_ROW_WRITER};
        for (uint32_t k = 0; k < SR_ROW_PINS; k++) who->pins += sr_pin_of(row, n, k) != 0;
        if (sound && row->row_who_crc == who_crc(row, n)) return 1;
        sr_region_pause();
        if (r->onlooker && !sr_region__copy_rows(r, n, n + 1)) break;
    }
    return SR_E_CORRUPT;
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

static void set_high(struct sr_held_row *in, uint32_t pins, uint32_t tickets)
{
    in->high = pins;
    in->tickets = tickets;
    atomic_store_explicit(&in->row->row_high, sr_high_pack(pins, tickets, in->number), memory_order_release);
}

static int pin_new(struct sr_region *r, uint32_t block, uint32_t entry, uint64_t seq, struct sr_error *e)
{
    int got = grow_pins(r, e);
    if (got == 0 && r->spare_count == 0) got = add_row(r, e);
    if (got < 0) return got;
    uint32_t place = r->spare[--r->spare_count];
    struct sr_held_row *in = &r->rows[place / SR_ROW_PINS];
    uint32_t slot = place % SR_ROW_PINS;
    atomic_store_explicit(&in->row->row_pins[slot], sr_word_pack(block, sr_pin_salt(in->number, slot)), memory_order_release);
    if (in->high <= slot) set_high(in, slot + 1, in->tickets);
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
        struct sr_held_row *in = &r->rows[pin->place / SR_ROW_PINS];
        uint32_t slot = pin->place % SR_ROW_PINS, high = in->high;
        atomic_store(&in->row->row_pins[slot], sr_word_pack(0, sr_pin_salt(in->number, slot)));
        if (slot + 1 == high) {
            while (high > 0 && atomic_load_explicit(&in->row->row_pins[high - 1], memory_order_relaxed) == sr_word_pack(0, sr_pin_salt(in->number, high - 1))) high--;
            set_high(in, high, in->tickets);
        }
        r->spare[r->spare_count++] = pin->place;
        /* A draft has no publication, and nobody withdraws it: 0 is always news. */
        if (pin->seq == 0 || !sr_entry_ok(r, pin->entry) || sr_seq_of(sr_entry(r, pin->entry), pin->entry) != pin->seq)
            atomic_fetch_add(&sr_members(r)->mh_releases, 1);
        remove_pin(r, pin);
    }
    pthread_mutex_unlock(&r->local);
}

/* What is not sound may have been any block: it holds this one. */
static bool row_holds(const struct sr_row *row, uint32_t n, uint32_t block)
{
    uint32_t high, used;
    if (!sr_high_unpack(atomic_load(&row->row_high), n, &high, &used)) high = SR_ROW_PINS, used = SR_ROW_TICKETS;
    for (uint32_t k = 0; k < high; k++) {
        uint64_t word = atomic_load(&row->row_pins[k]);
        if (word >> 16 == block || !sr_word_sound(word, sr_pin_salt(n, k))) return true;
    }
    for (uint32_t k = 0; k < used; k++) {
        uint64_t word = atomic_load(&row->row_tickets[k]);
        if (word >> (16 + SR_TICKET_COUNT_BITS) == block || !sr_word_sound(word, sr_ticket_salt(n, k))) return true;
    }
    return false;
}

static uint32_t count_holders(struct sr_region *r, uint32_t block, uint32_t enough)
{
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t high = sr_rows_high(r), found = 0;
    if (!sr_rows_ok(r, high)) return enough;    /* cannot look: held */
    for (uint32_t n = 0; n < high && found < enough; n++) {
        if (row_holds(sr_row(r, n), n, block) && sr_rows_held(r, n, 1) != 0) found++;
    }
    return found;
}

bool sr_pinned(struct sr_region *r, uint32_t block) { return count_holders(r, block, 1) != 0; }
uint32_t sr_pin_holders(struct sr_region *r, uint32_t block) { return count_holders(r, block, UINT32_MAX); }

/* --- tickets ---------------------------------------------------------------------------------- */

static uint32_t tickets_used(const struct sr_region *r) { return r->rows_count ? r->rows[0].tickets : 0; }

static uint64_t ticket_pack(uint32_t block, uint64_t count, uint32_t row, uint32_t k)
{
    return sr_word_pack(count ? (uint64_t)block << SR_TICKET_COUNT_BITS | count : 0, sr_ticket_salt(row, k));
}

/* References to what block, if the ticket is sound; otherwise 0. */
static uint64_t ticket_count(uint64_t word, uint32_t row, uint32_t k, uint32_t *block)
{
    uint64_t value;
    if (!sr_word_unpack(word, sr_ticket_salt(row, k), &value)) return *block = 0, 0;
    *block = (uint32_t)(value >> SR_TICKET_COUNT_BITS);
    return value & SR_TICKET_COUNT_MAX;
}

/* Raise the count of `block` in slot k if it is there (or the slot is empty and `fresh`). */
static bool raise_ticket(const struct sr_held_row *in, uint32_t k, uint32_t block, bool fresh)
{
    _Atomic uint64_t *ticket = &in->row->row_tickets[k];
    uint64_t seen = atomic_load(ticket);
    for (;;) {
        uint32_t of;
        uint64_t count = ticket_count(seen, in->number, k, &of);
        bool empty = seen == ticket_pack(0, 0, in->number, k);
        if (!(count && of == block && count < SR_TICKET_COUNT_MAX) && !(fresh && empty)) return false;
        if (atomic_compare_exchange_weak(ticket, &seen, ticket_pack(block, count + 1, in->number, k))) return true;
    }
}

int sr_ticket_issue(struct sr_region *r, uint32_t block, uint32_t *row_number, struct sr_error *e)
{
    pthread_mutex_lock(&r->local);
    int got = 0;
    if (!r->open) {
        got = sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    } else {
        struct sr_held_row *in = &r->rows[0];
        *row_number = in->number;
        bool done = false;
        for (uint32_t k = 0; k < tickets_used(r) && !done; k++) done = raise_ticket(in, k, block, false);
        for (uint32_t k = 0; k < SR_ROW_TICKETS && !done; k++) {
            if (k >= in->tickets) {
                set_high(in, in->high, k + 1);
            }
            done = raise_ticket(in, k, block, true);
        }
        /* All slots hold references to other blocks that nobody has claimed: the one at a place
         * that follows from the block gives way. Its claimer will find the object if it still
         * lives, or ObjectNotFound. */
        uint32_t place = block % SR_ROW_TICKETS;
        if (!done) atomic_store(&in->row->row_tickets[place], ticket_pack(block, 1, in->number, place));
    }
    pthread_mutex_unlock(&r->local);
    atomic_thread_fence(memory_order_seq_cst);
    return got;
}

void sr_ticket_claim(struct sr_region *r, uint32_t row_number, uint32_t block)
{
    if (row_number >= sr_rows_high(r) || !sr_rows_ok(r, row_number + 1)) return;
    struct sr_row *row = sr_row(r, row_number);
    for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) {
        uint64_t seen = atomic_load(&row->row_tickets[k]), count;
        uint32_t of;
        while ((count = ticket_count(seen, row_number, k, &of)) != 0 && of == block) {
            if (!atomic_compare_exchange_weak(&row->row_tickets[k], &seen, ticket_pack(block, count - 1, row_number, k))) continue;
            if (count == 1) atomic_fetch_add(&sr_members(r)->mh_releases, 1);
            return;
        }
    }
}

uint32_t sr_tickets_open(struct sr_region *r, uint32_t block)
{
    uint32_t open = 0, of;
    pthread_mutex_lock(&r->local);
    /* Asked whenever an array dies: mostly there are none. */
    for (uint32_t k = 0; k < tickets_used(r); k++) {
        uint64_t word = atomic_load_explicit(&r->own->row_tickets[k], memory_order_relaxed);
        uint32_t count = word >> 16 != 0 ? (uint32_t)ticket_count(word, r->own_row, k, &of) : 0;
        if (count && (block == 0 || of == block)) open += count;
    }
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

static bool take_child_rows(struct sr_region *r)
{
    r->child_rows = calloc(r->rows_count, sizeof *r->child_rows);
    for (uint32_t i = 0; r->child_rows && i < r->rows_count; i++) {
        if (find_row(r, &r->child_rows[i], NULL) == 0) continue;
        drop_rows(r, r->child_rows, i);
        free(r->child_rows);
        r->child_rows = NULL;
    }
    return r->child_rows != NULL;
}

static void make_child_rows(struct sr_region *r)
{
    bool dirty = r->row_was_dirty;
    if (!take_child_rows(r)) {
        /* Perhaps for lack of a descriptor, and one of these is opened anew when it is needed. */
        pthread_mutex_lock(&r->growth);
        sr_region__close_own(&r->catalog_fd, r->catalog_dev, r->catalog_ino);
        pthread_mutex_unlock(&r->growth);
        if (!take_child_rows(r)) {
            /* The child is no member, and looks at what it inherited all the same. This process holds
             * that from now on, for as long as it lives. */
            for (uint32_t i = 0; i < r->pins_cap; i++) r->pins[i].count += r->pins[i].block != 0;
        }
    }
    /* From this process's own notes: what stands in its row may be damaged. */
    for (uint32_t i = 0; r->child_rows && i < r->pins_cap; i++) {
        const struct sr_pin_slot *pin = &r->pins[i];
        if (pin->block == 0) continue;
        struct sr_held_row *child = &r->child_rows[pin->place / SR_ROW_PINS];
        uint32_t slot = pin->place % SR_ROW_PINS;
        atomic_store(&child->row->row_pins[slot], sr_word_pack(pin->block, sr_pin_salt(child->number, slot)));
        if (child->high <= slot) set_high(child, slot + 1, child->tickets);
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
                note_who(r->rows[i].row, r->rows[i].number);
                sr_sys_hold_private(&r->rows[i].hold);
            }
            note_own_row(r);
            free(r->child_rows);
            r->child_rows = NULL;
            sr_region__touch_share(r);
        } else {
            /* No row was to be had: this child is no member, and its parent has its pins. */
            r->open = false;
            r->own = NULL;
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
