/* catalog: names and what they stand for against a model: names of 1 to 255 bytes, metadata up to
 * 4096, puts, replacements, deletes, listing, growth of the index, recovery to the same contents.
 *
 * Options: rounds, objects (of the growth run), seed.
 */
#include "support.h"

#define KNOWN 3000

struct known { char name[SR_OBJECT_NAME_MAX + 1]; uint64_t len, seed, seq; uint16_t meta_len; bool there; };
static struct known known[KNOWN];
static struct sr_found found;
static uint8_t bytes[70000], meta[SR_META_MAX];

static void verify(struct sr_region *r, const struct known *k)
{
    struct sr_error error = {0};
    int got = sr_catalog_get(r, k->name, strlen(k->name), true, &found, &error);
    if (got == SR_E_NO_OBJECT && !k->there) return;
    if (got != 0) FAIL("get of '%s': %d %s", k->name, got, error.what);
    EXPECT(k->there, "'%s' was deleted", k->name);
    t_fill(meta, k->meta_len, ~k->seed);
    EXPECT(found.seq == k->seq && found.len == k->len && found.meta_len == k->meta_len && found.name_len == strlen(k->name), "'%s' is another", k->name);
    EXPECT(memcmp(found.text, k->name, found.name_len) == 0 && memcmp(found.text + found.name_len, meta, k->meta_len) == 0, "the text of '%s'", k->name);
    EXPECT(t_differs(r->data.at + found.off.at, k->len, k->seed) == k->len, "the bytes of '%s'", k->name);
    sr_unpin(r, found.block);
    struct sr_found again;
    OK(sr_catalog_get_exact(r, found.entry, found.seq, &again, &error));
    EXPECT(again.off.at == found.off.at, "an exact get is another");
    sr_unpin(r, again.block);
}

static void verify_all(struct sr_region *r)
{
    struct sr_error error = {0};
    uint32_t there = 0, cursor = 0;
    for (uint32_t i = 0; i < KNOWN; i++) {
        verify(r, &known[i]);
        there += known[i].there;
    }
    while (sr_catalog_next(r, &cursor, &found, &error) == 0) there--;
    EXPECT(there == 0, "the list and the model differ by %d", (int)there);
}

/* The lock as a dead writer leaves it: in the name of a row that nobody holds. */
static void abandon(struct sr_region *r) { atomic_store(&sr_state(r)->st_lock, sr_lock_word(899, 5)); }

