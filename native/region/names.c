/* names: which file is which. */
#define _GNU_SOURCE
#include "sr_region.h"
#include "sr_region_private.h"

#include <errno.h>
#include <stdio.h>

/* Well-formed UTF-8 (RFC 3629: no surrogates, no overlong forms, up to U+10FFFF) without control
 * characters: names are shown by ls and by our own tools. */
static bool printable_utf8(const unsigned char *s, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = s[i];
        size_t more = c < 0x80 ? 0 : (c & 0xE0) == 0xC0 ? 1 : (c & 0xF0) == 0xE0 ? 2 : (c & 0xF8) == 0xF0 ? 3 : 9;
        if (more == 9 || i + more >= len + (more == 0)) return false;
        uint32_t point = more == 0 ? c : c & (0x3Fu >> more);
        for (size_t k = 1; k <= more; k++) {
            if ((s[i + k] & 0xC0) != 0x80) return false;
            point = (point << 6) | (s[i + k] & 0x3F);
        }
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (point < least[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
        if (point < 0x20 || (point >= 0x7F && point < 0xA0)) return false;
        i += more + 1;
    }
    return true;
}

int sr_region_check_name(const char *name, size_t len, struct sr_error *e)
{
    if (len == 0) return sr_fail(e, SR_E_INVALID, -EINVAL, "a region's name may not be empty");
    if (len > SR_REGION_NAME_MAX)
        return sr_fail(e, SR_E_INVALID, -ENAMETOOLONG, "a region's name may have %d bytes of UTF-8, this one has %zu", SR_REGION_NAME_MAX, len);
    if (memchr(name, '/', len) || memchr(name, '\0', len))
        return sr_fail(e, SR_E_INVALID, -EINVAL, "a region's name may not contain '/' or NUL");
    if (!printable_utf8((const unsigned char *)name, len))
        return sr_fail(e, SR_E_INVALID, -EINVAL, "a region's name must be UTF-8 without control characters");
    return 0;
}

void sr_region__file_name(char out[SR_FILE_NAME], const char *region, enum sr_segment segment, uint32_t generation)
{
    static const char *const suffix[] = {"catalog", "members", "data"};
    if (segment == SR_SEGMENT_CATALOG || generation == 1) snprintf(out, SR_FILE_NAME, "sharedregion.%s.%s", region, suffix[segment]);
    else snprintf(out, SR_FILE_NAME, "sharedregion.%s.%s.%u", region, suffix[segment], generation);
}

void sr_region__socket_name(char out[SR_FILE_NAME], const uint8_t id[16])
{
    struct sr_text t = {.at = out, .cap = SR_FILE_NAME};
    sr_text_add(&t, "sharedregion.");
    for (int i = 0; i < 16; i++) sr_text_add(&t, "%02x", id[i]);
    sr_text_add(&t, ".keeper");
}

void sr_region__socket_path(char out[SR_SOCKET_PATH], const uint8_t id[16])
{
    char name[SR_FILE_NAME];
    sr_region__socket_name(name, id);
    struct sr_text t = {.at = out, .cap = SR_SOCKET_PATH};
    sr_text_add(&t, SR_SHM_DIR "/%s", name);
}
