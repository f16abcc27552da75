/* alloc: blocks of the data segment, kept outside it.
 *
 * Room 4, above region. Two-level segregated fit (Masmano, Ripoll, Crespo, Real: "TLSF: a new
 * dynamic memory allocator for real-time systems", ECRTS 2004): free blocks hang in lists by size
 * class, two words of bits say which lists are not empty, so that taking and giving a block are a
 * few steps whatever the region holds. Neighbours are merged at once. Unlike TLSF in a heap, no
 * state lies in the memory itself: descriptors are in the catalog segment, linked by number.
 *
 * A size class, in units of 64 bytes:
 *
 *     units  0 .. 15              fl 0,          sl = units
 *     units  2^k .. 2^(k+1) - 1   fl = k - 3,    sl = the four bits below the leading one
 *
 * All functions but sr_alloc_largest need the lock. None trusts a number found in shared memory: a
 * descriptor that contradicts its neighbours gives SR_E_CORRUPT. Nothing here is atomic against a
 * kill: the blocks that entries name are the truth, and sr_alloc_rebuild makes everything else from
 * them.
 */
#ifndef SR_ALLOC_H
#define SR_ALLOC_H

#include "sr_region.h"

#define SR_ALLOC_FLS 40u
#define SR_ALLOC_SLS 16u

/* At SR_ALLOC_AT of the catalog segment. */
struct sr_alloc_head {
    uint64_t al_fl_bits;                                /*   0  which first levels have any free     */
    uint32_t al_first;                                  /*   8  the block at offset 0                */
    uint32_t al_reserved;                               /*  12 */
    uint16_t al_sl_bits[SR_ALLOC_FLS];                  /*  16 */
    uint32_t al_lists[SR_ALLOC_FLS][SR_ALLOC_SLS];      /*  96 */
};
SR_ASSERT_FIELD(struct sr_alloc_head, al_sl_bits, 16);
SR_ASSERT_FIELD(struct sr_alloc_head, al_lists, 96);
_Static_assert(sizeof(struct sr_alloc_head) <= SR_COMMIT_MAP_AT - SR_ALLOC_AT, "fits where it is drawn");

struct sr_extent { uint64_t off, len; uint32_t block; };

/* One free block over the whole segment. */
int sr_alloc_init(struct sr_region *r, struct sr_error *e);
/* A block of at least `len` bytes (1 counts as one unit). From a large page upward it is placed so
 * that it touches as few large pages as its length allows, if a free block permits. SR_E_FULL. */
int sr_alloc_take(struct sr_region *r, uint64_t len, struct sr_extent *out, struct sr_error *e);
int sr_alloc_give(struct sr_region *r, uint32_t block, struct sr_error *e);
/* Forget everything but these blocks, sorted by offset, whose descriptors keep their numbers. */
int sr_alloc_rebuild(struct sr_region *r, const struct sr_extent *used, size_t count, struct sr_error *e);
/* Walk everything and compare: tiling, links, lists, bits, sums. 0 or SR_E_CORRUPT. */
int sr_alloc_check(struct sr_region *r, struct sr_error *e);
/* Length of a block that could be taken now; a guess if others are at work. */
uint64_t sr_alloc_largest(struct sr_region *r);

#endif
