/* report: what was found, as JSON. The schema is drawn in sharedregion/footprint/answer.py. */
#define _GNU_SOURCE
#include "ptwalk.h"

#include <stdio.h>
#include <stdlib.h>

/* --- text ------------------------------------------------------------------------------------- */

/* Length of the UTF-8 character at s (of `n` bytes) and its code point; 0 if it is none. */
static size_t character(const unsigned char *s, size_t n, uint32_t *code)
{
    size_t len = s[0] < 0x80 ? 1 : s[0] >= 0xc2 && s[0] < 0xe0 ? 2 : s[0] >= 0xe0 && s[0] < 0xf0 ? 3 : s[0] >= 0xf0 && s[0] < 0xf5 ? 4 : 0;
    if (len == 0 || len > n) return 0;
    static const uint8_t lead[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t c = s[0] & lead[len];
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
    *code = c;
    return len;
}

/* What changes a terminal, the direction of text or the look of what stands beside it. */
static bool unsafe(uint32_t c)
{
    static const struct { uint32_t first, last; } range[] = {
        {0, 0x1f}, {0x7f, 0x9f}, {0xad, 0xad}, {0x61c, 0x61c}, {0x115f, 0x1160}, {0x17b4, 0x17b5}, {0x180b, 0x180f},
        {0x200b, 0x200f}, {0x2028, 0x202e}, {0x2060, 0x206f}, {0x3164, 0x3164}, {0xe000, 0xf8ff}, {0xfdd0, 0xfdef},
        {0xfe00, 0xfe0f}, {0xfeff, 0xfeff}, {0xffa0, 0xffa0}, {0xfff0, 0xfffb}, {0x1d173, 0x1d17a}, {0xe0000, 0x10ffff},
    };
    for (size_t i = 0; i < SR_ARRAY_LEN(range); i++)
        if (c >= range[i].first && c <= range[i].last) return true;
    return (c & 0xfffe) == 0xfffe;
}

/* A JSON string that is also safe to print once it is decoded: what is unsafe or no UTF-8 becomes
 * visible (\x1b, \u202e), and a backslash becomes two, so that nothing can pretend to be escaped. */
static void put_string(const char *text, size_t len)
{
    const unsigned char *s = (const unsigned char *)text;
    putchar('"');
    for (size_t i = 0; i < len;) {
        uint32_t c;
        size_t n = character(s + i, len - i, &c);
        if (n == 0) printf("\\\\x%02x", s[i++]);
        else {
            if (c == '"') fputs("\\\"", stdout);
            else if (c == '\\') fputs("\\\\\\\\", stdout);
            else if (!unsafe(c)) fwrite(s + i, 1, n, stdout);
            else if (c < 0x100) printf("\\\\x%02x", c);
            else printf(c < 0x10000 ? "\\\\u%04x" : "\\\\U%08x", c);
            i += n;
        }
    }
    putchar('"');
}

static void put_text(const char *text) { put_string(text, strlen(text)); }
static void put_number(const char *key, uint64_t value) { printf(",\"%s\":%llu", key, (unsigned long long)value); }

/* --- objects ---------------------------------------------------------------------------------- */

static const char *const level_name[PT_LEVELS] = {"pte", "pmd", "pud", "p4d", "pgd"};

static void put_regions(const struct pt_request *q, const struct pt_memory *mem)
{
    fputs(",\"regions\":[", stdout);
    bool first = true;
    for (size_t i = 0; mem->use && i < q->region_count; i++) {
        const struct pt_region_use *use = &mem->use[i];
        if (!use->mapped) continue;
        fputs(first ? "{\"region\":" : ",{\"region\":", stdout);
        put_text(q->regions[i]);
        put_number("linked_bytes", use->linked);
        put_number("private_bytes", use->private_);
        put_number("shared_bytes", use->shared);
        put_number("alone_gib", use->alone_gib);
        putchar('}');
        first = false;
    }
    putchar(']');
}

/* Anyone can make thousands of processes with one memory: each telling of all would fill any disk. */
enum { SHARING_MAX = 64 };

static void put_process(const struct pt_request *q, const struct pt_found *found, const struct pt_process *p)
{
    const struct pt_memory *mem = &found->memory[p->memory];
    bool walked = found->reader != NULL;
    printf("{\"pid\":%d,\"command\":", p->pid);
    put_string(p->comm, strnlen(p->comm, sizeof p->comm));
    fputs(",\"tables\":{", stdout);
    for (int level = PT_PGD; level >= PT_PTE; level--)
        printf("%s\"%s\":%u", level == PT_PGD ? "" : ",", level_name[level], mem->tables[level]);
    putchar('}');
    put_number("held_tables", mem->held);
    put_number("linked_bytes", mem->linked);
    put_number("private_bytes", mem->private_);
    put_number("shared_bytes", mem->shared);
    put_number("proportional_bytes", mem->proportional);
    put_number("vm_pte_bytes", mem->kernel_bytes);
    put_number("moving", mem->moving);
    printf(",\"estimate\":%s", walked && !mem->held_unknown ? "false" : "true");
    fputs(",\"shares_with\":[", stdout);
    unsigned told = 0, sharing = mem->processes - 1;
    for (size_t i = 0; told < sr_min(sharing, SHARING_MAX) && i < found->processes; i++) {
        const struct pt_process *other = &found->process[i];
        if (other == p || other->state != PT_SEEN || other->memory != p->memory) continue;
        printf(told++ ? ",%d" : "%d", other->pid);
    }
    putchar(']');
    put_number("shares_with_in_all", sharing);
    if (q->leaves)
        printf(",\"leaves\":{\"4k\":%llu,\"2m\":%llu,\"1g\":%llu,\"full_tables\":%llu}", (unsigned long long)mem->leaves[0],
               (unsigned long long)mem->leaves[1], (unsigned long long)mem->leaves[2], (unsigned long long)mem->full);
    put_regions(q, mem);
    putchar('}');
}

static void put_pids(const char *key, const struct pt_request *q, const struct pt_found *found, enum pt_state state)
{
    printf(",\"%s\":[", key);
    bool first = true;
    /* Without a list of pids, what could not be looked at is only a number (below), except who went
     * while it was looked at the others. */
    for (size_t i = 0; i < found->processes && (q->pid_count || state == PT_GONE); i++) {
        if (!found->process[i].asked || found->process[i].state != state) continue;
        printf(first ? "%d" : ",%d", found->process[i].pid);
        first = false;
    }
    putchar(']');
}

static void put_sharing(const struct pt_found *found)
{
    fputs(",\"shared\":{\"tables\":[", stdout);
    for (size_t i = 0; i < found->sharings; i++) {
        const struct pt_sharing *s = &found->sharing[i];
        printf("%s{\"level\":\"%s\",\"tables\":%llu,\"processes\":%u,\"links\":%u,\"share_count\":", i ? "," : "", level_name[s->level],
               (unsigned long long)s->tables, s->processes, s->links);
        if (s->share_count < 0) fputs("null}", stdout);
        else printf("%lld}", (long long)s->share_count);
    }
    printf("],\"share_count\":{\"checked\":%llu,\"agree\":%llu,\"more\":%llu,\"less\":%llu}}", (unsigned long long)found->checked,
           (unsigned long long)found->agree, (unsigned long long)found->more, (unsigned long long)found->less);
}

/* Told one by one: the costliest, and of each the ways in which it is mapped, up to a number, and up to
 * another for all of them together. */
enum { MAPPINGS_MAX = 1000, EXTENTS_MAX = 1024, EXTENTS_IN_ALL = 16384 };

static const char *const kind_name[] = {"anonymous", "several", "upper", "unmapped", "hidden", "others", "file"};

static void put_extents(const struct pt_objects *objects, uint32_t object)
{
    static size_t in_all;
    size_t low = 0, high = objects->extents, left_out = 0;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (objects->extent[mid].object < object) low = mid + 1;
        else high = mid;
    }
    fputs(",\"extents\":[", stdout);
    for (size_t i = low; i < objects->extents && objects->extent[i].object == object; i++) {
        const struct pt_extent *x = &objects->extent[i];
        if (i - low >= EXTENTS_MAX || in_all >= EXTENTS_IN_ALL) {
            left_out++;
            continue;
        }
        in_all++;
        printf("%s{\"start_in_gib\":%llu,\"bytes\":%llu,\"file_offset\":%llu,\"writable\":%s,\"processes\":%u}", i > low ? "," : "",
               (unsigned long long)x->start, (unsigned long long)x->length, (unsigned long long)x->file_offset,
               x->writable ? "true" : "false", x->processes);
    }
    putchar(']');
    put_number("extents_left_out", left_out);
}

