/* alloc: blocks of the data segment, kept outside it.
 *
 * Room 4, above region. Objects cannot move, so that free pieces between them would stay too short
 * for a large one. What can move is the memory. The data segment's file is longer than the region
 * (sr_backend_shape); blocks tile all of it, and `size` is the budget of pages (granules of the commit
 * map) that may have memory. A block is found by its address. If that needs pages without memory and
 * the budget is used up, whole pages that no block touches are given back elsewhere. So free bytes are
 * lost to large blocks only inside pages that some block touches, and placing (place.c) keeps those few.
 *
 *     pages in use (al_pages)          touched by a block in use; never more than the budget
 *     warm pages (al_warm)             have memory, and no block touches them
 *     al_pages + al_warm > budget      for a moment, between a take and the commit that follows it:
 *                                      who takes gives the excess back before it commits
 *
 * Free blocks hang in lists by size class, two words of bits say which lists are not empty, so that
 * taking and giving a block are a few steps whatever the region holds (two-level segregated fit:
 * Masmano, Ripoll, Crespo, Real: "TLSF: a new dynamic memory allocator for real-time systems", ECRTS
 * 2004). There are two sets of lists: of blocks that may have warm pages, and of all others. Neighbours
 * are merged at once. Unlike TLSF in a heap, no state lies in the memory itself: descriptors are in the
 * catalog segment, linked by number.
 *
 * A size class, in units of 64 bytes:
 *
 *     units  0 .. 15              fl 0,          sl = units
 *     units  2^k .. 2^(k+1) - 1   fl = k - 3,    sl = the four bits below the leading one
 *     the last one also has all that are longer (from 496 GiB)
 *
 * All functions but sr_alloc_largest, sr_alloc_excess and sr_alloc_committed need the lock. None trusts a
 * number found in shared memory: a descriptor that contradicts its neighbours gives SR_E_CORRUPT.
 * Nothing here is atomic against a kill: the blocks that entries name and the commit map are the truth,
 * and sr_alloc_rebuild makes everything else from them.
 */
#ifndef SR_ALLOC_H
#define SR_ALLOC_H

#include "sr_region.h"

#define SR_ALLOC_FLS 30u
#define SR_ALLOC_SLS 16u

/* At SR_ALLOC_AT of the catalog segment. Set 0: free blocks that have no warm pages; set 1: that may. */
struct sr_alloc_head {
    uint64_t al_fl_bits[2];                             /*   0  which first levels have any free     */
    uint64_t al_pages;                                  /*  16 */
    uint64_t al_warm;                                   /*  24 */
    uint32_t al_first;                                  /*  32  the block at offset 0                */
    uint32_t al_reserved;                               /*  36 */
    uint16_t al_sl_bits[2][SR_ALLOC_FLS];               /*  40 */
    uint32_t al_lists[2][SR_ALLOC_FLS][SR_ALLOC_SLS];   /* 160 */
};
SR_ASSERT_FIELD(struct sr_alloc_head, al_pages, 16);
SR_ASSERT_FIELD(struct sr_alloc_head, al_sl_bits, 40);
SR_ASSERT_FIELD(struct sr_alloc_head, al_lists, 160);
_Static_assert(sizeof(struct sr_alloc_head) <= SR_COMMIT_MAP_AT - SR_ALLOC_AT, "fits where it is drawn");

struct sr_extent { uint64_t off, len; uint32_t block; };

/* One free block over the whole segment. */
int sr_alloc_init(struct sr_region *r, struct sr_error *e);
/* A block of at least `len` bytes (1 counts as one unit). From a page upward it is placed so that it
 * touches as few pages as its length allows, if the free blocks and the budget permit. SR_E_FULL. */
int sr_alloc_take(struct sr_region *r, uint64_t len, struct sr_extent *out, struct sr_error *e);
int sr_alloc_give(struct sr_region *r, uint32_t block, struct sr_error *e);
/* Forget everything but these blocks, sorted by offset, whose descriptors keep their numbers. */
int sr_alloc_rebuild(struct sr_region *r, const struct sr_extent *used, size_t count, struct sr_error *e);
/* Walk everything and compare: tiling, links, lists, bits, sums. 0 or SR_E_CORRUPT. */
int sr_alloc_check(struct sr_region *r, struct sr_error *e);
/* Length of a block that could be taken now; a guess if others are at work. */
uint64_t sr_alloc_largest(struct sr_region *r);

/* Bytes of memory that a block of `len` would need now and that its place has not. */
uint64_t sr_alloc_fresh(struct sr_region *r, uint64_t len);
/* Pages that have to be given back before more is committed. */
uint64_t sr_alloc_excess(const struct sr_region *r);
/* Give `most` warm pages back, or all; *pages: how many. */
int sr_alloc_reclaim(struct sr_region *r, uint64_t most, uint64_t *pages, struct sr_error *e);
/* Give back what lies in free pages and is in no map: left by a kill between memory and mark. */
void sr_alloc_discard(struct sr_region *r);
/* Bytes that have memory. */
uint64_t sr_alloc_committed(const struct sr_region *r);

#endif
