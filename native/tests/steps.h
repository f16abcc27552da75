/* steps: what its files share. See steps.c. */
#ifndef SR_TEST_STEPS_H
#define SR_TEST_STEPS_H

#include "support.h"

#define NAMES 10
#define OBJECTS_MAX 2048
#define CATALOG_MAX (4 * SR_MIB)
#define DATA_MAX (256 * SR_KIB)
#define DATA_FILE SR_LARGE_PAGE    /* as long as a region of any kind has it */
#define GROWING (2 * SR_LARGE_PAGE)    /* of regions whose memory comes and goes while they are stepped */
#define ROWS_SEEN 24u
#define MEMBERS_SEEN ((ROWS_SEEN + 1) * SR_PAGE)
#define MEMBERS_SIZE (SR_PAGE * (1 + (uint64_t)SR_ROWS_MAX))
#define CODE_MAX (8 * SR_MIB)

/* --- what there should be --------------------------------------------------------------------- */

struct object {
    char name[SR_OBJECT_NAME_MAX + 1];
    uint64_t len, seed;
    uint16_t meta_len;
    uint8_t flags;
    bool there;
};

/* Committed objects, and for the one that the stepped operation changes, what it may be. */
struct expected {
    struct object objects[OBJECTS_MAX];
    uint32_t count;
    struct object may[4];      /* of one name; `there` false: it may be absent */
    uint32_t may_count;
};

enum kind {
    PUT_NEW, PUT_OVER, DELETE, BEGIN, PUBLISH, DROP, BUMP, ATTACH, ATTACH_READER, CLOSE, CLOSE_LAST, GET, UNPIN, SWEEP,
    TRIM, FORK, TICKET, SEAL, STATS, WAIT, REPAIR, RETIRE, KINDS,
};
extern const char *const kind_names[KINDS];

struct step { enum kind kind; struct object object; bool by_other; };

struct history {
    uint64_t seed, size;
    struct step setup[24];
    uint32_t setup_count;
    uint32_t prefill;          /* tiny objects before everything else: growth of the catalog      */
    bool other, other_writes;  /* a second member                                                 */
    bool pins_full;            /* its row is full of pins: the next one needs another             */
    bool tombs;                /* its index is half full of tombstones: the next object moves slots */
    bool large;                /* on memory of large pages                                        */
    bool grows;                /* the first large page is nearly full: what is put needs another   */
    bool alone;                /* nobody does beside it what is to be stepped                     */
    struct step stepped;
};

/* What the child tells. */
struct control {
    bool done[24];             /* setup steps that succeeded                                      */
    uint32_t prefilled;
    int result;
    uint32_t other_row;
    uint32_t pins;
    struct { uint64_t off, len, seed; } pinned[16];
    bool other_draft, other_open;
    _Atomic uint32_t calls;    /* of the kernel, that change memory or what is shown of it         */
};

/* Counters of all jobs. */
struct figures {
    _Atomic uint64_t histories, steps, points, changed, recoveries, twice, paused_held, paused_free, name_kills, with_pins;
    _Atomic uint64_t by_kind[KINDS], points_by_kind[KINDS];
    _Atomic uint32_t failed;
    _Atomic uint8_t code[CODE_MAX];    /* 1 executed and checked, 2 changed bytes */
};

extern struct figures *figures;
extern struct control *control;
extern char region_name[80];
extern char where[256];        /* what to say when something is wrong */
extern bool on_msharefs;       /* all regions are of that kind */
extern bool stepping;          /* this process is the one that is stepped */
#define BAD(...) (fprintf(stderr, "%s\n", where), FAIL(__VA_ARGS__))
#define NEED(cond, ...) do { if (!(cond)) { fprintf(stderr, "%s\n", where); FAIL("not so: " #cond " | " __VA_ARGS__); } } while (0)
#define NEED_OK(call) do { int g_ = (call); if (g_ != 0) { fprintf(stderr, "%s\n", where); FAIL(#call " gave %d: %s", g_, error.what); } } while (0)

/* --- steps_history.c */
void make_history(struct history *h, uint64_t seed);
/* What is committed when the stepped operation begins, and what its object may be. */
void expect(const struct history *h, struct expected *x);
struct object *find_object(struct expected *x, const char *name);
void set_object(struct expected *x, const struct object *o);
uint64_t block_of(uint64_t len);
/* An object that is there to fill memory; nobody looks at its bytes. */
#define FILLER_FROM SR_MIB
/* Of the data segment's file; and what of it is looked at: all that is no filler. */
uint64_t data_length(const struct history *h);
struct window { struct part { uint64_t from, len; } parts[2]; };
struct window data_window(const struct history *h);

/* --- steps_code.c */
#define FUNCTIONS_MAX 1024
struct function { char name[48]; uint32_t at, size; };
extern struct function functions[FUNCTIONS_MAX];
extern uint32_t functions_count;
extern uintptr_t code_base;
extern uint8_t *room_of;       /* per byte of code: 1 if it is one of the rooms' */
void read_symbols(void);

/* --- steps_segments.c */
struct segments {
    unsigned char *catalog, *members, *data;
    int members_fd;
    int data_fd, share_fd;     /* on msharefs */
    struct sr_head head;       /* as it was when they were opened */
    struct sr_members_head members_head;
    uint64_t data_size;
    char name[80];
};
/* The bytes in use, as they were at the last look; of memory on msharefs, what there is of it and what
 * of it is shown. */
struct snapshot {
    unsigned char *catalog, *members, *data;
    uint64_t catalog_len, members_len;
    struct window data_of;     /* whose parts stand in `data` one after the other */
    bool data_known;
    uint64_t shown, backed;
    uint32_t calls;
};
void open_segments(struct segments *s, const char *name, bool make, uint64_t data_size);
void close_segments(struct segments *s);
void unlink_segments(struct segments *s);
bool names_gone(const char *name);
/* Whether snapshots have these bytes of the data segment. */
bool is_looked_at(struct window data, uint64_t at, uint64_t len);
void new_snapshot(struct snapshot *shot);
void clear_snapshot(struct snapshot *shot);
bool update(struct snapshot *shot, const struct segments *s, struct window data);
void restore(struct segments *to, const struct snapshot *shot);
/* On msharefs: whether memory, what is shown of it, and the commit map agree. While somebody is at work
 * there may be more than the map says; afterwards there is not. */
void check_memory(const struct segments *s, const struct snapshot *shot);

/* --- steps_check.c */
/* Whether the other member does; in a recovery that is stepped it did or did not all along. */
enum lives { DEAD, ALIVE, EITHER };
extern struct segments copy, second;    /* where a crash point is checked; whose recovery is stepped */
extern uint32_t seen_may;               /* which of the two it was that look_at_all found */
extern struct window looked_at;         /* of the history that is stepped */
uint64_t look_at_all(struct sr_region *r, const struct expected *x, bool hold);
void put(struct sr_region *r, const struct object *o, int *result);
void check_point(const struct expected *x, const struct snapshot *shot, enum lives lives, uint64_t *random);
void others(const struct history *h, struct expected *x, uint64_t *random, uint32_t serial);

/* --- steps_child.c */
__attribute__((noreturn)) void child(const struct history *h, bool on_second);

#endif
