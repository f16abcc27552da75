/* alloc: taking, giving, merging. */
#include "sr_alloc_private.h"

#include <errno.h>

static struct sr_alloc_head *head(const struct sr_region *r) { return sr_alloc__head(r); }
static uint64_t length(const struct sr_block *b) { return sr_alloc__length(b); }
static enum sr_block_state state(const struct sr_block *b) { return sr_alloc__state(b); }

int sr_alloc__bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the allocator of region '%s' is damaged: %s", r->name, what);
}

/* --- descriptors ------------------------------------------------------------------------------ */

static void set(struct sr_block *b, uint64_t len, enum sr_block_state s) { b->blk_len_state = len | s; }
static uint64_t reach(const struct sr_region *r) { return r->head.hd_mapped; }

static bool well_placed(const struct sr_region *r, const struct sr_block *b)
{
    return length(b) != 0 && sr_is_aligned(b->blk_off, SR_BLOCK_UNIT) && sr_range_ok(b->blk_off, length(b), reach(r));
}

struct sr_block *sr_alloc__free_block(struct sr_region *r, uint32_t n)
{
    if (!sr_block_ok(r, n)) return NULL;
    struct sr_block *b = sr_block(r, n);
    return sr_alloc__is_free(b) && well_placed(r, b) ? b : NULL;
}

