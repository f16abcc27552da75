/* alloc: blocks never overlap, everything given back is one free block again, and after millions of
 * random puts and deletes of mixed sizes at 80 % fill less than a tenth of the region is unusable for
 * blocks of a twentieth of it, within a budget of pages that is never exceeded.
 *
 * Options: operations (of the fragmentation run), rounds (of the run against a model), seed, speed (1:
 * only what a take and a give cost), mib (of one fragmentation run, instead of those of 2 and 8 GiB).
 */
#include <errno.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define HELD_MAX 200000
#define UNIT SR_BLOCK_UNIT

struct held { uint64_t off, len; uint32_t block; };
static struct held held[HELD_MAX];
static uint32_t held_count;
static uint8_t *taken;         /* the model: a byte for each unit */

static void mark(const struct held *h, uint8_t from, uint8_t to)
{
    for (uint64_t u = h->off / UNIT; u < (h->off + h->len) / UNIT; u++) {
        EXPECT(taken[u] == from, "unit %llu is in two blocks", (unsigned long long)u);
        taken[u] = to;
    }
}

/* Small sizes in small steps, against a map of every unit. */
static void against_model(uint64_t rounds, uint64_t seed)
{
    struct sr_error error = {0};
    uint64_t size = 4 * SR_MIB + 192, random = seed;    /* no multiple of a large page */
    struct sr_region *r = t_create(t_region_name("alloc"), &sr_backend_shm, size, false);
    uint64_t reach = r->head.hd_mapped;
    EXPECT(reach >= 2 * size, "no room to move memory in");
    taken = calloc(reach / UNIT, 1);
    held_count = 0;
    uint64_t full = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        bool take = held_count == 0 || t_below(&random, 100) < (round / 5000 % 2 ? 70u : 40u);
        if (take && held_count < HELD_MAX) {
            uint64_t len = t_below(&random, 20) ? t_below(&random, 3000) : t_below(&random, 3 * SR_MIB);
            struct sr_extent x;
            int got = sr_alloc_take(r, len, &x, &error);
            if (got == SR_E_FULL) {
                /* What is said to be there is there. */
                EXPECT(error.largest < sr_max(len, 1), "full, though a block of %llu bytes is free", (unsigned long long)error.largest);
                full++;
                continue;
            }
            if (got != 0) FAIL("take: %s", error.what);
            EXPECT(x.len >= len && x.len - len < 2 * UNIT && sr_is_aligned(x.off, UNIT), "a block of the wrong size");
            EXPECT(sr_range_ok(x.off, x.len, reach), "a block outside");
            EXPECT(sr_state(r)->st_used <= size, "more bytes than the region has");
            struct held *h = &held[held_count++];
            *h = (struct held){x.off, x.len, x.block};
            mark(h, 0, 1);
        } else if (held_count) {
            uint32_t k = (uint32_t)t_below(&random, held_count);
            mark(&held[k], 1, 0);
            OK(sr_alloc_give(r, held[k].block, &error));
            held[k] = held[--held_count];
        }
        if (round % 1000 == 0) OK(sr_alloc_check(r, &error));
    }
    EXPECT(full > 0 || rounds < 10000, "the region was never full");
    /* Made anew from the blocks in use alone, it is the same. */
    for (int turn = 0; turn < 2; turn++) {
        struct sr_extent *used = calloc(held_count + 1, sizeof *used);
        uint32_t n = 0;
        for (uint64_t u = 0; u < reach / UNIT;) {
            if (!taken[u]) {
                u++;
                continue;
            }
            for (uint32_t k = 0; k < held_count; k++)
                if (held[k].off == u * UNIT) {
                    used[n++] = (struct sr_extent){held[k].off, held[k].len, held[k].block};
                    u += held[k].len / UNIT;
                    break;
                }
        }
        EXPECT(n == held_count, "the model");
        uint64_t before = sr_state(r)->st_used;
        OK(sr_alloc_rebuild(r, used, n, &error));
        OK(sr_alloc_check(r, &error));
        EXPECT(sr_state(r)->st_used == before, "a rebuild changed what is in use");
        free(used);
        for (uint32_t k = held_count / 2; k < held_count; k++) {
            mark(&held[k], 1, 0);
            OK(sr_alloc_give(r, held[k].block, &error));
        }
        held_count /= 2;
    }
    while (held_count) OK(sr_alloc_give(r, held[--held_count].block, &error));
    OK(sr_alloc_check(r, &error));
    EXPECT(sr_alloc_largest(r) == sr_align_down(size, UNIT), "what was given back is not one block");
    free(taken);
    sr_region_close(r);
    printf("%llu rounds against a map of every unit, %llu times full\n", (unsigned long long)rounds, (unsigned long long)full);
}