static void put_mapping(const struct pt_objects *objects, uint32_t index)
{
    const struct pt_object *o = &objects->object[index];
    printf("{\"kind\":\"%s\",\"name\":", kind_name[o->kind]);
    put_text(o->name ? o->name : "");
    printf(",\"shared\":%s,\"device\":\"%llu:%llu\"", o->shared ? "true" : "false", (unsigned long long)(o->dev >> 32),
           (unsigned long long)(o->dev & UINT32_MAX));
    put_number("inode", o->ino);
    put_number("page_size", o->page ? o->page : SR_PAGE);
    put_number("bytes", o->kind == PT_FILE ? o->last - o->first : 0);
    put_number("processes", o->processes);
    put_number("linked_bytes", o->linked);
    put_number("distinct_bytes", o->distinct);
    put_number("distinct_pte_bytes", o->distinct_small);
    put_number("pmd_links", o->pmd_links);
    put_number("pte_links", o->pte_links);
    fputs(",\"commands\":[", stdout);
    for (unsigned i = 0; i < PT_COMMANDS && o->command[i].processes; i++) {
        fputs(i ? ",{\"command\":" : "{\"command\":", stdout);
        put_string(o->command[i].comm, strnlen(o->command[i].comm, sizeof o->command[i].comm));
        put_number("processes", o->command[i].processes);
        putchar('}');
    }
    putchar(']');
    put_extents(objects, index);
    putchar('}');
}

