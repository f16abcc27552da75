/* members: rows and pins: more pins than a row has, rows used again, what fork hands over, and that
 * no row of a living member ever stands for a dead holder of the lock.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

static struct sr_found found;

static uint32_t put(struct sr_region *r, const char *name, uint64_t len, uint64_t seed)
{
    struct sr_error error = {0};
    static uint8_t bytes[65536];
    uint64_t seq;
    t_fill(bytes, len, seed);
    struct sr_desc d = t_desc(name, len, seed, 0, NULL, 0);
    OK(sr_catalog_put(r, &d, bytes, &seq, &error));
    OK(sr_catalog_get(r, name, strlen(name), false, &found, &error));
    return found.block;
}

/* A handle holds more blocks than a row has pins; each is held, and none after. */
static void overflow(void)
{
    struct sr_error error = {0};
    enum { COUNT = 3 * SR_ROW_PINS + 10 };
    static uint32_t blocks[COUNT];
    struct sr_region *r = t_create(t_region_name("members"), &sr_backend_shm, SR_MIB, false), *reader = t_attach(r->name, false);
    struct sr_stats stats;
    char name[32];
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "o%u", i);
        put(r, name, 64, i);
        OK(sr_catalog_get(reader, name, strlen(name), true, &found, &error));
        OK(sr_catalog_get(reader, name, strlen(name), true, &found, &error));    /* twice */
        blocks[i] = found.block;
    }
    EXPECT(reader->rows_count == 4, "%u rows", reader->rows_count);
    for (uint32_t i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "o%u", i);
        OK(sr_catalog_delete(r, name, strlen(name), 0, &error));
    }
    OK(sr_catalog_sweep(r, &error));
    sr_catalog_stats(r, &stats);
    EXPECT(stats.limbo == COUNT && stats.used == 64u * COUNT, "%u of %u held", stats.limbo, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        EXPECT(sr_pin_holders(r, blocks[i]) >= 1, "block %u", i);
        sr_unpin(reader, blocks[i]);
        EXPECT(sr_pin_holders(r, blocks[i]) >= 1, "block %u was held twice", i);
        sr_unpin(reader, blocks[i]);
        EXPECT(sr_pin_holders(r, blocks[i]) == 0, "block %u", i);
    }
    put(r, "next", 64, 1);
    OK(sr_catalog_delete(r, "next", 4, 0, &error));
    sr_catalog_stats(r, &stats);
    EXPECT(stats.limbo == 0 && stats.used == 0, "%u are left", stats.limbo);
    OK(sr_catalog_check(r, &error));
    sr_region_close(reader);
    sr_region_close(r);
}

/* A child holds what its parent held when it was made, also after the parent has let go. */
static void fork_holds(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("members"), &sr_backend_shm, SR_MIB, false);
    int to_child[2], to_parent[2];
    EXPECT(pipe(to_child) == 0 && pipe(to_parent) == 0, "pipe");
    uint32_t block = put(r, "held", 5000, 7);
    OK(sr_catalog_get(r, "held", 4, true, &found, &error));
    uint64_t at = found.off.at;
    fflush(NULL);
    pid_t pid = fork();
    EXPECT(pid >= 0, "fork");
    if (pid == 0) {
        char c;
        EXPECT(read(to_child[0], &c, 1) == 1, "pipe");
        EXPECT(t_differs(r->data.at + at, 5000, 7) == 5000, "the child's array changed");
        /* And it is a member in its own right. */
        put(r, "child", 100, 8);
        sr_unpin(r, block);
        sr_region_close(r);
        EXPECT(write(to_parent[1], "d", 1) == 1, "pipe");
        _exit(0);
    }
    sr_unpin(r, block);
    OK(sr_catalog_delete(r, "held", 4, 0, &error));
    char name[16], c;
    for (int i = 0; i < 100; i++) {    /* whatever is free is written over */
        snprintf(name, sizeof name, "over%d", i);
        put(r, name, 5000, 99);
    }
    EXPECT(sr_pin_holders(r, block) == 1, "the child does not hold it");
    EXPECT(write(to_child[1], "g", 1) == 1 && read(to_parent[0], &c, 1) == 1, "pipe");
    int status;
    EXPECT(waitpid(pid, &status, 0) == pid && status == 0, "the child failed");
    OK(sr_catalog_sweep(r, &error));
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.limbo == 0 && stats.members == 1, "limbo %u, members %u", stats.limbo, stats.members);
    OK(sr_catalog_get(r, "child", 5, false, &found, &error));
    OK(sr_catalog_check(r, &error));
    sr_region_close(r);
}

