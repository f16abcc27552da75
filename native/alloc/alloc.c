/* alloc: taking, giving, merging. */
#include "sr_alloc.h"

#include <errno.h>

#define OWN_CLASS_STEPS 64    /* how far a list of blocks that may be too small is searched */

static struct sr_alloc_head *head(const struct sr_region *r) { return (struct sr_alloc_head *)(sr_mapped(&r->catalog) + SR_ALLOC_AT); }

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the allocator of region '%s' is damaged: %s", r->name, what);
}

/* --- descriptors ------------------------------------------------------------------------------ */

static uint64_t length(const struct sr_block *b) { return b->blk_len_state & ~UINT64_C(63); }
static enum sr_block_state state(const struct sr_block *b) { return (enum sr_block_state)(b->blk_len_state & 63); }
static void set(struct sr_block *b, uint64_t len, enum sr_block_state s) { b->blk_len_state = len | s; }
static uint64_t usable(const struct sr_region *r) { return sr_align_down(r->head.hd_size, SR_BLOCK_UNIT); }

/* A block of the given state whose place makes sense; NULL otherwise. */
static struct sr_block *checked(struct sr_region *r, uint32_t n, enum sr_block_state want)
{
    if (!sr_block_ok(r, n)) return NULL;
    struct sr_block *b = sr_block(r, n);
    if (state(b) != want || length(b) == 0) return NULL;
    return sr_is_aligned(b->blk_off, SR_BLOCK_UNIT) && sr_range_ok(b->blk_off, length(b), usable(r)) ? b : NULL;
}

/* Whether the neighbours agree on where block n begins and ends, and n with them: nothing else guards
 * a descriptor, and a free block that reached into another would be given out over an object. */
static bool fits_between(struct sr_region *r, uint32_t n)
{
    const struct sr_block *b = sr_block(r, n), *prev = NULL, *next = NULL;
    uint64_t end = b->blk_off + length(b);
    if (b->blk_prev != 0) {
        if (!sr_block_ok(r, b->blk_prev)) return false;
        prev = sr_block(r, b->blk_prev);
        if (prev->blk_next != n || prev->blk_off + length(prev) != b->blk_off) return false;
    } else if (b->blk_off != 0 || head(r)->al_first != n) {
        return false;
    }
    if (b->blk_next == 0) return end == usable(r);
    if (!sr_block_ok(r, b->blk_next)) return false;
    next = sr_block(r, b->blk_next);
    return next->blk_prev == n && next->blk_off == end;
}

static int grow_descriptors(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t n = s->st_blocks_committed;
    if (n >= sr_blocks_limit(r->head.hd_gens)) return sr_fail(e, SR_E_FULL, 0, "region '%s' has all the blocks it can have", r->name);
    /* To the end of the generation, but in steps. */
    uint32_t step = (uint32_t)sr_min(sr_blocks_limit(sr_block_gen(n) + 1) - n, SR_LARGE_PAGE / sizeof(struct sr_block));
    int got = sr_region_commit_catalog(r, sr_block_at(r->head.hd_gen0, n), (uint64_t)step * sizeof(struct sr_block), e);
    if (got == 0) s->st_blocks_committed = n + step;
    return got;
}

static int new_descriptor(struct sr_region *r, uint32_t *out, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t n = s->st_free_block;
    if (n != 0) {
        if (!sr_block_ok(r, n) || state(sr_block(r, n)) != SR_BLOCK_NONE) return bad(r, e, "unused descriptors");
        s->st_free_block = sr_block(r, n)->blk_free_next;
    } else {
        if (s->st_blocks_high >= s->st_blocks_committed) {
            int got = grow_descriptors(r, e);
            if (got < 0) return got;
        }
        n = s->st_blocks_high;
        if (!sr_block_ok(r, n) || state(sr_block(r, n)) != SR_BLOCK_NONE) return bad(r, e, "number of descriptors");
        s->st_blocks_high = n + 1;
    }
    memset(sr_block(r, n), 0, sizeof(struct sr_block));
    *out = n;
    return 0;
}

