/* walk: the tables that one memory reaches.
 *
 * Nothing stops the process meanwhile: a table may be freed, and used for anything, between the
 * look at its parent and the look at itself. But the kernel clears a parent's entry before it frees
 * the child. So each child is read first and its parent's entry then read again: if it still leads
 * to the child, what was read was that table. If not, the child is taken from what the entry leads
 * to now, a few times; then it is given up and counted as moving. Of a table whose content is of no
 * interest (PTE tables, unless leaves are counted) only the address is kept; that came from a parent
 * which was proved in this way.
 *
 * The memory itself is held by the task: if the task has it before and after, it was not freed in
 * between. The kernel's own count, pgtables_bytes, is read before and after too, and while it
 * changes or differs the walk is made again, a few times.
 */
#include "ptwalk.h"

#include <stdlib.h>

enum { TRIES = 6, ROUNDS = 4, PIECE = 128 };

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
    if (s->level != PT_PMD) return true;
    mem->link[self].table |= marks;
    if (!(marks & PT_LINK_HUGE)) return true;
    if (!PT_GROW(reserves->at, reserves->cap, reserves->count)) return false;
    reserves->at[reserves->count++] = (struct reserve){s->frame, s->va};
    return true;
}

/* Reads the tables of `now` and puts their children into `next`. */
static int read_level(struct pt_machine *m, struct pt_memory *mem, struct steps *now, bool leaves, struct steps *next,
                      struct reserves *reserves)
{
    static uint64_t table[PIECE][PT_ENTRIES];    /* one walk at a time */
    struct pt_want want[PIECE];
    uint64_t again[PIECE];
    while (now->count) {
        size_t n = sr_min(PIECE, now->count);
        struct step *s = now->at + now->count - n;
        for (size_t i = 0; i < n; i++)
            want[i] = (struct pt_want){.at = m->direct + s[i].frame, .to = table[i], .len = 8 * pt_user_entries(s[i].level)};
        int r = pt_fetch(m->reader, want, n);
        if (r < 0) return r;
        bool read[PIECE];
        for (size_t i = 0; i < n; i++) {
            read[i] = want[i].ok;
            /* The PGD has no parent; that the task has it is checked by the caller. */
            uint64_t at = s[i].parent ? s[i].parent : m->direct + s[i].frame;
            want[i] = (struct pt_want){.at = at, .to = &again[i], .len = 8};
        }
        r = pt_fetch(m->reader, want, n);
        if (r < 0) return r;

        struct step retry[PIECE];
        size_t retries = 0;
        for (size_t i = 0; i < n; i++) {
            if (s[i].parent == 0) {
                if (read[i] && !take_table(m, mem, &s[i], table[i], leaves, next, reserves)) return -12;
                continue;
            }
            m->reread++;
            /* Of which level the parent is follows from the child's; the decoding is the same. */
            struct pt_entry e = pt_decode(&m->format, s[i].level + 1 < PT_PGD ? s[i].level + 1 : PT_PGD, want[i].ok ? again[i] : 0);
            if (e.kind == PT_TABLE && e.frame == s[i].frame && read[i]) {
                if (!take_table(m, mem, &s[i], table[i], leaves, next, reserves)) return -12;
                continue;
            }
            m->changed++;
            if (e.kind != PT_TABLE) continue;
            if (s[i].tries + 1 >= TRIES) {
                mem->moving++;
                continue;
            }
            retry[retries] = s[i];
            retry[retries].frame = e.frame;
            retry[retries++].tries++;
        }
        now->count -= n;
        memcpy(now->at + now->count, retry, retries * sizeof retry[0]);
        now->count += retries;
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
                if (!add_link(mem, page / b->size_page * SR_PAGE, PT_PTE, r[i].va, PT_LINK_HELD)) return -12;
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
    int r = PT_GROW(now.at, now.cap, 0) ? 0 : -12;
    if (r == 0) now.at[now.count++] = (struct step){.frame = mem->pgd - m->direct, .level = PT_PGD};
    while (r == 0 && now.count) {
        r = read_level(m, mem, &now, leaves, &next, &reserves);
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
        if (mm[0] != mem->mm || pgd != mem->pgd) return 0;
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
