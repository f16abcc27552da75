/* tasks: from process numbers to their memory, through the tree that the kernel itself uses.
 *
 * struct pid_namespace holds an xarray from number to struct pid, which holds the list of tasks
 * that have it: no list of all tasks is walked (an element that is freed meanwhile would lead
 * astray), the numbers are those of our own namespace, like in /proc, and a thousand processes take
 * a handful of reads. What is found is checked backwards, since each structure may have been freed
 * and reused: the struct pid must hold the number and the namespace, the task must point to it.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdlib.h>

enum {
    KTHREAD = 0x00200000,    /* PF_KTHREAD, include/linux/sched.h */
    TYPE_TGID = 1,           /* enum pid_type, include/linux/pid_types.h */
    THREADS_MAX = 1 << 16,
    NODE_MAX = 2048,
};

static bool is_node(uint64_t entry) { return (entry & 3) == 2 && entry > 4096; }    /* lib/xarray.c */

/* The struct pid of each number, 0 where there is none; all descend in step. */
static int find_pids(struct pt_machine *m, const int *pids, size_t count, uint64_t *found)
{
    const struct pt_btf *b = &m->btf;
    uint64_t root;
    uint32_t base;
    uint64_t idr = m->ns + b->pid_namespace__idr;
    if (!pt_get(m->reader, idr + b->idr__idr_rt + b->xarray__xa_head, &root, 8) || !pt_get(m->reader, idr + b->idr__idr_base, &base, 4))
        return -EIO;
    unsigned char *node = malloc(count * NODE_MAX);
    struct pt_want *want = malloc(count * sizeof *want);
    size_t *of = malloc(count * sizeof *of);
    int r = node && want && of ? 0 : -ENOMEM;
    for (size_t i = 0; i < count; i++) found[i] = root;
    /* XA_CHUNK_SHIFT is 6, or 4 with CONFIG_BASE_SMALL: then the node is smaller. */
    unsigned bits = b->size_xa_node > b->xa_node__slots + 64 * 8 - 1 ? 6 : 4;
    unsigned last_shift = 64;
    for (int depth = 0; r == 0 && depth < 16; depth++) {
        size_t n = 0;
        for (size_t i = 0; i < count; i++)
            if (is_node(found[i])) {
                of[n] = i;
                want[n] = (struct pt_want){.at = found[i] - 2, .to = node + i * NODE_MAX, .len = b->size_xa_node};
                n++;
            }
        if (n == 0) break;
        r = pt_fetch(m->reader, want, n);
        for (size_t k = 0; r == 0 && k < n; k++) {
            size_t i = of[k];
            const unsigned char *at = node + i * NODE_MAX;
            unsigned shift = at[b->xa_node__shift];
            uint64_t number = (uint64_t)(uint32_t)pids[i] - base, slot = number >> (shift & 63);
            if (depth > 0) slot &= (1u << bits) - 1;
            if (!want[k].ok || shift >= last_shift || shift > 30 || slot >> bits) found[i] = 0;
            else memcpy(&found[i], at + b->xa_node__slots + 8 * slot, 8);
        }
    }
    for (size_t i = 0; i < count; i++)
        if (found[i] & 3) found[i] = 0;
    free(of);
    free(want);
    free(node);
    return r;
}

struct piece { uint64_t pid, task, first, signal, cred; uint32_t ids[4]; int32_t nr; uint64_t ns, back; };

static void *field(struct pt_want *w, uint64_t at, void *to, uint32_t len)
{
    *w = (struct pt_want){.at = at, .to = to, .len = len};
    return to;
}

/* A thread of `leader` that still has a memory: a leader that ended by pthread_exit has none, while
 * the process lives on. */
static void find_thread(struct pt_machine *m, uint64_t signal, struct pt_task *t)
{
    const struct pt_btf *b = &m->btf;
    uint64_t head = signal + b->signal_struct__thread_head, node;
    if (!pt_get(m->reader, head, &node, 8)) return;
    for (int i = 0; i < THREADS_MAX && node != head; i++) {
        uint64_t task = node - b->task_struct__thread_node, mm = 0, owner = 0, pid = 0, next = 0, pgd = 0;
        int32_t nr = 0;
        struct pt_want w[4];
        field(&w[0], task + b->task_struct__mm, &mm, 8);
        field(&w[1], task + b->task_struct__signal, &owner, 8);
        field(&w[2], task + b->task_struct__thread_pid, &pid, 8);
        field(&w[3], node, &next, 8);
        if (pt_fetch(m->reader, w, 4) < 0 || !w[0].ok || !w[1].ok || !w[3].ok || owner != signal) return;
        if (mm && pid && pt_get(m->reader, mm + b->mm_struct__pgd, &pgd, 8) &&
            pt_get(m->reader, pid + b->pid__numbers + (uint64_t)m->ns_level * b->size_upid + b->upid__nr, &nr, 4)) {
            t->task = task;
            t->mm = mm;
            t->pgd = pgd;
            t->thread = nr;
            return;
        }
        node = next;
    }
}