static void drop_descriptor(struct sr_region *r, uint32_t n)
{
    struct sr_state *s = sr_state(r);
    struct sr_block *b = sr_block(r, n);
    memset(b, 0, sizeof *b);
    b->blk_free_next = s->st_free_block;
    s->st_free_block = n;
}

/* --- size classes ----------------------------------------------------------------------------- */

struct class { unsigned fl, sl; };

static struct class class_of(uint64_t units)
{
    if (units < SR_ALLOC_SLS) return (struct class){0, (unsigned)units};
    unsigned k = sr_log2_floor(units);
    return (struct class){k - 3, (unsigned)(units >> (k - 4)) & (SR_ALLOC_SLS - 1)};
}

/* The lowest class in which every block is at least `units` long. */
static struct class class_for(uint64_t units)
{
    if (units >= SR_ALLOC_SLS) units += (UINT64_C(1) << (sr_log2_floor(units) - 4)) - 1;
    return class_of(units);
}

static int list_insert(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_alloc_head *h = head(r);
    struct sr_block *b = sr_block(r, n);
    struct class c = class_of(length(b) / SR_BLOCK_UNIT);
    uint32_t first = h->al_lists[c.fl][c.sl];
    b->blk_free_prev = 0;
    b->blk_free_next = first;
    if (first != 0) {
        struct sr_block *f = checked(r, first, SR_BLOCK_FREE);
        if (f == NULL || f->blk_free_prev != 0) return bad(r, e, "a list of free blocks");
        f->blk_free_prev = n;
    }
    h->al_lists[c.fl][c.sl] = n;
    h->al_sl_bits[c.fl] |= (uint16_t)(1u << c.sl);
    h->al_fl_bits |= UINT64_C(1) << c.fl;
    return 0;
}

static int list_remove(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_alloc_head *h = head(r);
    struct sr_block *b = sr_block(r, n);
    struct class c = class_of(length(b) / SR_BLOCK_UNIT);
    struct sr_block *next = NULL, *prev = NULL;
    if (b->blk_free_next && (!(next = checked(r, b->blk_free_next, SR_BLOCK_FREE)) || next->blk_free_prev != n))
        return bad(r, e, "a list of free blocks");
    if (b->blk_free_prev && (!(prev = checked(r, b->blk_free_prev, SR_BLOCK_FREE)) || prev->blk_free_next != n))
        return bad(r, e, "a list of free blocks");
    if (prev == NULL && h->al_lists[c.fl][c.sl] != n) return bad(r, e, "the head of a list of free blocks");
    if (next) next->blk_free_prev = b->blk_free_prev;
    if (prev) prev->blk_free_next = b->blk_free_next;
    else h->al_lists[c.fl][c.sl] = b->blk_free_next;
    if (h->al_lists[c.fl][c.sl] == 0) {
        h->al_sl_bits[c.fl] &= (uint16_t)~(1u << c.sl);
        if (h->al_sl_bits[c.fl] == 0) h->al_fl_bits &= ~(UINT64_C(1) << c.fl);
    }
    return 0;
}

/* A free block of at least `units`, or 0. */
static uint32_t find(struct sr_region *r, uint64_t units)
{
    const struct sr_alloc_head *h = head(r);
    struct class c = class_for(units);
    if (c.fl < SR_ALLOC_FLS) {
        unsigned sl_bits = h->al_sl_bits[c.fl] & (0xFFFFu << c.sl) & 0xFFFFu;
        unsigned fl = c.fl;
        if (sl_bits == 0) {
            uint64_t fl_bits = c.fl + 1 < 64 ? h->al_fl_bits & (~UINT64_C(0) << (c.fl + 1)) : 0;
            fl_bits &= (UINT64_C(1) << SR_ALLOC_FLS) - 1;
            if (fl_bits) {
                fl = (unsigned)__builtin_ctzll(fl_bits);
                sl_bits = h->al_sl_bits[fl];
            }
        }
        if (sl_bits) return h->al_lists[fl][__builtin_ctz(sl_bits)];
    }
    /* The rounding up may have passed over a block that fits: look at some of its own class. */
    c = class_of(units);
    if (c.fl >= SR_ALLOC_FLS) return 0;
    uint32_t n = h->al_lists[c.fl][c.sl];
    for (int step = 0; n != 0 && step < OWN_CLASS_STEPS; step++) {
        const struct sr_block *b = checked(r, n, SR_BLOCK_FREE);
        if (b == NULL) return n;    /* the caller finds out what is wrong with it */
        if (length(b) >= units * SR_BLOCK_UNIT) return n;
        n = b->blk_free_next;
    }
    return 0;
}