static struct sr_block *used_block(struct sr_region *r, uint32_t n)
{
    if (!sr_block_ok(r, n)) return NULL;
    struct sr_block *b = sr_block(r, n);
    return state(b) == SR_BLOCK_USED && well_placed(r, b) ? b : NULL;
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
    if (b->blk_next == 0) return end == reach(r);
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
        if (!sr_block_ok(r, n) || state(sr_block(r, n)) != SR_BLOCK_NONE) return sr_alloc__bad(r, e, "unused descriptors");
        s->st_free_block = sr_block(r, n)->blk_free_next;
    } else {
        if (s->st_blocks_high >= s->st_blocks_committed) {
            int got = grow_descriptors(r, e);
            if (got < 0) return got;
        }
        n = s->st_blocks_high;
        if (!sr_block_ok(r, n) || state(sr_block(r, n)) != SR_BLOCK_NONE) return sr_alloc__bad(r, e, "number of descriptors");
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

/* --- blocks ----------------------------------------------------------------------------------- */

/* Cut [at, end of b) off into a free block of its own, not yet in a list. */
static int split(struct sr_region *r, uint32_t n, uint64_t at, uint32_t *out, struct sr_error *e)
{
    int got = new_descriptor(r, out, e);
    if (got < 0) return got;
    struct sr_block *b = sr_block(r, n), *rest = sr_block(r, *out);
    if (b->blk_next && !sr_block_ok(r, b->blk_next)) return sr_alloc__bad(r, e, "physical links");
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
    if (next->blk_prev != n || next->blk_off != b->blk_off + length(b)) return sr_alloc__bad(r, e, "neighbours");
    if (next->blk_next && !sr_block_ok(r, next->blk_next)) return sr_alloc__bad(r, e, "physical links");
    set(b, length(b) + length(next), state(b));
    b->blk_next = next->blk_next;
    if (b->blk_next) sr_block(r, b->blk_next)->blk_prev = n;
    drop_descriptor(r, gone);
    return 0;
}

static int full(struct sr_region *r, uint64_t len, struct sr_error *e)
{
    uint64_t cap = sr_alloc__cap(r), free = cap - sr_min(cap, sr_state(r)->st_used), largest = sr_alloc_largest(r);
    int code = sr_fail(e, SR_E_FULL, -ENOSPC, "region '%s' has no room for %llu bytes: %llu are free, %llu of them in one piece",
                       r->name, (unsigned long long)len, (unsigned long long)free, (unsigned long long)largest);
    if (e) e->wanted = len, e->free = free, e->largest = largest;
    return code;
}

/* A free block of that length, warm if it has whole pages and is cut from one that is. */
static void set_free(struct sr_region *r, struct sr_block *b, bool warm)
{
    struct sr_granules whole = sr_alloc__whole_pages(r, b);
    set(b, length(b), warm && whole.from < whole.to ? SR_BLOCK_WARM : SR_BLOCK_FREE);
}

/* [start, start + len) of the free range [from, to) comes into use. */
static void pages_taken(struct sr_region *r, uint64_t from, uint64_t to, uint64_t start, uint64_t len)
{
    struct sr_alloc_head *h = head(r);
    struct sr_granules pages = sr_alloc__vacant(r, from, to, start, len);
    h->al_pages += pages.to - pages.from;
    h->al_warm -= sr_min(h->al_warm, sr_region_marked(r, pages.from, pages.to));
}

/* And is free again, in the range that it was merged into. Whether memory lies there. */
static bool pages_given(struct sr_region *r, uint64_t from, uint64_t to, uint64_t start, uint64_t len)
{
    struct sr_alloc_head *h = head(r);
    struct sr_granules pages = sr_alloc__vacant(r, from, to, start, len);
    uint64_t count = pages.to - pages.from, marked = sr_region_marked(r, pages.from, pages.to);
    h->al_pages -= sr_min(h->al_pages, count);
    h->al_warm += marked;
    /* Its owner died or failed while it took memory: what it got by then is in no map. */
    if (marked < count) sr_region_discard(r, pages.from, pages.to);
    return marked > 0;
}

int sr_alloc_take(struct sr_region *r, uint64_t len, struct sr_extent *out, struct sr_error *e)
{
    uint64_t cap = sr_alloc__cap(r), used = sr_state(r)->st_used;
    if (head(r)->al_pages > sr_alloc__budget(r)) return sr_alloc__bad(r, e, "the number of pages in use");
    if (len > cap) return full(r, len, e);
    uint64_t want = sr_max(sr_align_up(len, SR_BLOCK_UNIT), SR_BLOCK_UNIT);
    if (want > cap - sr_min(cap, used)) return full(r, len, e);
    struct sr_spot place;
    int got = sr_alloc__find(r, want, &place, e);
    if (got != 0) return got < 0 ? got : full(r, len, e);
    uint32_t n = place.block, rest;
    struct sr_block *b = sr_alloc__free_block(r, n);
    if (b == NULL || !fits_between(r, n)) return sr_alloc__bad(r, e, "a list of free blocks");
    got = sr_alloc__list_remove(r, n, e);
    if (got < 0) return got;
    uint64_t from = b->blk_off, to = sr_alloc__end(b);
    bool warm = state(b) == SR_BLOCK_WARM;
    if (place.start > from) {
        uint32_t front = n;
        got = split(r, n, place.start, &rest, e);
        set_free(r, b, warm);
        int put_back = sr_alloc__list_insert(r, front, e);
        if (got < 0) return got;
        if (put_back < 0) return put_back;
        n = rest;
        b = sr_block(r, n);
    }
    if (length(b) > want) {
        got = split(r, n, b->blk_off + want, &rest, e);
        if (got < 0) {
            /* As if it had been taken: giving it back joins it with what was cut off before it. */
            pages_taken(r, from, to, b->blk_off, length(b));
            set(b, length(b), SR_BLOCK_USED);
            sr_state(r)->st_used += length(b);
            sr_alloc_give(r, n, NULL);
            return got;
        }
        set_free(r, sr_block(r, rest), warm);
        got = sr_alloc__list_insert(r, rest, e);
        if (got < 0) return got;
    }
    set(b, want, SR_BLOCK_USED);
    b->blk_free_prev = b->blk_free_next = 0;
    sr_state(r)->st_used += want;
    pages_taken(r, from, to, b->blk_off, want);
    *out = (struct sr_extent){b->blk_off, want, n};
    return 0;
}

int sr_alloc_give(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_block *b = used_block(r, n);
    if (b == NULL) return sr_alloc__bad(r, e, "a block given back that is not in use");
    if (!fits_between(r, n) || (b->blk_next && !fits_between(r, b->blk_next)) || (b->blk_prev && !fits_between(r, b->blk_prev)))
        return sr_alloc__bad(r, e, "neighbours");
    struct sr_state *s = sr_state(r);
    uint64_t start = b->blk_off, len = length(b);
    bool warm = false;
    s->st_used -= sr_min(s->st_used, len);
    set(b, len, SR_BLOCK_FREE);
    const struct sr_block *next = b->blk_next ? sr_alloc__free_block(r, b->blk_next) : NULL;
    if (next) {
        warm = state(next) == SR_BLOCK_WARM;
        int got = sr_alloc__list_remove(r, b->blk_next, e);
        if (got == 0) got = merge_next(r, n, e);
        if (got < 0) return got;
    }
    const struct sr_block *prev = b->blk_prev ? sr_alloc__free_block(r, b->blk_prev) : NULL;
    if (prev) {
        uint32_t before = b->blk_prev;
        if (prev->blk_next != n) return sr_alloc__bad(r, e, "neighbours");
        warm |= state(prev) == SR_BLOCK_WARM;
        int got = sr_alloc__list_remove(r, before, e);
        if (got == 0) got = merge_next(r, before, e);
        if (got < 0) return got;
        n = before;
        b = sr_block(r, n);
    }
    warm |= pages_given(r, b->blk_off, sr_alloc__end(b), start, len);
    set_free(r, b, warm);
    return sr_alloc__list_insert(r, n, e);
}

uint64_t sr_alloc_fresh(struct sr_region *r, uint64_t len)
{
    struct sr_spot place;
    uint64_t want = sr_max(sr_align_up(sr_min(len, sr_alloc__cap(r)), SR_BLOCK_UNIT), SR_BLOCK_UNIT);
    return sr_alloc__find(r, want, &place, NULL) == 0 ? place.cold * sr_alloc__page(r) : 0;
}

/* --- memory ----------------------------------------------------------------------------------- */

uint64_t sr_alloc_excess(const struct sr_region *r)
{
    const struct sr_alloc_head *h = head(r);
    uint64_t budget = sr_alloc__budget(r), have = h->al_pages + h->al_warm;
    return have > budget ? have - budget : 0;
}

/* The longest free block that may have memory; 0: none. */
static uint32_t warmest(const struct sr_region *r)
{
    const struct sr_alloc_head *h = head(r);
    uint64_t levels = h->al_fl_bits[SR_ALLOC_WARM] & ((UINT64_C(1) << SR_ALLOC_FLS) - 1);
    if (levels == 0) return 0;
    unsigned fl = sr_log2_floor(levels), bits = h->al_sl_bits[SR_ALLOC_WARM][fl];
    return bits ? h->al_lists[SR_ALLOC_WARM][fl][sr_log2_floor(bits)] : 0;
}

int sr_alloc_reclaim(struct sr_region *r, uint64_t most, uint64_t *pages, struct sr_error *e)
{
    struct sr_alloc_head *h = head(r);
    *pages = 0;
    while (*pages < most) {
        uint32_t n = warmest(r);
        if (n == 0) {
            h->al_warm = 0;
            return 0;
        }
        struct sr_block *b = sr_alloc__free_block(r, n);
        /* Nothing is given back on the word of one descriptor: an object could lie there. */
        if (b == NULL || state(b) != SR_BLOCK_WARM || !fits_between(r, n)) return sr_alloc__bad(r, e, "a list of free blocks");
        struct sr_granules whole = sr_alloc__whole_pages(r, b);
        struct sr_granules run = sr_region_last_marked(r, whole.from, whole.to, most - *pages);
        if (run.from == run.to) {
            int got = sr_alloc__list_remove(r, n, e);
            set(b, length(b), SR_BLOCK_FREE);
            if (got == 0) got = sr_alloc__list_insert(r, n, e);
            if (got < 0) return got;
            continue;
        }
        int got = sr_region_uncommit(r, run.from, run.to, e);
        if (got < 0) return got;
        h->al_warm -= sr_min(h->al_warm, run.to - run.from);
        *pages += run.to - run.from;
    }
    return 0;
}

void sr_alloc_discard(struct sr_region *r)
{
    uint32_t left = sr_state(r)->st_blocks_high;
    for (uint32_t n = head(r)->al_first; sr_block_ok(r, n) && left--; n = sr_block(r, n)->blk_next) {
        const struct sr_block *b = sr_alloc__free_block(r, n);
        if (b == NULL) continue;
        struct sr_granules whole = sr_alloc__whole_pages(r, b);
        sr_region_discard(r, whole.from, whole.to);
    }
}

uint64_t sr_alloc_committed(const struct sr_region *r)
{
    return sr_min(sr_region_marked(r, 0, r->head.hd_mapped / sr_alloc__page(r)) * sr_alloc__page(r), r->head.hd_size);
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
    struct sr_granules whole = sr_alloc__whole_pages(r, sr_block(r, n));
    uint64_t marked = sr_region_marked(r, whole.from, whole.to);
    head(r)->al_warm += marked;
    head(r)->al_pages -= whole.to - whole.from;
    set_free(r, sr_block(r, n), marked > 0);
    return sr_alloc__list_insert(r, n, e);
}

int sr_alloc_rebuild(struct sr_region *r, const struct sr_extent *used, size_t count, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t high = (uint32_t)sr_min(sr_min(s->st_blocks_high, s->st_blocks_committed), sr_blocks_limit(r->head.hd_gens));
    if (!sr_gens_ok(r, sr_block_gen(high > 1 ? high - 1 : 1) + 1)) return sr_fail(e, SR_E_UNAVAILABLE, 0, "no address space for the catalog");
    memset(head(r), 0, sizeof *head(r));
    head(r)->al_pages = reach(r) / sr_alloc__page(r);    /* and less by what is found free */
    s->st_free_block = 0;
    s->st_used = 0;
    s->st_blocks_high = high;
    /* Mark what stays, so that the rest can become unused descriptors. */
    for (uint32_t n = 1; n < high; n++) sr_block(r, n)->blk_len_state = SR_BLOCK_NONE;
    uint64_t end = 0;
    for (size_t i = 0; i < count; i++) {
        bool fits = sr_block_ok(r, used[i].block) && used[i].block < high && used[i].off >= end &&
                    used[i].len > 0 && sr_is_aligned(used[i].off | used[i].len, SR_BLOCK_UNIT) &&
                    sr_range_ok(used[i].off, used[i].len, reach(r)) && state(sr_block(r, used[i].block)) == SR_BLOCK_NONE;
        if (!fits) return sr_alloc__bad(r, e, "objects overlap");
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
    return end < reach(r) ? add_gap(r, end, reach(r) - end, &last, e) : 0;
}

int sr_alloc_init(struct sr_region *r, struct sr_error *e) { return sr_alloc_rebuild(r, NULL, 0, e); }

/* Whether what the lists say is what the walk has counted. */
static int check_lists(struct sr_region *r, unsigned set, uint32_t *free_pieces, struct sr_error *e)
{
    const struct sr_alloc_head *h = head(r);
    for (unsigned fl = 0; fl < SR_ALLOC_FLS; fl++) {
        if (((h->al_fl_bits[set] >> fl) & 1) != (h->al_sl_bits[set][fl] != 0)) return sr_alloc__bad(r, e, "bits of the first level");
        for (unsigned sl = 0; sl < SR_ALLOC_SLS; sl++) {
            uint32_t n = h->al_lists[set][fl][sl], before = 0;
            if (((h->al_sl_bits[set][fl] >> sl) & 1) != (n != 0)) return sr_alloc__bad(r, e, "bits of the second level");
            for (; n != 0; n = sr_block(r, n)->blk_free_next) {
                struct sr_block *b = sr_alloc__free_block(r, n);
                if (b == NULL || b->blk_free_prev != before || *free_pieces == 0) return sr_alloc__bad(r, e, "a list of free blocks");
                struct sr_class c = sr_alloc__class_of(length(b) / SR_BLOCK_UNIT);
                if (c.fl != fl || c.sl != sl || (state(b) == SR_BLOCK_WARM) != (set == SR_ALLOC_WARM)) return sr_alloc__bad(r, e, "a block in the wrong list");
                before = n;
                --*free_pieces;
            }
        }
    }
    return 0;
}

int sr_alloc_check(struct sr_region *r, struct sr_error *e)
{
    const struct sr_alloc_head *h = head(r);
    const struct sr_state *s = sr_state(r);
    uint64_t end = 0, used = 0, warm = 0, untouched = 0;
    uint32_t prev = 0, pieces = 0, free_pieces = 0;
    bool free_before = false;
    for (uint32_t n = h->al_first; n != 0; n = sr_block(r, n)->blk_next) {
        if (!sr_block_ok(r, n) || ++pieces > s->st_blocks_high) return sr_alloc__bad(r, e, "physical links");
        struct sr_block *b = sr_block(r, n);
        bool is_free = sr_alloc__free_block(r, n) != NULL;
        if (!is_free && !used_block(r, n)) return sr_alloc__bad(r, e, "a block");
        if (b->blk_off != end || b->blk_prev != prev) return sr_alloc__bad(r, e, "tiling");
        if (is_free && free_before) return sr_alloc__bad(r, e, "neighbours that should be one");
        if (is_free) {
            struct sr_granules whole = sr_alloc__whole_pages(r, b);
            uint64_t marked = sr_region_marked(r, whole.from, whole.to);
            if (marked && state(b) != SR_BLOCK_WARM) return sr_alloc__bad(r, e, "a free block with memory among those without");
            warm += marked;
            untouched += whole.to - whole.from;
            free_pieces++;
        } else {
            used += length(b);
        }
        end += length(b);
        prev = n;
        free_before = is_free;
    }
    if (end != reach(r)) return sr_alloc__bad(r, e, "tiling");
    if (used != s->st_used) return sr_alloc__bad(r, e, "the sum of blocks in use");
    if (h->al_pages != reach(r) / sr_alloc__page(r) - untouched) return sr_alloc__bad(r, e, "the number of pages in use");
    if (h->al_warm != warm) return sr_alloc__bad(r, e, "the number of free pages with memory");
    if (h->al_pages > sr_alloc__budget(r)) return sr_alloc__bad(r, e, "more pages in use than the region may have");
    for (unsigned set = 0; set < SR_ALLOC_SETS; set++) {
        int got = check_lists(r, set, &free_pieces, e);
        if (got < 0) return got;
    }
    return free_pieces == 0 ? 0 : sr_alloc__bad(r, e, "a free block in no list");
}
