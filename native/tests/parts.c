/* parts: a long task is done whole, each piece once, by threads that no signal reaches; and what one of
 * them answers is the answer.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>

#include "support.h"

#define UNIT 4096u
#define LEAST (16 * UNIT)
#define UNITS 1000u

static _Atomic uint32_t done[UNITS + 1], calls, unaware;
static pthread_t self;
static uint64_t failing;    /* the part that begins at or behind this fails */

static int work(void *arg, uint64_t at, uint64_t len)
{
    sigset_t mask;
    EXPECT(arg == &failing && sr_is_aligned(at, UNIT), "a part begins with a unit");
    for (uint64_t u = at / UNIT; u * UNIT < at + len; u++) atomic_fetch_add(&done[u], 1);
    atomic_fetch_add(&calls, 1);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    if (!pthread_equal(pthread_self(), self) && sigismember(&mask, SIGUSR1) && sigismember(&mask, SIGSEGV)) atomic_fetch_add(&unaware, 1);
    return at + len > failing ? -(int)(1 + at / UNIT) : 0;
}

static uint32_t try(uint64_t len)
{
    calls = unaware = 0;
    for (uint32_t u = 0; u <= UNITS; u++) done[u] = 0;
    int result = sr_sys_in_parts(len, UNIT, LEAST, work, &failing);
    for (uint32_t u = 0; u <= UNITS; u++) EXPECT(done[u] == (u * (uint64_t)UNIT < len), "unit %u of %llu bytes was done %u times", u, (unsigned long long)len, done[u]);
    EXPECT(unaware == calls - 1, "%u of %u threads besides this one have signals blocked", unaware, calls - 1);
    EXPECT((result < 0) == (len > failing), "the answer %d", result);
    return calls;
}

int main(void)
{
    sigset_t mask;
    self = pthread_self();
    failing = UINT64_MAX;
    uint32_t most = (uint32_t)sr_min(sr_sys_cpus(), 4);
    EXPECT(try(1) == 1 && try(2 * LEAST - 1) == 1, "what is short is not divided");
    EXPECT(try(2 * LEAST) == sr_min(most, 2), "two parts of the least length");
    for (uint64_t len = UNITS * UNIT; len > UNITS * UNIT - 3 * UNIT; len -= 511) EXPECT(try(len) == most, "as many parts as processors");
    /* All parts are done all the same, and the first of those that failed answers. */
    failing = 0;
    EXPECT(try(UNITS * UNIT) == most && sr_sys_in_parts(UNITS * UNIT, UNIT, LEAST, work, &failing) == -1, "the first part's answer");
    failing = UNITS * UNIT - 1;
    EXPECT(try(UNITS * UNIT) == most, "the last part's answer");
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    EXPECT(!sigismember(&mask, SIGUSR1), "this thread's signals are as they were");
    return 0;
}
