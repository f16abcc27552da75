/* x86_64: the format of the page tables. x86_64.c is the only file that knows it: to add an
 * architecture is to give these functions another body. */
#ifndef PTWALK_X86_64_H
#define PTWALK_X86_64_H

#include "sr_base.h"

/* Levels, from the pages up. A table of level L holds 512 entries, each of which covers
 * pt_entry_span(). Without a fifth level the PGD's children are PUDs and there are no P4Ds. */
enum pt_level { PT_PTE, PT_PMD, PT_PUD, PT_P4D, PT_PGD, PT_LEVELS };

#define PT_ENTRIES 512u

struct pt_format {
    unsigned levels;         /* 4 or 5 */
    uint64_t frame_mask;     /* the bits of an entry that are an address */
    unsigned pgd_pages;      /* 2 under page-table isolation */
};

enum pt_kind { PT_NONE, PT_TABLE, PT_LEAF };
struct pt_entry {
    enum pt_kind kind;
    bool pending;            /* not empty and not present: swapped out, or moving between frames */
    uint64_t frame;          /* physical address of the table or page */
};

/* `encryption` is the mask of the memory encryption bit, 0 if there is none. */
struct pt_format pt_format_make(unsigned levels, uint64_t encryption, bool isolation);
/* The mask of the memory encryption bit of this processor. */
uint64_t pt_encryption_mask(void);

struct pt_entry pt_decode(const struct pt_format *f, enum pt_level level, uint64_t raw);
unsigned pt_entry_shift(const struct pt_format *f, enum pt_level level);
enum pt_level pt_child_level(const struct pt_format *f, enum pt_level level);
/* How many entries of a table concern user space. */
unsigned pt_user_entries(enum pt_level level);
/* The index that `va` selects in a table of that level. */
unsigned pt_index(const struct pt_format *f, enum pt_level level, uint64_t va);
/* The address whose translation begins at entry `index` of the kernel's half of a top table. */
uint64_t pt_kernel_address(const struct pt_format *f, unsigned index);

static inline uint64_t pt_entry_span(const struct pt_format *f, enum pt_level level)
{
    return UINT64_C(1) << pt_entry_shift(f, level);
}

/* Where the direct map may begin: it is aligned to this (arch/x86/mm/kaslr.c keeps whole PUDs),
 * below the first table that is found in it. */
#define PT_DIRECT_ALIGN SR_GIB
#define PT_KERNEL_LOW UINT64_C(0xff00000000000000)

#endif
