/* look: at all processes, through kernel memory.
 *
 * All that the caller may see are looked at, also where only some were asked for: whether a table is
 * private to a process is a statement about the others. A look costs some 30 us a process.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { EXEC_TRIES = 4 };

struct dirent64 { uint64_t ino, off; uint16_t len; uint8_t type; char name[]; };

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static int list_pids(int **pids, size_t *count)
{
    alignas(8) char buffer[32768];
    size_t cap = 0;
    *pids = NULL;
    *count = 0;
    SR_FD fd = sr_sys->openat(AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return fd;
    ssize_t n;
    while ((n = sr_sys->getdents(fd, buffer, sizeof buffer)) > 0) {
        for (ssize_t at = 0; at < n;) {
            const struct dirent64 *d = (const void *)(buffer + at);
            at += d->len;
            char *end;
            long pid = d->name[0] >= '1' && d->name[0] <= '9' ? strtol(d->name, &end, 10) : 0;
            if (pid <= 0 || pid > INT32_MAX || *end) continue;
            if (!PT_GROW(*pids, cap, *count)) return -ENOMEM;
            (*pids)[(*count)++] = (int)pid;
        }
    }
    if (*count) qsort(*pids, *count, sizeof **pids, by_number);
    return n < 0 ? (int)n : 0;
}

static int own_pid(void)
{
    char text[32];
    ssize_t n = sr_sys->readlinkat(AT_FDCWD, "/proc/self", text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    return (int)strtol(text, NULL, 10);
}

/* PROC_PID_INIT_INO, include/linux/proc_ns.h: the first pid namespace has had this number since 3.8. */
static bool is_nested(void)
{
    struct stat st;
    return sr_sys->fstatat(AT_FDCWD, "/proc/self/ns/pid", &st, 0) == 0 && st.st_ino != 0xEFFFFFFC;
}

int pt_found_pids(const struct pt_request *q, struct pt_found *found)
{
    found->nested = !q->image && is_nested();
    int *pids = NULL, own = q->image ? 0 : own_pid();
    size_t count = 0, asked = 0;
    int r = q->alone || q->image ? 0 : list_pids(&pids, &count);
    if (r == 0 && q->mappings) r = pt_objects_init(&found->objects);
    /* Both lists are sorted: merge. */
    for (size_t i = 0; r == 0 && (i < count || asked < q->pid_count);) {
        bool take_asked = asked < q->pid_count && (i >= count || q->pids[asked] <= pids[i]);
        int pid = take_asked ? q->pids[asked] : pids[i];
        while (i < count && pids[i] == pid) i++;
        asked += take_asked;
        if (pid == own) continue;
        if (!PT_GROW(found->process, found->process_cap, found->processes)) {
            r = -ENOMEM;
            break;
        }
        found->process[found->processes++] =
            (struct pt_process){.pid = pid, .state = PT_GONE, .asked = take_asked || q->pid_count == 0};
    }
    free(pids);
    return r;
}

struct pt_memory *pt_found_memory(struct pt_found *found, size_t *index)
{
    if (!PT_GROW(found->memory, found->memory_cap, found->memories)) return NULL;
    *index = found->memories++;
    found->memory[*index] = (struct pt_memory){0};
    return &found->memory[*index];
}

void pt_found_deinit(struct pt_found *found)
{
    for (size_t i = 0; i < found->memories; i++) pt_memory_deinit(&found->memory[i]);
    free(found->memory);
    free(found->process);
    free(found->sharing);
    pt_objects_deinit(&found->objects);
    memset(found, 0, sizeof *found);
}

/* plain: only if the caller could have opened them too. */
static int open_maps(int pid, int thread, bool plain)
{
    char path[64];
    if (pid == thread) snprintf(path, sizeof path, "/proc/%d/maps", pid);
    else snprintf(path, sizeof path, "/proc/%d/task/%d/maps", pid, thread);
    return plain ? pt_privilege_open_plain(path) : sr_sys->openat(AT_FDCWD, path, O_RDONLY, 0);
}

/* Names and addresses say more about a process than sizes do: with privilege that the caller lacks
 * they are read only where the caller could (a process may hide them from its own user). */
static int read_mappings(const struct pt_request *q, struct pt_found *found, struct pt_memory *mem, int maps, int pid, int thread)
{
    if (q->image || mem->mapped || (q->region_count == 0 && !q->mappings)) return 0;
    SR_FD plain = q->own_only && q->mappings ? open_maps(pid, thread, true) : -1;
    bool named = q->mappings && (!q->own_only || plain >= 0);
    if (q->region_count == 0 && !named) return 0;
    int r = pt_maps_read(maps, q, named ? &found->objects : NULL, &mem->vma, &mem->vmas);
    mem->mapped = named && r == 0 && mem->vmas;
    return r;
}

/* Where a memory ends, the next exec takes its place: an address alone says nothing about a process
 * that was looked at before. */
static bool same_memory(struct pt_machine *m, const struct pt_memory *mem, const struct pt_task *t)
{
    return mem->mm == t->mm && mem->pgd == t->pgd && pt_task_still(m, mem->task, mem->mm);
}