/* --- memory, as a model ------------------------------------------------------------------------ */

/* The kernel's answers for one data segment, so that no memory is needed: which granules have some. */
static struct {
    struct sr_region *r;
    uint8_t *there;
    uint64_t count, commits;
    uint64_t limit;                  /* pages that are to be had at all                          */
    bool stolen, dies;               /* what is given back is another's at once; who gives dies  */
} memory;

static int memory_set(uint64_t at, uint64_t len, bool yes)
{
    uint64_t granule = memory.r->head.hd_granule;
    for (uint64_t g = at / granule; g < (at + len + granule - 1) / granule; g++) {
        if (memory.there[g] == yes) continue;
        if (yes && memory.count >= memory.limit) return -ENOSPC;    /* and what was taken so far stays, as in the kernel */
        memory.there[g] = yes;
        memory.count += yes ? 1 : UINT64_MAX;
        memory.limit -= !yes && memory.stolen;
        memory.commits += yes;
    }
    return 0;
}

static int model_fallocate(int fd, int mode, off_t at, off_t len)
{
    if (fd != memory.r->data_fd) return sr_sys_linux.fallocate(fd, mode, at, len);
    if (memory.dies && (mode & FALLOC_FL_PUNCH_HOLE)) _exit(0);
    return memory_set((uint64_t)at, (uint64_t)len, !(mode & FALLOC_FL_PUNCH_HOLE));
}

static int model_madvise(void *at, size_t len, int advice)
{
    const unsigned char *p = at;
    if (p >= memory.r->data.at && p < memory.r->data.at + memory.r->data.len) return 0;
    return sr_sys_linux.madvise(at, len, advice);
}

/* A region whose memory is the model's. It gets no name: nobody else is to see it. */
static struct sr_region *modelled(const struct sr_backend *backend, uint64_t size, struct sr_sys *table)
{
    struct sr_error error = {0};
    struct sr_region *r;
    struct sr_region_spec spec = {.name = t_region_name("alloc"), .size = size, .backend = backend, .place = SR_PLACE_MEMFD, .mode = 0600};
    if (sr_region_make(&r, &spec, &error) != 0) return NULL;    /* pages of that size are not known here */
    OK(sr_alloc_init(r, &error));
    sr_index__init(r);
    sr_state_seal(sr_state(r));
    free(memory.there);
    memory.r = r;
    memory.there = calloc(r->head.hd_mapped / r->head.hd_granule, 1);
    memory.count = memory.commits = 0;
    memory.limit = UINT64_MAX;
    *table = sr_sys_linux;
    table->fallocate = model_fallocate;
    table->madvise = model_madvise;
    sr_sys = table;
    return r;
}

static void end_of_model(void)
{
    sr_region_close(memory.r);
    sr_sys = &sr_sys_linux;
}

/* --- fragmentation ----------------------------------------------------------------------------- */

static struct sr_draft drafts[HELD_MAX];
static uint32_t draft_count;

static int begin(struct sr_region *r, uint64_t len, struct sr_error *e)
{
    struct sr_desc d = t_desc("block", len, 1, 0, NULL, 0);
    int got = sr_draft_begin(r, &d, &drafts[draft_count], e);
    if (got != 0) return got;
    const struct sr_draft *x = &drafts[draft_count++];
    for (uint64_t g = x->off.at / r->head.hd_granule; g <= (x->off.at + len - 1) / r->head.hd_granule; g++)
        EXPECT(memory.there[g], "an object without memory");
    return 0;
}

static void drop(struct sr_region *r, uint32_t k)
{
    struct sr_desc d = t_desc("block", drafts[k].len, 1, 0, NULL, 0);
    sr_draft_drop(r, &d, &drafts[k]);
    drafts[k] = drafts[--draft_count];
}

static uint64_t budget_of(const struct sr_region *r) { return sr_align_up(r->head.hd_size, r->head.hd_granule) / r->head.hd_granule; }

