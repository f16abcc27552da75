/* sharedregion-ptwalk: which page tables each process reaches, and which of them others reach too.
 *
 *   sharedregion-ptwalk [--leaves] [--mappings] [--alone] [--method walk|pagemap|status]
 *                       [--region NAME=MAJOR:MINOR:INODE]... [PID]...
 *   sharedregion-ptwalk --version
 *
 * JSON to standard output, errors to standard error. 0: an answer was given; 1: none could be; 2: the
 * arguments make no sense. The environment is not read and nothing is written.
 *
 * With capabilities that its caller lacks (on a copy that root owns) it tells the caller about
 * processes of its own user alone, and refuses the options that name files.
 */
#define _GNU_SOURCE
#include "ptwalk.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>

enum { PIDS_MAX = 1 << 22, REGIONS_MAX = 4096 };

static const char usage[] =
    "usage: sharedregion-ptwalk [--leaves] [--mappings] [--alone] [--method walk|pagemap|status]\n"
    "                           [--region NAME=MAJOR:MINOR:INODE]... [PID]...\n"
    "       sharedregion-ptwalk --version\n";

static int wrong(const char *what, const char *argument)
{
    /* The argument is the caller's own, but may hold anything: only its printable part is shown. */
    fprintf(stderr, "sharedregion-ptwalk: %s: \"", what);
    for (size_t i = 0; argument[i] && i < 80; i++) fputc(argument[i] >= ' ' && argument[i] < 127 ? argument[i] : '?', stderr);
    fprintf(stderr, "\"\n%s", usage);
    return 2;
}

static bool read_number(const char **at, int base, char stop, uint64_t max, uint64_t *value)
{
    if (**at < '0' || (**at > '9' && base == 10)) return false;
    char *end;
    unsigned long long v = strtoull(*at, &end, base);
    if (end == *at || end - *at > 20 || *end != stop || v > max) return false;
    *at = end + (stop != '\0');
    *value = v;
    return true;
}

static bool add_region(struct pt_request *q, size_t *file_cap, size_t *name_cap, const char *argument)
{
    const char *equals = strrchr(argument, '=');
    uint64_t major, minor, ino;
    if (equals == NULL || equals == argument || equals - argument > 255) return false;
    const char *at = equals + 1;
    if (!read_number(&at, 10, ':', UINT32_MAX, &major) || !read_number(&at, 10, ':', UINT32_MAX, &minor) ||
        !read_number(&at, 10, '\0', UINT64_MAX - 1, &ino) || q->file_count >= REGIONS_MAX)
        return false;
    char *name = strndup(argument, (size_t)(equals - argument));
    if (name == NULL) return false;
    size_t i = 0;
    while (i < q->region_count && strcmp(q->regions[i], name) != 0) i++;
    if (i == q->region_count) {
        if (!PT_GROW(q->regions, *name_cap, q->region_count)) return false;
        q->regions[q->region_count++] = name;
    } else {
        free(name);
    }
    if (!PT_GROW(q->files, *file_cap, q->file_count)) return false;
    q->files[q->file_count++] = (struct pt_region_file){(unsigned)i, major << 32 | minor, ino};
    return true;
}

/* "VA:HEX", the nonce of the process that recorded an image. */
static bool read_nonce(struct pt_request *q, const char *s)
{
    if (!read_number(&s, 10, ':', UINT64_MAX, &q->nonce_at) || strlen(s) != 2 * sizeof q->nonce) return false;
    for (size_t i = 0; i < sizeof q->nonce; i++) {
        char two[3] = {s[2 * i], s[2 * i + 1], 0}, *end;
        q->nonce[i] = (unsigned char)strtoul(two, &end, 16);
        if (*end) return false;
    }
    q->image = true;
    return true;
}

