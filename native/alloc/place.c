/* place: the lists of free blocks, and where in which of them a new one goes.
 *
 * What a place costs is pages: those that no block touches yet count against the budget (new), and
 * those of them that have no memory have to be cleared (cold). A free block lies between two that
 * are in use, so the pages that it has whole are the untouched ones, and its two ends lie in pages
 * that are paid for. A remainder of less than a page goes there if it fits.
 */
#include "sr_alloc_private.h"

#define CANDIDATES 12     /* free blocks that are compared, of each set             */
#define SCAN 4096         /* and that are looked at before saying that none serves  */

struct sr_class sr_alloc__class_of(uint64_t units)
{
    if (units < SR_ALLOC_SLS) return (struct sr_class){0, (unsigned)units};
    unsigned k = sr_log2_floor(units);
    if (k - 3 >= SR_ALLOC_FLS) return (struct sr_class){SR_ALLOC_FLS - 1, SR_ALLOC_SLS - 1};
    return (struct sr_class){k - 3, (unsigned)(units >> (k - 4)) & (SR_ALLOC_SLS - 1)};
}

struct sr_class sr_alloc__class_for(uint64_t units)
{
    if (units >= SR_ALLOC_SLS) units += (UINT64_C(1) << (sr_log2_floor(units) - 4)) - 1;
    return sr_alloc__class_of(units);
}

static unsigned set_of(const struct sr_block *b) { return sr_alloc__state(b) == SR_BLOCK_WARM ? SR_ALLOC_WARM : SR_ALLOC_COLD; }

int sr_alloc__list_insert(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_alloc_head *h = sr_alloc__head(r);
    struct sr_block *b = sr_block(r, n);
    struct sr_class c = sr_alloc__class_of(sr_alloc__length(b) / SR_BLOCK_UNIT);
    unsigned set = set_of(b);
    uint32_t first = h->al_lists[set][c.fl][c.sl];
    b->blk_free_prev = 0;
    b->blk_free_next = first;
    if (first != 0) {
        struct sr_block *f = sr_alloc__free_block(r, first);
        if (f == NULL || f->blk_free_prev != 0) return sr_alloc__bad(r, e, "a list of free blocks");
        f->blk_free_prev = n;
    }
    h->al_lists[set][c.fl][c.sl] = n;
    h->al_sl_bits[set][c.fl] |= (uint16_t)(1u << c.sl);
    h->al_fl_bits[set] |= UINT64_C(1) << c.fl;
    return 0;
}

int sr_alloc__list_remove(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_alloc_head *h = sr_alloc__head(r);
    struct sr_block *b = sr_block(r, n);
    struct sr_class c = sr_alloc__class_of(sr_alloc__length(b) / SR_BLOCK_UNIT);
    struct sr_block *next = NULL, *prev = NULL;
    uint32_t *list = &h->al_lists[set_of(b)][c.fl][c.sl];
    if (b->blk_free_next && (!(next = sr_alloc__free_block(r, b->blk_free_next)) || next->blk_free_prev != n))
        return sr_alloc__bad(r, e, "a list of free blocks");
    if (b->blk_free_prev && (!(prev = sr_alloc__free_block(r, b->blk_free_prev)) || prev->blk_free_next != n))
        return sr_alloc__bad(r, e, "a list of free blocks");
    if (prev == NULL && *list != n) return sr_alloc__bad(r, e, "the head of a list of free blocks");
    if (next) next->blk_free_prev = b->blk_free_prev;
    if (prev) prev->blk_free_next = b->blk_free_next;
    else *list = b->blk_free_next;
    if (*list == 0) {
        h->al_sl_bits[set_of(b)][c.fl] &= (uint16_t)~(1u << c.sl);
        if (h->al_sl_bits[set_of(b)][c.fl] == 0) h->al_fl_bits[set_of(b)] &= ~(UINT64_C(1) << c.fl);
    }
    return 0;
}

/* --- what a place costs ----------------------------------------------------------------------- */

struct look {
    struct sr_region *r;
    uint64_t want, page, spare;
    bool tight;              /* room counts for more than straddling a page less */
    struct sr_spot best;
    uint64_t score;          /* of the best; the lower the better */
    unsigned left;           /* candidates                        */
};

/* Costs, in pages to be cleared. Clearing costs time once; a page more than the length needs costs room
 * for as long as the block lives; addresses beyond all blocks cost page tables. Chosen by what
 * tests/alloc.c prints: higher, EXTRA clears more, lower, it leaves more unusable. */
