/* lock: the one lock that writers share.
 *
 * A futex word in the catalog segment:
 *
 *      31      30 ........ 15   14 ........ 0
 *   +---------+---------------+--------------+
 *   | waiters |  generation   |  row + 1     |      0: free
 *   +---------+---------------+--------------+
 *
 * It names its holder by row and generation of the row, not by pid or thread, and is no pthread
 * mutex: the kernel's robust list would declare a holder dead by a thread id, which means nothing
 * across pid namespaces. A waiter sleeps in slices; after each it asks whether the holder's byte
 * of the members segment is still locked, which the kernel answers exactly. If not, it takes the
 * lock over by compare-and-swap on the whole word, so that a row that has been used again in the
 * meantime, with the next generation, is never mistaken for the dead holder. A new owner of a row
 * settles what the former one left before it does anything else (sr_member_settled).
 *
 * A holder that is stopped (SIGSTOP) blocks writers. Readers never look at this word.
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>

#define WAITERS 0x80000000u
#define SPINS 200               /* about two microseconds: the common hold is shorter */
#define SLICE_NS 5000000        /* 5 ms: how long a death may go unnoticed */

static uint32_t word_of(uint32_t row, uint32_t gen) { return (row + 1) | ((gen & 0xFFFFu) << 15); }
static uint32_t row_of(uint32_t word) { return (word & 0x7FFFu) - 1; }

_Static_assert(SR_ROWS_MAX < 0x7FFF, "a row fits into the lock word");

bool sr_lock_names_row(const struct sr_region *r, uint32_t row)
{
    uint32_t word = atomic_load(&sr_state(r)->st_lock);
    return word != 0 && row_of(word) == row;
}

/* 1: taken over from the dead; 0: the holder lives, or the word has changed. */
static int take_over(struct sr_region *r, _Atomic uint32_t *lock, uint32_t seen, uint32_t mine, struct sr_error *e)
{
    uint32_t row = row_of(seen);
    /* A word that names no row was written by nobody of ours. */
    bool nonsense = row >= r->head.hd_rows;
    if (nonsense) return sr_fail(e, SR_E_CORRUPT, 0, "the lock of region '%s' names a member that cannot be", r->name);
    /* The same row in an older generation: this member has just taken the row over. In this one, the
     * word is damaged: whoever takes the lock with it is inside `writers`, as this thread is. */
    bool ours = row == sr_member_row(r);
    if (!ours) {
        int fd = sr_region__members_fd(r);
        int held = fd < 0 ? fd : sr_sys_held(fd, row, 1);
        if (held < 0) return sr_fail(e, SR_E_LOST, held, "members of region '%s' cannot be probed any more", r->name);
        if (held) return 0;
    }
    uint32_t expected = seen;
    return atomic_compare_exchange_strong(lock, &expected, mine | (seen & WAITERS)) ? 1 : 0;
}

static int lock_shared(struct sr_region *r, bool *abandoned, struct sr_error *e)
{
    _Atomic uint32_t *lock = &sr_state(r)->st_lock;
    const uint32_t mine = word_of(sr_member_row(r), sr_member_gen(r));
    uint32_t flag = 0;
    for (;;) {
        for (int spin = 0; spin < SPINS; spin++) {
            uint32_t none = 0;
            if (atomic_load_explicit(lock, memory_order_relaxed) == 0 &&
                atomic_compare_exchange_strong(lock, &none, mine | flag))
                return 0;
            sr_cpu_relax();
        }
        uint32_t seen = atomic_load(lock);
        if (seen == 0) continue;
        if (row_of(seen) == sr_member_row(r)) {
            int took = take_over(r, lock, seen, mine, e);
            if (took < 0) return took;
            if (took) return *abandoned = true, 0;
            continue;
        }
        if (!(seen & WAITERS) && !atomic_compare_exchange_strong(lock, &seen, seen | WAITERS)) continue;
        seen |= WAITERS;
        flag = WAITERS;    /* others may sleep too: whoever leaves must wake */
        const struct timespec slice = {.tv_nsec = SLICE_NS};
        int waited = sr_sys->futex_wait(lock, seen, &slice);
        if (waited != -ETIMEDOUT) continue;
        seen = atomic_load(lock);
        if (seen == 0) continue;
        int took = take_over(r, lock, seen, mine, e);
        if (took < 0) return took;
        if (took) return *abandoned = true, 0;
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
    if (result < 0) pthread_mutex_unlock(&r->writers);
    return result;
}

void sr_unlock(struct sr_region *r)
{
    _Atomic uint32_t *lock = &sr_state(r)->st_lock;
    if (atomic_exchange(lock, 0) & WAITERS) sr_sys->futex_wake(lock, 1);
    pthread_mutex_unlock(&r->writers);
}
