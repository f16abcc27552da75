/* btf: reads the few offsets that are needed from BTF, the kernel's description of its own types.
 *
 * The layout, from include/uapi/linux/btf.h: a header; a section of type records of variable
 * length, numbered from 1 in order; a section of strings. A record of kind STRUCT is followed by
 * its members {name, type, bit offset}; where its kind_flag is set, the upper 8 bits of the offset
 * are the width of a bit-field. Nothing in the file is trusted: every length is checked against
 * what is left.
 */
#include "btf.h"
#include "sr_sys.h"

#include <errno.h>
#include <linux/btf.h>
#include <stdlib.h>
#include <sys/mman.h>

struct view {
    const unsigned char *types, *strings;
    uint32_t types_len, strings_len;
    uint32_t *index;    /* offset of each type record */
    uint32_t count;
};

static const char *name_at(const struct view *v, uint32_t offset)
{
    if (offset >= v->strings_len) return "";
    const char *s = (const char *)v->strings + offset;
    return memchr(s, 0, v->strings_len - offset) ? s : "";
}

/* Bytes that follow struct btf_type for each kind: fixed + each * vlen; -1 for an unknown kind, the
 * length of which nobody knows, so that reading must end there. */
static int64_t tail_len(uint32_t kind, uint32_t vlen)
{
    static const struct { int8_t fixed, each; } tail[] = {
        [BTF_KIND_INT] = {4, 0},        [BTF_KIND_PTR] = {0, 0},      [BTF_KIND_ARRAY] = {12, 0},
        [BTF_KIND_STRUCT] = {0, 12},    [BTF_KIND_UNION] = {0, 12},   [BTF_KIND_ENUM] = {0, 8},
        [BTF_KIND_FWD] = {0, 0},        [BTF_KIND_TYPEDEF] = {0, 0},  [BTF_KIND_VOLATILE] = {0, 0},
        [BTF_KIND_CONST] = {0, 0},      [BTF_KIND_RESTRICT] = {0, 0}, [BTF_KIND_FUNC] = {0, 0},
        [BTF_KIND_FUNC_PROTO] = {0, 8}, [BTF_KIND_VAR] = {4, 0},      [BTF_KIND_DATASEC] = {0, 12},
        [BTF_KIND_FLOAT] = {0, 0},      [BTF_KIND_DECL_TAG] = {4, 0}, [BTF_KIND_TYPE_TAG] = {0, 0},
        [BTF_KIND_ENUM64] = {0, 12},
    };
    if (kind == 0 || kind >= SR_ARRAY_LEN(tail)) return -1;
    return tail[kind].fixed + (int64_t)tail[kind].each * vlen;
}

static const struct btf_type *type_at(const struct view *v, uint32_t id)
{
    return id == 0 || id >= v->count ? NULL : (const void *)(v->types + v->index[id]);
}

/* The offset of `field` in structure `t`, in bytes; false if there is none, or a bit-field. */
static bool find_field(const struct view *v, const struct btf_type *t, const char *field, int depth, uint32_t *at)
{
    const struct btf_member *m = (const void *)(t + 1);
    uint32_t n = BTF_INFO_VLEN(t->info);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits = BTF_INFO_KFLAG(t->info) ? BTF_MEMBER_BIT_OFFSET(m[i].offset) : m[i].offset;
        const char *name = name_at(v, m[i].name_off);
        if (name[0] == '\0' && depth < 8) {
            const struct btf_type *inner = type_at(v, m[i].type);
            uint32_t kind = inner ? BTF_INFO_KIND(inner->info) : 0, inside;
            if ((kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) && find_field(v, inner, field, depth + 1, &inside)) {
                *at = bits / 8 + inside;
                return true;
            }
        } else if (strcmp(name, field) == 0) {
            *at = bits / 8;
            return bits % 8 == 0;
        }
    }
    return false;
}

enum structure {
    S_task_struct, S_signal_struct, S_mm_struct, S_cred, S_pid, S_upid, S_pid_namespace, S_idr, S_xarray,
    S_xa_node, S_page, S_ptdesc, STRUCTURES
};
static const char *const structure_name[STRUCTURES] = {
    "task_struct", "signal_struct", "mm_struct", "cred", "pid", "upid", "pid_namespace", "idr", "xarray",
    "xa_node", "page", "ptdesc",
};