/* --- blocks ----------------------------------------------------------------------------------- */

/* Cut [at, end of b) off into a free block of its own, not yet in a list. */
static int split(struct sr_region *r, uint32_t n, uint64_t at, uint32_t *out, struct sr_error *e)
{
    int got = new_descriptor(r, out, e);
    if (got < 0) return got;
    struct sr_block *b = sr_block(r, n), *rest = sr_block(r, *out);
    if (b->blk_next && !sr_block_ok(r, b->blk_next)) return bad(r, e, "physical links");
    rest->blk_off = at;
    set(rest, b->blk_off + length(b) - at, SR_BLOCK_FREE);
    rest->blk_prev = n;
    rest->blk_next = b->blk_next;
    if (b->blk_next) sr_block(r, b->blk_next)->blk_prev = *out;
    b->blk_next = *out;
    set(b, at - b->blk_off, state(b));
    return 0;
}

/* Swallow the next block, which is in no list. */
static int merge_next(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_block *b = sr_block(r, n);
    uint32_t gone = b->blk_next;
    struct sr_block *next = sr_block(r, gone);
    if (next->blk_prev != n || next->blk_off != b->blk_off + length(b)) return bad(r, e, "neighbours");
    if (next->blk_next && !sr_block_ok(r, next->blk_next)) return bad(r, e, "physical links");
    set(b, length(b) + length(next), state(b));
    b->blk_next = next->blk_next;
    if (b->blk_next) sr_block(r, b->blk_next)->blk_prev = n;
    drop_descriptor(r, gone);
    return 0;
}

static uint64_t pages_touched(uint64_t at, uint64_t len) { return (at + len - 1) / SR_LARGE_PAGE - at / SR_LARGE_PAGE + 1; }

/* Where in the free block the wanted bytes should begin. */
static uint64_t best_start(const struct sr_block *b, uint64_t len)
{
    if (len < SR_LARGE_PAGE || pages_touched(b->blk_off, len) == (len + SR_LARGE_PAGE - 1) / SR_LARGE_PAGE) return b->blk_off;
    uint64_t aligned = sr_align_up(b->blk_off, SR_LARGE_PAGE);
    return aligned + len <= b->blk_off + length(b) ? aligned : b->blk_off;
}

static int full(struct sr_region *r, uint64_t len, struct sr_error *e)
{
    uint64_t free = usable(r) - sr_min(usable(r), sr_state(r)->st_used), largest = sr_alloc_largest(r);
    int code = sr_fail(e, SR_E_FULL, -ENOSPC, "region '%s' has no room for %llu bytes: %llu are free, %llu of them in one piece",
                       r->name, (unsigned long long)len, (unsigned long long)free, (unsigned long long)largest);
    if (e) e->wanted = len, e->free = free, e->largest = largest;
    return code;
}

int sr_alloc_take(struct sr_region *r, uint64_t len, struct sr_extent *out, struct sr_error *e)
{
    if (len > usable(r)) return full(r, len, e);
    uint64_t want = sr_max(sr_align_up(len, SR_BLOCK_UNIT), SR_BLOCK_UNIT);
    uint32_t n = 0;
    if (want >= SR_LARGE_PAGE) n = find(r, (want + SR_LARGE_PAGE - SR_BLOCK_UNIT) / SR_BLOCK_UNIT);
    if (n == 0) n = find(r, want / SR_BLOCK_UNIT);
    if (n == 0) return full(r, len, e);
    struct sr_block *b = checked(r, n, SR_BLOCK_FREE);
    if (b == NULL || length(b) < want || !fits_between(r, n)) return bad(r, e, "a list of free blocks");
    int got = list_remove(r, n, e);
    if (got < 0) return got;
    uint64_t start = best_start(b, want);
    uint32_t rest;
    if (start > b->blk_off) {
        uint32_t front = n;
        got = split(r, n, start, &rest, e);
        int put_back = list_insert(r, front, e);
        if (got < 0) return got;
        if (put_back < 0) return put_back;
        n = rest;
        b = sr_block(r, n);
    }
    if (length(b) > want) {
        got = split(r, n, b->blk_off + want, &rest, e);
        if (got < 0) {
            /* As if it had been taken: giving it back joins it with what was cut off before it. */
            set(b, length(b), SR_BLOCK_USED);
            sr_state(r)->st_used += length(b);
            sr_alloc_give(r, n, NULL);
            return got;
        }
        got = list_insert(r, rest, e);
        if (got < 0) return got;
    }
    set(b, want, SR_BLOCK_USED);
    b->blk_free_prev = b->blk_free_next = 0;
    sr_state(r)->st_used += want;
    *out = (struct sr_extent){b->blk_off, want, n};
    return 0;
}

