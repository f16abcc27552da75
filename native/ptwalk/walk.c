/* walk: the tables that one memory reaches.
 *
 * Nothing stops the process meanwhile: a table may be freed, and used for anything, between the
 * look at its parent and the look at itself. But the kernel clears a parent's entry before it frees
 * the child. So each child is read first and its parent's entry then read again: if it still leads
 * to the child, what was read was that table. If not, nothing that the entry says can be believed,
 * since the parent too may be something else by now: the way is looked for again from the PGD, and
 * believed if all its entries are the same when read once more. That is done a few times; then the
 * child is given up and counted as moving. Of a table whose content is of no interest (PTE tables,
 * unless leaves are counted) only the address is kept; that came from a parent which was proved.
 *
 * Children and the entries that lead to them are read in one fetch, in that order: with a pause in
 * between, a process that maps and unmaps in a loop could have put the same table back.
 *
 * The memory itself is held by the task: if the task has it before and after, it was not freed in
 * between. The kernel's own count, pgtables_bytes, is read before and after too, and while it
 * changes or differs the walk is made again, a few times.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdlib.h>

/* PIECE: with the entries, one run of the BPF program. SEARCHES: in one walk; where more of it changed,
 * the next round is the better try. */
enum { TRIES = 6, ROUNDS = 4, PIECE = 32, SEARCHES = 512 };

/* A table to be read. */
struct step {
    uint64_t frame, va;
    uint64_t parent;         /* virtual address of the entry that leads here; 0 for the PGD */
    enum pt_level level;
    unsigned tries;
};
struct steps { struct step *at; size_t count, cap; };
struct reserve { uint64_t pmd_frame, va; };
struct reserves { struct reserve *at; size_t count, cap; };

static bool add_link(struct pt_memory *mem, uint64_t frame, enum pt_level level, uint64_t va, uint64_t marks)
{
    if (!PT_GROW(mem->link, mem->link_cap, mem->links)) return false;
    mem->link[mem->links++] = (struct pt_link){.va = va, .table = frame | level | marks};
    return true;
}

/* Takes in a table that was read and proved. */
static bool take_table(struct pt_machine *m, struct pt_memory *mem, const struct step *s, const uint64_t *entries,
                       bool leaves, struct steps *next, struct reserves *reserves)
{
    const struct pt_format *f = &m->format;
    uint64_t span = pt_entry_span(f, s->level), marks = 0, address = m->direct + s->frame;
    enum pt_level child = s->level == PT_PTE ? PT_PTE : pt_child_level(f, s->level);
    uint64_t small = mem->leaves[PT_PTE];
    size_t self = mem->links;
    if (!add_link(mem, s->frame, s->level, s->va, 0)) return false;
    for (unsigned i = 0; i < pt_user_entries(s->level); i++) {
        if (entries[i] == 0) continue;
        struct pt_entry e = pt_decode(f, s->level, entries[i]);
        uint64_t va = s->va + i * span;
        if (e.kind == PT_LEAF) {
            mem->leaves[s->level]++;
            marks |= PT_LINK_HUGE;
        } else if (e.pending) {
            marks |= PT_LINK_HUGE;
        } else if (e.kind == PT_TABLE && child == PT_PTE && !leaves) {
            marks |= PT_LINK_SPLIT;
            if (!add_link(mem, e.frame, PT_PTE, va, 0)) return false;
        } else if (e.kind == PT_TABLE) {
            marks |= PT_LINK_SPLIT;
            if (!PT_GROW(next->at, next->cap, next->count)) return false;
            next->at[next->count++] = (struct step){.frame = e.frame, .va = va, .parent = address + 8 * i, .level = child};
        }
    }
    if (s->level == PT_PTE) mem->full += mem->leaves[PT_PTE] - small == PT_ENTRIES;
    if (s->level != PT_PMD) return true;
    mem->link[self].table |= marks;
    if (!(marks & PT_LINK_HUGE)) return true;
    if (!PT_GROW(reserves->at, reserves->cap, reserves->count)) return false;
    reserves->at[reserves->count++] = (struct reserve){s->frame, s->va};
    return true;
}