static int by_number(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static int by_file(const void *a, const void *b)
{
    const struct pt_region_file *x = a, *y = b;
    if (x->dev != y->dev) return x->dev < y->dev ? -1 : 1;
    return (x->ino > y->ino) - (x->ino < y->ino);
}

struct options { struct pt_request request; const char *method; bool version; };

/* Options that name files or descriptors serve the tests; they are not for a caller who would read
 * with privilege that is not theirs. */
static int read_arguments(struct options *o, int argc, char **argv, bool elevated)
{
    struct pt_request *q = &o->request;
    size_t pid_cap = 0, file_cap = 0, name_cap = 0;
    q->record = -1;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        uint64_t number;
        bool test = strcmp(a, "--kcore") == 0 || strcmp(a, "--btf") == 0 || strcmp(a, "--record") == 0 ||
                    strcmp(a, "--recorded") == 0 || strcmp(a, "--isolation") == 0;
        if (test && elevated) return wrong("refused with privilege that its caller lacks", a);
        if (strcmp(a, "--version") == 0) {
            o->version = true;
        } else if (strcmp(a, "--leaves") == 0) {
            q->leaves = true;
        } else if (strcmp(a, "--mappings") == 0) {
            q->mappings = true;
        } else if (strcmp(a, "--alone") == 0) {
            q->alone = true;
        } else if (strcmp(a, "--isolation") == 0) {
            q->isolation = true;
        } else if (a[0] == '-') {
            if (value == NULL) return wrong("unknown, or wants a value", a);
            i++;
            if (strcmp(a, "--method") == 0 && (strcmp(value, "walk") == 0 || strcmp(value, "pagemap") == 0 || strcmp(value, "status") == 0))
                o->method = value;
            else if (strcmp(a, "--region") == 0 && add_region(q, &file_cap, &name_cap, value)) continue;
            else if (strcmp(a, "--kcore") == 0) q->kcore = value;
            else if (strcmp(a, "--btf") == 0) q->btf = value;
            else if (strcmp(a, "--recorded") == 0 && read_nonce(q, value)) continue;
            else if (strcmp(a, "--record") == 0 && read_number(&value, 10, '\0', 1 << 20, &number)) q->record = (int)number;
            else return wrong("unknown, or its value makes no sense", a);
        } else {
            const char *at = a;
            if (!read_number(&at, 10, '\0', INT32_MAX, &number) || number == 0 || q->pid_count >= PIDS_MAX) return wrong("no process number", a);
            if (!PT_GROW(q->pids, pid_cap, q->pid_count)) return wrong("no memory", a);
            q->pids[q->pid_count++] = (int)number;
        }
    }
    if (q->image && q->kcore == NULL) return wrong("wants --kcore too", "--recorded");
    if (q->pid_count) qsort(q->pids, q->pid_count, sizeof q->pids[0], by_number);
    size_t kept = 0;
    for (size_t i = 0; i < q->pid_count; i++)
        if (kept == 0 || q->pids[kept - 1] != q->pids[i]) q->pids[kept++] = q->pids[i];
    q->pid_count = kept;
    if (q->file_count) qsort(q->files, q->file_count, sizeof q->files[0], by_file);
    return 0;
}

static int answer(struct options *o, struct pt_found *found, struct sr_error *e)
{
    bool walk = o->method == NULL || strcmp(o->method, "walk") == 0;
    if (walk && pt_look(&o->request, found, e) == 0) return 0;
    if (walk && o->method) return -1;
    struct sr_error why = *e;
    pt_found_deinit(found);
    if (walk) {
        snprintf(found->why, sizeof found->why, "page tables could not be read: %s%s%s", why.what, why.sys_errno ? ": " : "",
                 why.sys_errno ? strerror(why.sys_errno) : "");
        found->remedy = getauxval(AT_UID) == 0
                            ? "a kernel with BPF and BTF (CONFIG_BPF_SYSCALL, CONFIG_DEBUG_INFO_BTF), or with /proc/kcore, and the "
                              "capabilities to use them"
                            : "run it as root, or have root install a copy of sharedregion-ptwalk at "
                              "/usr/local/libexec/sharedregion/ptwalk with the capabilities cap_bpf,cap_perfmon,cap_sys_ptrace";
    } else {
        snprintf(found->why, sizeof found->why, "an estimate was asked for");
        found->remedy = "leave --method out";
    }
    found->method = walk ? NULL : o->method;
    return pt_estimate(&o->request, found, e);
}

int main(int argc, char **argv)
{
    struct pt_privilege privilege;
    int r = pt_privilege_enter(&privilege);
    if (r < 0) {
        fprintf(stderr, "sharedregion-ptwalk: privilege cannot be put aside: %s\n", strerror(-r));
        return 1;
    }
    static struct options o;
    r = read_arguments(&o, argc, argv, privilege.elevated);
    if (r) return r;
    if (o.version) {
        printf("{\"name\":\"sharedregion-ptwalk\",\"version\":\"%s\",\"schema\":%d}\n", PTWALK_VERSION, PTWALK_SCHEMA);
        return fflush(stdout) ? 1 : 0;
    }
    o.request.own_only = privilege.elevated;
    static struct pt_found found;
    struct sr_error e = {0};
    if (answer(&o, &found, &e) < 0) {
        fprintf(stderr, "sharedregion-ptwalk: %s%s%s\n", e.what, e.sys_errno ? ": " : "", e.sys_errno ? strerror(e.sys_errno) : "");
        return 1;
    }
    if (!pt_report(&o.request, &found) || fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "sharedregion-ptwalk: the answer could not be written\n");
        return 1;
    }
    return 0;
}
