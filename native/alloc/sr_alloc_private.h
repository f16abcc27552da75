/* alloc, between its own files. */
#ifndef SR_ALLOC_PRIVATE_H
#define SR_ALLOC_PRIVATE_H

#include "sr_alloc.h"

enum { SR_ALLOC_COLD = 0, SR_ALLOC_WARM = 1, SR_ALLOC_SETS = 2 };    /* of the lists of free blocks */
#define SR_ALLOC_OWN_STEPS 64      /* how far a list of blocks that may be too small is searched     */

static inline struct sr_alloc_head *sr_alloc__head(const struct sr_region *r)
{
    return (struct sr_alloc_head *)(sr_mapped(&r->catalog) + SR_ALLOC_AT);
}
static inline uint64_t sr_alloc__length(const struct sr_block *b) { return b->blk_len_state & ~UINT64_C(63); }
static inline enum sr_block_state sr_alloc__state(const struct sr_block *b) { return (enum sr_block_state)(b->blk_len_state & 63); }
static inline uint64_t sr_alloc__end(const struct sr_block *b) { return b->blk_off + sr_alloc__length(b); }
static inline bool sr_alloc__is_free(const struct sr_block *b)
{
    return sr_alloc__state(b) == SR_BLOCK_FREE || sr_alloc__state(b) == SR_BLOCK_WARM;
}

static inline uint64_t sr_alloc__page(const struct sr_region *r) { return r->head.hd_granule; }
/* Bytes that objects may have. */
static inline uint64_t sr_alloc__cap(const struct sr_region *r) { return sr_align_down(r->head.hd_size, SR_BLOCK_UNIT); }
/* Pages that no block touches and that may be taken: what is left of the budget. */
static inline uint64_t sr_alloc__budget(const struct sr_region *r)
{
    return (r->head.hd_size + r->head.hd_granule - 1) / r->head.hd_granule;
}
static inline uint64_t sr_alloc__spare(const struct sr_region *r)
{
    uint64_t budget = sr_alloc__budget(r);
    return budget - sr_min(budget, sr_alloc__head(r)->al_pages);
}

/* The pages that lie whole in the free range [from, to) and that [start, start + len) of it touches:
 * nothing else can touch those. */
static inline struct sr_granules sr_alloc__vacant(const struct sr_region *r, uint64_t from, uint64_t to, uint64_t start, uint64_t len)
{
    uint64_t page = sr_alloc__page(r);
    struct sr_granules g = {sr_max(start / page, (from + page - 1) / page), sr_min((start + len + page - 1) / page, to / page)};
    g.to = sr_max(g.from, g.to);
    return g;
}
static inline struct sr_granules sr_alloc__whole_pages(const struct sr_region *r, const struct sr_block *b)
{
    return sr_alloc__vacant(r, b->blk_off, sr_alloc__end(b), b->blk_off, sr_alloc__length(b));
}

struct sr_class { unsigned fl, sl; };
struct sr_class sr_alloc__class_of(uint64_t units);
/* The lowest class in which every block is at least `units` long (but for the last class). */
struct sr_class sr_alloc__class_for(uint64_t units);
/* A free block whose place makes sense; NULL otherwise. */
struct sr_block *sr_alloc__free_block(struct sr_region *r, uint32_t n);
int sr_alloc__bad(struct sr_region *r, struct sr_error *e, const char *what);

/* place.c: where a block of `want` bytes should go; 1 if nowhere. *cold: pages of it without memory. */
struct sr_spot { uint32_t block; uint64_t start, cold; };
int sr_alloc__find(struct sr_region *r, uint64_t want, struct sr_spot *out, struct sr_error *e);
int sr_alloc__list_insert(struct sr_region *r, uint32_t n, struct sr_error *e);
int sr_alloc__list_remove(struct sr_region *r, uint32_t n, struct sr_error *e);

#endif