static const struct pt_objects *sorted;
static int by_cost(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    const struct pt_object *x = &sorted->object[i], *y = &sorted->object[j];
    if (x->distinct != y->distinct) return x->distinct < y->distinct ? 1 : -1;
    return (i > j) - (i < j);
}

static bool put_mappings(struct pt_objects *objects)
{
    uint32_t *order = malloc(objects->count * sizeof *order);
    if (order == NULL) return false;
    size_t n = 0, told = 0;
    for (uint32_t i = 0; i < objects->count; i++)
        if (i != PT_OTHERS && objects->object[i].linked) order[n++] = i;
    sorted = objects;
    qsort(order, n, sizeof *order, by_cost);
    struct pt_object *others = &objects->object[PT_OTHERS];
    for (size_t i = MAPPINGS_MAX; i < n; i++) {
        const struct pt_object *o = &objects->object[order[i]];
        others->linked += o->linked;
        others->distinct += o->distinct;
        others->distinct_small += o->distinct_small;
        others->pmd_links += o->pmd_links;
        others->pte_links += o->pte_links;
    }
    fputs(",\"mappings\":[", stdout);
    for (; told < sr_min(n, MAPPINGS_MAX); told++) {
        if (told) putchar(',');
        put_mapping(objects, order[told]);
    }
    if (others->linked) {
        if (told) putchar(',');
        put_mapping(objects, PT_OTHERS);
    }
    putchar(']');
    put_number("mappings_in_all", n);
    free(order);
    return true;
}

bool pt_report(const struct pt_request *q, struct pt_found *found)
{
    size_t looked = 0, denied = 0, gone = 0, kernel = 0;
    for (size_t i = 0; i < found->processes; i++) {
        looked += found->process[i].state == PT_SEEN;
        denied += found->process[i].state == PT_DENIED;
        gone += found->process[i].state == PT_GONE;
        kernel += found->process[i].state == PT_KERNEL;
    }
    printf("{\"schema\":%d,\"version\":\"%s\",\"method\":\"%s\",\"reader\":", PTWALK_SCHEMA, PTWALK_VERSION, found->method);
    if (found->reader) printf("\"%s\"", found->reader);
    else fputs("null", stdout);
    fputs(",\"why\":", stdout);
    if (found->why[0]) put_text(found->why);
    else fputs("null", stdout);
    fputs(",\"remedy\":", stdout);
    if (found->remedy) put_text(found->remedy);
    else fputs("null", stdout);
    printf(",\"scope\":\"%s\"", q->alone ? "asked" : q->own_only ? "own" : found->nested ? "namespace" : "all");
    put_number("distinct_bytes", found->distinct);
    if (found->reader) put_sharing(found);
    printf(",\"looked_at\":{\"processes\":%zu,\"gone\":%zu,\"kernel_threads\":%zu,\"denied\":%zu,\"denied_bytes\":%llu,\"distinct_bytes\":%llu,\"microseconds\":%llu,\"entries_read_again\":%llu,\"entries_changed\":%llu}", looked, gone,
           kernel, denied, (unsigned long long)found->denied_bytes, (unsigned long long)found->everyone, (unsigned long long)found->elapsed_us, (unsigned long long)found->reread, (unsigned long long)found->changed);
    fputs(",\"processes\":[", stdout);
    bool first = true;
    for (size_t i = 0; i < found->processes; i++) {
        if (!found->process[i].asked || found->process[i].state != PT_SEEN) continue;
        if (!first) putchar(',');
        put_process(q, found, &found->process[i]);
        first = false;
    }
    putchar(']');
    if (q->mappings && !put_mappings(&found->objects)) return false;
    put_pids("gone", q, found, PT_GONE);
    put_pids("denied", q, found, PT_DENIED);
    put_pids("kernel_threads", q, found, PT_KERNEL);
    fputs("}\n", stdout);
    return true;
}
