/* reader: one interface over kernel memory, two providers.
 *
 * Kernel memory changes while it is read and an address may be gone at any moment: a want that
 * cannot be read is not an error, it is only not ok. What was read is copied, then checked, then
 * used, like everything that another process could have written.
 *
 * To add a provider: fill struct pt_reader in a file of its own, and add it to the list in look.c.
 */
#ifndef PTWALK_READER_H
#define PTWALK_READER_H

#include "sr_base.h"

/* One piece of kernel memory, at most a page. */
struct pt_want {
    uint64_t at;
    void *to;        /* len bytes; zeros if it could not be read */
    uint32_t len;
    bool ok;
};

#define PT_BATCH 256u    /* wants that are worth collecting before a fetch */

struct pt_reader {
    const char *name;    /* "bpf" or "kcore" */
    /* Reads all wants. -errno only if the provider itself failed. */
    int (*fetch)(struct pt_reader *, struct pt_want *wants, size_t count);
    /* The first `len` bytes of the task_struct of the thread that asks. */
    int (*current)(struct pt_reader *, void *task, size_t len);
    void (*close)(struct pt_reader *);
};

int pt_reader_bpf_open(struct pt_reader **reader, struct sr_error *e);
int pt_reader_kcore_open(struct pt_reader **reader, const char *path, struct sr_error *e);
/* Wraps `inner` and writes all that was read to `fd`, for tests that build an image from it. Takes
 * `inner` over. The stream: {u64 address, u64 length, bytes}; address 1 is the current task. */
int pt_reader_record_open(struct pt_reader **reader, struct pt_reader *inner, int fd);

static inline int pt_fetch(struct pt_reader *r, struct pt_want *wants, size_t count)
{
    return count ? r->fetch(r, wants, count) : 0;
}
/* One piece; false if it could not be read. */
static inline bool pt_get(struct pt_reader *r, uint64_t at, void *to, uint32_t len)
{
    struct pt_want want = {.at = at, .to = to, .len = len};
    return r->fetch(r, &want, 1) == 0 && want.ok;
}

#endif
