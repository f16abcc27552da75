/* threads: puts, gets with pins, deletes, in-place filling and listing by threads of one process, on
 * one handle and on several, while the catalog grows and rows overflow. Meant for ThreadSanitizer as
 * much as for its own checks: bytes that a thread holds never change, names are whole.
 *
 * Options: rounds (for each thread), threads, seed.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define NAMES 64

static struct sr_region *handles[3];
static uint64_t rounds, seed;
static _Atomic uint64_t operations;

static void name_of(char out[32], uint64_t k) { snprintf(out, 32, "name-%llu", (unsigned long long)k); }

static void check_whole(struct sr_region *r, const struct sr_found *f)
{
    uint64_t filled;
    EXPECT(f->meta_len == 8, "metadata");
    memcpy(&filled, f->text + f->name_len, 8);
    EXPECT(t_differs(r->data.at + f->off.at, f->len, filled) == f->len, "a held object changed");
}

static void *work(void *number)
{
    uint64_t random = seed * 77 + (uintptr_t)number;
    struct sr_region *r = handles[(uintptr_t)number % 3];
    struct sr_found *f = malloc(sizeof *f);
    uint8_t bytes[4096];
    char name[32];
    uint32_t held[1200], held_count = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        struct sr_error error = {0};
        uint64_t filled = t_random(&random), seq, dice = t_below(&random, 100);
        name_of(name, t_below(&random, NAMES));
        struct sr_desc d = {.name = name, .meta = (const uint8_t *)&filled, .len = t_below(&random, sizeof bytes), .name_len = (uint16_t)strlen(name), .meta_len = 8};
        int got = 0;
        if (dice < 25) {
            t_fill(bytes, d.len, filled);
            got = sr_catalog_put(r, &d, bytes, &seq, &error);
            if (got == SR_E_FULL) got = 0;
        } else if (dice < 35) {
            struct sr_draft draft;
            got = sr_draft_begin(r, &d, &draft, &error);
            if (got == 0) {
                t_fill(r->data.at + draft.off.at, d.len, filled);
                if (dice % 4) got = sr_draft_publish(r, &d, &draft, &seq, &error);
                else sr_draft_drop(r, &d, &draft);
            }
            if (got == SR_E_FULL) got = 0;
        } else if (dice < 45) {
            got = sr_catalog_delete(r, name, strlen(name), 0, &error);
            if (got == SR_E_NO_OBJECT) got = 0;
        } else if (dice < 90) {
            got = sr_catalog_get(r, name, strlen(name), true, f, &error);
            if (got == 0) {
                check_whole(r, f);
                if (held_count < SR_ARRAY_LEN(held)) held[held_count++] = f->block;
                else sr_unpin(r, f->block);
            } else if (got == SR_E_NO_OBJECT) got = 0;
        } else if (dice < 94) {
            uint32_t cursor = 0;
            while ((got = sr_catalog_next(r, &cursor, f, &error)) == 0) continue;
            if (got == SR_E_NO_OBJECT) got = 0;
        } else if (dice < 96) {
            struct sr_stats stats;
            sr_catalog_stats(r, &stats);
        } else if (dice < 97) {
            got = sr_catalog_sweep(r, &error);
        } else {
            while (held_count) sr_unpin(r, held[--held_count]);
        }
        if (got != 0) FAIL("%d: %s", got, error.what);
    }
    while (held_count) sr_unpin(r, held[--held_count]);
    atomic_fetch_add(&operations, rounds);
    free(f);
    return NULL;
}

/* Many names of its own: entries, blocks and index grow beside everybody else. */
static void *grow(void *number)
{
    struct sr_region *r = handles[(uintptr_t)number % 3];
    struct sr_error error = {0};
    char name[32];
    uint64_t seq, filled = 5;
    uint8_t bytes[8];
    struct sr_found *f = malloc(sizeof *f);
    uint32_t blocks[2000], count = 0;
    t_fill(bytes, sizeof bytes, filled);
    for (int i = 0; i < 2000; i++) {
        snprintf(name, sizeof name, "grow-%lu-%d", (unsigned long)(uintptr_t)number, i);
        struct sr_desc d = {.name = name, .meta = (const uint8_t *)&filled, .len = 8, .name_len = (uint16_t)strlen(name), .meta_len = 8};
        OK(sr_catalog_put(r, &d, bytes, &seq, &error));
        OK(sr_catalog_get(r, name, strlen(name), true, f, &error));    /* more pins than a row has */
        blocks[count++] = f->block;
    }
    while (count) sr_unpin(r, blocks[--count]);
    free(f);
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t threads = sr_min(t_option(argc, argv, "threads", 6), 32);
    rounds = t_option(argc, argv, "rounds", 20000);
    seed = t_option(argc, argv, "seed", 1);
    handles[0] = t_create(t_region_name("threads"), &sr_backend_shm, 4 * SR_MIB, false);
    handles[1] = handles[0];    /* two threads in three share a handle */
#ifdef __SANITIZE_THREAD__
    /* ThreadSanitizer knows memory by its address: of what goes through another mapping it sees half, and
     * takes for unordered what was ordered there. */
    handles[2] = handles[0];
#else
    handles[2] = t_attach(handles[0]->name, true);
#endif
    pthread_t all[34];
    for (uint64_t i = 0; i < threads; i++) EXPECT(pthread_create(&all[i], NULL, work, (void *)(uintptr_t)i) == 0, "pthread_create");
    for (uint64_t i = 0; i < 2; i++) EXPECT(pthread_create(&all[threads + i], NULL, grow, (void *)(uintptr_t)(i * 2)) == 0, "pthread_create");
    for (uint64_t i = 0; i < threads + 2; i++) pthread_join(all[i], NULL);
    struct sr_error error = {0};
    struct sr_stats stats;
    OK(sr_catalog_sweep(handles[0], &error));
    OK(sr_catalog_check(handles[0], &error));
    sr_catalog_stats(handles[0], &stats);
    EXPECT(stats.limbo == 0 && stats.pending == 0, "left over: limbo %u, pending %u", stats.limbo, stats.pending);
    printf("%llu operations by %llu threads, %u objects at the end\n", (unsigned long long)operations, (unsigned long long)threads, stats.objects);
    if (handles[2] != handles[0]) sr_region_close(handles[2]);
    sr_region_close(handles[0]);
    return 0;
}
