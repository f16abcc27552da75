/* copy: filling a block, with several threads once it is large.
 *
 * One thread does not saturate the memory of a machine with several channels. The threads only copy;
 * they have all signals blocked, so that no handler of the application runs in them. What they wrote
 * is ordered before publication by their end (pthread_join) and the fence in sr_draft_publish.
 */
#define _GNU_SOURCE
#include "sr_catalog.h"

#include <signal.h>

#define THREADS_MAX 4u
#define SHARE_MIN (UINT64_C(32) << 20)    /* below this a thread costs more than it brings */

struct part { unsigned char *to; const unsigned char *from; size_t len; pthread_t thread; bool started; };

static void *copy_part(void *arg)
{
    struct part *p = arg;
    memcpy(p->to, p->from, p->len);
    return NULL;
}

void sr_catalog_copy(void *to, const void *from, uint64_t len)
{
    uint64_t threads = sr_min(sr_min(THREADS_MAX, sr_sys_cpus()), len / SHARE_MIN);
    if (threads < 2) {
        if (len) memcpy(to, from, len);
        return;
    }
    struct part parts[THREADS_MAX];
    uint64_t piece = sr_align_up(len / threads, SR_PAGE), at = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint64_t i = 0; i < threads; i++, at += piece) {
        parts[i] = (struct part){(unsigned char *)to + at, (const unsigned char *)from + at, i + 1 < threads ? piece : len - at, 0, false};
        /* The last part is this thread's own; so is one whose thread cannot be started. */
        parts[i].started = i + 1 < threads && pthread_create(&parts[i].thread, NULL, copy_part, &parts[i]) == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (uint64_t i = 0; i < threads; i++)
        if (!parts[i].started) copy_part(&parts[i]);
    for (uint64_t i = 0; i < threads; i++)
        if (parts[i].started) pthread_join(parts[i].thread, NULL);
}
