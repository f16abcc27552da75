/* msharefs: memory whose page tables belong to a region and are linked into each process.
 *
 * Linux has no such thing yet: patches are proposed, and their interface changes from one series to
 * the next. All that depends on a series stands in msharefs.c, one struct of operations each; this
 * header says what they have in common, and nobody else knows more. To add a series: write its
 * operations there and list them. Which one a machine has is found by trying. A series may need a mount
 * or, as one by system calls would, none: it is asked with the path "" then.
 *
 * What every caller must keep to (each seen on a kernel with series v3):
 *   - The thread that makes a region owns it. When that thread ends, all that is mapped in the
 *     region is gone, and whoever touches it dies of SIGSEGV.
 *   - The protection of an attached mapping is not enforced; that of an object is.
 *   - Never mprotect, mremap, mlock or populate an attached mapping: a whole-region mremap ends in
 *     a kernel BUG. madvise works on the whole or not at all.
 *   - Kernel users of user pages (futex, O_DIRECT, process_vm_readv) fail in a process that has not
 *     touched a present page in that unit yet.
 *   - Each region that is made leaks about 6 kB of kernel memory: none in a loop.
 */
#ifndef SR_SYS_MSHAREFS_H
#define SR_SYS_MSHAREFS_H

#include "sr_sys.h"

struct sr_msharefs_abi;

/* What a machine offers. */
struct sr_msharefs {
    const struct sr_msharefs_abi *abi;
    const char *path;          /* the caller's; "" without a mount                           */
    uint64_t unit;             /* address space of a region comes in multiples of this       */
};

/* Ask every known series for `path`, or with "" those that need none. -ENODEV: it is no msharefs;
 * -ERANGE: its unit is absurd. */
int sr_msharefs_find(const char *path, struct sr_msharefs *found);
const char *sr_msharefs_abi_name(const struct sr_msharefs *m);

/* A region without a name, read-write; the calling thread owns it. It has no address space yet. */
int sr_msharefs_make(const struct sr_msharefs *m, unsigned mode);
/* Give it `size` bytes of address space, a multiple of the unit: once. */
int sr_msharefs_size(int region, uint64_t size);

/* The rest works on any descriptor of a region. -ENOTTY for one that no known series made. */

/* Another descriptor, for those who may only read. */
int sr_msharefs_reader(int region);

/* Show [from, from + len) of the file `fd` in the region at `at`, for reading only. -EEXIST if
 * something is there. Large pages appear as such where `at` and `from` agree modulo their size. */
int sr_msharefs_place(int region, uint64_t at, uint64_t len, int fd, uint64_t from);
/* Take away what is shown in [at, at + len); a hole is no error. Who touches it dies of SIGSEGV. */
int sr_msharefs_remove(int region, uint64_t at, uint64_t len);
/* Map the whole region, `size` bytes, for reading, and keep it out of core dumps. */
int sr_msharefs_attach(int region, uint64_t size, uint64_t unit, struct sr_map *map);

#endif
