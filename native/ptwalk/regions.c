/* regions: which tables a region costs a process.
 *
 * A table belongs to a region if of all VMAs that the addresses it covers touch, at least one is the
 * region's and none is anything else's: then it would not be there without the region. (What covers
 * nothing, like the rest of a GiB into which a mapping is padded, does not count against it.) So PTE
 * and PMD tables are attributed, and a PUD table where the region has 512 GiB to itself.
 *
 * alone_gib: PMD tables, one a GiB, that map the region's 2 MiB hugetlb pages and that this process
 * alone reaches, while another process has the same region mapped: mapped alike, at addresses that
 * are congruent to the file modulo 1 GiB, they would share one.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdlib.h>

/* The region that has [start, end) to itself, or -1. *large: a region whose 2 MiB hugetlb pages are
 * mapped somewhere in it, or -1. */
static int owner(const struct pt_memory *mem, uint64_t start, uint64_t end, int *large)
{
    size_t low = 0, high = mem->vmas;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (mem->vma[mid].end <= start) low = mid + 1;
        else high = mid;
    }
    int region = -1;
    bool alone = true;
    *large = -1;
    for (size_t i = low; i < mem->vmas && mem->vma[i].start < end; i++) {
        const struct pt_vma *v = &mem->vma[i];
        if (v->hugetlb && v->region >= 0) *large = v->region;
        if (v->region < 0 || (region >= 0 && v->region != region)) alone = false;
        else region = v->region;
        if (!alone && *large >= 0) break;
    }
    return alone ? region : -1;
}

int pt_regions(const struct pt_machine *m, const struct pt_request *q, struct pt_found *found, const struct pt_table_set *set)
{
    unsigned *users = calloc(q->region_count, sizeof *users);
    if (users == NULL) return -ENOMEM;
    for (size_t i = 0; i < found->memories; i++) {
        struct pt_memory *mem = &found->memory[i];
        mem->use = calloc(q->region_count, sizeof mem->use[0]);
        if (mem->use == NULL) {
            free(users);
            return -ENOMEM;
        }
        for (size_t k = 0; k < mem->vmas; k++)
            if (mem->vma[k].region >= 0) mem->use[mem->vma[k].region].mapped = true;
        for (size_t k = 0; k < q->region_count; k++)
            if (mem->use[k].mapped) users[k] += mem->processes;
    }
    struct pt_format plain = pt_format_make(4, 0, false);
    const struct pt_format *f = m ? &m->format : &plain;
    for (size_t i = 0; i < found->memories; i++) {
        struct pt_memory *mem = &found->memory[i];
        for (size_t k = 0; mem->vmas && k < mem->links; k++) {
            const struct pt_link *l = &mem->link[k];
            enum pt_level level = pt_link_level(l);
            if (level > PT_PUD) continue;
            /* A table that was put aside serves somewhere in the GiB of its PMD table. */
            uint64_t covers = pt_entry_span(f, l->table & PT_LINK_HELD ? PT_PMD : level) * PT_ENTRIES;
            int large, region = owner(mem, l->va, l->va + covers, &large);
            unsigned sharers = pt_table_sharers(set, l);
            if (region >= 0) {
                struct pt_region_use *use = &mem->use[region];
                use->linked += SR_PAGE;
                *(sharers > 1 ? &use->shared : &use->private_) += SR_PAGE;
            }
            if (level == PT_PMD && large >= 0 && sharers == 1 && users[large] > 1) mem->use[large].alone_gib++;
        }
    }
    free(users);
    return 0;
}
