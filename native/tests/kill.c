/* kill: writers killed at random times beside others at work lose nothing, leak nothing, block no one.
 *
 * Processes put, replace, delete, fill in place, look at and hold objects of one region. Each owns
 * some names; before and after each change it writes down, in memory that outlives it, what it is
 * about to do. This process kills one at random (SIGKILL), looks whether each of its objects is what
 * was written down, and starts another in its place. Names that all of them write must be whole.
 *
 * With namespaces=1 every second process is the first of a pid namespace of its own, so that they
 * have the same pid and thread id (77 where that may not be done).
 *
 * With msharefs=1 the region is on msharefs, or on its stand-in (77 where there is neither): objects are
 * four times as long, so that memory comes and goes, and every fourth life is that of a reader.
 *
 * Options: kills, every_ms, seconds (0: until the kills are done), processes, namespaces, msharefs, seed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sr_region_private.h"
#include "support.h"

#define PROCESSES_MAX 32
#define OWN 24                 /* names of each process        */
#define SHARED 16              /* names that all of them write */
#define DATA (1536 * SR_KIB)
#define LONGER 4u              /* objects and the region, on msharefs */
#define STUCK_S 20             /* an operation that takes longer is taken for blocked */

struct note { uint64_t len, seed; bool there; };

/* What a process writes down, and what it counts. */
struct worker {
    _Atomic uint32_t pid;                   /* as this process sees it                              */
    struct note was[OWN];                   /* committed                                            */
    struct note will;                       /* what is being done to name `busy`                    */
    _Atomic uint32_t busy;                  /* 1 + name; 0: nothing                                 */
    _Atomic uint64_t began;                 /* ns; when the operation at hand began; 0: none        */
    _Atomic uint64_t longest, operations, full, held_checks;
    _Atomic uint32_t row;                   /* 1 + its row; 0: not a member at the moment           */
};

static struct worker *workers;
static const char *region_name;
static uint32_t processes;
static bool on_msharefs;

static uint64_t size_of(uint64_t *random)
{
    uint64_t dice = t_below(random, 100), times = on_msharefs ? LONGER : 1;
    return times * (dice < 70 ? t_below(random, 600) : dice < 95 ? t_below(random, 9000) : t_below(random, 150000));
}

static void name_of(char out[32], uint32_t worker, uint32_t k)
{
    if (worker == UINT32_MAX) snprintf(out, 32, "all/%u", k);
    else snprintf(out, 32, "%u/%u", worker, k);
}

/* The seed of an object is its metadata, so that whoever finds it knows what it should be. */
static bool whole(struct sr_region *r, const struct sr_found *f)
{
    uint64_t seed;
    if (f->meta_len != sizeof seed) return false;
    memcpy(&seed, f->text + f->name_len, sizeof seed);
    return t_differs(r->data.at + f->off.at, f->len, seed) == f->len;
}

/* 0, or SR_E_FULL. Half of them as a draft that is filled in place. */
static int put(struct sr_region *r, const char *name, uint64_t len, uint64_t seed, bool in_place)
{
    static uint8_t bytes[LONGER * 150000];
    struct sr_error error = {0};
    struct sr_draft draft;
    uint64_t seq;
    struct sr_desc d = {.name = name, .meta = (const uint8_t *)&seed, .len = len, .name_len = (uint16_t)strlen(name), .meta_len = sizeof seed};
    int got;
    if (!in_place) {
        t_fill(bytes, len, seed);
        got = sr_catalog_put(r, &d, bytes, &seq, &error);
    } else {
        got = sr_draft_begin(r, &d, &draft, &error);
        if (got == 0) {
            t_fill(r->data.at + draft.off.at, len, seed);
            got = sr_draft_publish(r, &d, &draft, &seq, &error);
        }
    }
    if (got != 0 && got != SR_E_FULL) FAIL("put of '%s': %d %s", name, got, error.what);
    return got;
}

static void begin(struct worker *w) { atomic_store(&w->began, sr_sys_now()); }
static void end(struct worker *w)
{
    uint64_t took = sr_sys_now() - atomic_exchange(&w->began, 0);
    if (took > atomic_load(&w->longest)) atomic_store(&w->longest, took);
    atomic_fetch_add(&w->operations, 1);
}