static enum pt_level parent_level(const struct pt_format *f, enum pt_level level)
{
    enum pt_level parent = PT_PGD;
    while (parent > level && pt_child_level(f, parent) != level) parent = pt_child_level(f, parent);
    return parent;
}

/* Finds the way to s->va, down to a table of s->level. False if there is none, or it does not hold
 * still; *none tells which. */
static bool find_again(struct pt_machine *m, const struct pt_memory *mem, struct step *s, bool *none)
{
    const struct pt_format *f = &m->format;
    uint64_t first[PT_LEVELS], second[PT_LEVELS];
    enum pt_level of[PT_LEVELS];
    struct pt_want want[PT_LEVELS];
    size_t n = 0;
    uint64_t frame = mem->pgd - m->direct;
    *none = true;
    for (enum pt_level level = PT_PGD; level > s->level; level = pt_child_level(f, level)) {
        want[n] = (struct pt_want){.at = m->direct + frame + 8 * pt_index(f, level, s->va), .to = &second[n], .len = 8};
        if (!pt_get(m->reader, want[n].at, &first[n], 8)) return false;
        struct pt_entry e = pt_decode(f, level, first[n]);
        of[n++] = level;
        if (e.kind != PT_TABLE) break;
        frame = e.frame;
        *none = pt_child_level(f, level) > s->level;
    }
    if (pt_fetch(m->reader, want, n) < 0) return false;
    /* The processor sets accessed and dirty bits meanwhile: only where an entry leads must be the same. */
    for (size_t i = 0; i < n; i++) {
        struct pt_entry x = pt_decode(f, of[i], first[i]), y = pt_decode(f, of[i], second[i]);
        if (!want[i].ok || x.kind != y.kind || x.frame != y.frame) {
            *none = false;
            return false;
        }
    }
    s->frame = frame;
    s->parent = want[n - 1].at;
    return !*none;
}

/* What to do with a child whose parent led elsewhere: true if it is to be read again. */
static bool retry(struct pt_machine *m, struct pt_memory *mem, struct step *s, unsigned *searches)
{
    while (++s->tries < TRIES && *searches > 0) {
        bool none;
        --*searches;
        if (find_again(m, mem, s, &none)) return true;
        if (none) return false;    /* unmapped: not there, and not missing */
    }
    mem->moving++;
    return false;
}

/* Reads the tables of `now` and puts their children into `next`. */
static int read_level(struct pt_machine *m, struct pt_memory *mem, struct steps *now, bool leaves, struct steps *next,
                      struct reserves *reserves, unsigned *searches)
{
    static uint64_t table[PIECE][PT_ENTRIES];    /* one walk at a time */
    while (now->count) {
        struct pt_want want[2 * PIECE];
        uint64_t again[PIECE];
        size_t n = sr_min(PIECE, now->count), left = 0;
        struct step *s = now->at + now->count - n;
        for (size_t i = 0; i < n; i++) {
            want[i] = (struct pt_want){.at = m->direct + s[i].frame, .to = table[i], .len = 8 * pt_user_entries(s[i].level)};
            /* The PGD has no parent; that the task has it is checked by the caller. */
            uint64_t at = s[i].parent ? s[i].parent : m->direct + s[i].frame;
            want[n + i] = (struct pt_want){.at = at, .to = &again[i], .len = 8};
        }
        int r = pt_fetch(m->reader, want, 2 * n);
        if (r < 0) return r;
        for (size_t i = 0; i < n; i++) {
            struct pt_entry e = pt_decode(&m->format, parent_level(&m->format, s[i].level), want[n + i].ok ? again[i] : 0);
            bool led_here = s[i].parent == 0 || (e.kind == PT_TABLE && e.frame == s[i].frame);
            m->reread += s[i].parent != 0;
            if (want[i].ok && led_here) {
                if (!take_table(m, mem, &s[i], table[i], leaves, next, reserves)) return -ENOMEM;
                continue;
            }
            m->changed++;
            struct step once_more = s[i];
            if (s[i].parent && retry(m, mem, &once_more, searches)) s[left++] = once_more;
        }
        now->count -= n - left;
    }
    return 0;
}

