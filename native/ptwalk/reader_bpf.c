/* reader_bpf: kernel memory through a BPF program of our own.
 *
 * A BPF_PROG_TYPE_SYSCALL program runs when BPF_PROG_TEST_RUN says so, in our context, and may call
 * bpf_probe_read_kernel, which copies from any kernel address and fails instead of faulting. The
 * program takes a list of requests from the one value of an array map and puts the bytes there
 * too; the map is mapped into this process, so a run of some dozens of pages is one system call.
 * Loading it takes CAP_BPF and CAP_PERFMON, running it no more than its descriptor.
 */
#include "reader.h"
#include "sr_sys.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <sys/mman.h>

/* The verifier follows the loop request by request, some 40 us each: more would cost more at the start
 * than fewer system calls save later. */
enum { REQUESTS = 64, DATA = 1 << 18 };

struct request {
    uint64_t at;
    uint32_t offset;    /* in data[] */
    uint16_t len;
    uint16_t failed;    /* set by the program */
};

/* The value of the map. The program masks `offset` with DATA - 1 and cuts `len` at a page, which is
 * what the verifier needs to see; the page after DATA is what both together can reach. */
struct window {
    uint64_t current;
    uint32_t count, unused;
    struct request request[REQUESTS];
    unsigned char data[DATA + 4096];
};

struct bpf_reader {
    struct pt_reader pub;
    int map, prog;
    struct window *window;
    size_t window_len;
};

#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define OP_IMM(op, d, i) INSN(BPF_ALU64 | (op) | BPF_K, d, 0, 0, i)
#define OP(op, d, s) INSN(BPF_ALU64 | (op) | BPF_X, d, s, 0, 0)
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define STORE(size, d, s, o) INSN(BPF_STX | BPF_MEM | (size), d, s, o, 0)
#define CALL(id) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, id)
#define IF(op, d, s, o) INSN(BPF_JMP | (op) | BPF_X, d, s, o, 0)
#define IF_IMM(op, d, i, o) INSN(BPF_JMP | (op) | BPF_K, d, 0, o, i)
#define GOTO(o) INSN(BPF_JMP | BPF_JA, 0, 0, o, 0)