static void change_own(struct sr_region *r, struct worker *w, uint32_t me, uint64_t *random)
{
    struct sr_error error = {0};
    char name[32];
    uint32_t k = (uint32_t)t_below(random, OWN);
    name_of(name, me, k);
    bool away = w->was[k].there && t_below(random, 3) == 0;
    w->will = away ? (struct note){0} : (struct note){size_of(random), t_random(random), true};
    atomic_store(&w->busy, k + 1);
    int got;
    if (away) {
        got = sr_catalog_delete(r, name, strlen(name), 0, &error);
        if (got != 0) FAIL("delete of '%s', which is there: %d %s", name, got, error.what);
    } else {
        got = put(r, name, w->will.len, w->will.seed, t_below(random, 2));
        if (got == SR_E_FULL) atomic_fetch_add(&w->full, 1);
    }
    if (got == 0) w->was[k] = w->will;
    atomic_store(&w->busy, 0);
}

static void look(struct sr_region *r, struct worker *w, uint64_t *random)
{
    static struct sr_found f[4];
    struct sr_error error = {0};
    char name[32];
    uint32_t held = 0;
    for (int i = 0; i < 4; i++) {
        bool all = t_below(random, 3) == 0;
        name_of(name, all ? UINT32_MAX : (uint32_t)t_below(random, processes), (uint32_t)t_below(random, all ? SHARED : OWN));
        int got = sr_catalog_get(r, name, strlen(name), true, &f[held], &error);
        if (got == 0) held++;
        else if (got != SR_E_NO_OBJECT) FAIL("get of '%s': %d %s", name, got, error.what);
    }
    /* Held: whatever the others do meanwhile, the bytes stay. */
    if (t_below(random, 20) == 0) usleep((unsigned)t_below(random, 2000));
    for (uint32_t i = 0; i < held; i++) {
        if (!whole(r, &f[i])) FAIL("a held object of %u bytes changed", (unsigned)f[i].len);
        sr_unpin(r, f[i].block);
    }
    atomic_fetch_add(&w->held_checks, held);
}

static void work(uint32_t me, uint64_t seed)
{
    struct worker *w = &workers[me];
    struct sr_error error = {0};
    uint64_t random = seed;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        begin(w);
        bool reads = on_msharefs && t_below(&random, 4) == 0;
        struct sr_region *r = t_attach(region_name, !reads);
        atomic_store(&w->row, sr_member_row(r) + 1);
        end(w);
        for (uint64_t turns = 50 + t_below(&random, 2000); turns; turns--) {
            uint64_t dice = t_below(&random, 100);
            char name[32];
            begin(w);
            if (reads) look(r, w, &random);
            else if (dice < 45) change_own(r, w, me, &random);
            else if (dice < 60) {
                name_of(name, UINT32_MAX, (uint32_t)t_below(&random, SHARED));
                if (t_below(&random, 4)) put(r, name, size_of(&random), t_random(&random), t_below(&random, 2));
                else if (sr_catalog_delete(r, name, strlen(name), 0, &error) != 0 && error.code != SR_E_NO_OBJECT) FAIL("delete: %s", error.what);
            } else if (dice < 98) look(r, w, &random);
            else if (dice < 99) {
                if (sr_catalog_sweep(r, &error) != 0) FAIL("sweep: %s", error.what);
            } else {
                uint64_t bytes;
                if (sr_catalog_trim(r, &bytes, &error) != 0) FAIL("trim: %s", error.what);
            }
            end(w);
        }
        begin(w);
        atomic_store(&w->row, 0);
        sr_region_close(r);
        end(w);
    }
}

