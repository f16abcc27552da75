/* sys, between its own files. */
#ifndef SR_SYS_PRIVATE_H
#define SR_SYS_PRIVATE_H

int sr_sys__spawn_detached(const char *path, char *const argv[], const int *fds, int count);

#endif
