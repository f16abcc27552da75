/* keeper: the protocol between members and the process that holds a region's nameless memory.
 *
 * Side room on base and sys; the region room uses the client below.
 *
 * Memory from memfd_create has no name: it ends with its last descriptor or mapping, and a process
 * that wants to attach has no path to open. A keeper is a small process, started by the host and
 * nobody's child, that holds the descriptors and hands them out over a unix socket in SR_SHM_DIR.
 * The mode of the socket and the kernel's word on who connects (SO_PEERCRED) keep other users out.
 *
 * It ends when no member lives: it waits for an exclusive lock on all rows of the members segment,
 * which the kernel grants when the last holder is gone, however that one ended. While it holds that
 * lock nobody can join, so that it can remove the names and go. A persistent region's keeper first
 * waits for the name to be removed; it lives at most as long as its pid namespace or container.
 *
 * Of a region on msharefs it also holds what readers attach. That lives as long as the thread that made
 * it, so it is made here, by the main thread, after the host has gone its way: a keeper that found it
 * impossible says so to whoever asks. Its end is marked in the members segment (sr_sys_mark_death), for
 * all to see without a call.
 *
 * Descriptors of the keeper, from SR_SYS's first:
 *   3  the listening socket           5  data segment, read-write
 *   4  members segment, read-write    6  data segment, read-only
 *                                     7  catalog segment, read-only
 */
#ifndef SR_KEEPER_H
#define SR_KEEPER_H

#include "sr_sys.h"

#define SR_KEEPER_PROTOCOL UINT64_C(0x32504B524547524E)
#define SR_KEEPER_TIMEOUT_MS 5000
#define SR_KEEPER_MARK_AT 52    /* mh_keeper of the members segment's head (region/sr_format.h) */

enum sr_keeper_what {
    SR_KEEPER_DATA = 0,     /* the data segment */
    SR_KEEPER_SHARE = 1,    /* the msharefs region that shows it */
};
/* What a keeper could not do for a msharefs region; 0: none was asked for. */
enum sr_keeper_step { SR_KEEPER_FIND = 1, SR_KEEPER_MAKE, SR_KEEPER_SIZE };

/* member -> keeper, 16 bytes */
struct sr_keeper_request {
    uint64_t kq_protocol;   /* 0 */
    uint32_t kq_writable;   /* 8 */
    uint32_t kq_what;       /* 12: enum sr_keeper_what */
};
SR_ASSERT_SIZE(struct sr_keeper_request, 16);

/* keeper -> member, 24 bytes and, with status 0, one descriptor */
struct sr_keeper_reply {
    uint64_t kr_protocol;   /* 0 */
    int32_t kr_status;      /* 8: 0 or -errno */
    uint32_t kr_pid;        /* 12: of the keeper, as it sees itself */
    uint32_t kr_step;       /* 16: enum sr_keeper_step that failed, of a share */
    uint32_t kr_reserved;   /* 20 */
};
SR_ASSERT_SIZE(struct sr_keeper_reply, 24);

/* What a keeper is told. Descriptors stay the caller's. */
struct sr_keeper_task {
    const char *path;            /* of the executable */
    const char *region;          /* to be seen in ps */
    const char *names[4];        /* files of SR_SHM_DIR to remove at the end, in this order, NULL-terminated */
    int listener, members, data_rw, data_ro, catalog;
    uint32_t rows;
    unsigned mode;               /* of the region: who may read and write */
    bool persist;
    const char *msharefs;        /* where to make the msharefs region */
    uint64_t share_size;         /* its address space, a multiple of the unit; 0: none is wanted */
};

/* 0 once the keeper runs; -errno otherwise. */
int sr_keeper_start(const struct sr_keeper_task *task);
/* A socket that listens at `path`, with `mode`; replaces nothing. */
int sr_keeper_listen(const char *path, unsigned mode);
/* The data segment's descriptor from the keeper at `path`, whose user must be `uid` (or root).
 * -ECONNREFUSED or -ENOENT: no keeper there. -EPERM: the socket is somebody else's. */
int sr_keeper_fetch(const char *path, uid_t uid, bool writable);
/* The same of the msharefs region. *step says what failed, if the keeper could not make it. */
int sr_keeper_fetch_share(const char *path, uid_t uid, bool writable, uint32_t *step);

#endif
