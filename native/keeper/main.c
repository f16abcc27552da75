/* sharedregion-keeper REGION ROWS MODE persist|members SIZE MSHAREFS NAME...
 *
 * Started by sr_keeper_start and by nothing else. See sr_keeper.h for its descriptors and its end.
 */
#define _GNU_SOURCE
#include "msharefs.h"
#include "sr_keeper.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { FD_LISTENER = 3, FD_MEMBERS, FD_DATA_RW, FD_DATA_RO, FD_CATALOG, FD_COUNT };

#define CLIENTS 64              /* connected at once and not yet served; one more and the oldest goes */
#define CLIENT_NS UINT64_C(5000000000)    /* how long a client may take to say what it wants */
#define NAME_CHECK_MS 2000      /* how often a persistent region looks whether its name is still there */

static struct {
    unsigned rows, mode;
    uid_t uid;
    gid_t gid;
    int pipe_write;
    int share_rw, share_ro;    /* the msharefs region; -errno if there is none, because of */
    uint32_t share_step;
} keeper = {.share_rw = -ENOENT, .share_ro = -ENOENT};

/* What the region's mode grants to whoever asks, as open(2) would decide. */
static bool permitted(const struct sr_peer *peer, bool writable)
{
    if (peer->uid == 0) return true;
    unsigned want = writable ? 6 : 4;
    unsigned shift = peer->uid == keeper.uid ? 6 : peer->gid == keeper.gid ? 3 : 0;
    return ((keeper.mode >> shift) & want) == want;
}

/* Never waits: a client that connects and says nothing holds nobody up. */
static void serve(int client)
{
    struct sr_peer peer;
    struct sr_keeper_request request = {0};
    int count;
    if (sr_sys_peer(client, &peer) < 0) return;
    ssize_t n = sr_sys_recv_fds(client, &request, sizeof request, NULL, 0, &count);
    struct sr_keeper_reply reply = {.kr_protocol = SR_KEEPER_PROTOCOL, .kr_pid = sr_sys_pid()};
    if (n != sizeof request || request.kq_protocol != SR_KEEPER_PROTOCOL) reply.kr_status = -EPROTO;
    else if (!permitted(&peer, request.kq_writable != 0)) reply.kr_status = -EACCES;
    int data = request.kq_writable ? FD_DATA_RW : FD_DATA_RO;
    if (request.kq_what == SR_KEEPER_SHARE) {
        data = request.kq_writable ? keeper.share_rw : keeper.share_ro;
        if (reply.kr_status == 0 && data < 0) reply.kr_status = data, reply.kr_step = keeper.share_step;
    }
    sr_sys_send_fds(client, &reply, sizeof reply, &data, reply.kr_status == 0 ? 1 : 0);
}

/* Where members see that this process is gone. */
static int mark_death(size_t at)
{
    struct sr_map head;
    int r = sr_sys_map(&head, SR_PAGE, SR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, FD_MEMBERS, 0);
    return r < 0 ? r : sr_sys_mark_death((_Atomic uint32_t *)(head.at + at));
}

/* In the main thread, which owns the region from now on: its end is the end of what readers see. */
static void make_share(const char *path, uint64_t size)
{
    struct sr_msharefs m;
    keeper.share_step = SR_KEEPER_FIND;
    int r = sr_msharefs_find(path, &m);
    if (r == 0) {
        keeper.share_step = SR_KEEPER_MAKE;
        r = mark_death(SR_KEEPER_MARK_AT);
    }
    if (r == 0) r = keeper.share_rw = sr_msharefs_make(&m, keeper.mode);
    if (r >= 0) {
        keeper.share_step = SR_KEEPER_SIZE;
        r = sr_msharefs_size(keeper.share_rw, size);
    }
    if (r >= 0) r = keeper.share_ro = sr_msharefs_reader(keeper.share_rw);
    if (r >= 0) return;
    if (keeper.share_rw >= 0) sr_sys->close(keeper.share_rw);
    keeper.share_rw = keeper.share_ro = r;
}

static struct { int fd; uint64_t until; } clients[CLIENTS];
static unsigned clients_count;

static void drop_client(unsigned i)
{
    sr_sys->close(clients[i].fd);
    memmove(&clients[i], &clients[i + 1], (--clients_count - i) * sizeof clients[0]);
}

