/* checksum: CRC-32C and the name hash. */
#include "sr_base.h"

#include <nmmintrin.h>

/* The reflected Castagnoli polynomial; RFC 3720, appendix B.4. Used bit by bit where SSE4.2 is
 * missing, which on x86_64 means processors from before 2009: correct is enough there. */
#define CASTAGNOLI 0x82F63B78u

static uint32_t crc_portable(uint32_t crc, const unsigned char *p, size_t len)
{
    while (len--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (CASTAGNOLI & (0u - (crc & 1u)));
    }
    return crc;
}

__attribute__((target("sse4.2")))
static uint32_t crc_sse42(uint32_t crc, const unsigned char *p, size_t len)
{
    uint64_t wide = crc;
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    while (len--) crc = _mm_crc32_u8(crc, *p++);
    return crc;
}

uint32_t sr_crc32c(uint32_t crc, const void *data, size_t len)
{
    crc = ~crc;
    crc = __builtin_cpu_supports("sse4.2") ? crc_sse42(crc, data, len)
                                           : crc_portable(crc, data, len);
    return ~crc;
}

/* Multiply and fold, eight bytes a step: the constants are odd numbers with well mixed bits
 * (the 64-bit golden ratio and the finalizer of splitmix64; Steele, Lea, Flood 2014). Names come
 * from the region's own users, so no secret seed is needed. */
static uint64_t mix(uint64_t h)
{
    h ^= h >> 30;
    h *= UINT64_C(0xBF58476D1CE4E5B9);
    h ^= h >> 27;
    h *= UINT64_C(0x94D049BB133111EB);
    return h ^ (h >> 31);
}

uint64_t sr_hash64(const void *data, size_t len)
{
    const unsigned char *p = data;
    uint64_t h = UINT64_C(0x9E3779B97F4A7C15) ^ ((uint64_t)len * UINT64_C(0xBF58476D1CE4E5B9));
    for (; len >= 8; len -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = mix(h ^ word);
    }
    uint64_t tail = 0;
    memcpy(&tail, p, len);
    h = mix(h ^ tail);
    return h ? h : 1;
}