/* Kill a member while it has the lock; returns its row, whose byte is then free. */
static uint32_t die_with_lock(const char *name)
{
    int out[2];
    EXPECT(pipe(out) == 0, "pipe");
    fflush(NULL);
    pid_t pid = fork();
    EXPECT(pid >= 0, "fork");
    if (pid == 0) {
        struct sr_error error = {0};
        bool abandoned;
        /* A member of its own: what it inherited has other rows. */
        struct sr_region *r = t_attach(name, true);
        OK(sr_lock(r, &abandoned, &error));
        uint32_t row = sr_member_row(r);
        EXPECT(write(out[1], &row, sizeof row) == sizeof row, "pipe");
        for (;;) pause();
    }
    uint32_t row;
    EXPECT(read(out[0], &row, sizeof row) == sizeof row, "pipe");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(out[0]);
    close(out[1]);
    return row;
}

/* A row whose dead owner had the lock must not become the further row of a living member, nor that of
 * a forked child: its byte would say that the holder lives, and writers would wait for ever. */
static void lock_of_the_dead(bool by_fork)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("members"), &sr_backend_shm, SR_MIB, false);
    struct sr_region *reader = t_attach(r->name, false), *writer = t_attach(r->name, true);
    char name[32];
    for (uint32_t i = 0; i < SR_ROW_PINS + 1; i++) {
        snprintf(name, sizeof name, "o%u", i);
        put(r, name, 64, i);
    }
    for (uint32_t i = 0; i < SR_ROW_PINS; i++) {
        snprintf(name, sizeof name, "o%u", i);
        OK(sr_catalog_get(writer, name, strlen(name), true, &found, &error));
    }
    /* The next one who needs a row meets that one first. */
    atomic_store(&sr_members(r)->mh_cursor, die_with_lock(r->name));
    for (size_t i = 0; i < SR_ARRAY_LEN(sr_members(r)->mh_clean); i++) atomic_store(&sr_members(r)->mh_clean[i], 0);
    pid_t pid = 0;
    int hold[2];
    EXPECT(pipe(hold) == 0, "pipe");
    if (by_fork) {
        pid = fork();
        EXPECT(pid >= 0, "fork");
        if (pid == 0) {
            char c;
            close(hold[1]);
            _exit(read(hold[0], &c, 1) == 0 ? 0 : 1);
        }
    } else {
        snprintf(name, sizeof name, "o%u", SR_ROW_PINS);
        OK(sr_catalog_get(writer, name, strlen(name), true, &found, &error));
    }
    alarm(20);    /* a writer that waits for ever is ended, and the test with it */
    put(r, "goes on", 64, 1);
    alarm(0);
    close(hold[1]);
    close(hold[0]);
    if (pid) waitpid(pid, NULL, 0);
    OK(sr_catalog_check(r, &error));
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.recoveries == 1, "%u recoveries", stats.recoveries);
    sr_region_close(writer);
    sr_region_close(reader);
    sr_region_close(r);
}

/* Rows left cleanly are used again; those of the killed too. */
static void rows_used_again(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("members"), &sr_backend_shm, SR_MIB, false);
    for (int i = 0; i < 200; i++) {
        struct sr_region *more = t_attach(r->name, i % 2);
        sr_region_close(more);
    }
    EXPECT(sr_rows_high(r) <= 2, "rows are not used again");
    for (int i = 0; i < 40; i++) {
        pid_t pid = fork();
        EXPECT(pid >= 0, "fork");
        if (pid == 0) {
            t_attach(r->name, i % 2);
            kill(getpid(), SIGKILL);
        }
        waitpid(pid, NULL, 0);
    }
    uint32_t high = sr_rows_high(r);
    EXPECT(high <= 8, "rows of the killed pile up: %u", high);
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.members == 1, "%u members", stats.members);
    OK(sr_catalog_check(r, &error));
    sr_region_close(r);
}

/* A ticket holds a block until it is claimed, also when its issuer looks no more. */
static void tickets(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("members"), &sr_backend_shm, SR_MIB, false), *w = t_attach(r->name, true);
    uint32_t block = put(r, "sent", 64, 3), row;
    OK(sr_ticket_issue(w, block, &row, &error));
    OK(sr_ticket_issue(w, block, &row, &error));
    OK(sr_catalog_delete(r, "sent", 4, 0, &error));
    EXPECT(sr_pinned(r, block) && sr_tickets_open(w, 0) == 2, "a ticket does not hold");
    sr_ticket_claim(r, row, block);
    EXPECT(sr_pinned(r, block), "the second ticket does not hold");
    sr_ticket_claim(r, row, block);
    EXPECT(!sr_pinned(r, block), "claimed, and still held");
    sr_ticket_claim(r, row, block);    /* once too often: nothing */
    sr_ticket_claim(r, SR_ROWS_MAX + 5, block);
    OK(sr_catalog_sweep(r, &error));
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    EXPECT(stats.limbo == 0 && stats.used == 0, "left over");
    sr_region_close(w);
    sr_region_close(r);
}

int main(void)
{
    overflow();
    fork_holds();
    tickets();
    rows_used_again();
    lock_of_the_dead(false);
    lock_of_the_dead(true);
    puts("pins beyond a row, fork, tickets, rows used again, locks of the dead");
    return 0;
}