static int index_types(struct view *v, const struct btf_type *found[STRUCTURES])
{
    uint32_t cap = v->types_len / sizeof(struct btf_type) + 2;
    v->index = malloc(cap * sizeof v->index[0]);
    if (v->index == NULL) return -ENOMEM;
    v->count = 1;
    for (uint32_t at = 0; v->types_len - at >= sizeof(struct btf_type);) {
        const struct btf_type *t = (const void *)(v->types + at);
        int64_t tail = tail_len(BTF_INFO_KIND(t->info), BTF_INFO_VLEN(t->info));
        if (tail < 0 || tail > (int64_t)(v->types_len - at - sizeof *t)) break;
        v->index[v->count++] = at;
        if (BTF_INFO_KIND(t->info) == BTF_KIND_STRUCT && t->name_off) {
            const char *name = name_at(v, t->name_off);
            for (unsigned s = 0; s < STRUCTURES; s++)
                if (found[s] == NULL && strcmp(name, structure_name[s]) == 0) found[s] = t;
        }
        at += (uint32_t)(sizeof *t + (size_t)tail);
    }
    return 0;
}

static int resolve(struct pt_btf *btf, const unsigned char *file, size_t len, struct sr_error *e)
{
    struct btf_header h;
    if (len < sizeof h) return sr_fail(e, SR_E_CORRUPT, 0, "the kernel's BTF is %zu bytes short", sizeof h - len);
    memcpy(&h, file, sizeof h);
    if (h.magic != BTF_MAGIC || h.version != BTF_VERSION || h.hdr_len < sizeof h || h.hdr_len > len ||
        !sr_range_ok(h.type_off, h.type_len, len - h.hdr_len) || !sr_range_ok(h.str_off, h.str_len, len - h.hdr_len) ||
        (h.hdr_len + h.type_off) % 4)
        return sr_fail(e, SR_E_CORRUPT, 0, "the kernel's BTF has a header that cannot be true");
    struct view v = {
        .types = file + h.hdr_len + h.type_off, .types_len = h.type_len,
        .strings = file + h.hdr_len + h.str_off, .strings_len = h.str_len,
    };
    const struct btf_type *found[STRUCTURES] = {0};
    if (index_types(&v, found) < 0) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory for the kernel's BTF");

    const char *missing = NULL;
#define NEEDED(s, f)                                                                            \
    if (missing == NULL && (found[S_##s] == NULL || !find_field(&v, found[S_##s], #f, 0, &btf->s##__##f))) \
        missing = #s "." #f;
#define OPTIONAL(s, f)                                                                          \
    if (found[S_##s] == NULL || !find_field(&v, found[S_##s], #f, 0, &btf->s##__##f))           \
        btf->s##__##f = PT_ABSENT;
    PT_FIELDS(NEEDED, OPTIONAL)
#undef NEEDED
#undef OPTIONAL
    free(v.index);
    if (missing) return sr_fail(e, SR_E_UNAVAILABLE, 0, "this kernel's BTF describes no %s", missing);
    btf->size_xa_node = found[S_xa_node]->size;
    btf->size_upid = found[S_upid]->size;
    btf->size_page = found[S_page]->size;
    /* What is read into buffers of fixed size must lie inside them. */
    if (btf->size_xa_node > 2048 || btf->size_xa_node < btf->xa_node__slots + 16 * 8 || btf->size_xa_node <= btf->xa_node__shift ||
        btf->size_upid > 64 || btf->size_page < 32 || btf->size_page > 4096 || btf->task_struct__mm > 65536 ||
        btf->task_struct__thread_pid > 65536 || btf->task_struct__cred > 65536)
        return sr_fail(e, SR_E_UNAVAILABLE, 0, "this kernel's BTF gives sizes that cannot be true");
    return 0;
}

int pt_btf_load(struct pt_btf *btf, const char *path, struct sr_error *e)
{
    memset(btf, 0, sizeof *btf);
    SR_FD fd = sr_sys->openat(AT_FDCWD, path, O_RDONLY, 0);
    if (fd < 0) return sr_fail(e, SR_E_UNAVAILABLE, fd, "the kernel describes no types of its own (%s)", path);
    struct stat st;
    int r = sr_sys->fstat(fd, &st);
    if (r < 0) return sr_fail(e, SR_E_SYSTEM, r, "%s cannot be read", path);
    if (st.st_size <= 0 || st.st_size > (64 << 20)) return sr_fail(e, SR_E_CORRUPT, 0, "%s has a size of %lld", path, (long long)st.st_size);
    size_t len = (size_t)st.st_size;

    /* Mapping costs nothing, a read copies 5 MB; the file can be mapped since Linux 6.16. */
    void *at = NULL;
    if (sr_sys->mmap(&at, len, PROT_READ, MAP_PRIVATE, fd, 0) == 0) {
        r = resolve(btf, at, len, e);
        sr_sys->munmap(at, len);
        return r;
    }
    unsigned char *copy = malloc(len);
    if (copy == NULL) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory for the kernel's BTF");
    size_t got = 0;
    for (ssize_t n; got < len && (n = sr_sys->read(fd, copy + got, len - got)) > 0;) got += (size_t)n;
    r = resolve(btf, copy, got, e);
    free(copy);
    return r;
}