/* How many blocks of that length can be placed now; they are dropped again. */
static uint64_t can_be_placed(struct sr_region *r, uint64_t len)
{
    struct sr_error error = {0};
    uint32_t before = draft_count;
    while (begin(r, len, &error) == 0) EXPECT(draft_count < HELD_MAX, "no end");
    EXPECT(error.largest < len, "full, though a block of %llu bytes is free", (unsigned long long)error.largest);
    uint64_t placed = draft_count - before;
    while (draft_count > before) drop(r, draft_count - 1);
    return placed;
}

/* 64 B to 64 MiB, each doubling as likely as the next, at 80 % of the bytes, by the calls that a put
 * makes. No bound where memory cannot move. */
static void fragmentation(const struct sr_backend *backend, uint64_t operations, uint64_t size, uint64_t seed)
{
    struct sr_error error = {0};
    struct sr_sys table;
    struct sr_region *r = modelled(backend, size, &table);
    if (r == NULL) {
        printf("%s: not known to this kernel\n", backend->name);
        return;
    }
    uint64_t random = seed, done = 0, full = 0, next_look = operations / 20, taken_bytes = 0;
    uint64_t used_max = size / 5 * 4, wanted = size / 20, fewest = UINT64_MAX, page = r->head.hd_granule, high = 0;
    double worst = 0, part = 0, worst_part = 0, start = t_seconds();
    draft_count = 0;
    bool warmed = false;
    while (done < operations) {
        unsigned doubling = (unsigned)t_below(&random, 20);
        uint64_t len = (UINT64_C(64) << doubling) + t_below(&random, UINT64_C(64) << doubling);
        while (draft_count && (sr_state(r)->st_used + len > used_max || draft_count >= HELD_MAX - 100)) {
            drop(r, (uint32_t)t_below(&random, draft_count));
            done++;
            if (!warmed) warmed = true, memory.commits = taken_bytes = 0;    /* from here it is churn */
        }
        const struct sr_alloc_head *h = (const struct sr_alloc_head *)(sr_mapped(&r->catalog) + SR_ALLOC_AT);
        bool tight = h->al_pages * page > sr_state(r)->st_used + size / 16;
        int got = begin(r, len, &error);
        done++;
        if (got == SR_E_FULL) {
            full++;
            continue;
        }
        if (got != 0) FAIL("begin: %s", error.what);
        taken_bytes += len;
        high = sr_max(high, drafts[draft_count - 1].off.at + len);
        EXPECT(memory.count <= budget_of(r), "%llu pages have memory, %llu may", (unsigned long long)memory.count, (unsigned long long)budget_of(r));
        const struct sr_draft *x = &drafts[draft_count - 1];
        if (!backend->fixed && len >= page && !tight) {
            uint64_t touched = (x->off.at + len - 1) / page - x->off.at / page + 1;
            EXPECT(touched == (len + page - 1) / page, "%llu bytes straddle %llu pages", (unsigned long long)len, (unsigned long long)touched);
        }
        if (done < next_look) continue;
        next_look += operations / 20;
        OK(sr_alloc_check(r, &error));
        uint64_t placed = can_be_placed(r, wanted), free = size - sr_state(r)->st_used;
        OK(sr_alloc_check(r, &error));
        double unusable = (double)(free - sr_min(free, placed * wanted)) / (double)size;
        part = (double)(h->al_pages * page - sr_state(r)->st_used) / (double)size;
        worst = unusable > worst ? unusable : worst;
        worst_part = part > worst_part ? part : worst_part;
        fewest = sr_min(fewest, placed);
    }
    double seconds = t_seconds() - start;
    printf("%s, pages of %llu KiB, %llu MiB: %llu puts and deletes at 80 %%, %u blocks at the end, %llu found no room; %llu blocks of 1/20 could be placed at the least, unusable for them %.1f %% at worst; free bytes in pages in use %.1f %% at worst; highest address %.2f of the size; memory cleared for %.0f %% of the bytes placed; %.2f us an operation\n",
           backend->name, (unsigned long long)(page / SR_KIB), (unsigned long long)(size / SR_MIB), (unsigned long long)done, draft_count, (unsigned long long)full,
           (unsigned long long)fewest, 100 * worst, 100 * worst_part, (double)high / (double)size,
           100 * (double)(memory.commits * page) / (double)sr_max(taken_bytes, 1), 1e6 * seconds / (double)done);
    fflush(stdout);
    if (!backend->fixed) {
        EXPECT(worst < 0.10, "%.1f %% are unusable for blocks of 1/20", 100 * worst);
        EXPECT(full == 0, "no room at 80 %%");
    }
    while (draft_count) drop(r, draft_count - 1);
    OK(sr_alloc_check(r, &error));
    EXPECT(sr_alloc_largest(r) == size, "what was given back is not one block");
    uint64_t given;
    OK(sr_catalog_trim(r, &given, &error));
    EXPECT(memory.count == 0, "%llu pages keep memory after a trim", (unsigned long long)memory.count);
    end_of_model();
}

