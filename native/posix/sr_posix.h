/* posix: blocks in the namespace of POSIX shared memory, as shm_open(3) names them.
 *
 * Side room on base, sys and backend. A block here is one tmpfs file of exactly the size that was
 * asked for, since whoever opens it by its name takes the file's length for the block's. It has no
 * header and no catalog: processes that know nothing of this library map it too. (Blocks of a
 * region's data segment are another thing: sr_alloc.h.)
 */
#ifndef SR_POSIX_H
#define SR_POSIX_H

#include "sr_backend.h"

/* A block comes to be in two steps, so that between them somebody can be told which file will have the
 * name: a creator that is killed leaves nothing that nobody knows of.
 *
 * First the file, with memory behind all of it, mapped read-write. `mode` is taken as open(2) takes it,
 * less the umask. With `large`, whole 2 MiB of it lie in large pages; a rest stays in small ones, since
 * a large page for it could waste nearly 2 MiB of memory to save 4 KiB of tables. Returns the descriptor,
 * or a negative enum sr_code: SR_E_FULL, SR_E_SYSTEM; then nothing is left. */
int sr_posix_create(uint64_t size, unsigned mode, bool large, struct sr_map *map, struct sr_error *e);

/* Then the name: the block is whole from the first moment that others see it. /proc/PID/maps and lsof
 * show a mapping by the name under which its file was opened, and for a file that had none a number: so
 * it is opened and mapped once more now. Returns that descriptor, with `map`; or `fd`, and no map, where
 * this failed or the name is another's already: then the first mapping serves as well. SR_E_EXISTS,
 * SR_E_SYSTEM: it has no name. */
int sr_posix_publish(int fd, const char *name, uint64_t size, struct sr_map *map, struct sr_error *e);

/* Map a block that somebody made: at a multiple of 2 MiB if it is as large as that, so that large
 * pages, which it may have or be given later, are mapped by one entry each. */
int sr_posix_map(int fd, uint64_t size, bool writable, struct sr_map *map, struct sr_error *e);

/* What became of the whole 2 MiB ranges of a file. */
struct sr_posix_pages {
    uint64_t large;      /* one large page each, now                                     */
    uint64_t empty;      /* no memory in them: there is nothing to make large            */
    uint64_t refused;    /* the kernel could not: no free large page, or pages in use    */
    int why;             /* errno of the last refusal, or 0                              */
};
/* Collapse shared memory that is in use, whoever made it. A read-only descriptor is enough.
 * SR_E_SYSTEM if it cannot be mapped. */
int sr_posix_collapse(int fd, uint64_t size, struct sr_posix_pages *pages, struct sr_error *e);

#endif
