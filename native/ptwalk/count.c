/* count: each table once, with the processes that reach it.
 *
 * The memories were walked one after the other. A table that one process freed and another got
 * after it looks shared, and is not: so every way to a table that was met more than once is walked
 * again, after all have been seen. A process whose way no longer leads there had that table when it
 * was looked at, and nobody with it: it counts as the process's own, and as moving. Two processes
 * that both held a table at two times, the second one's first look between the two looks at the
 * first, share it.
 *
 * Second witness: a PMD table of hugetlb memory carries the number of its further users
 * (ptdesc.pt_share_count, since 6.13). It also knows of processes that were not looked at.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdlib.h>

struct slot {
    uint64_t frame;          /* with its lowest bit set; 0: free */
    uint32_t processes, links, memories;
    uint32_t last;           /* the memory that was last seen to reach it, plus 1 */
    int32_t share_count;     /* -1 unknown */
    uint8_t level;
    bool doubtful, asked, counted;
};
struct pt_table_set {
    struct slot *slot;
    size_t mask;
};

static size_t slot_of(const struct pt_table_set *set, uint64_t frame)
{
    frame |= 1;
    size_t i = (size_t)((frame / SR_PAGE) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & set->mask;
    while (set->slot[i].frame && set->slot[i].frame != frame) i = (i + 1) & set->mask;
    return i;
}

static int fill(struct pt_table_set *set, const struct pt_found *found, const bool *asked)
{
    size_t total = 1;
    for (size_t i = 0; i < found->memories; i++) total += found->memory[i].links;
    size_t want = 64;
    while (want < total * 2) want *= 2;
    free(set->slot);
    set->slot = calloc(want, sizeof set->slot[0]);
    set->mask = want - 1;
    if (set->slot == NULL) return -ENOMEM;
    for (size_t i = 0; i < found->memories; i++) {
        const struct pt_memory *mem = &found->memory[i];
        for (size_t k = 0; k < mem->links; k++) {
            const struct pt_link *l = &mem->link[k];
            if (l->table & PT_LINK_GONE) continue;
            struct slot *s = &set->slot[slot_of(set, pt_link_frame(l))];
            if (s->frame == 0) {
                s->frame = pt_link_frame(l) | 1;
                s->level = (uint8_t)pt_link_level(l);
                s->share_count = -1;
            }
            s->links++;
            s->asked = s->asked || asked[i];
            s->doubtful = s->doubtful || s->links > 1 || s->level != pt_link_level(l);
            if (s->last == i + 1) continue;
            s->last = (uint32_t)(i + 1);
            s->memories++;
            s->processes += mem->processes;
        }
    }
    return 0;
}

/* Walks the doubtful ways again; the number of those that are gone, or -errno. */
static int64_t confirm(struct pt_machine *m, const struct pt_table_set *set, struct pt_found *found)
{
    int64_t gone = 0;
    for (size_t i = 0; i < found->memories; i++) {
        struct pt_memory *mem = &found->memory[i];
        const struct pt_link **link = malloc((mem->links + 1) * sizeof *link);
        uint64_t *frame = malloc((mem->links + 1) * sizeof *frame);
        size_t n = 0;
        int r = link && frame ? 0 : -ENOMEM;
        for (size_t k = 0; r == 0 && k < mem->links; k++) {
            const struct pt_link *l = &mem->link[k];
            if (!(l->table & PT_LINK_GONE) && set->slot[slot_of(set, pt_link_frame(l))].doubtful) link[n++] = l;
        }
        if (r == 0 && n) r = pt_walk_again(m, mem, link, n, frame);
        bool lives = n == 0 || r < 0 || pt_task_still(m, mem->task, mem->mm);
        for (size_t k = 0; r == 0 && k < n; k++) {
            struct pt_link *l = &mem->link[link[k] - mem->link];
            /* No entry leads to a table that was put aside, so this cannot be asked again: another
             * way to it is the better claim. */
            if (lives && frame[k] == pt_link_frame(l) && !(l->table & PT_LINK_HELD)) continue;
            l->table |= PT_LINK_GONE;
            mem->moving++;
            gone++;
        }
        free(frame);
        free(link);
        if (r < 0) return r;
    }
    return gone;
}

static int read_share_counts(struct pt_machine *m, struct pt_table_set *set)
{
    if (m->vmemmap == 0 || m->btf.ptdesc__pt_share_count == PT_ABSENT) return 0;
    struct pt_want want[PT_BATCH];
    int32_t got[PT_BATCH];
    size_t of[PT_BATCH], n = 0;
    for (size_t i = 0; i <= set->mask; i++) {
        if (set->slot[i].frame && set->slot[i].level == PT_PMD) {
            of[n] = i;
            want[n] = (struct pt_want){
                .at = pt_struct_page(m, set->slot[i].frame) + m->btf.ptdesc__pt_share_count, .to = &got[n], .len = 4};
            n++;
        }
        if (n < PT_BATCH && i < set->mask) continue;
        int r = pt_fetch(m->reader, want, n);
        if (r < 0) return r;
        for (size_t k = 0; k < n; k++)
            if (want[k].ok && got[k] >= 0 && got[k] < (1 << 22)) set->slot[of[k]].share_count = got[k];
        n = 0;
    }
    return 0;
}

/* Processes that reach the table, as far as anyone knows. The share count counts links, of which a
 * process may have two; it is believed only where it knows of more. */
static unsigned sharers(const struct slot *s)
{
    unsigned more = s->share_count > 0 && (uint32_t)s->share_count + 1 > s->links ? (uint32_t)s->share_count + 1 - s->links : 0;
    return s->processes + more;
}

unsigned pt_table_sharers(const struct pt_table_set *set, const struct pt_link *link)
{
    return link->table & PT_LINK_GONE ? 1 : sharers(&set->slot[slot_of(set, pt_link_frame(link))]);
}

bool pt_table_first(struct pt_table_set *set, const struct pt_link *link)
{
    if (link->table & PT_LINK_GONE) return true;
    struct slot *s = &set->slot[slot_of(set, pt_link_frame(link))];
    bool first = !s->counted;
    s->counted = true;
    return first;
}

static int note_sharing(struct pt_found *found, const struct slot *s, size_t *cap)
{
    if (s->share_count >= 0 && s->level == PT_PMD && (s->links > 1 || s->share_count > 0)) {
        found->checked++;
        if ((uint32_t)s->share_count + 1 == s->links) found->agree++;
        else if ((uint32_t)s->share_count + 1 > s->links) found->more++;
        else found->less++;
    }
    if (s->links < 2 && s->share_count <= 0) return 0;
    for (size_t i = 0; i < found->sharings; i++) {
        struct pt_sharing *h = &found->sharing[i];
        if (h->level == s->level && h->processes == s->processes && h->links == s->links && h->share_count == s->share_count) {
            h->tables++;
            return 0;
        }
    }
    if (!PT_GROW(found->sharing, *cap, found->sharings)) return -ENOMEM;
    found->sharing[found->sharings++] = (struct pt_sharing){s->level, s->processes, s->links, s->share_count, 1};
    return 0;
}

static void sum_memory(struct pt_table_set *set, struct pt_found *found, size_t index, bool asked)
{
    struct pt_memory *mem = &found->memory[index];
    double proportional = 0;
    for (size_t k = 0; k < mem->links; k++) {
        const struct pt_link *l = &mem->link[k];
        uint64_t bytes = pt_link_level(l) == PT_PGD ? found->pgd_bytes : SR_PAGE;
        unsigned n = mem->processes;
        if (l->table & PT_LINK_GONE) {
            found->distinct += asked ? bytes : 0;
            found->everyone += bytes;
        } else {
            struct slot *s = &set->slot[slot_of(set, pt_link_frame(l))];
            if (s->last == index + 1) continue;    /* a table that it reaches twice */
            s->last = (uint32_t)(index + 1);
            n = sharers(s);
        }
        mem->tables[pt_link_level(l)]++;
        mem->held += (l->table & PT_LINK_HELD) != 0;
        mem->linked += bytes;
        *(n > 1 ? &mem->shared : &mem->private_) += bytes;
        proportional += (double)bytes / n;
    }
    mem->proportional = (uint64_t)(proportional + 0.5);
}

int pt_count(struct pt_machine *m, const struct pt_request *q, struct pt_found *found)
{
    struct pt_table_set set = {0};
    bool *asked = calloc(found->memories + 1, sizeof *asked);
    if (asked == NULL) return -ENOMEM;
    for (size_t i = 0; i < found->processes; i++) {
        const struct pt_process *p = &found->process[i];
        if (p->state == PT_SEEN && p->asked) asked[p->memory] = true;
    }
    int64_t r = fill(&set, found, asked);
    if (r == 0 && m) {
        r = confirm(m, &set, found);
        if (r > 0) r = fill(&set, found, asked);
        if (r == 0) r = read_share_counts(m, &set);
    }
    size_t cap = 0;
    for (size_t i = 0; r == 0 && i <= set.mask; i++) {
        struct slot *s = &set.slot[i];
        s->last = 0;
        if (s->frame) found->everyone += s->level == PT_PGD ? found->pgd_bytes : SR_PAGE;
        if (s->frame == 0 || !s->asked) continue;
        found->distinct += s->level == PT_PGD ? found->pgd_bytes : SR_PAGE;
        if (m) r = note_sharing(found, s, &cap);
    }
    for (size_t i = 0; r == 0 && i < found->memories; i++) sum_memory(&set, found, i, asked[i]);
    if (r == 0 && q->region_count) r = pt_regions(m, q, found, &set);
    if (r == 0 && q->mappings) r = pt_mappings(m, found, &set);
    free(asked);
    free(set.slot);
    return (int)r;
}