/* --- memory that is not to be had --------------------------------------------------------------- */

/* No page has memory that the commit map does not know of, and the other way round. */
static void nothing_unknown(struct sr_region *r)
{
    uint64_t pages = r->head.hd_mapped / r->head.hd_granule;
    for (uint64_t g = 0; g < pages; g++)
        EXPECT((sr_region_uncommitted(r, (sr_off){g * r->head.hd_granule}, 1) == 0) == memory.there[g], "page %llu", (unsigned long long)g);
}

/* Every second page free: a larger block needs memory elsewhere, and some has to be given back for it. */
static struct sr_region *chequered(struct sr_sys *table)
{
    struct sr_error error = {0};
    struct sr_region *r = modelled(&sr_backend_thp, 64 * SR_MIB, table);
    EXPECT(r != NULL, "no memfd");
    draft_count = 0;
    for (int i = 0; i < 32; i++) OK(begin(r, SR_LARGE_PAGE, &error));
    for (uint32_t k = 32; k-- > 0;)
        if (drafts[k].off.at / SR_LARGE_PAGE % 2) drop(r, k);
    EXPECT(memory.count == 32 && draft_count == 16, "a region that is full of memory");
    return r;
}

/* Between giving memory back here and taking it there, another program may take it. */
static void stolen_pages(void)
{
    struct sr_error error = {0};
    struct sr_sys table;
    struct sr_region *r = chequered(&table);
    memory.limit = 32;
    OK(begin(r, 4 * SR_LARGE_PAGE, &error));    /* it moves, with not a page to spare */
    EXPECT(memory.count == 32, "%llu pages", (unsigned long long)memory.count);
    drop(r, draft_count - 1);
    uint64_t given;
    OK(sr_catalog_give_back(r, 2 * SR_LARGE_PAGE, &given, &error));
    EXPECT(given == 2 * SR_LARGE_PAGE && memory.count == 30, "given back");
    memory.stolen = true;
    memory.limit = 31;
    EXPECT(begin(r, 9 * SR_LARGE_PAGE, &error) == SR_E_FULL, "placed in memory that another has");
    nothing_unknown(r);
    OK(sr_alloc_check(r, &error));
    memory.stolen = false;
    memory.limit = 32;
    OK(begin(r, 9 * SR_LARGE_PAGE, &error));
    nothing_unknown(r);
    OK(sr_alloc_check(r, &error));
    while (draft_count) drop(r, draft_count - 1);
    end_of_model();
}

/* Killed after the mark is off and before the memory is given back: whoever recovers gives it back. */
static void killed_while_giving_back(void)
{
    struct sr_error error = {0};
    struct sr_sys table;
    struct sr_region *r = chequered(&table);
    uint64_t given;
    memory.dies = true;
    pid_t child = fork();
    if (child == 0) {
        sr_catalog_give_back(r, UINT64_MAX, &given, &error);
        _exit(1);
    }
    int status;
    EXPECT(waitpid(child, &status, 0) == child && status == 0, "the child did not die while it gave back");
    memory.dies = false;
    struct sr_stats stats;
    EXPECT(begin(r, 64, &error) == 0, "%s", error.what);
    sr_catalog_stats(r, &stats);
    EXPECT(stats.recoveries == 1, "nobody recovered");
    nothing_unknown(r);
    OK(sr_alloc_check(r, &error));
    while (draft_count) drop(r, draft_count - 1);
    end_of_model();
}