static int find_some(struct pt_machine *m, const int *pids, size_t count, struct pt_task *tasks)
{
    const struct pt_btf *b = &m->btf;
    uint64_t pid[PT_BATCH];
    struct piece p[PT_BATCH];
    struct pt_want w[PT_BATCH * 7];
    memset(p, 0, sizeof p);
    memset(tasks, 0, count * sizeof *tasks);
    int r = find_pids(m, pids, count, pid);
    size_t n = 0;
    for (size_t i = 0; r == 0 && i < count; i++) {
        uint64_t number = pid[i] + b->pid__numbers + (uint64_t)m->ns_level * b->size_upid;
        if (pid[i] == 0) continue;
        field(&w[n++], pid[i] + b->pid__tasks + 8 * TYPE_TGID, &p[i].first, 8);
        field(&w[n++], number + b->upid__nr, &p[i].nr, 4);
        field(&w[n++], number + b->upid__ns, &p[i].ns, 8);
    }
    if (r == 0) r = pt_fetch(m->reader, w, n);
    n = 0;
    for (size_t i = 0; r == 0 && i < count; i++) {
        if (pid[i] == 0 || p[i].first == 0 || p[i].nr != pids[i] || p[i].ns != m->ns) continue;
        uint64_t at = p[i].task = p[i].first - b->task_struct__pid_links - 16 * TYPE_TGID;
        field(&w[n++], at + b->task_struct__thread_pid, &p[i].back, 8);
        field(&w[n++], at + b->task_struct__mm, &tasks[i].mm, 8);
        field(&w[n++], at + b->task_struct__flags, &tasks[i].flags, 4);
        field(&w[n++], at + b->task_struct__comm, tasks[i].comm, 16);
        field(&w[n++], at + b->task_struct__signal, &p[i].signal, 8);
        field(&w[n++], at + b->task_struct__cred, &p[i].cred, 8);
    }
    if (r == 0) r = pt_fetch(m->reader, w, n);
    n = 0;
    for (size_t i = 0; r == 0 && i < count; i++) {
        struct pt_task *t = &tasks[i];
        t->found = p[i].task && p[i].back == pid[i];
        if (!t->found) continue;
        t->task = p[i].task;
        t->thread = pids[i];
        t->kernel = t->flags & KTHREAD;
        if (t->kernel) t->mm = 0;
        else if (t->mm == 0) find_thread(m, p[i].signal, t);
        if (t->mm) field(&w[n++], t->mm + b->mm_struct__pgd, &t->pgd, 8);
        const uint32_t at[4] = {b->cred__uid, b->cred__euid, b->cred__suid, b->cred__fsuid};
        for (int k = 0; k < 4; k++) field(&w[n++], p[i].cred + at[k], &p[i].ids[k], 4);
    }
    if (r == 0) r = pt_fetch(m->reader, w, n);
    /* The credentials decide who may see this: read which ones apply again, since they are freed
     * when a process changes them. */
    uint64_t cred[PT_BATCH] = {0};
    for (size_t i = n = 0; r == 0 && i < count; i++)
        if (tasks[i].found) field(&w[n++], p[i].task + b->task_struct__cred, &cred[i], 8);
    if (r == 0) r = pt_fetch(m->reader, w, n);
    for (size_t i = 0; r == 0 && i < count; i++) {
        bool ours = cred[i] == p[i].cred;
        for (int k = 0; k < 4; k++) ours = ours && p[i].ids[k] == m->uid;
        tasks[i].foreign = !ours;
    }
    return r;
}

int pt_tasks_find(struct pt_machine *m, const int *pids, size_t count, struct pt_task *tasks)
{
    for (size_t done = 0; done < count; done += PT_BATCH) {
        int r = find_some(m, pids + done, sr_min(PT_BATCH, count - done), tasks + done);
        if (r < 0) return r;
    }
    return 0;
}

bool pt_task_still(struct pt_machine *m, uint64_t task, uint64_t mm)
{
    uint64_t now;
    return pt_get(m->reader, task + m->btf.task_struct__mm, &now, 8) && now == mm;
}