#define EXTRA 8
#define TAIL 32
#define STRADDLES (UINT64_C(1) << 32)
#define NOWHERE UINT64_MAX
#define PERFECT EXTRA        /* no page more than its length needs, and all of them have memory */

/* Whole pages of the length have to be new; one less, where both its ends lie in pages that are paid for. */
static void consider(struct look *l, uint32_t n, const struct sr_block *b, uint64_t start)
{
    if (start < b->blk_off || start + l->want > sr_alloc__end(b) || start + l->want < start) return;
    struct sr_granules pages = sr_alloc__vacant(l->r, b->blk_off, sr_alloc__end(b), start, l->want);
    uint64_t new = pages.to - pages.from;
    if (new > l->spare) return;
    uint64_t cold = new - (sr_alloc__state(b) == SR_BLOCK_WARM ? sr_region_marked(l->r, pages.from, pages.to) : 0);
    uint64_t touched = (start + l->want - 1) / l->page - start / l->page + 1, least = (l->want + l->page - 1) / l->page;
    uint64_t score = (new + 1 - sr_min(new + 1, l->want / l->page)) * EXTRA + cold;
    if (touched > least && l->want >= l->page && !l->tight) score += STRADDLES;
    if (b->blk_next == 0) score += TAIL;
    if (score >= l->score) return;
    l->score = score;
    l->best = (struct sr_spot){n, start, cold};
}

/* The places in free block n that can be the cheapest; of two that cost the same, the first. */
static void consider_block(struct look *l, uint32_t n, const struct sr_block *b)
{
    uint64_t from = b->blk_off, to = sr_alloc__end(b), page = l->page, want = l->want, rest = want % page;
    uint64_t first = sr_align_up(from, page), last = sr_align_down(to, page);
    if (to - from < want) return;
    /* Beyond all blocks one follows the other without gaps, as when a region is filled for the first
     * time; and the end of all addresses is not the end of anything that is paid for. */
    if (b->blk_next == 0) {
        consider(l, n, b, from);
        consider(l, n, b, first);
        return;
    }
    if (want < page) {
        consider(l, n, b, from);
        consider(l, n, b, to - want);
        return;
    }
    /* The remainder in the paid page before and then whole pages, or the other way round. */
    if (rest && first >= rest) consider(l, n, b, first - rest);
    consider(l, n, b, first);
    consider(l, n, b, from);
    consider(l, n, b, to - want);
    if (last >= want - rest) consider(l, n, b, last - (want - rest));
    if (last >= want) consider(l, n, b, last - want);
}

/* --- the search ------------------------------------------------------------------------------- */

/* The next list that is not empty, at or above class *c; 0 at the end. */
static uint32_t list_from(struct sr_region *r, unsigned set, struct sr_class *c)
{
    const struct sr_alloc_head *h = sr_alloc__head(r);
    for (; c->fl < SR_ALLOC_FLS; c->fl++, c->sl = 0) {
        unsigned bits = c->sl < SR_ALLOC_SLS ? h->al_sl_bits[set][c->fl] & (0xFFFFu << c->sl) & 0xFFFFu : 0;
        if (bits) {
            c->sl = (unsigned)__builtin_ctz(bits);
            return h->al_lists[set][c->fl][c->sl];
        }
        /* Straight to the next level that has any. */
        uint64_t levels = c->fl + 1 < SR_ALLOC_FLS ? h->al_fl_bits[set] & (~UINT64_C(0) << (c->fl + 1)) : 0;
        if (levels == 0) return 0;
        c->fl = (unsigned)__builtin_ctzll(levels) - 1;
    }
    return 0;
}

/* The smallest that surely have `len` bytes. */
static int walk_up(struct look *l, unsigned set, uint64_t len, struct sr_error *e)
{
    struct sr_class c = sr_alloc__class_for(len / SR_BLOCK_UNIT);
    l->left = CANDIDATES;
    for (uint32_t n = list_from(l->r, set, &c); n != 0; c.sl++, n = list_from(l->r, set, &c)) {
        while (n != 0) {
            const struct sr_block *b = sr_alloc__free_block(l->r, n);
            if (b == NULL) return sr_alloc__bad(l->r, e, "a list of free blocks");
            consider_block(l, n, b);
            if (l->score <= PERFECT || --l->left == 0) return 0;
            n = b->blk_free_next;
        }
    }
    return 0;
}

