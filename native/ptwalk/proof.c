/* proof: where the direct map begins, found in a way that proves the whole chain of reading.
 *
 * Linux maps all physical memory at one address, which differs from boot to boot. Page tables hold
 * physical addresses, so nothing can be followed without that address. It is found by trying: a
 * random nonce is put into a page of our own, and each candidate is used to walk from our own
 * mm_struct's PGD to that page. The one under which the nonce comes to light is right, and with it
 * the offsets, the number of levels and the reader: 32 random bytes do not match by chance.
 */
#define _GNU_SOURCE
#include "ptwalk.h"

#include <stdlib.h>
#include <sys/mman.h>

/* 64 TiB below the first table; more physical memory than that has no 4-level kernel. */
enum { CANDIDATES = 65536, NONCE = 32, KERNEL_TABLES = 4096 };

struct self {
    uint64_t mm, pgd, thread_pid;
};

static int find_self(struct pt_machine *m, struct self *self, struct sr_error *e)
{
    const struct pt_btf *b = &m->btf;
    size_t len = sr_max(sr_max(b->task_struct__mm, b->task_struct__thread_pid), b->task_struct__cred) + 8;
    unsigned char *task = malloc(len);
    if (task == NULL) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory");
    int r = m->reader->current(m->reader, task, len);
    uint64_t cred = 0, numbers;
    uint32_t level = 0;
    if (r == 0) {
        memcpy(&self->mm, task + b->task_struct__mm, 8);
        memcpy(&self->thread_pid, task + b->task_struct__thread_pid, 8);
        memcpy(&cred, task + b->task_struct__cred, 8);
    }
    free(task);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "%s: this process's own task cannot be read", m->reader->name);
    bool ok = pt_get(m->reader, self->mm + b->mm_struct__pgd, &self->pgd, 8) &&
              pt_get(m->reader, cred + b->cred__uid, &m->uid, 4) &&
              pt_get(m->reader, self->thread_pid + b->pid__level, &level, 4) && level <= 32;
    numbers = self->thread_pid + b->pid__numbers + (uint64_t)level * b->size_upid;
    m->ns_level = level;
    if (!ok || !pt_get(m->reader, numbers + b->upid__ns, &m->ns, 8))
        return sr_fail(e, SR_E_CORRUPT, 0, "%s: the task of this process does not lead to its memory", m->reader->name);
    return 0;
}

/* Walks `count` candidates for the direct map from top-level entry `top`, all in step. The number
 * of the one that leads to the nonce, or -1. */
static int try_batch(struct pt_machine *m, uint64_t first, size_t count, uint64_t top, uint64_t at, const unsigned char *nonce)
{
    struct { uint64_t frame; enum pt_level level; bool live, page; } c[PT_BATCH];
    struct pt_want want[PT_BATCH];
    unsigned char got[PT_BATCH][NONCE];
    struct pt_entry e = pt_decode(&m->format, PT_PGD, top);
    if (e.kind != PT_TABLE) return -1;
    for (size_t i = 0; i < count; i++) {
        c[i].frame = e.frame;
        c[i].level = pt_child_level(&m->format, PT_PGD);
        c[i].live = true;
        c[i].page = false;
    }
    for (int step = 0; step < PT_LEVELS; step++) {
        size_t n = 0, of[PT_BATCH];
        for (size_t i = 0; i < count; i++) {
            if (!c[i].live) continue;
            uint64_t base = first - i * PT_DIRECT_ALIGN;
            of[n] = i;
            want[n] = (struct pt_want){.at = base + c[i].frame, .to = got[i], .len = c[i].page ? NONCE : 8};
            if (!c[i].page) want[n].at += 8 * pt_index(&m->format, c[i].level, at);
            n++;
        }
        if (n == 0 || pt_fetch(m->reader, want, n) < 0) return -1;
        for (size_t k = 0; k < n; k++) {
            size_t i = of[k];
            if (!want[k].ok) {
                c[i].live = false;
            } else if (c[i].page) {
                if (memcmp(got[i], nonce, NONCE) == 0) return (int)i;
                c[i].live = false;
            } else {
                uint64_t raw;
                memcpy(&raw, got[i], 8);
                e = pt_decode(&m->format, c[i].level, raw);
                c[i].live = e.kind != PT_NONE;
                c[i].page = e.kind == PT_LEAF;
                c[i].frame = e.frame;
                if (c[i].page) c[i].frame += at & (pt_entry_span(&m->format, c[i].level) - 1);
                else if (c[i].live) c[i].level = pt_child_level(&m->format, c[i].level);
            }
        }
    }
    return -1;
}

static bool find_direct(struct pt_machine *m, const struct self *self, uint64_t at, const unsigned char *nonce)
{
    uint64_t encryption = pt_encryption_mask();
    bool isolation = m->format.pgd_pages == 2;
    for (unsigned levels = 4; levels <= 5; levels++) {
        m->format = pt_format_make(levels, encryption, isolation);
        uint64_t top;
        if (!pt_get(m->reader, self->pgd + 8 * pt_index(&m->format, PT_PGD, at), &top, 8)) return false;
        uint64_t first = sr_align_down(self->pgd, PT_DIRECT_ALIGN);
        for (size_t done = 0; done < CANDIDATES && first >= PT_KERNEL_LOW; done += PT_BATCH) {
            int hit = try_batch(m, first, PT_BATCH, top, at, nonce);
            if (hit >= 0) {
                m->direct = first - (uint64_t)hit * PT_DIRECT_ALIGN;
                return true;
            }
            first -= PT_BATCH * PT_DIRECT_ALIGN;
        }
    }
    return false;
}

