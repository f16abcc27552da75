/* estimate: what can be said without reading page tables.
 *
 * Exact even here is how many bytes of tables a process reaches: the kernel's own count (VmPTE in
 * /proc/PID/status) and the PGD, which it leaves out. Estimated is of what level they are, from
 * which pages are there (PAGEMAP_SCAN, Linux 6.7), and what is shared: a PMD table that maps a whole
 * GiB of shared 2 MiB hugetlb pages, at an address congruent to the file, is taken for shared by
 * all who map that GiB with the same permissions, since then the kernel links one into all.
 *
 * The tables that follow are given invented frames, one for each that would be distinct, so that
 * counting is the same as for tables that were seen.
 */
#define _GNU_SOURCE
#include "ptwalk.h"

#include <errno.h>
#include <linux/ioctl.h>
#include <stdio.h>
#include <stdlib.h>

/* PAGEMAP_SCAN, include/uapi/linux/fs.h */
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
struct scanned { uint64_t start, end, categories; };
#define SCAN _IOWR('f', 16, struct scan)
enum { IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_HUGE = 1 << 6, RANGES = 512 };
#define USER_END ((UINT64_C(1) << 47) - SR_PAGE)
#define PUD_SPAN (UINT64_C(512) * SR_GIB)

struct shared_table { uint64_t dev, ino, gib; bool writable; uint64_t frame; };
struct estimator {
    uint64_t next;           /* the next invented frame */
    struct shared_table *shared;
    size_t count, cap;
};

static uint64_t invent(struct estimator *est) { return est->next += SR_PAGE; }

static bool add(struct pt_memory *mem, uint64_t frame, enum pt_level level, uint64_t va)
{
    if (!PT_GROW(mem->link, mem->link_cap, mem->links)) return false;
    mem->link[mem->links++] = (struct pt_link){.va = va, .table = frame | level};
    return true;
}

static const struct pt_vma *first_behind(const struct pt_memory *mem, uint64_t va)
{
    size_t low = 0, high = mem->vmas;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (mem->vma[mid].end <= va) low = mid + 1;
        else high = mid;
    }
    return low < mem->vmas ? &mem->vma[low] : NULL;
}

/* Whether all processes that map the GiB at `va` like this one share its PMD table. */
static bool is_linked(const struct pt_vma *v, uint64_t va)
{
    return v && v->start <= va && v->end - va >= SR_GIB && v->hugetlb && v->shared && (va - v->start + v->file_offset) % SR_GIB == 0;
}

static uint64_t shared_frame(struct estimator *est, const struct pt_vma *v, uint64_t va)
{
    uint64_t gib = (va - v->start + v->file_offset) / SR_GIB;
    for (size_t i = 0; i < est->count; i++) {
        const struct shared_table *s = &est->shared[i];
        if (s->dev == v->dev && s->ino == v->ino && s->gib == gib && s->writable == v->writable) return s->frame;
    }
    uint64_t frame = invent(est);
    if (PT_GROW(est->shared, est->cap, est->count)) est->shared[est->count++] = (struct shared_table){v->dev, v->ino, gib, v->writable, frame};
    return frame;
}

/* The tables that [start, end) needs; ranges come in order, so each level remembers its last. */
static bool add_range(struct estimator *est, struct pt_memory *mem, const struct scanned *range, uint64_t last[3])
{
    for (uint64_t va = sr_align_down(range->start, PUD_SPAN); va < range->end; va += PUD_SPAN) {
        if (last[PT_PUD] == va) continue;
        last[PT_PUD] = va;
        if (!add(mem, invent(est), PT_PUD, va)) return false;
    }
    for (uint64_t va = sr_align_down(range->start, SR_GIB); va < range->end; va += SR_GIB) {
        if (last[PT_PMD] == va) continue;
        last[PT_PMD] = va;
        const struct pt_vma *v = first_behind(mem, va);
        if (v && v->start <= va && v->gigantic) continue;    /* its entry lies in the PUD table */
        if (!add(mem, is_linked(v, va) ? shared_frame(est, v, va) : invent(est), PT_PMD, va)) return false;
    }
    for (uint64_t va = sr_align_down(range->start, SR_LARGE_PAGE); va < range->end && !(range->categories & IS_HUGE); va += SR_LARGE_PAGE) {
        if (last[PT_PTE] == va) continue;
        last[PT_PTE] = va;
        if (!add(mem, invent(est), PT_PTE, va)) return false;
    }
    return true;
}

