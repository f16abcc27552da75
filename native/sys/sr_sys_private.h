/* sys, between its own files. */
#ifndef SR_SYS_PRIVATE_H
#define SR_SYS_PRIVATE_H

int sr_sys__spawn_detached(const char *path, char *const argv[], const int *fds, int count);

#ifdef SR_FAULTS
/* The kernel's answers, save that tests' stand-in for msharefs is taken for it (faults.c). */
extern const struct sr_sys sr_sys__double;
#endif

#endif
