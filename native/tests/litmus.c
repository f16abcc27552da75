/* litmus: two processors, and orders of stores that no single-stepping can show.
 *
 *   fence    bytes written by streaming stores, then published: a reader never sees others. Compared
 *            with the same stores followed by a plain store, where it does. First with two words of
 *            its own, then with a draft of the library. The library's own fence cannot be shown to be
 *            missed: taking the lock is a locked instruction, which empties the write-combining
 *            buffers too (Intel SDM volume 3, "Methods of Caching Available"); it stays, since it says
 *            what is needed and does not lean on how the lock is taken.
 *   dekker   a pin is stored, then the publication number is read; the number is cleared, then pins
 *            are read: never do both miss the other. Without the fences they do.
 *
 * Options: rounds, mutate (1: leave out the fences; the test must then fail).
 */
#define _GNU_SOURCE
#include <emmintrin.h>
#include <pthread.h>
#include <sched.h>

#include "support.h"

#define WORDS 512

static uint64_t rounds;
static bool mutate;
static _Atomic bool stop;
static uint64_t torn, seen;

static bool pin_to(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set) == 0;
}

static int cpus[2];
static int find_cpus(void)
{
    cpu_set_t can;
    int found = 0;
    if (sched_getaffinity(0, sizeof can, &can) != 0) return 0;
    for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; cpu++)
        if (CPU_ISSET(cpu, &can)) cpus[found++] = cpu;
    return found;
}

static void stream(uint64_t *to, uint64_t value)
{
    for (int i = 0; i < WORDS; i++) _mm_stream_si64((long long *)&to[i], (long long)value);
}

/* --- the processor itself: what the fence is for ---------------------------------------------- */

static struct { alignas(64) _Atomic uint64_t flag; alignas(64) _Atomic uint64_t done; alignas(4096) uint64_t words[64][WORDS]; } bare;

static void *bare_reader(void *unused)
{
    (void)unused;
    pin_to(cpus[1]);
    for (uint64_t last = 0; !atomic_load(&stop);) {
        uint64_t now = atomic_load_explicit(&bare.flag, memory_order_acquire);
        if (now == last) continue;
        last = now;
        const volatile uint64_t *words = bare.words[now % 64];
        /* The last words are the last to leave the write-combining buffers. */
        bool wrong = false;
        for (int i = WORDS - 1; i >= 0; i--) wrong |= words[i] < now;
        torn += wrong;
        seen++;
        atomic_store_explicit(&bare.done, now, memory_order_release);
    }
    return NULL;
}

