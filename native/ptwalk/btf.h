/* btf: where the fields of this kernel's structures lie, as the kernel says. */
#ifndef PTWALK_BTF_H
#define PTWALK_BTF_H

#include "sr_base.h"

/* Every field that is used, and no other: X(structure, field, how much of it is needed). A field of
 * an anonymous member counts as a field of what contains it. OPTIONAL ones are absent from some
 * kernels and configurations; what they serve is then left out. */
#define PT_FIELDS(X, OPTIONAL)          \
    X(task_struct, mm)                  \
    X(task_struct, flags)               \
    X(task_struct, comm)                \
    X(task_struct, tgid)                \
    X(task_struct, signal)              \
    X(task_struct, thread_pid)          \
    X(task_struct, thread_node)         \
    X(task_struct, pid_links)           \
    X(task_struct, cred)                \
    X(signal_struct, thread_head)       \
    X(mm_struct, pgd)                   \
    X(mm_struct, pgtables_bytes)        \
    X(cred, uid)                        \
    X(cred, suid)                       \
    X(cred, euid)                       \
    X(cred, fsuid)                      \
    X(pid, level)                       \
    X(pid, tasks)                       \
    X(pid, numbers)                     \
    X(upid, nr)                         \
    X(upid, ns)                         \
    X(pid_namespace, idr)               \
    X(idr, idr_rt)                      \
    X(idr, idr_base)                    \
    X(xarray, xa_head)                  \
    X(xa_node, shift)                   \
    X(xa_node, slots)                   \
    X(page, lru)                        \
    OPTIONAL(ptdesc, pt_mm)             \
    OPTIONAL(ptdesc, pmd_huge_pte)      \
    OPTIONAL(ptdesc, pt_share_count)

/* Offsets in bytes, PT_ABSENT for an optional field that is not there; size_STRUCT in bytes. */
#define PT_ABSENT UINT32_MAX
#define PT_OFFSET_(structure, field) uint32_t structure##__##field;
struct pt_btf {
    PT_FIELDS(PT_OFFSET_, PT_OFFSET_)
    uint32_t size_xa_node, size_upid, size_page;
};
#undef PT_OFFSET_

int pt_btf_load(struct pt_btf *btf, const char *path, struct sr_error *e);

#endif