int sr_alloc_give(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_block *b = checked(r, n, SR_BLOCK_USED);
    if (b == NULL) return bad(r, e, "a block given back that is not in use");
    if (!fits_between(r, n) || (b->blk_next && !fits_between(r, b->blk_next)) || (b->blk_prev && !fits_between(r, b->blk_prev)))
        return bad(r, e, "neighbours");
    struct sr_state *s = sr_state(r);
    s->st_used -= sr_min(s->st_used, length(b));
    set(b, length(b), SR_BLOCK_FREE);
    if (b->blk_next && checked(r, b->blk_next, SR_BLOCK_FREE)) {
        int got = list_remove(r, b->blk_next, e);
        if (got == 0) got = merge_next(r, n, e);
        if (got < 0) return got;
    }
    if (b->blk_prev && checked(r, b->blk_prev, SR_BLOCK_FREE)) {
        uint32_t before = b->blk_prev;
        if (sr_block(r, before)->blk_next != n) return bad(r, e, "neighbours");
        int got = list_remove(r, before, e);
        if (got == 0) got = merge_next(r, before, e);
        if (got < 0) return got;
        n = before;
    }
    return list_insert(r, n, e);
}

uint64_t sr_alloc_largest(struct sr_region *r)
{
    const struct sr_alloc_head *h = head(r);
    uint64_t fl_bits = h->al_fl_bits & ((UINT64_C(1) << SR_ALLOC_FLS) - 1);
    if (fl_bits == 0) return 0;
    unsigned fl = sr_log2_floor(fl_bits);
    if (h->al_sl_bits[fl] == 0) return 0;
    uint64_t largest = 0;
    uint32_t n = h->al_lists[fl][sr_log2_floor(h->al_sl_bits[fl])];
    for (int step = 0; n != 0 && step < OWN_CLASS_STEPS; step++) {
        const struct sr_block *b = checked(r, n, SR_BLOCK_FREE);
        if (b == NULL) break;
        largest = sr_max(largest, length(b));
        n = b->blk_free_next;
    }
    return largest;
}

/* --- the whole -------------------------------------------------------------------------------- */

static int add_piece(struct sr_region *r, uint32_t n, uint64_t off, uint64_t len, enum sr_block_state s, uint32_t *last)
{
    struct sr_block *b = sr_block(r, n);
    *b = (struct sr_block){.blk_off = off, .blk_prev = *last};
    set(b, len, s);
    if (*last) sr_block(r, *last)->blk_next = n;
    else head(r)->al_first = n;
    *last = n;
    return 0;
}

static int add_gap(struct sr_region *r, uint64_t off, uint64_t len, uint32_t *last, struct sr_error *e)
{
    uint32_t n = 0;
    int got = new_descriptor(r, &n, e);
    if (got < 0) return got;
    add_piece(r, n, off, len, SR_BLOCK_FREE, last);
    return list_insert(r, n, e);
}

