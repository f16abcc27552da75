/* commit: which granules of the data segment have memory.
 *
 * The commit map says it, one bit a granule. A mark is set after the memory is there and cleared
 * before it is given back: a mark without memory would be a SIGBUS for the next who believes it, and
 * memory without a mark only costs a system call. So a kill between the two leaves memory that the
 * map does not know of, and recovery gives it back (sr_region_discard).
 */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

/* A word of the commit map: 48 granules, and 16 bits of check above them. Believing a mark that is
 * not true would be a SIGBUS; a word that fails its check says that nothing is committed, and
 * committing again costs a system call. A word of zeros is right: nothing yet. */
#define WORD_MASK ((UINT64_C(1) << SR_COMMIT_BITS) - 1)

static uint64_t commit_pack(uint64_t bits, uint64_t word)
{
    if (bits == 0) return 0;
    uint64_t mixed = (bits ^ (word + 1) * UINT64_C(0x9E3779B97F4A7C15)) * UINT64_C(0xBF58476D1CE4E5B9);
    return bits | (mixed >> 48) << SR_COMMIT_BITS;
}

static _Atomic uint64_t *commit_word(const struct sr_region *r, uint64_t word)
{
    return (_Atomic uint64_t *)(sr_mapped(&r->catalog) + SR_COMMIT_MAP_AT) + word;
}

static uint64_t commit_bits(const struct sr_region *r, uint64_t word)
{
    uint64_t seen = atomic_load(commit_word(r, word)), bits = seen & WORD_MASK;
    return commit_pack(bits, word) == seen ? bits : 0;
}

static bool committed(const struct sr_region *r, uint64_t granule)
{
    return commit_bits(r, granule / SR_COMMIT_BITS) >> (granule % SR_COMMIT_BITS) & 1;
}

/* The bits of a word that belong to granules [from, to), of which word's is the first or later. */
static uint64_t bits_within(uint64_t word, uint64_t from, uint64_t to)
{
    uint64_t first = word * SR_COMMIT_BITS, mask = WORD_MASK;
    if (from > first) mask &= WORD_MASK << (from - first);
    if (to < first + SR_COMMIT_BITS) mask &= WORD_MASK >> (first + SR_COMMIT_BITS - to);
    return mask & WORD_MASK;
}

void sr_region__mark(const struct sr_region *r, uint64_t from, uint64_t to, bool yes)
{
    for (uint64_t word = from / SR_COMMIT_BITS; word * SR_COMMIT_BITS < to; word++) {
        uint64_t seen = atomic_load(commit_word(r, word)), mask = bits_within(word, from, to), next;
        do {
            uint64_t bits = seen & WORD_MASK;
            if (commit_pack(bits, word) != seen) bits = 0;
            next = commit_pack(yes ? bits | mask : bits & ~mask, word);
        } while (!atomic_compare_exchange_weak(commit_word(r, word), &seen, next));
    }
}

static bool stays(const struct sr_region *r, uint64_t granule) { return sr_region__stays(r, granule * r->head.hd_granule); }

static uint64_t count_committed(const struct sr_region *r, uint64_t from, uint64_t to)
{
    uint64_t count = 0;
    if (from >= to) return 0;
    for (uint64_t word = from / SR_COMMIT_BITS; word * SR_COMMIT_BITS < to; word++)
        count += (uint64_t)__builtin_popcountll(commit_bits(r, word) & bits_within(word, from, to));
    return count;
}

uint64_t sr_region_marked(const struct sr_region *r, uint64_t from, uint64_t to)
{
    uint64_t count = count_committed(r, from, to);
    if (count == 0 || !r->backend->shared_tables) return count;
    uint64_t unit = r->head.hd_share_unit / r->head.hd_granule;
    for (uint64_t g = sr_align_up(from, unit); g < to; g += unit) count -= committed(r, g);
    return count;
}

uint64_t sr_region_uncommitted(const struct sr_region *r, sr_off off, uint64_t len)
{
    if (len == 0) return 0;
    uint64_t granule = r->head.hd_granule, from = off.at / granule, to = (off.at + len - 1) / granule + 1;
    return (to - from - count_committed(r, from, to)) * granule;
}

static int data_fd(struct sr_region *r, struct sr_error *e)
{
    int fd = sr_region__data_fd(r);
    if (fd >= 0) return fd;
    return sr_fail(e, SR_E_LOST, fd, "the memory of region '%s' cannot be opened any more: its descriptor was closed", r->name);
}

int sr_region_commit(struct sr_region *r, sr_off off, uint64_t len, struct sr_error *e)
{
    if (len == 0) return 0;
    uint64_t granule = r->head.hd_granule, end = (off.at + len - 1) / granule + 1;
    for (uint64_t g = off.at / granule; g < end;) {
        if (committed(r, g)) {
            g++;
            continue;
        }
        uint64_t run = 1;
        while (g + run < end && !committed(r, g + run)) run++;
        int fd = data_fd(r, e);
        if (fd < 0) return fd;
        int got = r->backend->commit(fd, &r->data, g * granule, run * granule, e);
        if (got == 0) got = sr_region__show(r, g * granule, run * granule, e);
        if (got < 0) return got;
        sr_region__mark(r, g, g + run, true);
        g += run;
    }
    return 0;
}

int sr_region_uncommit(struct sr_region *r, uint64_t from, uint64_t to, struct sr_error *e)
{
    int fd = data_fd(r, e);    /* before the marks go: without it the memory would stay */
    if (fd < 0) return fd;
    uint64_t at = from * r->head.hd_granule, len = (to - from) * r->head.hd_granule;
    sr_region__mark(r, from, to, false);
    int got = sr_region__hide(r, at, len, e);
    return got < 0 ? got : r->backend->punch(fd, at, len, e);
}

struct sr_granules sr_region_last_marked(const struct sr_region *r, uint64_t from, uint64_t to, uint64_t most)
{
    uint64_t end = from;
    while (to > from && end == from) {
        uint64_t word = (to - 1) / SR_COMMIT_BITS, bits = commit_bits(r, word) & bits_within(word, from, to);
        to = sr_max(word * SR_COMMIT_BITS, from);
        if (bits == 0) continue;
        uint64_t last = word * SR_COMMIT_BITS + sr_log2_floor(bits);
        if (stays(r, last)) to = last;
        else end = last + 1;
    }
    struct sr_granules run = {end, end};
    while (run.from > from && end - run.from < most && committed(r, run.from - 1) && !stays(r, run.from - 1)) run.from--;
    return run;
}

void sr_region_discard(struct sr_region *r, uint64_t from, uint64_t to)
{
    while (from < to) {
        uint64_t end = from;
        while (end < to && !committed(r, end) && !stays(r, end)) end++;
        int fd = end > from ? sr_region__data_fd(r) : -1;
        if (fd >= 0) {
            uint64_t at = from * r->head.hd_granule, len = (end - from) * r->head.hd_granule;
            sr_region__hide(r, at, len, NULL);
            r->backend->punch(fd, at, len, NULL);
        }
        from = end + 1;
    }
}

void sr_region_seal_memory(struct sr_region *r)
{
    if (!(r->head.hd_flags & SR_HEAD_KEPT)) return;
    int fd = sr_region__data_fd(r);
    /* Not F_SEAL_WRITE, which fails as long as a writer has it mapped. */
    if (fd >= 0) sr_sys->fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
}
