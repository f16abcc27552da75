/* steps, history: random operations, and what should be there after them. */
#include "steps.h"

const char *const kind_names[KINDS] = {
    "put", "put over", "delete", "begin", "publish", "drop", "bump", "attach", "attach reader", "close", "close last",
    "get", "unpin", "sweep", "trim", "fork", "ticket", "seal", "stats", "wait", "repair",
    "retire",
};
struct object *find_object(struct expected *x, const char *name)
{
    for (uint32_t i = 0; i < x->count; i++)
        if (strcmp(x->objects[i].name, name) == 0) return &x->objects[i];
    return NULL;
}

void set_object(struct expected *x, const struct object *o)
{
    struct object *at = find_object(x, o->name);
    if (at == NULL && !o->there) return;
    if (at == NULL) {
        EXPECT(x->count < OBJECTS_MAX, "too many objects in a history");
        at = &x->objects[x->count++];
    }
    if (o->there) *at = *o;
    else *at = x->objects[--x->count];
}

uint64_t data_length(const struct history *h)
{
    struct sr_shape shape;
    NEED(sr_backend_shape(on_msharefs ? &sr_backend_msharefs : &sr_backend_shm, h->size, &shape), "the length of the data segment");
    return shape.mapped;
}

/* Small objects follow the filler, which ends shortly before the second large page; and what is long
 * there leaves them the end of it. */
struct window data_window(const struct history *h)
{
    const uint64_t half = DATA_MAX / 2;
    if (!h->grows) return (struct window){{{0, sr_min(data_length(h), DATA_MAX)}}};
    return (struct window){{{SR_LARGE_PAGE - half / 2, half}, {GROWING - half, half}}};
}

uint64_t block_of(uint64_t len) { return sr_max(sr_align_up(len, SR_BLOCK_UNIT), SR_BLOCK_UNIT); }

static void random_object(struct object *o, const char *name, uint64_t *random)
{
    *o = (struct object){.seed = t_random(random), .there = true, .flags = t_below(random, 4) == 0 ? SR_ENTRY_MUTABLE : 0};
    snprintf(o->name, sizeof o->name, "%s", name);
    static const uint16_t lens[] = {0, 1, 8, 63, 64, 65, 100, 200, 500, 1000, 4096, 5000};
    o->len = lens[t_below(random, t_below(random, 8) ? 8 : SR_ARRAY_LEN(lens))];
    static const uint16_t metas[] = {0, 5, 20, 45, 60, 130, 400, 4096};
    o->meta_len = metas[t_below(random, t_below(random, 12) ? 5 : SR_ARRAY_LEN(metas))];
}

/* Memory that is nearly full: a filler, and behind it another that is gone again and leaves its page, or
 * has been trimmed away, or never was. */
static void fill_first(struct history *h, uint64_t *random)
{
    h->grows = true;
    h->size = GROWING;
    struct object filler = {.name = "filler", .len = SR_LARGE_PAGE - 4096 * (1 + t_below(random, 5)), .there = true};
    h->setup[h->setup_count++] = (struct step){.kind = PUT_NEW, .object = filler};
    if (t_below(random, 3) == 0) return;
    strcpy(filler.name, "more");
    filler.len = SR_LARGE_PAGE - SR_KIB * (64 + t_below(random, 64));
    h->setup[h->setup_count++] = (struct step){.kind = PUT_NEW, .object = filler};
    filler.there = false;
    h->setup[h->setup_count++] = (struct step){.kind = DELETE, .object = filler};
    if (t_below(random, 3) == 0) h->setup[h->setup_count++] = (struct step){.kind = TRIM};
}

static void random_name(char *out, uint64_t *random)
{
    size_t len = t_below(random, 6) ? 1 + t_below(random, 12) : 1 + t_below(random, SR_OBJECT_NAME_MAX);
    for (size_t i = 0; i < len; i++) out[i] = (char)('a' + t_below(random, 26));
    out[len] = '\0';
}

