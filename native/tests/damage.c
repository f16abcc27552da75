/* damage: what happens beside damage that no single look can tell: a lock in the name of who has not
 * got it, pins that say nothing, a recovery that lacks memory, and slots that move under readers.
 *
 * Options: rounds (of the moving slots).
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

static struct sr_found found;

static void put(struct sr_region *r, const char *name, uint64_t len, uint64_t seed)
{
    struct sr_error error = {0};
    static uint8_t bytes[65536];
    uint64_t seq;
    t_fill(bytes, len, seed);
    struct sr_desc d = t_desc(name, len, seed, 0, NULL, 0);
    OK(sr_catalog_put(r, &d, bytes, &seq, &error));
}

/* --- the lock --------------------------------------------------------------------------------- */

/* Whoever the lock names, or nobody: a put goes on, and what was there is there. */
static void lock_of_who_has_it_not(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, SR_MIB, false);
    struct sr_region *writer = t_attach(r->name, true), *reader = t_attach(r->name, false);
    put(r, "before", 500, 5);
    const uint64_t words[] = {
        sr_lock_word(sr_member_row(writer), sr_member_gen(writer)), sr_lock_word(sr_member_row(reader), sr_member_gen(reader)),
        sr_lock_word(sr_member_row(r), sr_member_gen(r)), sr_lock_word(sr_member_row(writer), sr_member_gen(writer) + 1),
        0, 1, UINT64_MAX, sr_lock_word(3, 7) ^ 1u << 3,
    };
    alarm(30);    /* one that waits for ever is ended */
    for (size_t i = 0; i < SR_ARRAY_LEN(words); i++) {
        atomic_store(&sr_state(r)->st_lock, words[i]);
        put(i % 2 ? r : writer, "after", 100 + i, i);
        OK(sr_catalog_get(reader, "before", 6, false, &found, &error));
        OK(sr_catalog_check(r, &error));
    }
    alarm(0);
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.recoveries == SR_ARRAY_LEN(words), "%u recoveries", stats.recoveries);
    sr_region_close(reader);
    sr_region_close(writer);
    sr_region_close(r);
}

/* Damaged while somebody has it: nobody else gets it before that one has given it back. */
static void lock_damaged_under_its_holder(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, SR_MIB, false), *reader = t_attach(r->name, false);
    const uint64_t words[] = {0, UINT64_MAX, sr_lock_word(sr_member_row(reader), sr_member_gen(reader)), sr_lock_word(800, 1) ^ 2};
    for (size_t i = 0; i < SR_ARRAY_LEN(words); i++) {
        _Atomic uint32_t *inside = mmap(NULL, SR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        EXPECT(inside != MAP_FAILED, "no memory");
        fflush(NULL);
        pid_t pid = fork();
        EXPECT(pid >= 0, "fork");
        if (pid == 0) {
            bool abandoned;
            OK(sr_lock(r, &abandoned, &error));
            atomic_store(&sr_state(r)->st_lock, words[i]);
            atomic_store(inside, 1);
            usleep(60000);    /* more than ten slices of those who wait */
            atomic_store(inside, 2);
            sr_unlock(r);
            _exit(0);
        }
        while (atomic_load(inside) == 0) usleep(100);
        alarm(30);
        put(r, "x", 64, i);
        alarm(0);
        EXPECT(atomic_load(inside) == 2, "somebody else was inside, with word %d", (int)i);
        waitpid(pid, NULL, 0);
        munmap(inside, SR_PAGE);
    }
    OK(sr_catalog_check(r, &error));
    sr_region_close(reader);
    sr_region_close(r);
}

/* --- pins ------------------------------------------------------------------------------------- */

/* Whatever is done to the row of who looks at an object, its memory is not used again; and it is once
 * that one has gone. */
static void pins_that_say_nothing(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, 64 * SR_KIB, false);
    uint64_t random = 3;
    for (int round = 0; round < 300; round++) {
        struct sr_region *reader = t_attach(r->name, false);
        put(r, "held", 640, 9);
        OK(sr_catalog_get(reader, "held", 4, true, &found, &error));
        uint32_t n = sr_member_row(reader), was = 0;
        uint64_t at = found.off.at;
        /* One word of the row's head or of its pin, or the number of rows. */
        void *word = round % 5 == 0 ? (void *)&sr_members(r)->mh_rows_high
                   : round % 5 == 1 ? (char *)&sr_row(r, n)->row_high + 4 * (round / 5 % 2)
                   : round % 5 == 2 ? (void *)&sr_row(r, n)->row_state : (char *)&sr_row(r, n)->row_pins[0] + 4 * (round % 2);
        memcpy(&was, word, sizeof was);
        uint32_t now = round % 3 == 0 ? 0 : round % 3 == 1 ? was ^ 1u << t_below(&random, 32) : (uint32_t)t_random(&random);
        memcpy(word, &now, sizeof now);
        OK(sr_catalog_delete(r, "held", 4, 0, &error));
        char name[16];
        int got = 0;
        for (int i = 0; got == 0; i++) {
            uint8_t junk[1024] = {0};
            uint64_t seq;
            snprintf(name, sizeof name, "j%d", i);
            struct sr_desc d = t_desc(name, sizeof junk, 0, 0, NULL, 0);
            got = sr_catalog_put(r, &d, junk, &seq, &error);
        }
        EXPECT(got == SR_E_FULL, "%d %s", got, error.what);
        EXPECT(t_differs(reader->data.at + at, 640, 9) == 640, "round %d: memory that is looked at was used again", round);
        sr_region_close(reader);
        uint32_t cursor = 0;
        while (sr_catalog_next(r, &cursor, &found, &error) == 0) OK(sr_catalog_delete(r, (char *)found.text, found.name_len, 0, &error));
        OK(sr_catalog_sweep(r, &error));
        struct sr_stats stats;
        sr_catalog_stats(r, &stats);
        EXPECT(stats.used == 0 && stats.limbo == 0, "round %d: %llu bytes are not free", round, (unsigned long long)stats.used);
    }
    OK(sr_catalog_check(r, &error));
    sr_region_close(r);
}