static void start(uint32_t me, uint64_t seed, bool alone)
{
    struct worker *w = &workers[me];
    atomic_store(&w->began, 0);
    atomic_store(&w->pid, 0);
    fflush(NULL);
    pid_t pid = fork();
    EXPECT(pid >= 0, "fork");
    if (pid != 0) {
        if (!alone) {
            atomic_store(&w->pid, (uint32_t)pid);
            return;
        }
        for (int i = 0; i < 100000 && atomic_load(&w->pid) == 0; i++) usleep(100);
        EXPECT(atomic_load(&w->pid), "a process in a namespace of its own did not start");
        return;
    }
    if (!alone) work(me, seed);
    /* In between stands one whose children are in a new pid namespace, and who ends with its child. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (unshare(CLONE_NEWPID) != 0) _exit(SKIPPED);
    pid = fork();
    if (pid == 0) work(me, seed);
    atomic_store(&w->pid, (uint32_t)pid);
    int status = 0;
    waitpid(pid, &status, 0);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 0);
}

/* Is each object of a dead process one of the two that it may be? */
static void settle(struct sr_region *r, uint32_t me)
{
    static struct sr_found f;
    struct worker *w = &workers[me];
    struct sr_error error = {0};
    uint32_t busy = atomic_load(&w->busy);
    /* What was published by a writer that died before it got into the index is there for readers once
     * somebody has put the catalog in order: only then is it decided which of the two it is. */
    OK(sr_catalog_sweep(r, &error));
    for (uint32_t k = 0; k < OWN; k++) {
        char name[32];
        name_of(name, me, k);
        const struct note *may[2] = {&w->was[k], busy == k + 1 ? &w->will : &w->was[k]};
        int got = sr_catalog_get(r, name, strlen(name), true, &f, &error);
        if (got != 0 && got != SR_E_NO_OBJECT) FAIL("get of '%s' after a kill: %d %s", name, got, error.what);
        bool right = false, second = false;
        for (int i = 0; i < 2 && !right; i++) {
            if (got != 0) right = !may[i]->there;
            else right = may[i]->there && f.len == may[i]->len && memcmp(f.text + f.name_len, &may[i]->seed, sizeof may[i]->seed) == 0 && whole(r, &f);
            second = i == 1;
        }
        if (!right) FAIL("'%s' of a killed process is neither what it was nor what it was to be", name);
        if (got == 0) sr_unpin(r, f.block);
        if (second) w->was[k] = w->will;
    }
    atomic_store(&w->busy, 0);
}

static void reap(void)
{
    int status;
    while (waitpid(-1, &status, WNOHANG) > 0) {
        if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) exit(SKIPPED);
        if (WIFEXITED(status) && WEXITSTATUS(status) != 0) FAIL("a process found something wrong");
        if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) FAIL("a process ended by signal %d", WTERMSIG(status));
    }
}

static bool gone(struct worker *w) { return kill((pid_t)atomic_load(&w->pid), 0) != 0; }

/* Who has had the lock for some microseconds, or `otherwise`. */
static uint32_t holder(struct sr_region *r, uint32_t otherwise)
{
    uint64_t until = sr_sys_now() + 40000000;
    uint32_t seen = 0;
    for (int same = 0; sr_sys_now() < until; same++) {
        uint32_t word = (uint32_t)atomic_load(&sr_state(r)->st_lock) & 0x7FFFFFFF;
        if (word != seen || word == 0) same = 0;
        seen = word;
        if (same < 400) continue;
        for (uint32_t i = 0; i < processes; i++)
            if (atomic_load(&workers[i].row) == (word & 0x7FFF)) return i;
    }
    return otherwise;
}

/* With nobody else there: readers are shown what the commit map says, and memory is nowhere else. */
static void check_memory(struct sr_region *r)
{
    uint64_t marked = t_marked(r), stays = t_staying(r), length = r->head.hd_mapped;
    uint64_t shown = t_shown(sr_region__share_fd(r), sr_region__data_fd(r), length), backed = t_backed(sr_region__data_fd(r), length);
    EXPECT((marked & ~(shown & backed)) == 0, "granules %#llx are marked, %#llx shown, %#llx backed", (unsigned long long)marked, (unsigned long long)shown, (unsigned long long)backed);
    EXPECT(((shown | backed) & ~marked & ~stays) == 0, "granules %#llx are marked, %#llx shown, %#llx backed", (unsigned long long)marked, (unsigned long long)shown, (unsigned long long)backed);
}

