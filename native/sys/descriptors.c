/* descriptors: passing them through unix sockets, and who is at the other end. */
#define _GNU_SOURCE
#include "sr_sys.h"

#include <errno.h>

int sr_sys_unix_address(struct sockaddr_un *addr, socklen_t *len, const char *path)
{
    size_t n = strlen(path);
    if (n >= sizeof addr->sun_path) return -ENAMETOOLONG;
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(addr->sun_path, path, n + 1);
    *len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + 1);
    return 0;
}

int sr_sys_peer(int fd, struct sr_peer *peer)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    int r = sr_sys->getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
    if (r < 0) return r;
    if (len != sizeof cred) return -EPROTO;
    *peer = (struct sr_peer){cred.pid, cred.uid, cred.gid};
    return 0;
}

union control {
    struct cmsghdr align;
    unsigned char bytes[CMSG_SPACE(SR_FDS_MAX * sizeof(int))];
};

int sr_sys_send_fds(int fd, const void *data, size_t len, const int *fds, int count)
{
    if (count < 0 || count > SR_FDS_MAX) return -EINVAL;
    union control control = {0};
    struct iovec part = {(void *)(uintptr_t)data, len};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
    }
    ssize_t n = sr_sys->sendmsg(fd, &msg, 0);
    return n < 0 ? (int)n : (size_t)n == len ? 0 : -EIO;
}

ssize_t sr_sys_recv_fds(int fd, void *data, size_t len, int *fds, int max, int *count)
{
    union control control = {0};
    struct iovec part = {data, len};
    struct msghdr msg = {
        .msg_iov = &part, .msg_iovlen = 1,
        .msg_control = control.bytes, .msg_controllen = sizeof control.bytes,
    };
    *count = 0;
    ssize_t n = sr_sys->recvmsg(fd, &msg, 0);
    if (n < 0) return n;
    bool surplus = (msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
        size_t got = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < got; i++) {
            int one;
            memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof one);
            if (*count < max) fds[(*count)++] = one;
            else surplus = true, sr_sys->close(one);
        }
    }
    if (!surplus) return n;
    while (*count > 0) sr_sys->close(fds[--*count]);
    return -EPROTO;
}