/* What a give and a take cost, with so many blocks in use, and about as many free ones between them. */
static double speed(uint32_t blocks, uint64_t seed)
{
    struct sr_error error = {0};
    struct sr_sys table;
    struct sr_region *r = modelled(&sr_backend_thp, 64 * SR_GIB, &table);
    EXPECT(r != NULL, "no memfd");
    struct sr_extent x, *all = calloc(blocks, sizeof *all);
    uint64_t random = seed;
    for (uint32_t i = 0; i < blocks; i++) OK(sr_alloc_take(r, 64 + t_below(&random, 32 * SR_KIB), &all[i], &error));
    /* Half of them go and others come, until free blocks of all lengths lie between them. */
    for (uint32_t i = 0; i < 2 * blocks; i++) {
        uint32_t k = (uint32_t)t_below(&random, blocks);
        OK(sr_alloc_give(r, all[k].block, &error));
        OK(sr_alloc_take(r, 64 + t_below(&random, 32 * SR_KIB), &all[k], &error));
    }
    const uint32_t rounds = 1000000;
    double best = 1e9;
    for (int turn = 0; turn < 3; turn++) {
        double start = t_seconds();
        for (uint32_t i = 0; i < rounds; i++) {
            uint32_t k = (uint32_t)t_below(&random, blocks);
            OK(sr_alloc_give(r, all[k].block, &error));
            OK(sr_alloc_take(r, 64 + t_below(&random, 32 * SR_KIB), &x, &error));
            all[k] = x;
        }
        best = sr_min((uint64_t)(1e9 * best), (uint64_t)(1e9 * (t_seconds() - start))) / 1e9;
    }
    OK(sr_alloc_check(r, &error));
    free(all);
    end_of_model();
    return best / rounds * 1e9;
}

static int no_room(int fd, int mode, off_t at, off_t len)
{
    (void)fd, (void)mode, (void)at, (void)len;
    return -ENOSPC;
}

/* No memory for one more descriptor, at whichever cut of a block it is missed: nothing has changed. */
static void out_of_descriptors(void)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("alloc"), &sr_backend_shm, 8 * SR_GIB, false);
    struct sr_sys table = *sr_sys;
    const struct sr_sys *before = sr_sys;
    table.fallocate = no_room;
    int failures = 0;
    held_count = 0;
    sr_sys = &table;
    for (int i = 0; i < 4000 && failures < 8; i++) {
        struct sr_extent x;
        /* When one descriptor is left, a block that begins at a large page: it cuts twice. */
        bool one_left = sr_state(r)->st_free_block == 0 && sr_state(r)->st_blocks_high + 1 == sr_state(r)->st_blocks_committed;
        int got = sr_alloc_take(r, one_left && failures == 0 ? SR_LARGE_PAGE : 64, &x, &error);
        if (got == 0) {
            held[held_count++] = (struct held){x.off, x.len, x.block};
            continue;
        }
        EXPECT(got == SR_E_FULL, "%d: %s", got, error.what);
        failures++;
        OK(sr_alloc_check(r, &error));
        if (held_count) OK(sr_alloc_give(r, held[--held_count].block, &error));    /* one to spare, and again */
        OK(sr_alloc_check(r, &error));
    }
    sr_sys = before;
    EXPECT(failures > 1, "descriptors did not run out");
    while (held_count) OK(sr_alloc_give(r, held[--held_count].block, &error));
    OK(sr_alloc_check(r, &error));
    EXPECT(sr_alloc_largest(r) == 8 * SR_GIB, "what was given back is not one block");
    sr_region_close(r);
}

int main(int argc, char **argv)
{
    uint64_t seed = t_option(argc, argv, "seed", 1), operations = t_option(argc, argv, "operations", 400000), mib = t_option(argc, argv, "mib", 0);
    if (t_option(argc, argv, "speed", 0)) {
        static const uint32_t counts[] = {1000, 10000, 100000, 1000000};
        for (size_t i = 0; i < SR_ARRAY_LEN(counts); i++) printf("%u blocks: %.0f ns for a give and a take\n", counts[i], speed(counts[i], seed));
        return 0;
    }
    out_of_descriptors();
    stolen_pages();
    killed_while_giving_back();
    against_model(t_option(argc, argv, "rounds", 300000), seed);
    static const struct sr_backend *const backends[] = {&sr_backend_shm, &sr_backend_thp, &sr_backend_hugetlb_2m, &sr_backend_hugetlb_1g};
    for (size_t i = 0; i < SR_ARRAY_LEN(backends); i++) {
        /* Where nothing moves, most searches end in vain, and take long. */
        uint64_t most = backends[i]->fixed ? sr_min(operations, 400000) : operations;
        if (mib) fragmentation(backends[i], most, mib * SR_MIB, seed);
        else for (uint64_t gib = 2; gib <= 8; gib *= 4) fragmentation(backends[i], most, gib * SR_GIB, seed);
    }
    return 0;
}
