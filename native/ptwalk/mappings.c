/* mappings: which tables serve which file, shared memory object or other mapping.
 *
 * A table belongs to an object if of all VMAs that the addresses it covers touch, at least one maps
 * the object and none maps anything else: then it would not be there without the object. (The same
 * rule as for regions.) Tables that several objects need are told apart from all others, so that
 * the parts add up to the whole and no object is charged for what it only shares.
 *
 * A PTE table that was put aside for the day a huge page is split is anonymous memory's: on x86 the
 * kernel does that for nothing else.
 */
#include "ptwalk.h"

#include <errno.h>
#include <stdlib.h>

/* A hostile process can map some ten thousand files with names of a page each. */
enum { OBJECTS_MAX = 1 << 18, NAME_MAX_BYTES = 512 };

int pt_objects_init(struct pt_objects *o)
{
    o->mask = 1023;
    o->slot = calloc(o->mask + 1, sizeof o->slot[0]);
    if (o->slot == NULL) return -ENOMEM;
    for (unsigned kind = PT_ANONYMOUS; kind < PT_FILE; kind++) {
        if (!PT_GROW(o->object, o->cap, o->count)) return -ENOMEM;
        o->object[o->count++] = (struct pt_object){.kind = kind};
    }
    return 0;
}

void pt_objects_deinit(struct pt_objects *o)
{
    for (size_t i = 0; i < o->count; i++) free(o->object[i].name);
    free(o->object);
    free(o->slot);
    free(o->extent);
    memset(o, 0, sizeof *o);
}

static size_t slot_of(const struct pt_objects *o, uint64_t dev, uint64_t ino, bool shared)
{
    uint64_t h = (dev * UINT64_C(0x9e3779b97f4a7c15) ^ ino) * UINT64_C(0xbf58476d1ce4e5b9) + shared;
    size_t i = (size_t)(h ^ h >> 29) & o->mask;
    for (; o->slot[i]; i = (i + 1) & o->mask) {
        const struct pt_object *x = &o->object[o->slot[i]];
        if (x->dev == dev && x->ino == ino && x->shared == shared) break;
    }
    return i;
}

static bool widen(struct pt_objects *o)
{
    size_t mask = o->mask * 2 + 1;
    uint32_t *slot = calloc(mask + 1, sizeof slot[0]);
    if (slot == NULL) return false;
    free(o->slot);
    o->slot = slot;
    o->mask = mask;
    for (size_t i = PT_FILE; i < o->count; i++) {
        const struct pt_object *x = &o->object[i];
        o->slot[slot_of(o, x->dev, x->ino, x->shared)] = (uint32_t)i;
    }
    return true;
}

/* The end of a long name says more than its beginning. */
static char *copy_name(const char *name, size_t length)
{
    size_t skip = length > NAME_MAX_BYTES ? length - NAME_MAX_BYTES : 0;
    char *copy = malloc(length - skip + 4);
    if (copy == NULL) return NULL;
    memcpy(copy, "...", 3);
    memcpy(copy + (skip ? 3 : 0), name + skip, length - skip);
    copy[length - skip + (skip ? 3 : 0)] = '\0';
    return copy;
}

uint32_t pt_objects_find(struct pt_objects *o, const struct pt_vma *v, const char *name, size_t length)
{
    if (v->ino == 0) return PT_ANONYMOUS;
    size_t i = slot_of(o, v->dev, v->ino, v->shared);
    if (o->slot[i]) return o->slot[i];
    if (o->count >= OBJECTS_MAX) return PT_OTHERS;
    if (o->count * 2 > o->mask) {
        if (!widen(o)) return PT_OTHERS;
        i = slot_of(o, v->dev, v->ino, v->shared);
    }
    if (!PT_GROW(o->object, o->cap, o->count)) return PT_OTHERS;
    o->slot[i] = (uint32_t)o->count;
    o->object[o->count] = (struct pt_object){
        .kind = PT_FILE, .shared = v->shared, .dev = v->dev, .ino = v->ino, .name = copy_name(name, length), .first = UINT64_MAX};
    return (uint32_t)o->count++;
}

/* --- whose is a table ------------------------------------------------------------------------- */

