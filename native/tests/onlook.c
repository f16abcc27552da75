/* onlook: looking at a region whose bytes somebody else chose: an answer or an error, and no access out
 * of bounds (which a sanitizer tells). Its files are also cut and grown while they are looked at.
 *
 * Options: rounds (of random damage), moving (looks at files that move).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

enum { KEPT = 1 << 18 };
static struct { char path[256]; int fd; unsigned char good[KEPT]; ssize_t len; } file[2];

static void open_file(int i, const char *name, const char *segment)
{
    snprintf(file[i].path, sizeof file[i].path, SR_SHM_DIR "/sharedregion.%s.%s", name, segment);
    file[i].fd = open(file[i].path, O_RDWR);
    file[i].len = pread(file[i].fd, file[i].good, KEPT, 0);
    EXPECT(file[i].len > 0, "%s", file[i].path);
}

static void restore(int i)
{
    EXPECT(pwrite(file[i].fd, file[i].good, (size_t)file[i].len, 0) == file[i].len, "%s", file[i].path);
}

/* Everything that can be asked of an onlooker; true if all of it was answered. */
static bool look(const char *name)
{
    struct sr_error error = {0};
    struct sr_region *r;
    if (sr_region_look(&r, name, &error) < 0) return false;
    struct sr_stats stats;
    sr_catalog_stats(r, &stats);
    static struct sr_found found;
    uint32_t cursor = 0, high = sr_rows_high(r), block;
    uint64_t backed, sum = 0;
    int got;
    while ((got = sr_catalog_next(r, &cursor, &found, &error)) == 0)
        for (unsigned i = 0; i < found.name_len + found.meta_len; i++) sum += (unsigned char)found.text[i];
    bool sound = got == SR_E_NO_OBJECT && stats.sound && sr_region_backed(r, &backed) == 0;
    for (uint32_t n = 0; n < high; n++) {
        struct sr_who who;
        sound = sr_member_who(r, n, &who) >= 0 && sound;
        if (!sr_rows_ok(r, n + 1)) continue;
        for (uint32_t k = 0; k < SR_ROW_PINS; k++) sum += sr_pin_of(sr_row(r, n), n, k);
        for (uint32_t k = 0; k < SR_ROW_TICKETS; k++) sum += sr_ticket_of(sr_row(r, n), n, k, &block);
    }
    sr_region_look_away(r);
    return sound && sum > 0;
}

static void damage(const char *name, uint64_t rounds)
{
    uint64_t random = 20251124, answered = 0;
    for (uint64_t k = 0; k < rounds; k++) {
        for (uint64_t n = 1 + t_below(&random, 4); n-- > 0;) {
            int i = (int)t_below(&random, 2);
            static const uint64_t start[] = {0, 1024, 4096, 8192, KEPT / 2};
            uint64_t at = start[t_below(&random, SR_ARRAY_LEN(start))] + t_below(&random, 1 << t_below(&random, 13));
            uint64_t value = t_below(&random, 3) == 0 ? t_random(&random) : t_below(&random, 2) ? UINT64_MAX : 0;
            EXPECT(pwrite(file[i].fd, &value, (size_t)1 << t_below(&random, 4), (off_t)at) > 0, "write");
        }
        if (k % 2) {
            struct sr_head head;
            EXPECT(pread(file[0].fd, &head, sizeof head, 0) == sizeof head, "read");
            head.hd_crc = sr_crc32c(0, &head, offsetof(struct sr_head, hd_crc));
            EXPECT(pwrite(file[0].fd, &head, sizeof head, 0) == sizeof head, "write");
        }
        answered += look(name);
        restore(0);
        restore(1);
    }
    EXPECT(answered > 0 && answered < rounds, "%llu of %llu looks were answered: the test says nothing",
           (unsigned long long)answered, (unsigned long long)rounds);
    printf("%llu of %llu damaged regions were answered for in full\n", (unsigned long long)answered, (unsigned long long)rounds);
}

static void moving(const char *name, uint64_t looks)
{
    fflush(NULL);
    pid_t pid = fork();
    EXPECT(pid >= 0, "fork");
    if (pid == 0) {
        uint64_t random = 7;
        for (;;) {
            int i = (int)t_below(&random, 2);
            if (ftruncate(file[i].fd, (off_t)t_below(&random, KEPT)) < 0) _exit(1);
            if (ftruncate(file[i].fd, INT64_C(1) << (20 + t_below(&random, 14))) < 0) _exit(1);
            if (t_below(&random, 2)) restore(i);
        }
    }
    for (uint64_t k = 0; k < looks; k++) look(name);
    EXPECT(waitpid(pid, NULL, WNOHANG) == 0, "who cuts the files has ended");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

int main(int argc, char **argv)
{
    struct sr_error error = {0};
    const char *name = t_region_name("onlook");
    struct sr_region *r = t_create(name, &sr_backend_shm, 64 * SR_KIB, true);
    static uint8_t bytes[500], meta[300];
    for (unsigned i = 0; i < 40; i++) {
        char object[256];
        snprintf(object, sizeof object, "object %u%.*s", i, (int)(i % 2) * 200, "that has a long name, in another entry, and another, "
                 "and another, and another, and another, and another, and another, and another, and another, and another, and another, and more");
        struct sr_desc d = t_desc(object, i, i, (uint16_t)(i * 7), meta, 0);
        uint64_t seq;
        OK(sr_catalog_put(r, &d, bytes, &seq, &error));
    }
    sr_region_close(r);
    open_file(0, name, "catalog");
    open_file(1, name, "members");
    /* A member's lock on its row: what the row says is asked for. */
    struct flock row = {.l_type = F_WRLCK, .l_start = 0, .l_len = 1};
    int holder = open(file[1].path, O_RDWR);
    EXPECT(fcntl(holder, F_OFD_SETLK, &row) == 0, "%s", file[1].path);
    EXPECT(look(name), "a sound region");
    damage(name, t_option(argc, argv, "rounds", 20000));
    moving(name, t_option(argc, argv, "moving", 2000));
    static const char *const segment[] = {"catalog", "members", "data"};
    for (int i = 0; i < 3; i++) {
        char path[256];
        snprintf(path, sizeof path, SR_SHM_DIR "/sharedregion.%s.%s", name, segment[i]);
        unlink(path);
    }
    return 0;
}