/* For each huge page of ordinary memory the kernel puts a PTE table aside, so that splitting it
 * cannot fail (pgtable_trans_huge_deposit). No entry leads to these tables, but they are the
 * process's and are in its count: they hang on the PMD table's own struct page, as a ring. */
static int count_reserves(struct pt_machine *m, struct pt_memory *mem, const struct reserves *res)
{
    const struct pt_btf *b = &m->btf;
    if (res->count == 0) return 0;
    if (m->vmemmap == 0 || b->ptdesc__pmd_huge_pte == PT_ABSENT) {
        mem->held_unknown = true;
        return 0;
    }
    struct { uint64_t first, node; size_t from; } ring[PT_BATCH];
    struct pt_want want[PT_BATCH];
    uint64_t got[PT_BATCH];
    for (size_t done = 0; done < res->count; done += PT_BATCH) {
        size_t n = sr_min(PT_BATCH, res->count - done), live = 0;
        const struct reserve *r = res->at + done;
        for (size_t i = 0; i < n; i++) {
            uint64_t at = pt_struct_page(m, r[i].pmd_frame) + b->ptdesc__pmd_huge_pte;
            want[i] = (struct pt_want){.at = at, .to = &got[i], .len = 8};
        }
        int e = pt_fetch(m->reader, want, n);
        if (e < 0) return e;
        for (size_t i = 0; i < n; i++) {
            ring[i].first = ring[i].node = want[i].ok ? got[i] : 0;
            ring[i].from = mem->links;
        }
        /* A ring holds at most one table for each entry of the PMD table. */
        for (unsigned length = 0; length <= PT_ENTRIES; length++) {
            size_t of[PT_BATCH];
            for (size_t i = live = 0; i < n; i++) {
                if (ring[i].node == 0) continue;
                uint64_t page = ring[i].node - m->vmemmap;
                if (ring[i].node < m->vmemmap || page % b->size_page || page / b->size_page > m->format.frame_mask / SR_PAGE ||
                    length == PT_ENTRIES) {
                    mem->moving++;
                    ring[i].node = 0;
                    continue;
                }
                if (!add_link(mem, page / b->size_page * SR_PAGE, PT_PTE, r[i].va, PT_LINK_HELD)) return -ENOMEM;
                of[live] = i;
                want[live++] = (struct pt_want){.at = ring[i].node + b->page__lru, .to = &got[i], .len = 8};
            }
            if (live == 0) break;
            e = pt_fetch(m->reader, want, live);
            if (e < 0) return e;
            for (size_t k = 0; k < live; k++) {
                size_t i = of[k];
                uint64_t next = want[k].ok ? got[i] - b->page__lru : 0;
                if (!want[k].ok) mem->moving++;
                ring[i].node = next == ring[i].first ? 0 : next;
            }
        }
    }
    return 0;
}

static uint64_t counted_bytes(const struct pt_memory *mem)
{
    uint64_t n = 0;
    for (size_t i = 0; i < mem->links; i++) n += pt_link_level(&mem->link[i]) <= PT_PUD;
    return n * SR_PAGE;
}

static int walk_once(struct pt_machine *m, struct pt_memory *mem, bool leaves)
{
    struct steps now = {0}, next = {0};
    struct reserves reserves = {0};
    mem->links = 0;
    mem->moving = 0;
    mem->held_unknown = false;
    memset(mem->leaves, 0, sizeof mem->leaves);
    mem->full = 0;
    unsigned searches = SEARCHES;
    int r = PT_GROW(now.at, now.cap, 0) ? 0 : -ENOMEM;
    if (r == 0) now.at[now.count++] = (struct step){.frame = mem->pgd - m->direct, .level = PT_PGD};
    while (r == 0 && now.count) {
        r = read_level(m, mem, &now, leaves, &next, &reserves, &searches);
        struct steps read = now;
        now = next;
        next = (struct steps){read.at, 0, read.cap};
    }
    if (r == 0) r = count_reserves(m, mem, &reserves);
    free(now.at);
    free(next.at);
    free(reserves.at);
    return r;
}

