/* lock: the one lock that writers share.
 *
 * Eight bytes in the catalog segment; the lower four are the futex:
 *
 *      63 ...... 49  48   47 ........ 32   31        30 ........ 15   14 ........ 0
 *   +--------------+----+---------------+---------+---------------+--------------+
 *   |    check     | 1  | times taken   | waiters |  generation   |  row + 1     |     row + 1 = 0: free
 *   +--------------+----+---------------+---------+---------------+--------------+
 *
 * It names its holder by row and generation of the row, not by pid or thread, and is no pthread
 * mutex: the kernel's robust list would declare a holder dead by a thread id, which means nothing
 * across pid namespaces. A waiter sleeps in slices; after each it asks whether the holder's byte
 * of the members segment is still locked, which the kernel answers exactly. If not, it takes the
 * lock over by compare-and-swap on the whole word, in which the count makes every time of taking it
 * another: what a waiter has learned of one holder is never applied to the next. A new owner of a row
 * settles what the former one left before it does anything else (sr_member_settled).
 *
 * A word can be wrong: not sound, or naming a member that lives and has not got it, which would be
 * waited for in vain. So every writer says in its own row what it is about (row_lock): TRYING from
 * before its first attempt until after it has given the lock back, WAITING while it sleeps, OUT
 * otherwise. If the member that the word names is dead or not TRYING, or the word is not sound, and no
 * living member is TRYING, then nobody has the lock; it is taken from the word that was seen, and
 * everything that follows from the entries is made anew. Who had it after all when the word was damaged
 * is TRYING, and mends the word by giving the lock back. lock_model.py beside this file goes through
 * all interleavings.
 *
 * A holder that is stopped (SIGSTOP) blocks writers. Readers never look at this word.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <limits.h>

#define WAITERS UINT64_C(0x80000000)
#define REST_FIRST 64u          /* pauses, of 10 to 50 ns as processors differ, between two looks at the */
#define REST_LAST 512u          /* lock before it sleeps; see lock_shared                                */
#define SLICE_NS 5000000        /* 5 ms: how long a death may go unnoticed */

_Static_assert(SR_ROWS_MAX < 0x7FFF, "a row fits into the lock word");

static uint64_t word_of(uint32_t owner, uint64_t count)
{
    uint64_t value = owner | (count & 0xFFFF) << 32;
    return value | (sr_word_check(value, SR_SALT(SR_SALT_LOCK, 0)) << 1 | 1) << 48;
}
static uint32_t owner_of(uint64_t word) { return (uint32_t)word & 0x7FFFFFFFu; }
static uint64_t count_of(uint64_t word) { return word >> 32 & 0xFFFF; }
static uint32_t row_of(uint64_t word) { return (owner_of(word) & 0x7FFFu) - 1; }
static uint32_t gen_of(uint64_t word) { return owner_of(word) >> 15; }
static bool sound(uint64_t word)
{
    return word_of(owner_of(word), count_of(word)) == (word & ~WAITERS) && (owner_of(word) == 0 || row_of(word) < SR_ROWS_MAX);
}

uint64_t sr_lock_word(uint32_t row, uint32_t gen) { return word_of((row + 1) | (gen & 0xFFFFu) << 15, 1); }
void sr_lock_init(struct sr_region *r) { atomic_store(&sr_state(r)->st_lock, word_of(0, 0)); }

bool sr_lock_names_row(const struct sr_region *r, uint32_t row)
{
    uint64_t word = atomic_load(&sr_state(r)->st_lock);
    return sound(word) && owner_of(word) != 0 && row_of(word) == row;
}

bool sr_lock_is_free(const struct sr_region *r)
{
    uint64_t word = atomic_load(&sr_state(r)->st_lock);
    return sound(word) && owner_of(word) == 0;
}

static void say(struct sr_region *r, enum sr_row_lock what)
{
    atomic_store_explicit(&r->own->row_lock, sr_half_pack(what, SR_ROW_SALT(row_lock, r->own_row)), memory_order_release);
}

/* --- whether anybody has it ------------------------------------------------------------------- */

static int lost(struct sr_region *r, int neg_errno, struct sr_error *e)
{
    return sr_fail(e, SR_E_LOST, neg_errno, "members of region '%s' cannot be probed any more", r->name);
}

/* 0: a living member may have the lock. 1: none; the caller has said that it waits. */
static int nobody_has_it(struct sr_region *r, struct sr_error *e)
{
    int fd = sr_region__members_fd(r);
    if (fd < 0) return lost(r, fd, e);
    uint32_t high = sr_rows_high(r), said;
    if (!sr_rows_ok(r, high)) return 0;
    for (uint32_t n = 0; n < high; n++) {
        if (n == r->own_row) continue;
        int held = sr_sys_held(fd, n, 1);
        if (held < 0) return lost(r, held, e);
        if (!held) continue;
        if (!sr_half_unpack(atomic_load(&sr_row(r, n)->row_lock), SR_ROW_SALT(row_lock, n), &said))
            return sr_fail(e, SR_E_CORRUPT, 0, "the lock of region '%s' is damaged, and so is what a member says of it", r->name);
        if (said == SR_ROW_TRYING) return 0;
    }
    return 1;
}

