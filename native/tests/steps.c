/* steps: what a kill leaves after every single instruction of an operation, and that the region is
 * put in order from there: no object lost or changed, no block leaked, operations go on.
 *
 * A history is a few random operations, then one that is stepped, instruction by instruction, in a
 * child (PTRACE_SINGLESTEP). After each instruction that changed a byte of the three segments, and
 * after each instruction address that was not seen before, the bytes are copied into segments of
 * another name in which every member is dead (or all but one, which holds pins), and this process
 * recovers the copy and checks everything. What is checked is a state that a kill at that point
 * leaves: memory that is shared keeps its stores in the order in which the instructions end.
 *
 * Some states are given to a second child whose recovery is stepped in its turn: death while
 * putting in order. At some points the child stays stopped, alive, and this process does whole
 * operations on the region itself; then the child goes on.
 *
 * With msharefs=1 the regions are on msharefs, or on its stand-in (77 where there is neither), and a state
 * is also what the keeper's memory has and what of it readers are shown. In half of the histories the
 * first large page is nearly full, so that memory is taken and given back while others look.
 *
 * Options: histories, seed, jobs, seconds (stop then), name_kills, changes (1: no state is checked for its
 * instruction's sake alone), msharefs, verbose.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "steps.h"

struct figures *figures;
struct control *control;
char region_name[80];
char where[256];
bool on_msharefs, stepping;

/* --- stepping --------------------------------------------------------------------------------- */

static int wait_stop(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR) BAD("waitpid");
    if (WIFSTOPPED(status)) return WSTOPSIG(status);
    BAD("the stepped child ended with status %x", status);
}

static pid_t start_child(const struct history *h, bool on_second)
{
    memset(control, 0, on_second ? 0 : sizeof *control);
    fflush(NULL);
    pid_t pid = fork();
    NEED(pid >= 0, "fork");
    if (pid == 0) child(h, on_second);
    int sig = wait_stop(pid);
    NEED(sig == SIGSTOP, "signal %d in the setup", sig);
    return pid;
}

static void end_child(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, __WALL) < 0 || !WIFSIGNALED(status)) continue;
}

#define PAUSES 4u

static struct snapshot shots[2];
static uint64_t verbose;
static bool changes_only;

static void recover_stepped(const struct history *h, const struct expected *x, const struct snapshot *shot, uint64_t *random);

