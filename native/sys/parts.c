/* parts: one long task, by several threads.
 *
 * One thread does not saturate the memory of a machine with several channels, neither copying nor when
 * the kernel clears pages for it. The threads have all signals blocked, so that no handler of the
 * application runs in them, and have ended when the call returns.
 */
#define _GNU_SOURCE
#include "sr_sys.h"

#include <pthread.h>
#include <signal.h>

#define THREADS_MAX 4u

struct part {
    int (*work)(void *arg, uint64_t at, uint64_t len);
    void *arg;
    uint64_t at, len;
    pthread_t thread;
    int result;
    bool started;
};

static void *do_part(void *arg)
{
    struct part *p = arg;
    p->result = p->work(p->arg, p->at, p->len);
    return NULL;
}

int sr_sys_in_parts(uint64_t len, uint64_t unit, uint64_t least, int (*work)(void *arg, uint64_t at, uint64_t len), void *arg)
{
    uint64_t threads = sr_min(sr_min(THREADS_MAX, sr_sys_cpus()), len / least);
    if (threads < 2) return work(arg, 0, len);
    struct part parts[THREADS_MAX];
    uint64_t piece = sr_align_up(len / threads, unit), at = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint64_t i = 0; i < threads; i++, at += piece) {
        parts[i] = (struct part){.work = work, .arg = arg, .at = at, .len = i + 1 < threads ? piece : len - at};
        /* The last part is this thread's own; so is one whose thread cannot be started. */
        parts[i].started = i + 1 < threads && pthread_create(&parts[i].thread, NULL, do_part, &parts[i]) == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    int result = 0;
    for (uint64_t i = 0; i < threads; i++)
        if (!parts[i].started) do_part(&parts[i]);
    for (uint64_t i = 0; i < threads; i++) {
        if (parts[i].started) pthread_join(parts[i].thread, NULL);
        if (result == 0) result = parts[i].result;
    }
    return result;
}