static int scan_pages(struct estimator *est, int fd, struct pt_memory *mem, bool leaves)
{
    struct scanned range[RANGES];
    uint64_t last[3] = {UINT64_MAX, UINT64_MAX, UINT64_MAX};
    struct scan s = {
        .size = sizeof s, .end = USER_END, .vec = (uintptr_t)range, .vec_len = RANGES,
        .category_anyof_mask = IS_PRESENT | IS_SWAPPED, .return_mask = IS_PRESENT | IS_SWAPPED | IS_HUGE,
    };
    while (s.start < s.end) {
        int n = sr_sys->ioctl(fd, SCAN, &s);
        if (n < 0) return n;
        for (int i = 0; i < n; i++) {
            if (!add_range(est, mem, &range[i], last)) return -ENOMEM;
            if (leaves && range[i].categories & IS_PRESENT)
                mem->leaves[range[i].categories & IS_HUGE ? PT_PMD : PT_PTE] +=
                    (range[i].end - range[i].start) / (range[i].categories & IS_HUGE ? SR_LARGE_PAGE : SR_PAGE);
        }
        if (s.walk_end <= s.start) break;
        s.start = s.walk_end;
    }
    return 0;
}

/* A field of status, "\nVmPTE:\t      44 kB". The name of the process stands before all others, with
 * its newlines escaped. */
static bool status_field(const char *text, const char *name, uint64_t *value)
{
    const char *at = strstr(text, name);
    if (at == NULL) return false;
    *value = strtoull(at + strlen(name), NULL, 10);
    return true;
}

static void read_name(int dir, struct pt_process *p)
{
    char comm[64];
    ssize_t n = sr_sys_read_text(dir, "comm", comm, sizeof comm);
    if (n > 0 && comm[n - 1] == '\n') n--;
    memset(p->comm, 0, sizeof p->comm);
    if (n > 0) memcpy(p->comm, comm, sr_min((uint64_t)n, sizeof p->comm - 1));
}

static bool is_number(const char *name)
{
    for (const char *c = name; *c; c++)
        if (*c < '0' || *c > '9') return false;
    return *name != '\0';
}

/* Another thread's folder, if the leader has ended (it has no memory then) and the process lives on. */
static int open_thread(int dir, char *status, size_t cap, uint64_t *kib)
{
    alignas(8) char buffer[4096];
    SR_FD task = sr_sys->openat(dir, "task", O_RDONLY | O_DIRECTORY, 0);
    ssize_t n;
    while (task >= 0 && (n = sr_sys->getdents(task, buffer, sizeof buffer)) > 0) {
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 { uint64_t ino, off; uint16_t len; uint8_t type; char name[]; } *d = (const void *)(buffer + at);
            at += d->len;
            if (!is_number(d->name)) continue;
            int thread = sr_sys->openat(task, d->name, O_PATH | O_DIRECTORY, 0);
            if (thread < 0) continue;
            if (sr_sys_read_text(thread, "status", status, cap) > 0 && status_field(status, "\nVmPTE:", kib)) return thread;
            sr_sys->close(thread);
        }
    }
    return -1;
}

/* Kernels before 6.10 have no Kthread: in status; the flags in stat have always told. */
static bool is_kernel_thread(int dir, const char *status)
{
    char stat[512];
    uint64_t flag = 0;
    if (status_field(status, "\nKthread:", &flag)) return flag != 0;
    if (sr_sys_read_text(dir, "stat", stat, sizeof stat) <= 0) return false;
    /* "pid (name) state ppid pgrp session tty tpgid flags"; the name may hold parentheses itself. */
    const char *at = strrchr(stat, ')');
    for (int i = 0; at && i < 7; i++) at = strchr(at + 1, ' ');
    return at && strtoull(at, NULL, 10) & 0x00200000;    /* PF_KTHREAD */
}