/* The rounding up may have passed over a block that fits: some of its own class. */
static int walk_own(struct look *l, unsigned set, struct sr_error *e)
{
    struct sr_class c = sr_alloc__class_of(l->want / SR_BLOCK_UNIT);
    uint32_t n = sr_alloc__head(l->r)->al_lists[set][c.fl][c.sl];
    for (int step = 0; n != 0 && step < SR_ALLOC_OWN_STEPS; step++) {
        const struct sr_block *b = sr_alloc__free_block(l->r, n);
        if (b == NULL) return sr_alloc__bad(l->r, e, "a list of free blocks");
        consider_block(l, n, b);
        n = b->blk_free_next;
    }
    return 0;
}

/* From the longest down, until `see` says enough or SCAN blocks of a set have been seen. */
static int walk_down(struct sr_region *r, uint64_t shortest, bool (*see)(void *, uint32_t, const struct sr_block *), void *of, struct sr_error *e)
{
    const struct sr_alloc_head *h = sr_alloc__head(r);
    struct sr_class low = sr_alloc__class_of(shortest / SR_BLOCK_UNIT);
    for (unsigned set = 0; set < SR_ALLOC_SETS; set++) {
        unsigned left = SCAN;
        for (unsigned fl = SR_ALLOC_FLS; fl-- > low.fl && left;) {
            for (unsigned sl = SR_ALLOC_SLS; h->al_sl_bits[set][fl] && sl-- > (fl == low.fl ? low.sl : 0);) {
                for (uint32_t n = h->al_lists[set][fl][sl]; n != 0 && left; left--) {
                    const struct sr_block *b = sr_alloc__free_block(r, n);
                    if (b == NULL) return sr_alloc__bad(r, e, "a list of free blocks");
                    if (see(of, n, b)) return 0;
                    n = b->blk_free_next;
                }
            }
        }
    }
    return 0;
}

static bool first_that_serves(void *of, uint32_t n, const struct sr_block *b)
{
    struct look *l = of;
    consider_block(l, n, b);
    return l->score != NOWHERE;
}

int sr_alloc__find(struct sr_region *r, uint64_t want, struct sr_spot *out, struct sr_error *e)
{
    struct look l = {.r = r, .want = want, .page = sr_alloc__page(r), .spare = sr_alloc__spare(r), .score = NOWHERE};
    /* Large blocks of one length, each beginning a page, can leave a third of all pages empty: then they
     * follow one another without gaps. */
    l.tight = sr_alloc__head(r)->al_pages * l.page > sr_state(r)->st_used + r->head.hd_size / 16;
    /* Small blocks fill up pages that are paid for; large ones look for memory first. */
    unsigned set = want < l.page ? SR_ALLOC_COLD : SR_ALLOC_WARM;
    int got = walk_up(&l, set, want, e);
    if (got == 0 && l.score > PERFECT) got = walk_up(&l, !set, want, e);
    /* Where all of these would have it straddle a page more: long enough for it to begin a page. */
    uint64_t aligned = want + l.page - SR_BLOCK_UNIT;
    for (unsigned turn = 0; got == 0 && want >= l.page && l.score >= STRADDLES && turn < 2; turn++) got = walk_up(&l, set ^ turn, aligned, e);
    for (set = 0; got == 0 && l.score == NOWHERE && set < SR_ALLOC_SETS; set++) got = walk_own(&l, set, e);
    /* Before saying that there is no room; unless there cannot be. */
    if (got == 0 && l.score == NOWHERE && l.spare + 1 >= want / l.page) got = walk_down(r, want, first_that_serves, &l, e);
    if (got < 0) return got;
    *out = l.best;
    return l.score == NOWHERE;
}

/* --- the largest ------------------------------------------------------------------------------ */

struct longest { struct sr_region *r; uint64_t spare, page, most, cap; };

static bool longer(void *of, uint32_t n, const struct sr_block *b)
{
    struct longest *l = of;
    (void)n;
    struct sr_granules whole = sr_alloc__whole_pages(l->r, b);
    uint64_t len = sr_alloc__length(b);
    if (whole.to - whole.from > l->spare) {
        uint64_t before = sr_align_up(b->blk_off, l->page) - b->blk_off, after = sr_alloc__end(b) % l->page;
        len = l->spare * l->page + sr_max(before, b->blk_next ? after : 0);
    }
    l->most = sr_max(l->most, len);
    return l->most >= l->cap;
}

uint64_t sr_alloc_largest(struct sr_region *r)
{
    uint64_t cap = sr_alloc__cap(r);
    struct longest l = {.r = r, .spare = sr_alloc__spare(r), .page = sr_alloc__page(r)};
    l.cap = cap - sr_min(cap, sr_state(r)->st_used);
    if (l.cap) walk_down(r, SR_BLOCK_UNIT, longer, &l, NULL);
    return sr_min(l.most, l.cap);
}
