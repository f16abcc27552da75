/* support: what the native tests share: failing loudly, numbers that can be repeated, a region of
 * their own, and bytes that tell what they should be. */
#ifndef SR_TEST_SUPPORT_H
#define SR_TEST_SUPPORT_H

#include <stdio.h>
#include <stdlib.h>

#include "sr_catalog.h"

#define SKIPPED 77

/* Print and exit 1: in a child too, so that its parent sees it. */
__attribute__((noreturn, format(printf, 3, 4))) void t_die(const char *file, int line, const char *format, ...);
#define FAIL(...) t_die(__FILE__, __LINE__, __VA_ARGS__)
#define EXPECT(cond, ...) \
    do { \
        if (!(cond)) t_die(__FILE__, __LINE__, "not so: " #cond " | " __VA_ARGS__); \
    } while (0)
/* A call that returns an enum sr_code and fills `error`, which the scope declares. */
#define OK(call) \
    do { \
        int ok_got = (call); \
        if (ok_got != 0) t_die(__FILE__, __LINE__, #call " gave %d: %s", ok_got, error.what); \
    } while (0)

/* splitmix64: every figure that a test prints can be had again from its seed. */
static inline uint64_t t_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
static inline uint64_t t_below(uint64_t *state, uint64_t limit) { return t_random(state) % limit; }

/* Bytes that follow from a seed; a wrong one is found wherever it is. */
void t_fill(void *at, uint64_t len, uint64_t seed);
/* Offset of the first wrong byte, or `len`. */
uint64_t t_differs(const void *at, uint64_t len, uint64_t seed);

/* A name that no other run has. */
const char *t_region_name(const char *what);
struct sr_region *t_create(const char *name, const struct sr_backend *backend, uint64_t size, bool persist);
struct sr_region *t_attach(const char *name, bool writable);

/* Where msharefs, or its stand-in (tests/support), is mounted: SHAREDREGION_MSHAREFS. NULL: nowhere. */
const char *t_msharefs(void);
/* Which granules of an msharefs region are shown to readers, and which of a memory file have memory: a
 * bit each, 64 at most. Shown is found by trying to show it: not beside others who do the same. */
uint64_t t_shown(int share, int memory, uint64_t length);
uint64_t t_backed(int memory, uint64_t length);
/* Which of them the commit map says have memory, and which are never given back. */
uint64_t t_marked(const struct sr_region *r);
uint64_t t_staying(const struct sr_region *r);

/* name -> descriptor; metadata `meta_len` bytes of the seed. */
struct sr_desc t_desc(const char *name, uint64_t len, uint64_t seed, uint16_t meta_len, uint8_t *meta, uint8_t flags);
/* Tombstones in half of the index, and names `far` slots behind some of them that could lie there: as
 * many puts and deletes leave it, here made at once. */
void t_entomb(struct sr_region *r, uint64_t far);
/* An option of the form name=number. */
uint64_t t_option(int argc, char **argv, const char *name, uint64_t otherwise);
double t_seconds(void);

#endif