static int estimate_one(struct estimator *est, const struct pt_request *q, struct pt_found *found, struct pt_process *p)
{
    char path[32], status[8192];
    snprintf(path, sizeof path, "/proc/%d", p->pid);
    SR_FD dir = sr_sys->openat(AT_FDCWD, path, O_PATH | O_DIRECTORY, 0);
    if (dir < 0 || sr_sys_read_text(dir, "status", status, sizeof status) <= 0) {
        p->state = dir == -EACCES || dir == -EPERM ? PT_DENIED : PT_GONE;
        return 0;
    }
    read_name(dir, p);
    uint64_t kib;
    SR_FD thread = -1;
    if (!status_field(status, "\nVmPTE:", &kib) && (thread = open_thread(dir, status, sizeof status, &kib)) < 0) {
        p->state = is_kernel_thread(dir, status) ? PT_KERNEL : PT_GONE;
        return 0;
    }
    int from = thread >= 0 ? thread : dir;
    SR_FD maps = sr_sys->openat(from, "maps", O_RDONLY, 0);
    SR_FD pagemap = strcmp(found->method, "pagemap") == 0 ? sr_sys->openat(from, "pagemap", O_RDONLY, 0) : -1;
    if (maps < 0) {
        p->state = maps == -EACCES || maps == -EPERM ? PT_DENIED : PT_GONE;
        /* What anyone may read is at least told in sum: tables, and the PGD that the count leaves out. */
        if (p->state == PT_DENIED) found->denied_bytes += kib * SR_KIB + SR_PAGE;
        return 0;
    }
    struct pt_memory *mem = pt_found_memory(found, &p->memory);
    if (mem == NULL) return -ENOMEM;
    mem->processes = 1;
    mem->kernel_bytes = kib * SR_KIB;
    p->state = PT_SEEN;
    /* Without addresses (method "status") nothing can be said about mappings. */
    bool named = q->mappings && p->asked && pagemap >= 0;
    int r = pt_maps_read(maps, q, named ? &found->objects : NULL, &mem->vma, &mem->vmas);
    mem->mapped = named && r == 0 && mem->vmas;
    if (r < 0 && r != -ENOMEM) {
        p->state = PT_GONE;
        return 0;
    }
    if (!add(mem, invent(est), PT_PGD, 0)) r = -ENOMEM;
    if (r == 0 && pagemap >= 0) {
        r = scan_pages(est, pagemap, mem, q->leaves);
        if (r < 0 && r != -ENOMEM) r = 0;    /* what was seen until then is still an estimate */
    }
    /* Tables that hold nothing now stay until their addresses are unmapped: the kernel counts them. */
    while (r == 0 && mem->links < 1 + mem->kernel_bytes / SR_PAGE)
        if (!add(mem, invent(est), PT_PTE, 0)) r = -ENOMEM;
    return r;
}

static bool can_scan(void)
{
    SR_FD fd = sr_sys->openat(AT_FDCWD, "/proc/self/pagemap", O_RDONLY, 0);
    struct scan s = {.size = sizeof s, .category_anyof_mask = IS_PRESENT, .return_mask = IS_PRESENT};
    return fd >= 0 && sr_sys->ioctl(fd, SCAN, &s) >= 0;
}

int pt_estimate(const struct pt_request *q, struct pt_found *found, struct sr_error *e)
{
    struct estimator est = {0};
    uint64_t start = sr_sys_now();
    /* What is said here is said of whom the kernel lets the caller look at: the kernel is to decide that. */
    int r = q->own_only ? pt_privilege_drop() : 0;
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "privilege cannot be put aside");
    if (found->method == NULL) found->method = can_scan() ? "pagemap" : "status";
    found->pgd_bytes = (unsigned)SR_PAGE;
    r = pt_found_pids(q, found);
    for (size_t i = 0; r == 0 && i < found->processes; i++) r = estimate_one(&est, q, found, &found->process[i]);
    if (r == 0) r = pt_count(NULL, q, found);
    free(est.shared);
    found->elapsed_us = (sr_sys_now() - start) / 1000;
    return r < 0 ? sr_fail(e, r == -ENOMEM ? SR_E_NO_MEMORY : SR_E_SYSTEM, r, "the processes cannot be looked at") : 0;
}