/* Whether the lock may be taken from `seen`: 1, 0 wait on, or an error. Also of a dead holder the others
 * are asked: the word may have been damaged, and name who died of something else. */
static int may_take(struct sr_region *r, uint64_t seen, struct sr_error *e)
{
    uint32_t row = row_of(seen), gen, said;
    /* In the own name: another thread of this handle would be inside `writers`, as this one is. */
    if (!sound(seen) || row == r->own_row) return nobody_has_it(r, e);
    int fd = sr_region__members_fd(r);
    int held = fd < 0 ? fd : sr_sys_held(fd, row, 1);
    if (held < 0) return lost(r, held, e);
    if (!held) return nobody_has_it(r, e);
    if (!sr_rows_ok(r, row + 1)) return 0;
    /* The row has another owner by now, or its owner is about something else. */
    const struct sr_row *of = sr_row(r, row);
    bool another = sr_half_unpack(atomic_load(&of->row_gen), SR_ROW_SALT(row_gen, row), &gen) && gen != gen_of(seen);
    bool about = sr_half_unpack(atomic_load(&of->row_lock), SR_ROW_SALT(row_lock, row), &said) && said == SR_ROW_TRYING;
    return about && !another ? 0 : nobody_has_it(r, e);
}

/* --- taking and giving back ------------------------------------------------------------------- */

static int lock_shared(struct sr_region *r, bool *abandoned, struct sr_error *e)
{
    _Atomic uint64_t *lock = &sr_state(r)->st_lock;
    const _Atomic uint32_t *futex = (const _Atomic uint32_t *)lock;
    const uint32_t mine = (r->own_row + 1) | ((r->own_gen & 0xFFFFu) << 15);
    uint64_t flag = 0;
    for (;;) {
        say(r, SR_ROW_TRYING);    /* before the compare-and-swap, which is a full fence */
        /* Looks are rare: each takes the line of the lock from the processor that works with it, and with
         * the lock goes all that it guards. Several changes by one, then several by the other, are faster
         * than turns (bench/cases/writers.py). */
        for (uint32_t rest = REST_FIRST; rest <= REST_LAST; rest *= 2) {
            uint64_t seen = atomic_load_explicit(lock, memory_order_relaxed);
            if (sound(seen) && owner_of(seen) == 0 &&
                atomic_compare_exchange_strong(lock, &seen, word_of(mine, count_of(seen) + 1) | flag))
                return 0;
            for (uint32_t k = 0; k < rest; k++) sr_cpu_relax();
        }
        say(r, SR_ROW_WAITING);
        uint64_t seen = atomic_load(lock);
        if (sound(seen)) {
            if (owner_of(seen) == 0) continue;
            if (row_of(seen) != r->own_row) {
                if (!(seen & WAITERS) && !atomic_compare_exchange_strong(lock, &seen, seen | WAITERS)) continue;
                seen |= WAITERS;
                flag = WAITERS;    /* others may sleep too: whoever leaves must wake */
                const struct timespec slice = {.tv_nsec = SLICE_NS};
                if (sr_sys->futex_wait(futex, (uint32_t)seen, &slice) != -ETIMEDOUT || atomic_load(lock) != seen) continue;
            }
        }
        int may = may_take(r, seen, e);
        if (may < 0) return may;
        if (!may) {
            if (!sound(seen) || row_of(seen) == r->own_row) sr_region_pause();
            continue;
        }
        say(r, SR_ROW_TRYING);
        if (atomic_compare_exchange_strong(lock, &seen, word_of(mine, count_of(seen) + 1) | flag)) return *abandoned = true, 0;
    }
}

int sr_lock(struct sr_region *r, bool *abandoned, struct sr_error *e)
{
    *abandoned = false;
    if (!r->writable) return sr_fail(e, SR_E_READ_ONLY, 0, "region '%s' is attached for reading", r->name);
    pthread_mutex_lock(&r->writers);
    if (!r->open) {
        pthread_mutex_unlock(&r->writers);
        return sr_fail(e, SR_E_CLOSED, 0, "region '%s' is closed", r->name);
    }
    int result = lock_shared(r, abandoned, e);
    if (result < 0) {
        say(r, SR_ROW_OUT);
        pthread_mutex_unlock(&r->writers);
        return result;
    }
    *abandoned |= !sr_state_is_sealed(sr_state(r));
    return 0;
}

static void give_back(struct sr_region *r)
{
    _Atomic uint64_t *lock = &sr_state(r)->st_lock;
    uint64_t was = atomic_load_explicit(lock, memory_order_relaxed);
    was = atomic_exchange(lock, word_of(0, count_of(was)));
    if ((was & WAITERS) || !sound(was)) sr_sys->futex_wake((const _Atomic uint32_t *)lock, sound(was) ? 1 : INT_MAX);
    say(r, SR_ROW_OUT);
    pthread_mutex_unlock(&r->writers);
}

void sr_unlock(struct sr_region *r)
{
    sr_state_seal(sr_state(r));
    give_back(r);
}

void sr_unlock_unsure(struct sr_region *r)
{
    sr_state_unseal(sr_state(r));
    give_back(r);
}
