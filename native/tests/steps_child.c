/* steps, child: the process that carries a history out, and stops before and after its last operation. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "steps.h"

static struct sr_region *self, *other;
static struct sr_draft draft, other_drafts;

static void other_pin(const struct object *o)
{
    static struct sr_found f;
    struct sr_error error = {0};
    if (control->pins >= SR_ARRAY_LEN(control->pinned)) return;
    if (sr_catalog_get(other, o->name, strlen(o->name), true, &f, &error) != 0) return;
    /* The last put of that name may have found no room: then these are the bytes of an earlier one. */
    if (t_differs(other->data.at + f.off.at, f.len, o->seed) != f.len) return;
    control->pinned[control->pins].off = f.off.at;
    control->pinned[control->pins].len = f.len;
    control->pinned[control->pins++].seed = o->seed;
}

/* One step of the setup: whether it succeeded. */
static bool prepare(const struct step *s)
{
    struct sr_error error = {0};
    struct sr_region *r = s->by_other ? other : self;
    const struct object *o = &s->object;
    uint8_t meta[SR_META_MAX];
    int got = 0;
    if (s->kind == PUT_NEW || s->kind == PUT_OVER) put(r, o, &got);
    else if (s->kind == DELETE) got = sr_catalog_delete(r, o->name, strlen(o->name), 0, &error);
    else if (s->kind == GET) {
        other_pin(o);
    } else if (s->kind == TRIM) {
        uint64_t freed;
        got = sr_catalog_trim(r, &freed, &error);
    } else if (s->kind == BEGIN) {
        struct sr_desc d = t_desc(o->name, o->len, o->seed, o->meta_len, meta, o->flags);
        struct sr_draft *to = s->by_other ? &other_drafts : &draft;
        got = sr_draft_begin(r, &d, to, &error);
        if (got == 0) t_fill(r->data.at + to->off.at, o->len, o->seed);
        if (got == 0 && s->by_other) control->other_draft = true;
    }
    return got == 0;
}

static int operate(const struct history *h, uint8_t *meta, const uint8_t *bytes)
{
    static struct sr_found f;
    struct sr_error error = {0};
    const struct object *o = &h->stepped.object;
    struct sr_region *more = NULL;
    uint64_t seq = 0;
    uint32_t row;
    struct sr_desc d = {.name = o->name, .meta = meta, .len = o->len, .name_len = (uint16_t)strlen(o->name), .meta_len = o->meta_len, .type = 7, .flags = o->flags};
    int got = 0;
    switch (h->stepped.kind) {
    case PUT_NEW: case PUT_OVER: return sr_catalog_put(self, &d, bytes, &seq, &error);
    case DELETE: return sr_catalog_delete(self, o->name, strlen(o->name), 0, &error);
    case BEGIN: return sr_draft_begin(self, &d, &draft, &error);
    case PUBLISH: return sr_draft_publish(self, &d, &draft, &seq, &error);
    case DROP: return sr_draft_drop(self, &d, &draft), 0;
    case BUMP: return sr_catalog_bump(self, o->name, strlen(o->name), &seq, &error);
    case ATTACH: return sr_catalog_attach(&more, region_name, true, SR_NO_OWNER, &error);
    case ATTACH_READER: return sr_catalog_attach(&more, region_name, false, SR_NO_OWNER, &error);
    case CLOSE: case CLOSE_LAST: return sr_region_close(self), 0;
    case GET: return sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
    case UNPIN:
        got = sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
        if (got == 0) sr_unpin(self, f.block);
        return got;
    case SWEEP: return sr_catalog_sweep(self, &error);
    case TRIM: return sr_catalog_trim(self, &seq, &error);
    case FORK: {
        pid_t pid = fork();
        if (pid == 0) _exit(0);
        waitpid(pid, NULL, 0);
        return 0;
    }
    case TICKET:
        got = sr_catalog_get(self, o->name, strlen(o->name), true, &f, &error);
        if (got == 0) got = sr_ticket_issue(self, f.block, &row, &error);
        if (got == 0) sr_unpin(self, f.block);
        if (got == 0 && h->seed % 2) sr_ticket_claim(self, row, f.block);
        return got;
    case SEAL: return sr_catalog_seal(self, &error);
    case STATS: {
        struct sr_stats stats;
        sr_catalog_stats(self, &stats);
        return 0;
    }
    case REPAIR: return sr_catalog_repair(self, &error);
    case RETIRE: return sr_region_retire(self), 0;
    case WAIT: return sr_catalog_wait(self, o->name, strlen(o->name), 0, 1000, &seq, &error);
    default: return -1;
    }
}

/* As many pins as a row has. */
static void fill_row(struct sr_region *r)
{
    static struct sr_found f;
    struct sr_error error = {0};
    char name[16];
    for (uint32_t i = 0; i < SR_ROW_PINS; i++) {
        snprintf(name, sizeof name, "p%u", i);
        OK(sr_catalog_get(r, name, strlen(name), true, &f, &error));
    }
}

void child(const struct history *h, bool on_second)
{
    struct sr_error error = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
    stepping = true;
    if (on_second) {
        raise(SIGSTOP);
        struct sr_region *r = NULL;
        control->result = sr_catalog_attach(&r, second.name, true, SR_NO_OWNER, &error);
        if (control->result == 0) control->result = sr_catalog_sweep(r, &error);
        raise(SIGSTOP);
        _exit(0);
    }
    self = t_create(region_name, on_msharefs ? &sr_backend_msharefs : h->large ? &sr_backend_thp : &sr_backend_shm, h->size, false);
    if (h->other) {
        other = t_attach(region_name, h->other_writes);
        control->other_row = sr_member_row(other);
        control->other_open = true;
    }
    for (uint32_t i = 0; i < h->prefill; i++) {
        struct object o = {.len = 8, .seed = i, .there = true};
        int got;
        snprintf(o.name, sizeof o.name, "p%u", i);
        put(self, &o, &got);
        if (got != 0) break;
        control->prefilled++;
    }
    for (uint32_t i = 0; i < h->setup_count; i++) control->done[i] = prepare(&h->setup[i]);
    if (h->pins_full) fill_row(self);
    if (h->tombs) t_entomb(self, 3);
    if (h->stepped.kind == CLOSE_LAST && other) {
        sr_region_close(other);
        control->other_open = false;
        control->pins = 0;
    }
    uint8_t meta[SR_META_MAX], bytes[8192];
    t_fill(meta, h->stepped.object.meta_len, ~h->stepped.object.seed);
    if (h->stepped.object.len <= sizeof bytes) t_fill(bytes, h->stepped.object.len, h->stepped.object.seed);
    raise(SIGSTOP);
    control->result = operate(h, meta, bytes);
    raise(SIGSTOP);
    _exit(0);
}