/* 1: seen; 0: gone; -errno. */
int pt_walk(struct pt_machine *m, struct pt_memory *mem, bool leaves)
{
    const struct pt_btf *b = &m->btf;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t mm[2] = {0}, pgd = 0, count[2] = {0};
        struct pt_want want[3] = {
            {.at = mem->task + b->task_struct__mm, .to = &mm[0], .len = 8},
            {.at = mem->mm + b->mm_struct__pgtables_bytes, .to = &count[0], .len = 8},
            {.at = mem->mm + b->mm_struct__pgd, .to = &pgd, .len = 8},
        };
        int r = pt_fetch(m->reader, want, 3);
        if (r < 0) return r;
        if (mm[0] != mem->mm || pgd != mem->pgd || pgd < m->direct || !sr_is_aligned(pgd, SR_PAGE)) return 0;
        r = walk_once(m, mem, leaves);
        if (r < 0) return r;
        want[0].to = &mm[1];
        want[1].to = &count[1];
        r = pt_fetch(m->reader, want, 2);
        if (r < 0) return r;
        if (mm[1] != mem->mm) return 0;
        mem->kernel_bytes = count[1];
        bool still = count[0] == count[1];
        if (mem->moving == 0 && still && (mem->held_unknown || counted_bytes(mem) == count[1])) return 1;
        if (round + 1 == ROUNDS && mem->moving == 0 && !still) mem->moving = 1;
    }
    return 1;
}

int pt_walk_again(struct pt_machine *m, const struct pt_memory *mem, const struct pt_link *const *links, size_t count,
                  uint64_t *frames)
{
    struct pt_want want[PT_BATCH];
    uint64_t raw[PT_BATCH];
    for (size_t done = 0; done < count; done += PT_BATCH) {
        size_t n = sr_min(PT_BATCH, count - done);
        enum pt_level level[PT_BATCH];
        uint64_t *frame = frames + done;
        for (size_t i = 0; i < n; i++) {
            frame[i] = mem->pgd - m->direct;
            level[i] = PT_PGD;
        }
        for (int depth = 0; depth < PT_LEVELS; depth++) {
            size_t live = 0, of[PT_BATCH];
            for (size_t i = 0; i < n; i++) {
                if (frame[i] == 0 || level[i] <= pt_link_level(links[done + i])) continue;
                of[live] = i;
                want[live++] = (struct pt_want){
                    .at = m->direct + frame[i] + 8 * pt_index(&m->format, level[i], links[done + i]->va), .to = &raw[i], .len = 8};
            }
            if (live == 0) break;
            int r = pt_fetch(m->reader, want, live);
            if (r < 0) return r;
            for (size_t k = 0; k < live; k++) {
                size_t i = of[k];
                struct pt_entry e = pt_decode(&m->format, level[i], want[k].ok ? raw[i] : 0);
                frame[i] = e.kind == PT_TABLE ? e.frame : 0;
                level[i] = pt_child_level(&m->format, level[i]);
            }
        }
    }
    return 0;
}

void pt_memory_deinit(struct pt_memory *mem)
{
    free(mem->link);
    free(mem->vma);
    free(mem->use);
    mem->link = NULL;
    mem->vma = NULL;
    mem->use = NULL;
}

bool pt_grow(void **array, size_t *cap, size_t count, size_t size)
{
    if (count < *cap) return true;
    size_t more = *cap ? *cap * 2 : 16;
    if (more > SIZE_MAX / size) return false;
    void *bigger = realloc(*array, more * size);
    if (bigger == NULL) return false;
    *array = bigger;
    *cap = more;
    return true;
}