/* The array of struct page (vmemmap) is aligned like the direct map. Our PGD's page says whose it is
 * (ptdesc.pt_mm, set for PGDs by arch/x86/mm/pgtable.c), so each GiB of kernel addresses that is
 * mapped at all is asked whether our mm stands at the one place where that page could be. */
static void find_vmemmap(struct pt_machine *m, const struct self *self)
{
    const struct pt_btf *b = &m->btf;
    m->vmemmap = 0;
    if (b->ptdesc__pt_mm == PT_ABSENT) return;
    uint64_t page_at = (self->pgd - m->direct) / SR_PAGE * b->size_page;
    uint64_t within = page_at & (PT_DIRECT_ALIGN - 1);

    uint64_t (*table)[PT_ENTRIES] = malloc(sizeof *table);
    struct { uint64_t frame, va; enum pt_level level; } *todo = malloc(KERNEL_TABLES * sizeof *todo);
    size_t count = 0;
    if (table && todo) {
        todo[0].frame = self->pgd - m->direct;
        todo[0].va = 0;
        todo[0].level = PT_PGD;
        count = 1;
    }
    for (size_t i = 0; i < count && m->vmemmap == 0; i++) {
        enum pt_level level = todo[i].level;
        if (!pt_get(m->reader, m->direct + todo[i].frame, table, SR_PAGE)) continue;
        struct pt_want want[PT_ENTRIES];
        uint64_t mm[PT_ENTRIES], va[PT_ENTRIES];
        size_t n = 0;
        for (unsigned k = level == PT_PGD ? PT_ENTRIES / 2 : 0; k < PT_ENTRIES; k++) {
            struct pt_entry e = pt_decode(&m->format, level, (*table)[k]);
            uint64_t at = level == PT_PGD ? pt_kernel_address(&m->format, k) : todo[i].va + ((uint64_t)k << pt_entry_shift(&m->format, level));
            if (level == PT_PUD) {
                if (e.kind != PT_TABLE) continue;    /* struct pages are mapped by 2 MiB pages at most */
                va[n] = at;
                want[n] = (struct pt_want){.at = at + within + b->ptdesc__pt_mm, .to = &mm[n], .len = 8};
                n++;
            } else if (e.kind == PT_TABLE && count < KERNEL_TABLES) {
                todo[count].frame = e.frame;
                todo[count].va = at;
                todo[count++].level = pt_child_level(&m->format, level);
            }
        }
        if (pt_fetch(m->reader, want, n) < 0) break;
        for (size_t k = 0; k < n; k++)
            if (want[k].ok && mm[k] == self->mm && va[k] + within != self->pgd) m->vmemmap = va[k] + within - page_at;
    }
    free(todo);
    free(table);
}

/* The frame number in pagemap, where we may see it, must agree; it is 0 without CAP_SYS_ADMIN. */
static bool pagemap_agrees(struct pt_machine *m, uint64_t pgd, uint64_t at)
{
    SR_FD fd = sr_sys->openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0);
    uint64_t word;
    if (fd < 0 || sr_sys->pread(fd, &word, 8, (off_t)(at / SR_PAGE * 8)) != 8) return true;
    uint64_t frame = (word & ((UINT64_C(1) << 55) - 1)) * SR_PAGE;
    if (!(word >> 63) || frame == 0) return true;
    struct pt_entry e = {.kind = PT_TABLE, .frame = pgd - m->direct};
    enum pt_level level = PT_PGD;
    while (e.kind == PT_TABLE) {
        uint64_t raw;
        if (!pt_get(m->reader, m->direct + e.frame + 8 * pt_index(&m->format, level, at), &raw, 8)) return false;
        e = pt_decode(&m->format, level, raw);
        if (e.kind == PT_LEAF) return e.frame + (at & (pt_entry_span(&m->format, level) - 1)) == frame;
        level = pt_child_level(&m->format, level);
    }
    return false;
}

static bool isolated(void)
{
    char text[128];
    return sr_sys_read_text(AT_FDCWD, "/sys/devices/system/cpu/vulnerabilities/meltdown", text, sizeof text) > 0 &&
           strstr(text, "PTI") != NULL;
}

int pt_prove(struct pt_machine *m, const struct pt_request *q, struct sr_error *e)
{
    struct self self;
    int r = find_self(m, &self, e);
    if (r < 0) return r;
    m->format.pgd_pages = (q->image ? q->isolation : isolated()) ? 2 : 1;

    if (q->image) {
        if (!find_direct(m, &self, q->nonce_at, q->nonce))
            return sr_fail(e, SR_E_CORRUPT, 0, "the nonce is not in the image where it should be");
        find_vmemmap(m, &self);
        return 0;
    }
    void *page = NULL;
    r = sr_sys->mmap(&page, SR_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "no page for the proof");
    bool proved = false;
    /* The kernel may move the page between the walk and the look at it: then once more. */
    for (int attempt = 0; attempt < 3 && !proved; attempt++) {
        r = sr_sys->getrandom(page, NONCE);
        if (r < 0) break;
        unsigned char nonce[NONCE];
        memcpy(nonce, page, NONCE);
        proved = find_direct(m, &self, (uintptr_t)page, nonce) && pagemap_agrees(m, self.pgd, (uintptr_t)page);
        if (proved && q->record >= 0) {
            uint64_t own[2] = {2, 8 + NONCE}, at = (uintptr_t)page;
            if (sr_sys->write(q->record, own, 16) != 16 || sr_sys->write(q->record, &at, 8) != 8 ||
                sr_sys->write(q->record, nonce, NONCE) != NONCE)
                proved = false;
        }
    }
    sr_sys->munmap(page, SR_PAGE);
    if (!proved)
        return sr_fail(e, SR_E_UNAVAILABLE, 0, "%s: a nonce in a page of our own was not found through our own page tables", m->reader->name);
    find_vmemmap(m, &self);
    return 0;
}