static void against_model(uint64_t rounds, uint64_t seed)
{
    struct sr_error error = {0};
    uint64_t random = seed;
    struct sr_region *r = t_create(t_region_name("catalog"), &sr_backend_shm, 24 * SR_MIB, false);
    struct sr_region *reader = t_attach(r->name, false);
    for (uint32_t i = 0; i < KNOWN; i++) {
        size_t len = i < 255 ? i + 1 : 5 + t_below(&random, 60);
        memset(known[i].name, 'a' + (int)(i % 26), len);
        snprintf(known[i].name + (len > 4 ? len - 5 : 0), len > 4 ? 6 : 2, len > 4 ? "%05u" : "%c", len > 4 ? i : (unsigned)('A' + i));
    }
    struct sr_stats stats;
    uint64_t full = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        struct known *k = &known[t_below(&random, round % 10000 < 5000 ? KNOWN : 300)];
        if (t_below(&random, 100) < 60) {
            struct known next = *k;
            next.there = true;
            next.seed = t_random(&random);
            next.len = t_below(&random, t_below(&random, 30) ? 2000 : 70000);
            next.meta_len = (uint16_t)(t_below(&random, 50) ? t_below(&random, 80) : t_below(&random, SR_META_MAX + 1));
            struct sr_desc d = t_desc(next.name, next.len, next.seed, next.meta_len, meta, 0);
            t_fill(bytes, next.len, next.seed);
            int got = sr_catalog_put(r, &d, bytes, &next.seq, &error);
            if (got == SR_E_FULL) full++;
            else if (got != 0) FAIL("put: %d %s", got, error.what);
            if (got == 0) *k = next;
        } else {
            int got = sr_catalog_delete(r, k->name, strlen(k->name), t_below(&random, 2) ? k->seq : 0, &error);
            EXPECT(got == (k->there ? 0 : SR_E_NO_OBJECT), "delete of '%s': %d", k->name, got);
            k->there = false;
            k->seq = 0;
        }
        verify(t_below(&random, 2) ? r : reader, &known[t_below(&random, KNOWN)]);
        if (round % 20000 == 19999) {
            OK(sr_catalog_check(r, &error));
            verify_all(reader);
            abandon(r);
            OK(sr_catalog_sweep(r, &error));
            OK(sr_catalog_check(r, &error));
            verify_all(r);
        }
    }
    sr_catalog_stats(r, &stats);
    EXPECT(stats.recoveries == rounds / 20000, "%u recoveries", stats.recoveries);
    printf("%llu rounds against the model, %u objects at the end, %llu times full, %u recoveries\n", (unsigned long long)rounds, stats.objects, (unsigned long long)full, stats.recoveries);
    for (uint32_t i = 0; i < KNOWN; i++)
        if (known[i].there) OK(sr_catalog_delete(r, known[i].name, strlen(known[i].name), 0, &error));
    OK(sr_catalog_sweep(r, &error));
    OK(sr_catalog_check(r, &error));
    sr_catalog_stats(r, &stats);
    EXPECT(stats.used == 0 && stats.objects == 0 && stats.largest == stats.size, "an empty region is not free");
    sr_region_close(reader);
    sr_region_close(r);
}

static void growth(uint32_t objects)
{
    struct sr_error error = {0};
    struct sr_region *r = t_create(t_region_name("catalog"), &sr_backend_shm, (uint64_t)objects * 64 + SR_MIB, false);
    struct sr_region *reader = t_attach(r->name, false);
    char name[32];
    uint64_t seq;
    for (uint32_t i = 0; i < objects; i++) {
        snprintf(name, sizeof name, "o%u", i);
        struct sr_desc d = t_desc(name, 8, i, 0, meta, 0);
        t_fill(bytes, 8, i);
        OK(sr_catalog_put(r, &d, bytes, &seq, &error));
        if (i % 97) continue;
        uint32_t k = i ? (i * 2654435761u) % i : 0;
        snprintf(name, sizeof name, "o%u", k);
        OK(sr_catalog_get(reader, name, strlen(name), false, &found, &error));
        EXPECT(t_differs(reader->data.at + found.off.at, 8, k) == 8, "object %u", k);
    }
    OK(sr_catalog_check(r, &error));
    abandon(r);
    OK(sr_catalog_sweep(r, &error));
    OK(sr_catalog_check(r, &error));
    uint32_t cursor = 0, listed = 0;
    while (sr_catalog_next(reader, &cursor, &found, &error) == 0) listed++;
    EXPECT(listed == objects, "%u of %u listed", listed, objects);
    for (uint32_t i = 0; i < objects; i++) {
        snprintf(name, sizeof name, "o%u", i);
        OK(sr_catalog_get(reader, name, strlen(name), false, &found, &error));
        EXPECT(t_differs(reader->data.at + found.off.at, 8, i) == 8, "object %u", i);
    }
    for (uint32_t i = 0; i < objects; i++) {
        snprintf(name, sizeof name, "o%u", i);
        OK(sr_catalog_delete(r, name, strlen(name), 0, &error));
    }
    OK(sr_catalog_check(r, &error));
    unsigned level = 0;
    OK(sr_index__level(r, &level, &error));
    printf("%u objects: index level %u\n", objects, level);
    sr_region_close(reader);
    sr_region_close(r);
}

int main(int argc, char **argv)
{
    against_model(t_option(argc, argv, "rounds", 60000), t_option(argc, argv, "seed", 1));
    growth((uint32_t)t_option(argc, argv, "objects", 200000));
    return 0;
}