void make_history(struct history *h, uint64_t seed)
{
    uint64_t random = seed * 1000003 + 17;
    *h = (struct history){.seed = seed, .size = 40 * SR_KIB};
    static char names[NAMES][SR_OBJECT_NAME_MAX + 1];
    for (int i = 0; i < NAMES; i++) random_name(names[i], &random);
    /* Few histories step over the growth of entries, blocks and index: they are long. */
    if (seed % 64 == 63) {
        static const uint32_t fills[] = {244, 250, 253, 508, 511, 764};
        h->prefill = fills[t_below(&random, SR_ARRAY_LEN(fills))] + (uint32_t)t_below(&random, 4);
        h->size = 96 * SR_KIB;
    }
    if (seed % 1024 == 500) {
        h->prefill = 1019 + (uint32_t)t_below(&random, 4);
        h->size = 128 * SR_KIB;
    }
    if (seed % 256 == 77) {
        h->prefill = SR_ROW_PINS + 3;
        h->size = 96 * SR_KIB;
        h->pins_full = true;
    }
    h->tombs = seed % 1024 == 756;
    h->other = t_below(&random, 2);
    h->other_writes = t_below(&random, 2);
    bool drafted = false;
    if (on_msharefs && !h->prefill && seed % 2) fill_first(h, &random);
    uint32_t count = (uint32_t)t_below(&random, 14);
    h->stepped.kind = (enum kind)t_below(&random, KINDS + 6);
    if (h->stepped.kind >= KINDS) h->stepped.kind = (enum kind[]){PUT_NEW, PUT_OVER, DELETE, PUBLISH, BEGIN, PUT_OVER}[h->stepped.kind - KINDS];
    if (seed % 1024 == 500 || h->tombs) h->stepped.kind = PUT_NEW;
    if (h->pins_full) h->stepped.kind = GET;
    /* More often what takes memory and gives it back. */
    if (h->grows && t_below(&random, 2)) h->stepped.kind = (enum kind[]){PUT_NEW, BEGIN, TRIM, DELETE}[t_below(&random, 4)];
    h->large = h->stepped.kind == REPAIR;
    h->alone = h->pins_full || h->tombs || seed % 4096 == 1524;
    for (uint32_t i = 0; i < count; i++) {
        struct step *s = &h->setup[h->setup_count++];
        uint64_t dice = t_below(&random, 10);
        s->kind = dice < 6 ? PUT_NEW : dice < 8 ? DELETE : dice < 9 && h->other ? GET : h->other && h->other_writes && !drafted ? BEGIN : PUT_OVER;
        s->by_other = s->kind == GET || s->kind == BEGIN;
        drafted |= s->kind == BEGIN;
        random_object(&s->object, names[t_below(&random, NAMES)], &random);
        s->object.there = s->kind != DELETE;
        /* A pin knows its bytes: those of the last put of that name. */
        if (s->kind == GET)
            for (uint32_t k = 0; &h->setup[k] < s; k++)
                if ((h->setup[k].kind == PUT_NEW || h->setup[k].kind == PUT_OVER) && strcmp(h->setup[k].object.name, s->object.name) == 0)
                    s->object.seed = h->setup[k].object.seed;
    }
    random_object(&h->stepped.object, names[t_below(&random, NAMES)], &random);
    struct object *o = &h->stepped.object;
    /* So long that it takes a page of its own, or that the budget is used up. */
    if (h->grows && h->stepped.kind == BEGIN && t_below(&random, 2)) o->len = SR_LARGE_PAGE - 64 * t_below(&random, 2048);
    if (h->stepped.kind == PUT_OVER || h->stepped.kind == BUMP || h->stepped.kind == DELETE || h->stepped.kind == GET || h->stepped.kind == UNPIN || h->stepped.kind == TICKET) {
        struct step *s = &h->setup[h->setup_count++];
        s->kind = PUT_NEW;
        random_object(&s->object, o->name, &random);
        if (h->stepped.kind == BUMP) s->object.flags = SR_ENTRY_MUTABLE;
        if (h->other && t_below(&random, 2)) {    /* and somebody looks at it */
            struct step *g = &h->setup[h->setup_count++];
            g->kind = GET;
            g->by_other = true;
            g->object = s->object;
        }
    }
    if (h->stepped.kind == PUBLISH || h->stepped.kind == DROP) {
        struct step *s = &h->setup[h->setup_count++];
        s->kind = BEGIN;
        s->object = *o;
    }
}

/* What is committed when the stepped operation begins, and what its object may be. */
void expect(const struct history *h, struct expected *x)
{
    x->count = 0;
    for (uint32_t i = 0; i < control->prefilled; i++) {
        struct object *o = &x->objects[x->count++];
        *o = (struct object){.len = 8, .seed = i, .there = true};
        snprintf(o->name, sizeof o->name, "p%u", i);
    }
    for (uint32_t i = 0; i < h->setup_count; i++) {
        const struct step *s = &h->setup[i];
        if (control->done[i] && (s->kind == PUT_NEW || s->kind == PUT_OVER || s->kind == DELETE)) set_object(x, &s->object);
    }
    const struct object *o = &h->stepped.object;
    enum kind k = h->stepped.kind;
    bool changes = k == PUT_NEW || k == PUT_OVER || k == DELETE || k == PUBLISH;
    x->may_count = 0;
    if (!changes) return;
    struct object *at = find_object(x, o->name);
    x->may[0] = at ? *at : (struct object){.there = false};
    x->may[1] = *o;
    x->may[1].there = k != DELETE;
    memcpy(x->may[0].name, o->name, sizeof o->name);
    x->may_count = 2;
    if (at) *at = x->objects[--x->count];
}