/* One process. The open maps file keeps its mm_struct and PGD from being freed, and is what the
 * kernel's own check of permission (ptrace_may_access) is made on. */
static int look_at(struct pt_machine *m, const struct pt_request *q, struct pt_found *found, struct pt_process *p, struct pt_task *t)
{
    for (int attempt = 0; attempt < EXEC_TRIES; attempt++) {
        if (attempt > 0) {
            int r = pt_tasks_find(m, &p->pid, 1, t);
            if (r < 0) return r;
        }
        memcpy(p->comm, t->comm, sizeof p->comm);
        p->state = !t->found ? PT_GONE : t->kernel ? PT_KERNEL : q->own_only && t->foreign ? PT_DENIED : t->mm == 0 ? PT_GONE : PT_SEEN;
        if (p->state != PT_SEEN) return 0;
        SR_FD maps = q->image ? -1 : open_maps(p->pid, t->thread, false);
        if (!q->image && maps < 0) {
            p->state = maps == -EACCES || maps == -EPERM ? PT_DENIED : PT_GONE;
            if (p->state == PT_DENIED) return 0;
            continue;
        }
        for (p->memory = 0; p->memory < found->memories; p->memory++)
            if (same_memory(m, &found->memory[p->memory], t)) break;
        if (p->memory < found->memories) {
            struct pt_memory *mem = &found->memory[p->memory];
            mem->processes++;
            if (mem->vmas || !(p->asked || q->region_count)) return 0;
            int r = read_mappings(q, found, mem, maps, p->pid, t->thread);
            return r == -ENOMEM ? r : 0;
        }
        struct pt_memory *mem = pt_found_memory(found, &p->memory);
        if (mem == NULL) return -ENOMEM;
        mem->mm = t->mm;
        mem->pgd = t->pgd;
        mem->task = t->task;
        int r = pt_walk(m, mem, q->leaves);
        if (r == 1 && (p->asked || q->region_count) && (r = read_mappings(q, found, mem, maps, p->pid, t->thread)) == 0) r = 1;
        if (r == 1) {
            mem->processes = 1;
            return 0;
        }
        pt_memory_deinit(mem);
        found->memories--;
        p->state = PT_GONE;
        if (r == -ENOMEM || r == -EIO) return r;
    }
    return 0;
}

static int look_at_all(struct pt_machine *m, const struct pt_request *q, struct pt_found *found)
{
    int r = pt_found_pids(q, found);
    struct pt_task tasks[PT_BATCH];
    for (size_t done = 0; r == 0 && done < found->processes; done += PT_BATCH) {
        size_t n = sr_min(PT_BATCH, found->processes - done);
        int some[PT_BATCH];
        for (size_t i = 0; i < n; i++) some[i] = found->process[done + i].pid;
        r = pt_tasks_find(m, some, n, tasks);
        for (size_t i = 0; r == 0 && i < n; i++) r = look_at(m, q, found, &found->process[done + i], &tasks[i]);
    }
    return r;
}

static int open_reader(struct pt_machine *m, const struct pt_request *q, int which, struct sr_error *e)
{
    int r = which == 0 ? pt_reader_bpf_open(&m->reader, e) : pt_reader_kcore_open(&m->reader, q->kcore ? q->kcore : "/proc/kcore", e);
    if (r < 0) return r;
    if (q->record >= 0) {
        struct pt_reader *recording;
        if (pt_reader_record_open(&recording, m->reader, q->record) == 0) m->reader = recording;
    }
    r = pt_prove(m, q, e);
    if (r == 0) return 0;
    m->reader->close(m->reader);
    m->reader = NULL;
    return r;
}

int pt_look(const struct pt_request *q, struct pt_found *found, struct sr_error *e)
{
    struct pt_machine m = {0};
    uint64_t start = sr_sys_now();
    int r = pt_btf_load(&m.btf, q->btf ? q->btf : "/sys/kernel/btf/vmlinux", e);
    if (r < 0) return r;
    struct sr_error second;
    r = open_reader(&m, q, q->kcore ? 1 : 0, e);
    if (r < 0 && !q->kcore) {
        r = open_reader(&m, q, 1, &second);
        if (r < 0) {
            struct sr_error first = *e;
            return sr_fail(e, first.code, 0, "%.100s%s%.30s; %.60s%s%.30s", first.what, first.sys_errno ? ": " : "",
                           first.sys_errno ? strerror(first.sys_errno) : "", second.what, second.sys_errno ? ": " : "",
                           second.sys_errno ? strerror(second.sys_errno) : "");
        }
    }
    if (r < 0) return r;
    pt_privilege_settle();
    found->method = "walk";
    found->reader = m.reader->name;
    found->pgd_bytes = m.format.pgd_pages * (unsigned)SR_PAGE;
    r = look_at_all(&m, q, found);
    if (r == 0) r = pt_count(&m, q, found);
    found->reread = m.reread;
    found->changed = m.changed;
    m.reader->close(m.reader);
    found->elapsed_us = (sr_sys_now() - start) / 1000;
    return r < 0 ? sr_fail(e, r == -ENOMEM ? SR_E_NO_MEMORY : SR_E_SYSTEM, r, "the walk ended early") : 0;
}