/* --- a recovery that lacks memory ------------------------------------------------------------- */

static int no_memory(void **at, size_t len, int prot, int flags, int fd, off_t offset)
{
    if (flags & MAP_ANONYMOUS) return -12;    /* ENOMEM */
    return sr_sys_linux.mmap(at, len, prot, flags, fd, offset);
}

/* Who could not put the catalog in order for want of memory leaves it to the next one. */
static void recovery_without_memory(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, SR_MIB, false);
    put(r, "x", 64, 1);
    static struct sr_sys table;
    table = sr_sys_linux;
    table.mmap = no_memory;
    atomic_store(&sr_state(r)->st_lock, sr_lock_word(900, 5));
    sr_sys = &table;
    for (int i = 0; i < 3; i++) {    /* address space to see all of the catalog is lacking first */
        int got = sr_catalog_delete(r, "x", 1, 0, &error);
        EXPECT(got == SR_E_NO_MEMORY || got == SR_E_UNAVAILABLE, "%d %s", got, error.what);
    }
    sr_sys = &sr_sys_linux;
    OK(sr_catalog_delete(r, "x", 1, 0, &error));
    OK(sr_catalog_check(r, &error));
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.recoveries == 1 && !(stats.flags & SR_STATE_DAMAGED), "%u recoveries, flags %u", stats.recoveries, stats.flags);
    sr_region_close(r);
}

/* --- slots that move -------------------------------------------------------------------------- */

static _Atomic bool stop;

static void *look_all_the_time(void *region)
{
    struct sr_region *r = region;
    struct sr_found *f = malloc(sizeof *f);
    struct sr_error error = {0};
    uint64_t looks = 0;
    char name[16];
    while (!atomic_load(&stop)) {
        snprintf(name, sizeof name, "s%u", (unsigned)(looks++ % 300));
        int got = sr_catalog_get(r, name, strlen(name), false, f, &error);
        if (got != 0) FAIL("'%s', there all the time: %d %s", name, got, error.what);
        if (sr_catalog_get(r, "never", 5, false, f, &error) != SR_E_NO_OBJECT) FAIL("a name that was never there");
    }
    free(f);
    return (void *)(uintptr_t)looks;
}

/* However often other names come and go, the index keeps room, also in its last level, and who looks
 * for a name that is there finds it. */
static void tombstones_go(uint64_t rounds)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, 64 * SR_KIB, false), *reader = t_attach(r->name, false);
    char name[16];
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "s%d", i);
        put(r, name, 8, (uint64_t)i);
    }
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, look_all_the_time, reader) == 0, "pthread_create");
    uint64_t random = 1, moved = 0;
    uint32_t there[400] = {0};    /* names now there, so that deletes leave tombstones between them */
    unsigned level = 0;
    for (uint64_t k = 0; k < rounds; k++) {
        uint32_t place = (uint32_t)t_below(&random, SR_ARRAY_LEN(there));
        snprintf(name, sizeof name, "n%u", there[place]);
        if (there[place]) OK(sr_catalog_delete(r, name, strlen(name), 0, &error));
        there[place] = (uint32_t)k + 1;
        snprintf(name, sizeof name, "n%u", there[place]);
        uint32_t before = sr_state(r)->st_slots_used;
        put(r, name, 8, k);
        moved += sr_state(r)->st_slots_used + 100 < before;
    }
    atomic_store(&stop, true);
    void *looks;
    pthread_join(thread, &looks);
    OK(sr_catalog_check(r, &error));
    OK(sr_index__level(r, &level, &error));
    printf("slots were moved %llu times under %llu looks, index level %u of %u\n", (unsigned long long)moved, (unsigned long long)(uintptr_t)looks, level, r->head.hd_gens - 1);
    EXPECT(moved > 0, "nothing was moved: the test says nothing");
    EXPECT(level <= 1, "700 names in an index of level %u", level);
    sr_region_close(reader);
    sr_region_close(r);
}

/* The same, moved far and often. This test makes the moves away itself, and beside them nobody looks. */
static void slots_move_back(uint64_t rounds)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("damage"), &sr_backend_shm, 64 * SR_KIB, false), *reader = t_attach(r->name, false);
    char name[16];
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "s%d", i);
        put(r, name, 8, (uint64_t)i);
    }
    for (uint64_t k = 0; k < rounds; k++) {
        t_entomb(r, 40);
        pthread_t thread;
        atomic_store(&stop, false);
        EXPECT(pthread_create(&thread, NULL, look_all_the_time, reader) == 0, "pthread_create");
        if (k % 2) usleep(50);
        put(r, "s0", 8, k);
        EXPECT(sr_state(r)->st_slots_used < 500, "nothing was moved: the test says nothing");
        atomic_store(&stop, true);
        pthread_join(thread, NULL);
    }
    OK(sr_catalog_check(r, &error));
    sr_region_close(reader);
    sr_region_close(r);
}

int main(int argc, char **argv)
{
    lock_of_who_has_it_not();
    lock_damaged_under_its_holder();
    pins_that_say_nothing();
    recovery_without_memory();
    tombstones_go(t_option(argc, argv, "rounds", 300000));
    slots_move_back(t_option(argc, argv, "rounds", 300000) / 100);
    puts("locks, pins, a recovery without memory, slots that move");
    return 0;
}