static int load_program(int map, struct sr_error *e)
{
    const int requests = offsetof(struct window, request), data = offsetof(struct window, data);
    const struct bpf_insn code[] = {
        /*  0 */ INSN(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, map), INSN(0, 0, 0, 0, 0),
        /*  2 */ CALL(BPF_FUNC_get_current_task),
        /*  3 */ STORE(BPF_DW, 6, 0, offsetof(struct window, current)),
        /*  4 */ OP_IMM(BPF_MOV, 7, 0),
        /*  5 */ LOAD(BPF_W, 1, 6, offsetof(struct window, count)),
        /*  6 */ IF(BPF_JGE, 7, 1, 17),                       /* -> 24 */
        /*  7 */ IF_IMM(BPF_JGE, 7, REQUESTS, 16),            /* -> 24 */
        /*  8 */ MOV(8, 7),
        /*  9 */ OP_IMM(BPF_LSH, 8, 4),
        /* 10 */ OP(BPF_ADD, 8, 6),
        /* 11 */ LOAD(BPF_W, 1, 8, (short)(requests + (int)offsetof(struct request, offset))),
        /* 12 */ OP_IMM(BPF_AND, 1, DATA - 1),
        /* 13 */ OP(BPF_ADD, 1, 6),
        /* 14 */ OP_IMM(BPF_ADD, 1, data),
        /* 15 */ LOAD(BPF_H, 2, 8, (short)(requests + (int)offsetof(struct request, len))),
        /* 16 */ IF_IMM(BPF_JGT, 2, 4096, 5),                 /* -> 22 */
        /* 17 */ LOAD(BPF_DW, 3, 8, (short)requests),
        /* 18 */ CALL(BPF_FUNC_probe_read_kernel),
        /* 19 */ IF_IMM(BPF_JEQ, 0, 0, 1),                    /* -> 21 */
        /* 20 */ OP_IMM(BPF_MOV, 0, 1),
        /* 21 */ STORE(BPF_H, 8, 0, (short)(requests + (int)offsetof(struct request, failed))),
        /* 22 */ OP_IMM(BPF_ADD, 7, 1),
        /* 23 */ GOTO(-19),                                   /* -> 5 */
        /* 24 */ OP_IMM(BPF_MOV, 0, 0),
        /* 25 */ INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_SYSCALL;
    attr.prog_flags = BPF_F_SLEEPABLE;       /* this type runs nowhere else */
    attr.insns = (uintptr_t)code;
    attr.insn_cnt = SR_ARRAY_LEN(code);
    attr.license = (uintptr_t)"Dual MIT/GPL";
    memcpy(attr.prog_name, "sr_ptwalk", 10);
    /* The verifier gives up with -EAGAIN when a signal is pending, be it only the end of a stop. */
    int prog = -EAGAIN;
    for (int tries = 0; prog == -EAGAIN && tries < 200; tries++) prog = sr_sys->bpf(BPF_PROG_LOAD, &attr, sizeof attr);
    return prog < 0 ? sr_fail(e, SR_E_SYSTEM, prog, "BPF: the program that reads was not admitted") : prog;
}

static int run(struct bpf_reader *b, uint32_t count)
{
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    b->window->count = count;
    attr.test.prog_fd = (uint32_t)b->prog;
    int r = sr_sys->bpf(BPF_PROG_TEST_RUN, &attr, sizeof attr);
    atomic_signal_fence(memory_order_seq_cst);
    return r < 0 ? r : 0;
}

static int bpf_fetch(struct pt_reader *pub, struct pt_want *wants, size_t count)
{
    struct bpf_reader *b = (struct bpf_reader *)pub;
    for (size_t done = 0; done < count;) {
        struct request *request = b->window->request;
        uint32_t n = 0, used = 0;
        while (done + n < count && n < REQUESTS) {
            const struct pt_want *w = &wants[done + n];
            if (w->len > 4096) return -EINVAL;
            if (used + w->len > DATA) break;
            request[n] = (struct request){.at = w->at, .offset = used, .len = (uint16_t)w->len, .failed = 1};
            used += (w->len + 7u) & ~7u;
            n++;
        }
        int r = run(b, n);
        if (r < 0) return r;
        for (uint32_t i = 0; i < n; i++) {
            struct pt_want *w = &wants[done + i];
            w->ok = request[i].failed == 0;
            if (w->ok) memcpy(w->to, b->window->data + request[i].offset, w->len);
            else memset(w->to, 0, w->len);
        }
        done += n;
    }
    return 0;
}

static int bpf_current(struct pt_reader *pub, void *task, size_t len)
{
    struct bpf_reader *b = (struct bpf_reader *)pub;
    int r = run(b, 0);
    if (r < 0) return r;
    uint64_t at = b->window->current;
    for (size_t done = 0; done < len; done += 4096) {
        uint32_t piece = (uint32_t)sr_min(4096, len - done);
        if (!pt_get(pub, at + done, (char *)task + done, piece)) return -EFAULT;
    }
    return 0;
}

static void bpf_close(struct pt_reader *pub)
{
    struct bpf_reader *b = (struct bpf_reader *)pub;
    if (b->window) sr_sys->munmap(b->window, b->window_len);
    sr_sys_close(&b->prog);
    sr_sys_close(&b->map);
    free(b);
}

int pt_reader_bpf_open(struct pt_reader **reader, struct sr_error *e)
{
    struct bpf_reader *b = calloc(1, sizeof *b);
    if (b == NULL) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory");
    b->pub = (struct pt_reader){"bpf", bpf_fetch, bpf_current, bpf_close};
    b->map = b->prog = -1;
    b->window_len = sr_align_up(sizeof(struct window), SR_PAGE);

    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_ARRAY;
    attr.key_size = 4;
    attr.value_size = sizeof(struct window);
    attr.max_entries = 1;
    attr.map_flags = BPF_F_MMAPABLE;
    int r = b->map = sr_sys->bpf(BPF_MAP_CREATE, &attr, sizeof attr);
    if (r < 0) {
        r = sr_fail(e, SR_E_SYSTEM, r, "BPF: no map");
        goto fail;
    }
    void *at = NULL;
    r = sr_sys->mmap(&at, b->window_len, PROT_READ | PROT_WRITE, MAP_SHARED, b->map, 0);
    if (r < 0) {
        r = sr_fail(e, SR_E_SYSTEM, r, "BPF: the map cannot be mapped");
        goto fail;
    }
    b->window = at;
    r = b->prog = load_program(b->map, e);
    if (r < 0) goto fail;
    *reader = &b->pub;
    return 0;
fail:
    bpf_close(&b->pub);
    return r;
}