/* Step to the end of the operation; every state on the way is checked. */
static void step_all(const struct history *h, struct expected *x, pid_t pid, struct segments *on, struct snapshot *shot, enum lives lives, uint64_t *random)
{
    const struct window data = looked_at;
    uint64_t steps = 0;
    bool twice = lives != EITHER;
    uint32_t serial = (uint32_t)t_random(random), pauses = h->alone ? PAUSES : 0;
    clear_snapshot(shot);
    update(shot, on, data);
    for (;;) {
        uintptr_t rip = (uintptr_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
        NEED(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "PTRACE_SINGLESTEP");
        int sig = wait_stop(pid);
        if (sig == SIGSTOP) break;
        if (sig == SIGCHLD) continue;
        NEED(sig == SIGTRAP, "signal %d in the stepped operation", sig);
        steps++;
        uintptr_t at = rip - code_base;
        bool ours = at < CODE_MAX && room_of[at];
        bool changed = update(shot, on, data);
        bool unseen = ours && figures->code[at] == 0 && !changes_only;
        if (ours && changes_only) figures->code[at] |= 1;
        if (!changed && !unseen) {
            if (!twice && pauses < PAUSES && t_below(random, 1200) == 0) {
                pauses++;
                others(h, x, random, serial++);
                update(shot, on, data);
            }
            continue;
        }
        if (ours) figures->code[at] |= changed ? 3 : 1;
        snprintf(where, sizeof where, "history %llu (%s)%s, instruction %llu, at %s+%#lx", (unsigned long long)h->seed, kind_names[h->stepped.kind],
                 twice ? ", recovery" : "", (unsigned long long)steps, ours ? "ours" : "elsewhere", (unsigned long)at);
        check_memory(on, shot);
        check_point(x, shot, lives, random);
        if (verbose > 1 && changed) fprintf(stderr, "changed %s\n", where);
        atomic_fetch_add(&figures->changed, changed);
        atomic_fetch_add(&figures->points_by_kind[h->stepped.kind], 1);
        /* Nobody recovers what is sealed. */
        if (!twice && h->stepped.kind != SEAL && t_below(random, 800) == 0) recover_stepped(h, x, shot, random);
        if (!twice && pauses < PAUSES && t_below(random, 40) == 0) {
            pauses++;
            others(h, x, random, serial++);
            update(shot, on, data);
        }
    }
    atomic_fetch_add(&figures->steps, steps);
}

static void recover_stepped(const struct history *h, const struct expected *x, const struct snapshot *shot, uint64_t *random)
{
    if (h->prefill) return;    /* a recovery of hundreds of objects is long */
    char before[sizeof where];
    memcpy(before, where, sizeof before);
    restore(&second, shot);
    static struct expected y;
    y = *x;
    enum lives lives = control->other_open && t_below(random, 2) ? ALIVE : DEAD;
    if (lives == ALIVE) NEED(sr_sys_lock(second.members_fd, control->other_row, 1, false) == 0, "the row of the other member");
    pid_t pid = start_child(h, true);
    step_all(h, &y, pid, &second, &shots[1], lives, random);
    NEED(control->result == 0, "a recovery failed with %d", control->result);
    end_child(pid);
    if (lives == ALIVE) NEED(sr_sys_unlock(second.members_fd, control->other_row, 1) == 0, "the row of the other member");
    atomic_fetch_add(&figures->twice, 1);
    memcpy(where, before, sizeof where);
}

static void run_history(const struct history *h)
{
    static struct expected x;
    struct sr_error error = {0};
    uint64_t random = h->seed ^ UINT64_C(0xABCDEF);
    snprintf(where, sizeof where, "history %llu (%s), setup", (unsigned long long)h->seed, kind_names[h->stepped.kind]);
    pid_t pid = start_child(h, false);
    expect(h, &x);
    looked_at = data_window(h);
    struct segments real;
    open_segments(&real, region_name, false, data_length(h));
    step_all(h, &x, pid, &real, &shots[0], EITHER, &random);
    snprintf(where, sizeof where, "history %llu (%s), end, result %d", (unsigned long long)h->seed, kind_names[h->stepped.kind], control->result);
    if (verbose) fprintf(stderr, "%s\n", where);
    /* With a keeper there is nothing to do for who retires. */
    if (h->stepped.kind == CLOSE_LAST || ((h->stepped.kind == CLOSE || (h->stepped.kind == RETIRE && !on_msharefs)) && !h->other)) {
        NEED(names_gone(region_name), "the last member has left and names are there");
        end_child(pid);
    } else {
        /* The operation has ended: its object is what it said. Then its process is killed. */
        bool sealed = h->stepped.kind == SEAL;
        struct sr_region *r = t_attach(region_name, !sealed);
        look_at_all(r, &x, true);
        if (!sealed) NEED_OK(sr_catalog_check(r, &error));
        end_child(pid);
        struct sr_stats stats;
        if (!sealed) NEED_OK(sr_catalog_sweep(r, &error));
        uint64_t bytes = look_at_all(r, &x, true);
        sr_catalog_stats(r, &stats);
        NEED(sealed || (stats.used == bytes && stats.pending == 0 && stats.limbo == 0), "something is left of the killed member");
        if (!sealed) check_memory(&real, NULL);
        sr_region_close(r);
        NEED(names_gone(region_name), "the last member has left and names are there");
    }
    close_segments(&real);
    atomic_fetch_add(&figures->histories, 1);
    atomic_fetch_add(&figures->by_kind[h->stepped.kind], 1);
}

/* --- names: killed for real while the region is made, joined for the last time, or left ------- */

static void kill_at_name(enum kind kind, uint64_t *random, uint64_t *longest)
{
    struct sr_error error = {0};
    fflush(NULL);
    pid_t pid = fork();
    NEED(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        const struct sr_backend *backend = on_msharefs ? &sr_backend_msharefs : &sr_backend_shm;
        struct sr_region *r = kind == PUT_NEW ? NULL : t_create(region_name, backend, 65536, false);
        raise(SIGSTOP);
        if (kind == PUT_NEW) t_create(region_name, backend, 65536, false);
        else sr_region_close(r);
        raise(SIGSTOP);
        _exit(0);
    }
    NEED(wait_stop(pid) == SIGSTOP, "setup");
    uint64_t stop = *longest ? t_below(random, *longest) : UINT64_MAX, steps = 0;
    for (; steps < stop; steps++) {
        NEED(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0, "PTRACE_SINGLESTEP");
        if (wait_stop(pid) == SIGSTOP) break;
    }
    if (*longest == 0) *longest = steps;
    snprintf(where, sizeof where, "%s, killed after %llu of %llu instructions", kind == PUT_NEW ? "create" : "close", (unsigned long long)steps, (unsigned long long)*longest);
    end_child(pid);
    int got = sr_region_reclaim(region_name, false, &error);
    NEED(got >= 0 || got == SR_E_NOT_FOUND, "reclaim: %d %s", got, error.what);
    NEED(names_gone(region_name), "names are left");
    atomic_fetch_add(&figures->name_kills, 1);
}

/* --- the run ---------------------------------------------------------------------------------- */

/* Tracer and child on one processor: a step is then a switch, and no wake-up of the other one. */
static void stay_on(unsigned job)
{
    cpu_set_t can, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof can, &can) != 0) return;
    unsigned skip = job % (unsigned)CPU_COUNT(&can);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &can) && skip-- == 0) {
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

static void run_job(uint64_t first, uint64_t count, uint64_t stride, uint64_t name_kills, double until)
{
    static struct history h;
    stay_on((unsigned)first);
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(control != MAP_FAILED, "no memory");
    snprintf(region_name, sizeof region_name, "%s", t_region_name("steps"));
    char name[96];
    snprintf(name, sizeof name, "%.60s-copy", region_name);
    open_segments(&copy, name, true, DATA_FILE);
    snprintf(name, sizeof name, "%.60s-second", region_name);
    open_segments(&second, name, true, DATA_FILE);
    new_snapshot(&shots[0]);
    new_snapshot(&shots[1]);
    uint64_t random = first + 5, longest[2] = {0, 0};
    for (uint64_t i = 0; i < name_kills; i++) kill_at_name(i % 2 ? PUT_NEW : CLOSE, &random, &longest[i % 2]);
    for (uint64_t i = 0; i < count && t_seconds() < until; i++) {
        make_history(&h, first + i * stride);
        run_history(&h);
    }
    unlink_segments(&copy);
    unlink_segments(&second);
}

static void report(double seconds, uint64_t leftovers)
{
    uint64_t executed = 0, changing = 0, unreached = 0, code = 0;
    for (size_t i = 0; i < CODE_MAX; i++) {
        executed += figures->code[i] != 0;
        changing += (figures->code[i] & 2) != 0;
    }
    printf("histories%s %llu, instructions stepped %llu, crash points checked %llu (%llu after a change of bytes), in %.0f s\n",
           on_msharefs ? " on msharefs" : "", (unsigned long long)figures->histories, (unsigned long long)figures->steps, (unsigned long long)figures->points,
           (unsigned long long)figures->changed, seconds);
    printf("distinct instruction addresses of region, alloc and catalog: %llu executed%s; %llu of them change shared bytes\n",
           (unsigned long long)executed, changes_only ? "" : ", each a crash point that was checked", (unsigned long long)changing);
    printf("recoveries of an abandoned lock %llu, beside a living member with pins %llu, recoveries stepped in their turn %llu\n",
           (unsigned long long)figures->recoveries, (unsigned long long)figures->with_pins, (unsigned long long)figures->twice);
    printf("pauses with whole operations of others: %llu, readers only beside a held lock: %llu; kills while names come and go: %llu, sockets of no keeper removed afterwards: %llu\n",
           (unsigned long long)figures->paused_free, (unsigned long long)figures->paused_held, (unsigned long long)figures->name_kills, (unsigned long long)leftovers);
    for (int k = 0; k < KINDS; k++) printf("%s%s %llu/%llu", k ? ", " : "histories/points: ", kind_names[k], (unsigned long long)figures->by_kind[k], (unsigned long long)figures->points_by_kind[k]);
    printf("\nfunctions that no operation reached:");
    for (uint32_t i = 0; i < functions_count; i++) {
        bool reached = false;
        for (uint32_t a = functions[i].at; a < functions[i].at + functions[i].size; a++) reached |= figures->code[a] != 0;
        code += functions[i].size;
        if (!reached) unreached++, printf(" %s", functions[i].name);
    }
    printf(" (%llu of %u)\n", (unsigned long long)unreached, functions_count);
}

/* Sockets of keepers that were never started: nobody knows their names but who looks for them. */
static uint64_t remove_leftovers(void)
{
    uint64_t count = 0;
    DIR *dir = opendir(SR_SHM_DIR);
    for (struct dirent *d; dir && (d = readdir(dir));)
        if (strncmp(d->d_name, "sharedregion.", 13) == 0) count += sr_region_remove_leftover(d->d_name, false) == 1;
    if (dir) closedir(dir);
    return count;
}

static struct sr_sys plain;
/* What memory there is and what is shown of it may be different after each of these. */
static int counted_ioctl(int fd, unsigned long request, void *arg)
{
    int r = plain.ioctl(fd, request, arg);
    if (stepping) atomic_fetch_add(&control->calls, 1);
    return r;
}
static int counted_fallocate(int fd, int mode, off_t at, off_t len)
{
    int r = plain.fallocate(fd, mode, at, len);
    if (stepping) atomic_fetch_add(&control->calls, 1);
    return r;
}

/* Nobody sleeps here: who would wait a slice for a holder looks at once whether it lives. */
static int no_sleep(const _Atomic uint32_t *word, uint32_t expected, const struct timespec *timeout)
{
    (void)timeout;
    return atomic_load(word) == expected ? -ETIMEDOUT : -EAGAIN;
}

static void hung(int sig)
{
    (void)sig;
    static const char what[] = ": hung\n";
    if (write(2, where, strlen(where)) < 0 || write(2, what, sizeof what - 1) < 0) _exit(1);
    _exit(1);
}

int main(int argc, char **argv)
{
    signal(SIGALRM, hung);
    static struct sr_sys table;
    table = plain = *sr_sys;
    table.futex_wait = no_sleep;
    table.ioctl = counted_ioctl;
    table.fallocate = counted_fallocate;
    sr_sys = &table;
    uint64_t histories = t_option(argc, argv, "histories", 64), jobs = t_option(argc, argv, "jobs", 2), seed = t_option(argc, argv, "seed", 0);
    uint64_t seconds = t_option(argc, argv, "seconds", 1000000), name_kills = t_option(argc, argv, "name_kills", 60);
    verbose = t_option(argc, argv, "verbose", 0);
    changes_only = t_option(argc, argv, "changes", 0);
    on_msharefs = t_option(argc, argv, "msharefs", 0);
    if (on_msharefs && t_msharefs() == NULL) return puts("SHAREDREGION_MSHAREFS names no msharefs"), SKIPPED;
    figures = mmap(NULL, sizeof *figures, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(figures != MAP_FAILED, "no memory");
    read_symbols();
    double start = t_seconds();
    if (jobs <= 1) {
        run_job(seed, histories, 1, name_kills, start + (double)seconds);
        report(t_seconds() - start, remove_leftovers());
        return 0;
    }
    for (uint64_t j = 0; j < jobs; j++) {
        fflush(NULL);
        pid_t pid = fork();
        EXPECT(pid >= 0, "fork");
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run_job(seed + j, (histories + jobs - 1 - j) / jobs, jobs, name_kills / jobs, start + (double)seconds);
            _exit(0);
        }
    }
    int status, failed = 0;
    while (waitpid(-1, &status, 0) > 0) failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    report(t_seconds() - start, remove_leftovers());
    return failed ? 1 : 0;
}