int sr_alloc_rebuild(struct sr_region *r, const struct sr_extent *used, size_t count, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t high = (uint32_t)sr_min(sr_min(s->st_blocks_high, s->st_blocks_committed), sr_blocks_limit(r->head.hd_gens));
    if (!sr_gens_ok(r, sr_block_gen(high > 1 ? high - 1 : 1) + 1)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog");
    memset(head(r), 0, sizeof *head(r));
    s->st_free_block = 0;
    s->st_used = 0;
    s->st_blocks_high = high;
    /* Mark what stays, so that the rest can become unused descriptors. */
    for (uint32_t n = 1; n < high; n++) sr_block(r, n)->blk_len_state = SR_BLOCK_NONE;
    uint64_t end = 0;
    for (size_t i = 0; i < count; i++) {
        bool fits = sr_block_ok(r, used[i].block) && used[i].block < high && used[i].off >= end &&
                    used[i].len > 0 && sr_is_aligned(used[i].off | used[i].len, SR_BLOCK_UNIT) &&
                    sr_range_ok(used[i].off, used[i].len, usable(r)) && state(sr_block(r, used[i].block)) == SR_BLOCK_NONE;
        if (!fits) return bad(r, e, "objects overlap");
        set(sr_block(r, used[i].block), used[i].len, SR_BLOCK_USED);
        end = used[i].off + used[i].len;
    }
    for (uint32_t n = high; n-- > 1;)
        if (state(sr_block(r, n)) == SR_BLOCK_NONE) drop_descriptor(r, n);
    uint32_t last = 0;
    end = 0;
    for (size_t i = 0; i < count; i++) {
        if (used[i].off > end) {
            int got = add_gap(r, end, used[i].off - end, &last, e);
            if (got < 0) return got;
        }
        add_piece(r, used[i].block, used[i].off, used[i].len, SR_BLOCK_USED, &last);
        s->st_used += used[i].len;
        end = used[i].off + used[i].len;
    }
    return end < usable(r) ? add_gap(r, end, usable(r) - end, &last, e) : 0;
}

int sr_alloc_init(struct sr_region *r, struct sr_error *e) { return sr_alloc_rebuild(r, NULL, 0, e); }

int sr_alloc_check(struct sr_region *r, struct sr_error *e)
{
    const struct sr_alloc_head *h = head(r);
    const struct sr_state *s = sr_state(r);
    uint64_t end = 0, used = 0;
    uint32_t prev = 0, pieces = 0, free_pieces = 0;
    bool free_before = false;
    for (uint32_t n = h->al_first; n != 0; n = sr_block(r, n)->blk_next) {
        if (!sr_block_ok(r, n) || ++pieces > s->st_blocks_high) return bad(r, e, "physical links");
        struct sr_block *b = sr_block(r, n);
        if (!checked(r, n, SR_BLOCK_FREE) && !checked(r, n, SR_BLOCK_USED)) return bad(r, e, "a block");
        if (b->blk_off != end || b->blk_prev != prev) return bad(r, e, "tiling");
        bool is_free = state(b) == SR_BLOCK_FREE;
        if (is_free && free_before) return bad(r, e, "neighbours that should be one");
        if (is_free) free_pieces++;
        else used += length(b);
        end += length(b);
        prev = n;
        free_before = is_free;
    }
    if (end != usable(r)) return bad(r, e, "tiling");
    if (used != s->st_used) return bad(r, e, "the sum of blocks in use");
    for (unsigned fl = 0; fl < SR_ALLOC_FLS; fl++) {
        if (((h->al_fl_bits >> fl) & 1) != (h->al_sl_bits[fl] != 0)) return bad(r, e, "bits of the first level");
        for (unsigned sl = 0; sl < SR_ALLOC_SLS; sl++) {
            uint32_t n = h->al_lists[fl][sl], before = 0;
            if (((h->al_sl_bits[fl] >> sl) & 1) != (n != 0)) return bad(r, e, "bits of the second level");
            for (; n != 0; n = sr_block(r, n)->blk_free_next) {
                struct sr_block *b = checked(r, n, SR_BLOCK_FREE);
                if (b == NULL || b->blk_free_prev != before || free_pieces == 0) return bad(r, e, "a list of free blocks");
                struct class c = class_of(length(b) / SR_BLOCK_UNIT);
                if (c.fl != fl || c.sl != sl) return bad(r, e, "a block in the wrong list");
                before = n;
                free_pieces--;
            }
        }
    }
    return free_pieces == 0 ? 0 : bad(r, e, "a free block in no list");
}
