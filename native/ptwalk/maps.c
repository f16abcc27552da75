/* maps: /proc/PID/maps, of which only the numbers are believed. What follows the inode is a name
 * that the process chose, to be shown and nothing else; a newline in it is written as \012 by the
 * kernel, so lines are lines. */
#include "ptwalk.h"

#include <errno.h>
#include <linux/ioctl.h>
#include <stdlib.h>

enum { BUFFER = 1 << 16 };

/* PROCMAP_QUERY (Linux 6.11): one VMA by address; it alone says how large its pages are. */
struct query {
    uint64_t size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define QUERY _IOWR('f', 17, struct query)

int pt_maps_region(const struct pt_request *q, uint64_t dev, uint64_t ino)
{
    size_t low = 0, high = q->file_count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        const struct pt_region_file *f = &q->files[mid];
        if (f->dev == dev && f->ino == ino) return (int)f->region;
        if (f->dev < dev || (f->dev == dev && f->ino < ino)) low = mid + 1;
        else high = mid;
    }
    return -1;
}

static bool number(const char **at, const char *end, unsigned base, char stop, uint64_t *value)
{
    const char *s = *at;
    uint64_t v = 0;
    while (s < end && *s != stop) {
        unsigned digit = *s >= '0' && *s <= '9' ? (unsigned)(*s - '0') : *s >= 'a' && *s <= 'f' ? (unsigned)(*s - 'a') + 10 : 99;
        if (digit >= base || v > (UINT64_MAX - digit) / base) return false;
        v = v * base + digit;
        s++;
    }
    if (s == *at || s >= end) return false;
    *value = v;
    *at = s + 1;
    return true;
}

/* "7f00-7f10 rw-s 00000000 00:1f 1134 /name"; the line ends at `end`, where a blank is put. */
static bool parse(const char *s, const char *end, struct pt_vma *v, const char **name)
{
    uint64_t major, minor;
    if (!number(&s, end, 16, '-', &v->start) || !number(&s, end, 16, ' ', &v->end)) return false;
    if (end - s < 5 || s[4] != ' ' || v->start >= v->end) return false;
    v->writable = s[1] == 'w';
    v->shared = s[3] == 's';
    s += 5;
    if (!number(&s, end, 16, ' ', &v->file_offset) || !number(&s, end, 16, ':', &major) || !number(&s, end, 16, ' ', &minor) ||
        !number(&s, end, 10, ' ', &v->ino) || major > UINT32_MAX || minor > UINT32_MAX)
        return false;
    v->dev = major << 32 | minor;
    while (s < end && *s == ' ') s++;
    *name = s;
    return true;
}

static uint64_t page_size(int fd, const struct pt_vma *v)
{
    struct query query = {.size = sizeof query, .query_addr = v->start};
    return sr_sys->ioctl(fd, QUERY, &query) >= 0 && query.vma_start == v->start ? query.vma_page_size : SR_PAGE;
}

/* Page sizes are asked for where they matter: in regions, and where a whole GiB is shared; with
 * mappings, of all shared ones that a large page could hold. */
static void take(int fd, const struct pt_request *q, struct pt_objects *objects, struct pt_vma *v, const char *name, size_t length)
{
    v->region = v->ino ? pt_maps_region(q, v->dev, v->ino) : -1;
    uint64_t least = objects ? SR_LARGE_PAGE : SR_GIB, page = SR_PAGE;
    if (v->shared && (v->region >= 0 || v->end - v->start >= least)) page = page_size(fd, v);
    v->hugetlb = page == SR_LARGE_PAGE;
    v->gigantic = page == SR_GIB;
    if (objects == NULL) return;
    v->object = pt_objects_find(objects, v, name, length);
    struct pt_object *o = &objects->object[v->object];
    if (o->kind != PT_FILE) return;
    if (page > SR_PAGE) o->page = page;
    uint64_t last = v->file_offset + (v->end - v->start);
    if (v->file_offset < o->first) o->first = v->file_offset;
    if (last > o->last) o->last = last;
}

/* All VMAs, by address. */
int pt_maps_read(int fd, const struct pt_request *q, struct pt_objects *objects, struct pt_vma **vmas, size_t *count)
{
    char *buffer = malloc(BUFFER + 1);
    size_t held = 0, cap = 0;
    int r = buffer ? 0 : -ENOMEM;
    *vmas = NULL;
    *count = 0;
    while (r == 0) {
        ssize_t n = sr_sys->read(fd, buffer + held, BUFFER - held);
        if (n <= 0) {
            r = (int)n;
            break;
        }
        held += (size_t)n;
        size_t from = 0;
        for (char *line_end; r == 0 && (line_end = memchr(buffer + from, '\n', held - from)); from = (size_t)(line_end - buffer) + 1) {
            struct pt_vma v = {.region = -1};
            const char *name;
            *line_end = ' ';
            if (!parse(buffer + from, line_end + 1, &v, &name)) continue;
            take(fd, q, objects, &v, name, name < line_end ? (size_t)(line_end - name) : 0);
            if (!PT_GROW(*vmas, cap, *count)) r = -ENOMEM;
            else (*vmas)[(*count)++] = v;
        }
        /* A name is at most a page long, four times that when escaped. */
        if (from == 0 && held == BUFFER) from = held;
        memmove(buffer, buffer + from, held - from);
        held -= from;
    }
    free(buffer);
    return r;
}
