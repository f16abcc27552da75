/* privilege: what this process keeps of what it was started with.
 *
 * Three capabilities serve: CAP_PERFMON and CAP_BPF to load the program that reads, CAP_SYS_PTRACE
 * to open the maps of other processes (CAP_BPF stays: kernels that forbid BPF to ordinary users ask
 * for it at every call). Root keeps two more until a reader is open: CAP_SYS_RAWIO for /proc/kcore,
 * CAP_SYS_ADMIN for frame numbers in pagemap. Nothing else is ever needed, nothing is ever gained.
 */
#define _GNU_SOURCE
#include "ptwalk.h"

#include <linux/capability.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define BIT(cap) (UINT64_C(1) << (cap))
#define LASTING (BIT(CAP_BPF) | BIT(CAP_SYS_PTRACE))
#define OPENING (LASTING | BIT(CAP_PERFMON))
#define ROOT_OPENING (OPENING | BIT(CAP_SYS_RAWIO) | BIT(CAP_SYS_ADMIN))

static uint64_t permitted(void)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {0};
    if (sr_sys->capget(&h, d) < 0) return 0;
    return d[0].permitted | (uint64_t)d[1].permitted << 32;
}

static int keep(uint64_t caps)
{
    caps &= permitted();
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {
        {.effective = (uint32_t)caps, .permitted = (uint32_t)caps},
        {.effective = (uint32_t)(caps >> 32), .permitted = (uint32_t)(caps >> 32)},
    };
    return sr_sys->capset(&h, d);
}

int pt_privilege_enter(struct pt_privilege *p)
{
    /* AT_SECURE: the kernel itself says that execve gave more than the caller had. */
    bool root = getauxval(AT_UID) == 0;
    p->elevated = getauxval(AT_SECURE) != 0 || (!root && permitted() != 0);
    struct rlimit none = {0, 0};
    int r = sr_sys->setrlimit(RLIMIT_CORE, &none);
    /* What has no privilege has nothing to hide from its own user, and needs its own /proc/self. */
    if (r == 0 && (p->elevated || permitted() != 0)) r = sr_sys->prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (r == 0) r = sr_sys->prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    sr_sys->prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    int kept = keep(root && !p->elevated ? ROOT_OPENING : OPENING);
    return r < 0 ? r : kept;
}

void pt_privilege_settle(void) { keep(LASTING); }

/* Its caller may not look into it afterwards either: a walk that failed has left kernel addresses on the heap. */
int pt_privilege_drop(void) { return keep(0); }

static int effective(uint64_t caps)
{
    uint64_t had = permitted();
    caps &= had;
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[2] = {
        {.effective = (uint32_t)caps, .permitted = (uint32_t)had},
        {.effective = (uint32_t)(caps >> 32), .permitted = (uint32_t)(had >> 32)},
    };
    return sr_sys->capset(&h, d);
}

int pt_privilege_open_plain(const char *path)
{
    int r = effective(LASTING & ~BIT(CAP_SYS_PTRACE));
    if (r < 0) return r;
    int fd = sr_sys->openat(AT_FDCWD, path, O_RDONLY, 0);
    return (r = effective(LASTING)) < 0 ? r : fd;
}