static uint32_t owner(const struct pt_memory *mem, uint64_t start, uint64_t end, size_t *at)
{
    /* Tables come in runs of neighbours: most lie in the VMA of the one before. */
    size_t low = *at;
    if (low >= mem->vmas || mem->vma[low].end <= start || (low > 0 && mem->vma[low - 1].end > start)) {
        size_t high = mem->vmas;
        low = 0;
        while (low < high) {
            size_t mid = low + (high - low) / 2;
            if (mem->vma[mid].end <= start) low = mid + 1;
            else high = mid;
        }
        *at = low;
    }
    if (low == mem->vmas || mem->vma[low].start >= end) return PT_UNMAPPED;
    uint32_t object = mem->vma[low].object;
    for (size_t i = low + 1; i < mem->vmas && mem->vma[i].start < end; i++)
        if (mem->vma[i].object != object) return PT_SEVERAL;
    return object;
}

static void add_tables(const struct pt_format *f, struct pt_found *found, const struct pt_memory *mem, struct pt_table_set *set)
{
    size_t at = 0;
    for (size_t k = 0; k < mem->links; k++) {
        const struct pt_link *l = &mem->link[k];
        enum pt_level level = pt_link_level(l);
        uint32_t object = PT_HIDDEN;
        if (mem->mapped && l->table & PT_LINK_HELD) object = PT_ANONYMOUS;
        else if (mem->mapped && level > PT_PUD) object = PT_UPPER;
        else if (mem->mapped) object = owner(mem, l->va, l->va + pt_entry_span(f, level) * PT_ENTRIES, &at);
        if (object == PT_SEVERAL && level == PT_PUD) object = PT_UPPER;
        struct pt_object *o = &found->objects.object[object];
        uint64_t bytes = level == PT_PGD ? found->pgd_bytes : SR_PAGE;
        o->linked += bytes;
        o->pte_links += level == PT_PTE;
        o->pmd_links += level == PT_PMD;
        if (!pt_table_first(set, l)) continue;
        o->distinct += bytes;
        if (level == PT_PTE) o->distinct_small += bytes;
    }
}

static void add_command(struct pt_object *o, const char comm[static 16])
{
    for (unsigned i = 0; i < PT_COMMANDS; i++) {
        if (o->command[i].processes && strncmp(o->command[i].comm, comm, 16) != 0) continue;
        memcpy(o->command[i].comm, comm, 16);
        o->command[i].processes++;
        return;
    }
}

static int add_users(struct pt_objects *objects, const struct pt_process *p, const struct pt_memory *mem, bool first)
{
    for (size_t i = 0; i < mem->vmas; i++) {
        const struct pt_vma *v = &mem->vma[i];
        struct pt_object *o = &objects->object[v->object];
        if (o->seen != p->pid) {
            o->seen = p->pid;
            o->processes++;
            add_command(o, p->comm);
        }
        if (!first || !o->shared) continue;
        if (!PT_GROW(objects->extent, objects->extent_cap, objects->extents)) return -ENOMEM;
        objects->extent[objects->extents++] = (struct pt_extent){.object = v->object, .processes = mem->processes,
            .start = v->start % SR_GIB, .length = v->end - v->start, .file_offset = v->file_offset, .writable = v->writable};
    }
    return 0;
}

#define COMPARE(field) if (x->field != y->field) return x->field < y->field ? -1 : 1
static int by_extent(const void *a, const void *b)
{
    const struct pt_extent *x = a, *y = b;
    COMPARE(object);
    COMPARE(file_offset);
    COMPARE(length);
    COMPARE(start);
    COMPARE(writable);
    return 0;
}

/* Those that are alike become one. */
static void fold_extents(struct pt_objects *o)
{
    if (o->extents == 0) return;
    qsort(o->extent, o->extents, sizeof o->extent[0], by_extent);
    size_t kept = 0;
    for (size_t i = 1; i < o->extents; i++) {
        if (by_extent(&o->extent[kept], &o->extent[i]) == 0) o->extent[kept].processes += o->extent[i].processes;
        else o->extent[++kept] = o->extent[i];
    }
    o->extents = kept + 1;
}

int pt_mappings(const struct pt_machine *m, struct pt_found *found, struct pt_table_set *set)
{
    struct pt_format plain = pt_format_make(4, 0, false);
    const struct pt_format *f = m ? &m->format : &plain;
    bool *done = calloc(found->memories + 1, sizeof *done);
    if (done == NULL) return -ENOMEM;
    int r = 0;
    for (size_t i = 0; r == 0 && i < found->processes; i++) {
        const struct pt_process *p = &found->process[i];
        if (p->state != PT_SEEN || !p->asked) continue;
        const struct pt_memory *mem = &found->memory[p->memory];
        bool first = !done[p->memory];
        done[p->memory] = true;
        if (first) add_tables(f, found, mem, set);
        if (mem->mapped) r = add_users(&found->objects, p, mem, first);
    }
    free(done);
    if (r == 0) fold_extents(&found->objects);
    return r;
}