int main(int argc, char **argv)
{
    uint64_t kills = t_option(argc, argv, "kills", 100), every_ms = t_option(argc, argv, "every_ms", 20), seconds = t_option(argc, argv, "seconds", 0);
    uint64_t seed = t_option(argc, argv, "seed", sr_sys_now()), random = seed;
    bool namespaces = t_option(argc, argv, "namespaces", 0);
    on_msharefs = t_option(argc, argv, "msharefs", 0);
    if (on_msharefs && t_msharefs() == NULL) return puts("SHAREDREGION_MSHAREFS names no msharefs"), SKIPPED;
    processes = (uint32_t)sr_min(t_option(argc, argv, "processes", 8), PROCESSES_MAX);
    workers = mmap(NULL, sizeof *workers * PROCESSES_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(workers != MAP_FAILED, "no memory");
    static char name[80];
    snprintf(name, sizeof name, "%s", t_region_name("kill"));
    region_name = name;
    struct sr_error error = {0};
    /* The children are made by fork: none of them may inherit an open region. */
    pid_t maker = fork();
    if (maker == 0) {
        struct sr_region *r = t_create(name, on_msharefs ? &sr_backend_msharefs : &sr_backend_shm, on_msharefs ? LONGER * DATA : DATA, true);
        sr_region_close(r);
        _exit(0);
    }
    int status;
    EXPECT(waitpid(maker, &status, 0) == maker && status == 0, "the region could not be made");
    if (namespaces) {
        pid_t probe = fork();
        if (probe == 0) _exit(unshare(CLONE_NEWPID) == 0 ? 0 : SKIPPED);
        EXPECT(waitpid(probe, &status, 0) == probe, "waitpid");
        if (status != 0) return sr_region_unlink(name, SR_NO_OWNER, NULL), SKIPPED;
    }
    for (uint32_t i = 0; i < processes; i++) start(i, t_random(&random), namespaces && i % 2);
    double begin_s = t_seconds();
    uint64_t done = 0, checks = 0, most_stuck = 0;
    while (seconds ? t_seconds() - begin_s < (double)seconds : done < kills) {
        /* Several moments within the interval, so that kills hit every phase. */
        usleep((unsigned)(every_ms * 500 + t_below(&random, every_ms * 1000)));
        reap();
        struct sr_region *r = t_attach(name, true);
        uint32_t victim = (uint32_t)t_below(&random, processes);
        /* Left to chance, one kill in some hundred meets a holder of the lock. Every second one waits
         * for somebody who was preempted with it: a word that stays (lock.c draws it). */
        if (done % 2) victim = holder(r, victim);
        struct worker *w = &workers[victim];
        EXPECT(kill((pid_t)atomic_load(&w->pid), SIGKILL) == 0, "a process to be killed is not there");
        while (!gone(w)) {
            reap();
            usleep(50);
        }
        settle(r, victim);
        done++;
        if (done % 4 == 0) {
            OK(sr_catalog_check(r, &error));
            checks++;
        }
        /* fork() of a process that has a region open hands it over: close before starting another. */
        sr_region_close(r);
        start(victim, t_random(&random), namespaces && victim % 2);
        for (uint32_t i = 0; i < processes; i++) {
            uint64_t began = atomic_load(&workers[i].began), now = sr_sys_now();
            if (began && now > began) most_stuck = sr_max(most_stuck, now - began);
            if (began && now > began && now - began > STUCK_S * UINT64_C(1000000000)) FAIL("process %u has been blocked for %d s (seed %llu)", i, STUCK_S, (unsigned long long)seed);
        }
    }
    double took = t_seconds() - begin_s;
    /* All of them at once, and then everything must be free again. */
    for (uint32_t i = 0; i < processes; i++) kill((pid_t)atomic_load(&workers[i].pid), SIGKILL);
    for (uint32_t i = 0; i < processes; i++)
        while (!gone(&workers[i])) {
            reap();
            usleep(50);
        }
    struct sr_region *r = t_attach(name, true);
    for (uint32_t i = 0; i < processes; i++) settle(r, i);
    struct sr_stats stats;
    static struct sr_found f;
    OK(sr_catalog_sweep(r, &error));
    OK(sr_catalog_check(r, &error));
    uint64_t bytes = 0, operations = 0, full = 0, held = 0, longest = 0;
    uint32_t cursor = 0, objects = 0;
    while (sr_catalog_next(r, &cursor, &f, &error) == 0) {
        EXPECT(whole(r, &f), "an object at the end");
        bytes += sr_max(sr_align_up(f.len, SR_BLOCK_UNIT), SR_BLOCK_UNIT);
        objects++;
    }
    sr_catalog_stats(r, &stats);
    EXPECT(stats.used == bytes && stats.pending == 0 && stats.limbo == 0 && stats.members == 1, "leaked: used %llu, objects %llu, limbo %u, pending %u, members %u",
           (unsigned long long)stats.used, (unsigned long long)bytes, stats.limbo, stats.pending, stats.members);
    if (on_msharefs) check_memory(r);
    for (uint32_t i = 0; i < processes; i++) {
        operations += workers[i].operations;
        full += workers[i].full;
        held += workers[i].held_checks;
        longest = sr_max(longest, workers[i].longest);
    }
    printf("%u processes%s%s, %llu killed in %.1f s (seed %llu): %llu operations, %llu held objects checked, %llu times full, %u recoveries, %llu whole checks\n",
           processes, on_msharefs ? " on msharefs" : "", namespaces ? " (half of them in pid namespaces of their own)" : "", (unsigned long long)done, took, (unsigned long long)seed,
           (unsigned long long)operations, (unsigned long long)held, (unsigned long long)full, stats.recoveries, (unsigned long long)checks);
    printf("longest operation %.1f ms (bound: %d s), nothing lost, nothing leaked: %u objects, %llu bytes\n", (double)sr_max(longest, most_stuck) / 1e6, STUCK_S, objects, (unsigned long long)bytes);
    sr_region_close(r);
    OK(sr_region_unlink(name, SR_NO_OWNER, &error));
    return 0;
}
