/* base: what every room uses and what needs no system call.
 *
 * Room 0. Includes nothing of this project. See native/README.md for the order of the rooms, the
 * naming rule and the error rule.
 */
#ifndef SR_BASE_H
#define SR_BASE_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SR_KIB (UINT64_C(1) << 10)
#define SR_MIB (UINT64_C(1) << 20)
#define SR_GIB (UINT64_C(1) << 30)

#define SR_PAGE UINT64_C(4096)          /* the base page of x86_64 */
#define SR_LARGE_PAGE (2 * SR_MIB)      /* what one PMD entry maps */
#define SR_CACHE_LINE 64u

#define SR_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define SR_LIKELY(x) __builtin_expect(!!(x), 1)
#define SR_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* The drawing of a shared structure and the compiler must agree: one line for each field. */
#define SR_ASSERT_FIELD(type, field, at) \
    _Static_assert(offsetof(type, field) == (at), #type "." #field " is not where it is drawn")
#define SR_ASSERT_SIZE(type, size) \
    _Static_assert(sizeof(type) == (size), #type " has not the size that is drawn")

/* --- bits ------------------------------------------------------------------------------------ */

/* `to` is a power of two. sr_align_up saturates at UINT64_MAX & -to rather than wrap. */
static inline uint64_t sr_align_down(uint64_t v, uint64_t to) { return v & ~(to - 1); }
static inline uint64_t sr_align_up(uint64_t v, uint64_t to)
{
    return v > UINT64_MAX - (to - 1) ? UINT64_MAX & ~(to - 1) : (v + to - 1) & ~(to - 1);
}
static inline bool sr_is_aligned(uint64_t v, uint64_t to) { return (v & (to - 1)) == 0; }
static inline unsigned sr_log2_floor(uint64_t v) { return 63u - (unsigned)__builtin_clzll(v); }
static inline uint64_t sr_min(uint64_t a, uint64_t b) { return a < b ? a : b; }
static inline uint64_t sr_max(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* True if [off, off + len) lies in [0, limit), computed without overflow. */
static inline bool sr_range_ok(uint64_t off, uint64_t len, uint64_t limit)
{
    return off <= limit && len <= limit - off;
}

/* --- checksums and hashes --------------------------------------------------------------------- */

/* CRC-32C (Castagnoli), by the SSE4.2 instruction where the processor has it. Guards entries
 * against accidents, not against an adversary. */
uint32_t sr_crc32c(uint32_t crc, const void *data, size_t len);

/* 64-bit hash of a name; stable between builds, since it is stored. Never 0. */
uint64_t sr_hash64(const void *data, size_t len);

/* --- errors ----------------------------------------------------------------------------------- */

/* sys returns -errno. Every room above returns 0, or a negative enum sr_code with the details in
 * the struct sr_error that the caller passed. The binding turns a code into its exception by one
 * table (native/python/errors.c). */
enum sr_code {
    SR_OK = 0,
    SR_E_SYSTEM = -1,       /* a kernel call failed in a way that has no name here      */
    SR_E_INVALID = -2,      /* the caller's argument                                    */
    SR_E_EXISTS = -3,       /* a region of that name exists                             */
    SR_E_NOT_FOUND = -4,    /* no region of that name                                   */
    SR_E_FULL = -5,         /* no room in the region: object, entry or member           */
    SR_E_CORRUPT = -6,      /* the bytes of a segment contradict themselves             */
    SR_E_LOST = -7,         /* what held the region's memory is gone                    */
    SR_E_UNAVAILABLE = -8,  /* the backend cannot serve                                 */
    SR_E_READ_ONLY = -9,    /* opened for reading, or sealed                            */
    SR_E_NO_OBJECT = -10,   /* no object of that name, or no longer that version        */
    SR_E_DENIED = -11,      /* belongs to another user                                  */
    SR_E_CLOSED = -12,      /* used after close                                         */
    SR_E_TIMEOUT = -13,
    SR_E_NO_MEMORY = -14,   /* this process's own memory                                */
};

#define SR_WHAT_MAX 256
struct sr_error {
    int code;                  /* enum sr_code                                              */
    int sys_errno;             /* positive errno, or 0                                      */
    uint64_t wanted, free, largest; /* SR_E_FULL: bytes                                     */
    char what[SR_WHAT_MAX];    /* one sentence, no full stop, cut at a character            */
};

/* Fill *e (which may be NULL) and return `code`, so that a caller can `return sr_fail(...)`.
 * `neg_errno` is what sys returned (0 if no call was involved). */
int sr_fail(struct sr_error *e, int code, int neg_errno, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/* --- small tools ------------------------------------------------------------------------------ */

/* A fixed-size string build-up that never overflows and remembers that it would have. */
struct sr_text {
    char *at;
    size_t len, cap;
    bool cut;
};
void sr_text_add(struct sr_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Take half a UTF-8 character off the end of a text that was cut. */
void sr_end_on_character(char *s);

static inline void sr_cpu_relax(void) { __builtin_ia32_pause(); }

#endif
