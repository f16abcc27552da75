/* client: starting a keeper and asking it for the data segment. */
#define _GNU_SOURCE
#include "sr_keeper.h"

#include <errno.h>
#include <stdio.h>

int sr_keeper_start(const struct sr_keeper_task *task)
{
    char rows[16], mode[16], size[32];
    snprintf(rows, sizeof rows, "%u", task->rows);
    snprintf(mode, sizeof mode, "%o", task->mode);
    snprintf(size, sizeof size, "%llu", (unsigned long long)task->share_size);
    char *argv[7 + SR_ARRAY_LEN(task->names) + 1];
    int argc = 0;
    argv[argc++] = (char *)(uintptr_t) "sharedregion-keeper";
    argv[argc++] = (char *)(uintptr_t)task->region;
    argv[argc++] = rows;
    argv[argc++] = mode;
    argv[argc++] = (char *)(uintptr_t)(task->persist ? "persist" : "members");
    argv[argc++] = size;
    argv[argc++] = (char *)(uintptr_t)(task->msharefs ? task->msharefs : "");
    for (size_t i = 0; i < SR_ARRAY_LEN(task->names) && task->names[i]; i++)
        argv[argc++] = (char *)(uintptr_t)task->names[i];
    argv[argc] = NULL;
    /* The keeper's lock on the rows must not be this process's: locks belong to the open file
     * description, so it gets one of its own. */
    SR_FD members = sr_sys_reopen(task->members, O_RDWR);
    if (members < 0) return members;
    const int fds[] = {task->listener, members, task->data_rw, task->data_ro, task->catalog};
    return sr_sys_spawn_detached(task->path, argv, fds, (int)SR_ARRAY_LEN(fds));
}

int sr_keeper_listen(const char *path, unsigned mode)
{
    struct sockaddr_un addr;
    socklen_t len;
    int r = sr_sys_unix_address(&addr, &len, path);
    if (r < 0) return r;
    SR_FD fd = sr_sys->socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
    if (fd < 0) return fd;
    /* The inode that bind makes takes the socket's own mode, less the umask: first closed to all,
     * then opened to those who may read. Connecting takes write permission. */
    r = sr_sys->fchmod(fd, 0600);
    if (r == 0) r = sr_sys->bind(fd, (struct sockaddr *)&addr, len);
    if (r < 0) return r;
    r = sr_sys->fchmodat(AT_FDCWD, path, (mode & 0666) | ((mode & 0444) >> 1));
    if (r == 0) r = sr_sys->listen(fd, 1024);
    if (r < 0) {
        sr_sys->unlinkat(AT_FDCWD, path, 0);
        return r;
    }
    return sr_sys_keep(&fd);
}

static int ask(int fd, const struct sockaddr_un *addr, socklen_t len, uid_t uid, const struct sr_keeper_request *request, uint32_t *step)
{
    struct timeval limit = {.tv_sec = SR_KEEPER_TIMEOUT_MS / 1000};
    int r = sr_sys->setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (r == 0) r = sr_sys->setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (r == 0) r = sr_sys->connect(fd, (const struct sockaddr *)addr, len);
    if (r < 0) return r;
    struct sr_peer peer;
    r = sr_sys_peer(fd, &peer);
    if (r < 0) return r;
    if (peer.uid != uid && peer.uid != 0) return -EPERM;
    r = sr_sys_send_fds(fd, request, sizeof *request, NULL, 0);
    if (r < 0) return r;
    struct sr_keeper_reply reply;
    int got = -1, count;
    ssize_t n = sr_sys_recv_fds(fd, &reply, sizeof reply, &got, 1, &count);
    if (n < 0) return n == -EAGAIN ? -ETIMEDOUT : (int)n;
    SR_FD data = count == 1 ? got : -1;
    if (n != sizeof reply || reply.kr_protocol != SR_KEEPER_PROTOCOL) return -EPROTO;
    *step = reply.kr_step;
    if (reply.kr_status != 0) return reply.kr_status < 0 ? reply.kr_status : -EPROTO;
    return data >= 0 ? sr_sys_keep(&data) : -EPROTO;
}

static int fetch(const char *path, uid_t uid, bool writable, enum sr_keeper_what what, uint32_t *step)
{
    struct sockaddr_un addr;
    socklen_t len;
    int r = sr_sys_unix_address(&addr, &len, path);
    if (r < 0) return r;
    SR_FD fd = sr_sys->socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sr_keeper_request request = {.kq_protocol = SR_KEEPER_PROTOCOL, .kq_writable = writable, .kq_what = what};
    return fd < 0 ? fd : ask(fd, &addr, len, uid, &request, step);
}

int sr_keeper_fetch(const char *path, uid_t uid, bool writable)
{
    uint32_t step;
    return fetch(path, uid, writable, SR_KEEPER_DATA, &step);
}

int sr_keeper_fetch_share(const char *path, uid_t uid, bool writable, uint32_t *step)
{
    *step = 0;
    return fetch(path, uid, writable, SR_KEEPER_SHARE, step);
}
