/* x86_64: decoding page-table entries. No system calls, no kernel memory: arithmetic alone. */
#include "x86_64.h"

#include <cpuid.h>

/* Intel SDM volume 3, 4.5; arch/x86/include/asm/pgtable_types.h */
#define PRESENT UINT64_C(0x001)
#define HUGE_PAGE UINT64_C(0x080)        /* at PMD and PUD level; in a PTE the same bit is PAT */
#define PROT_NONE_PAGE UINT64_C(0x100)   /* Linux: mapped, but not present for the processor */
#define FRAME UINT64_C(0x000ffffffffff000)

struct pt_format pt_format_make(unsigned levels, uint64_t encryption, bool isolation)
{
    return (struct pt_format){
        .levels = levels,
        .frame_mask = FRAME & ~encryption,
        .pgd_pages = isolation ? 2 : 1,
    };
}

/* With SME or SEV, one bit of each entry says that the page is encrypted, and it is part of no
 * address: AMD APM volume 2, 7.10. */
uint64_t pt_encryption_mask(void)
{
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(0x8000001f, &a, &b, &c, &d) || (a & 3) == 0) return 0;
    return UINT64_C(1) << (b & 0x3f);
}

struct pt_entry pt_decode(const struct pt_format *f, enum pt_level level, uint64_t raw)
{
    uint64_t frame = raw & f->frame_mask;
    if (raw == 0) return (struct pt_entry){.kind = PT_NONE};
    bool page = level == PT_PTE || ((level == PT_PMD || level == PT_PUD) && (raw & HUGE_PAGE));
    if (page) {
        if (raw & (PRESENT | PROT_NONE_PAGE))
            /* Bit 12 of a huge entry is PAT; a huge frame is aligned anyway. */
            return (struct pt_entry){.kind = PT_LEAF, .frame = level == PT_PTE ? frame : sr_align_down(frame, SR_LARGE_PAGE)};
        return (struct pt_entry){.kind = PT_NONE, .pending = true};
    }
    if (raw & PRESENT) return (struct pt_entry){.kind = PT_TABLE, .frame = frame};
    return (struct pt_entry){.kind = PT_NONE, .pending = true};
}

unsigned pt_entry_shift(const struct pt_format *f, enum pt_level level)
{
    static const unsigned shift[] = {[PT_PTE] = 12, [PT_PMD] = 21, [PT_PUD] = 30, [PT_P4D] = 39, [PT_PGD] = 48};
    return level == PT_PGD && f->levels == 4 ? 39 : shift[level];
}

enum pt_level pt_child_level(const struct pt_format *f, enum pt_level level)
{
    return level == PT_PGD && f->levels == 4 ? PT_PUD : level - 1;
}

unsigned pt_user_entries(enum pt_level level) { return level == PT_PGD ? PT_ENTRIES / 2 : PT_ENTRIES; }

unsigned pt_index(const struct pt_format *f, enum pt_level level, uint64_t va)
{
    return (unsigned)(va >> pt_entry_shift(f, level)) & (PT_ENTRIES - 1);
}

uint64_t pt_kernel_address(const struct pt_format *f, unsigned index)
{
    unsigned shift = pt_entry_shift(f, PT_PGD);
    uint64_t va = (uint64_t)index << shift;
    unsigned top = shift + 9;    /* the first bit that sign extension fills */
    return va >> (top - 1) & 1 ? va | ~((UINT64_C(1) << top) - 1) : va;
}