static void welcome(void)
{
    int fd = sr_sys->accept(FD_LISTENER);
    if (fd < 0) return;
    if (clients_count == CLIENTS) drop_client(0);
    sr_sys->fcntl(fd, F_SETFL, O_NONBLOCK);
    clients[clients_count].fd = fd;
    clients[clients_count++].until = sr_sys_now() + CLIENT_NS;
}

/* The kernel grants this lock when the last member is gone. It is kept until this process ends, so
 * that nobody joins a region whose names are being removed. */
static void *wait_for_last_member(void *unused)
{
    (void)unused;
    char done = 1;
    if (sr_sys_lock(FD_MEMBERS, 0, keeper.rows, true) < 0) done = 0;
    sr_sys->write(keeper.pipe_write, &done, 1);
    return NULL;
}

/* This process is started before the region gets its name. So a catalog without a name is one that
 * was unlinked only if it had one, or if its maker is gone too. */
static bool name_is_gone(void)
{
    static bool had_one;
    struct stat st;
    if (sr_sys->fstat(FD_CATALOG, &st) < 0) return true;
    if (st.st_nlink > 0) return had_one = true, false;
    return had_one || sr_sys_held(FD_MEMBERS, 0, keeper.rows) == 0;
}

static int run(bool persist)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return 1;
    keeper.pipe_write = ends[1];
    bool waiting = false;
    for (;;) {
        if (!waiting && (!persist || name_is_gone())) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, wait_for_last_member, NULL) != 0) return 1;
            waiting = true;
        }
        struct pollfd fds[2 + CLIENTS] = {{.fd = FD_LISTENER, .events = POLLIN}, {.fd = ends[0], .events = POLLIN}};
        unsigned waiting_clients = clients_count;
        for (unsigned i = 0; i < waiting_clients; i++) fds[2 + i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
        int r = sr_sys->poll(fds, 2 + waiting_clients, waiting && waiting_clients == 0 ? -1 : NAME_CHECK_MS);
        if (r < 0 && r != -EINTR) return 1;
        if (r > 0 && fds[1].revents) {
            char done = 0;
            return sr_sys->read(ends[0], &done, 1) == 1 && done ? 0 : 1;
        }
        uint64_t now = sr_sys_now();
        for (unsigned i = waiting_clients; i-- > 0;) {
            if (r > 0 && fds[2 + i].revents) serve(clients[i].fd);
            else if (now < clients[i].until) continue;
            drop_client(i);
        }
        if (r > 0 && fds[0].revents) welcome();
    }
}

/* A name may by now belong to a newer generation: remove only what is ours. The socket's name has
 * the region's random identity in it; of the segments, compare the inode. */
static void remove_names(char **names, int count)
{
    SR_FD dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    if (dir < 0) return;
    const int ours[] = {FD_CATALOG, FD_MEMBERS};
    for (int i = 0; i < count; i++) {
        struct stat named, st;
        if (sr_sys->fstatat(dir, names[i], &named, AT_SYMLINK_NOFOLLOW) < 0) continue;
        /* While this is held, nobody replaces the catalog under its name. */
        sr_sys_lock_shared(FD_CATALOG, 0, 1);
        bool mine = S_ISSOCK(named.st_mode) && named.st_uid == keeper.uid;
        for (size_t k = 0; k < SR_ARRAY_LEN(ours); k++)
            mine |= sr_sys->fstat(ours[k], &st) == 0 && st.st_ino == named.st_ino && st.st_dev == named.st_dev;
        if (mine) sr_sys->unlinkat(dir, names[i], 0);
    }
}

int main(int argc, char **argv)
{
    struct stat st;
    if (argc < 7 || sr_sys->fstat(FD_MEMBERS, &st) < 0) return 2;
    keeper.rows = (unsigned)strtoul(argv[2], NULL, 10);
    keeper.mode = (unsigned)strtoul(argv[3], NULL, 8);
    keeper.uid = st.st_uid;
    keeper.gid = st.st_gid;
    prctl(PR_SET_NAME, "sr-keeper");
    uint64_t share_size = strtoull(argv[5], NULL, 10);
    if (share_size) make_share(argv[6], share_size);
    int status = run(strcmp(argv[4], "persist") == 0);
    /* The memory first: when the names are gone, it is free for the next. */
    if (keeper.share_rw >= 0) sr_sys->close(keeper.share_rw), sr_sys->close(keeper.share_ro);
    sr_sys->close(FD_DATA_RW);
    sr_sys->close(FD_DATA_RO);
    if (status == 0) remove_names(argv + 7, argc - 7);
    return status;
}