static void bare_run(bool fence)
{
    pthread_t thread;
    atomic_store(&stop, false);
    atomic_store(&bare.flag, 0);
    atomic_store(&bare.done, 0);
    memset(bare.words, 0, sizeof bare.words);
    torn = seen = 0;
    EXPECT(pthread_create(&thread, NULL, bare_reader, NULL) == 0, "pthread_create");
    for (uint64_t k = 1; k <= rounds; k++) {
        stream(bare.words[k % 64], k);
        if (fence) __builtin_ia32_sfence();
        atomic_store_explicit(&bare.flag, k, memory_order_release);
        while (atomic_load_explicit(&bare.done, memory_order_acquire) != k) sr_cpu_relax();
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
}

/* --- the library ------------------------------------------------------------------------------ */

static struct sr_region *writer_handle, *reader_handle;

static void *object_reader(void *unused)
{
    (void)unused;
    pin_to(cpus[1]);
    struct sr_found *f = malloc(sizeof *f);
    struct sr_error error = {0};
    while (!atomic_load(&stop)) {
        if (sr_catalog_get(reader_handle, "x", 1, true, f, &error) != 0) continue;
        const volatile uint64_t *words = (const volatile uint64_t *)(reader_handle->data.at + f->off.at);
        uint64_t want = f->seq;
        (void)want;
        uint64_t filled;
        memcpy(&filled, f->text + 1, sizeof filled);
        bool wrong = false;
        for (int i = WORDS - 1; i >= 0; i--) wrong |= words[i] != filled;
        torn += wrong;
        seen++;
        sr_unpin(reader_handle, f->block);
    }
    free(f);
    return NULL;
}

static void object_run(void)
{
    struct sr_error error = {0};
    pthread_t thread;
    uint64_t seq, value = 0;
    atomic_store(&stop, false);
    torn = seen = 0;
    writer_handle = t_create(t_region_name("litmus"), &sr_backend_shm, SR_MIB, false);
    reader_handle = t_attach(writer_handle->name, false);
    EXPECT(pthread_create(&thread, NULL, object_reader, NULL) == 0, "pthread_create");
    for (uint64_t k = 0; k < rounds; k++) {
        value = k + 1;
        struct sr_desc d = {.name = "x", .name_len = 1, .meta = (const uint8_t *)&value, .meta_len = 8, .len = WORDS * 8};
        struct sr_draft draft;
        OK(sr_draft_begin(writer_handle, &d, &draft, &error));
        stream((uint64_t *)(writer_handle->data.at + draft.off.at), value);
        OK(sr_draft_publish(writer_handle, &d, &draft, &seq, &error));
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    sr_region_close(reader_handle);
    sr_region_close(writer_handle);
}

/* --- pin against withdraw --------------------------------------------------------------------- */

static struct { alignas(64) _Atomic uint64_t seq; alignas(64) _Atomic uint32_t pin; alignas(64) _Atomic uint64_t turn, answered; } dekker;
static uint64_t reader_saw[2];

/* As sr_pin and look_once do it; plain without the fence. */
static bool announce(bool fence)
{
    if (fence) atomic_store(&dekker.pin, 7);
    else atomic_store_explicit(&dekker.pin, 7, memory_order_release);
    if (fence) atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&dekker.seq, memory_order_acquire) != 0;
}

static void *pinning(void *unused)
{
    (void)unused;
    pin_to(cpus[1]);
    for (uint64_t k = 1; k <= rounds; k++) {
        while (atomic_load_explicit(&dekker.turn, memory_order_acquire) != k) continue;
        reader_saw[k & 1] = announce(!mutate);
        atomic_store(&dekker.answered, k);
    }
    return NULL;
}

static uint64_t dekker_run(void)
{
    pthread_t thread;
    uint64_t both = 0;
    EXPECT(pthread_create(&thread, NULL, pinning, NULL) == 0, "pthread_create");
    for (uint64_t k = 1; k <= rounds; k++) {
        atomic_store(&dekker.seq, k);
        atomic_store(&dekker.pin, 0);
        atomic_store(&dekker.turn, k);
        for (uint64_t wait = k % 97; wait; wait--) atomic_signal_fence(memory_order_seq_cst);
        /* As withdraw and count_holders do it. */
        if (!mutate) {
            atomic_store(&dekker.seq, 0);
            atomic_thread_fence(memory_order_seq_cst);
        } else {
            atomic_store_explicit(&dekker.seq, 0, memory_order_release);
        }
        bool pinned = atomic_load_explicit(&dekker.pin, memory_order_acquire) != 0;
        while (atomic_load(&dekker.answered) != k) continue;
        both += reader_saw[k & 1] && !pinned;
    }
    pthread_join(thread, NULL);
    return both;
}

int main(int argc, char **argv)
{
    rounds = t_option(argc, argv, "rounds", 200000);
    mutate = t_option(argc, argv, "mutate", 0);
    if (find_cpus() < 2) {
        puts("needs two processors");
        return SKIPPED;
    }
    pin_to(cpus[0]);
    bare_run(false);
    printf("streaming stores, plain publish: %llu of %llu reads torn\n", (unsigned long long)torn, (unsigned long long)seen);
    uint64_t without = torn;
    bare_run(!mutate);
    printf("streaming stores, sfence, plain publish: %llu of %llu reads torn\n", (unsigned long long)torn, (unsigned long long)seen);
    EXPECT(torn == 0, "the fence does not order streaming stores");
    if (without == 0) puts("(this processor shows no difference: the comparison says nothing)");
    object_run();
    printf("draft filled by streaming stores and published: %llu of %llu reads torn\n", (unsigned long long)torn, (unsigned long long)seen);
    EXPECT(torn == 0, "a published object was read before its bytes were there");
    uint64_t both = dekker_run();
    printf("pin against withdraw%s: in %llu of %llu rounds each missed the other\n", mutate ? " without fences" : "", (unsigned long long)both, (unsigned long long)rounds);
    EXPECT(both == 0, "a reader holds a block that its writer takes for free");
    return 0;
}
