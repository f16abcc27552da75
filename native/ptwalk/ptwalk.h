/* ptwalk: what its files share.
 *
 *   main       arguments, privilege; prints what look or estimate found
 *   look       opens a reader, proves it, looks at every process, counts
 *   proof      finds the direct map, and shows that what is read is this machine's memory
 *   tasks      pid -> task -> memory
 *   walk       the tables that one memory reaches
 *   count      each table once, with the processes that reach it
 *   regions    which tables belong to a region alone
 *   mappings   which tables belong to which file, shared memory object or other mapping
 *   maps       /proc/PID/maps
 *   estimate   what can be said without reading page tables
 *   report     JSON
 *   reader_*   kernel memory;  btf  its structures;  x86_64  the format of the tables
 */
#ifndef PTWALK_H
#define PTWALK_H

#include "btf.h"
#include "reader.h"
#include "sr_sys.h"
#include "x86_64.h"

#define PTWALK_VERSION "0.1.0"
#define PTWALK_SCHEMA 3

/* --- what is asked ---------------------------------------------------------------------------- */

struct pt_region_file { unsigned region; uint64_t dev, ino; };
struct pt_request {
    int *pids;               /* sorted, each once; count 0: all that the caller may see */
    size_t pid_count;
    const char **regions;    /* names, each once */
    size_t region_count;
    struct pt_region_file *files;    /* sorted by device and inode */
    size_t file_count;
    bool leaves;             /* count the entries of the lowest level too */
    bool mappings;           /* say which mappings the tables serve */
    bool alone;              /* look at the asked ones only: sharing is then known by share counts alone */
    bool own_only;           /* only processes whose uids are all the caller's */
    /* for tests; never with privilege that the caller lacks */
    const char *kcore, *btf; /* NULL: the system's */
    int record;              /* descriptor, or -1 */
    uint64_t nonce_at;       /* of the process that recorded the image */
    unsigned char nonce[32];
    bool image;              /* kcore is an image: pids are those of its time, /proc is not asked */
    bool isolation;          /* in an image */
};

/* --- what is found ---------------------------------------------------------------------------- */

/* A way from a memory to a table. */
struct pt_link {
    uint64_t va;             /* first address that the table covers */
    uint64_t table;          /* frame | level | PT_LINK_* */
};
#define PT_LINK_LEVEL UINT64_C(0x7)
#define PT_LINK_HELD UINT64_C(0x8)       /* a PTE table put aside for the day a huge page is split */
#define PT_LINK_HUGE UINT64_C(0x10)      /* a PMD table with at least one huge entry */
#define PT_LINK_SPLIT UINT64_C(0x20)     /* a PMD table with at least one PTE table */
#define PT_LINK_GONE UINT64_C(0x40)      /* not there any more in the end: see count.c */
static inline uint64_t pt_link_frame(const struct pt_link *l) { return sr_align_down(l->table, SR_PAGE); }
static inline enum pt_level pt_link_level(const struct pt_link *l) { return l->table & PT_LINK_LEVEL; }

struct pt_vma {
    uint64_t start, end, file_offset;
    uint64_t dev, ino;
    int region;              /* -1: none */
    uint32_t object;         /* of the mapping; meaningless unless mappings were asked for */
    bool shared, writable;
    bool hugetlb, gigantic;  /* of 2 MiB pages, of 1 GiB pages */
};

/* What is mapped: a file or shared memory object, told by device and inode; or one of those below,
 * which stand first and always. A file that is mapped both shared and private is two of them. */
enum pt_object_kind {
    PT_ANONYMOUS,            /* private memory without a file: heap, stacks */
    PT_SEVERAL,              /* tables that more than one mapping needs */
    PT_UPPER,                /* tables of the upper levels, which more than one mapping needs */
    PT_UNMAPPED,             /* tables where nothing is mapped now: they stay until their neighbours go */
    PT_HIDDEN,               /* of processes whose maps could not be read */
    PT_OTHERS,               /* beyond what is told one by one */
    PT_FILE,
};
struct pt_extent {           /* how a process maps a part of an object */
    uint32_t object, processes;
    uint64_t start;          /* modulo 1 GiB: what a PMD table can be shared by */
    uint64_t length, file_offset;
    bool writable;
};
enum { PT_COMMANDS = 4 };
struct pt_object {
    enum pt_object_kind kind;
    bool shared;
    uint64_t dev, ino;
    char *name;              /* any bytes; NULL: none */
    uint64_t page;           /* of hugetlb memory; 0: ordinary pages */
    uint64_t first, last;    /* of the file, as far as anyone maps it */
    unsigned processes;
    uint64_t pmd_links, pte_links;   /* to its tables, in all memories */
    uint64_t linked, distinct;       /* bytes; distinct: each table once */
    uint64_t distinct_small;         /* of these, of PTE tables */
    int seen;                        /* the process that was last seen to map it */
    struct { char comm[16]; unsigned processes; } command[PT_COMMANDS];
};
struct pt_objects {
    struct pt_object *object;
    size_t count, cap;
    uint32_t *slot;          /* hash of file objects: index, 0 free (0 is no file) */
    size_t mask;
    struct pt_extent *extent;
    size_t extents, extent_cap;
};

struct pt_region_use {
    uint64_t linked, private_, shared;
    unsigned alone_gib;
    bool mapped;
};

/* One memory (mm_struct). Threads, and children between vfork and exec, share one. */
struct pt_memory {
    uint64_t mm, pgd, task;  /* kernel addresses; task: one that has it */
    uint64_t kernel_bytes;   /* the kernel's own count of its tables, without the PGD */
    unsigned processes;
    struct pt_link *link;
    size_t links, link_cap;
    unsigned moving;         /* what did not hold still: see walk.c */
    uint64_t leaves[3];      /* 4 KiB, 2 MiB, 1 GiB entries */
    uint64_t full;           /* PTE tables with all entries: a 2 MiB page would do without them */
    bool held_unknown;       /* tables put aside could not be counted */
    struct pt_vma *vma;
    size_t vmas;
    bool mapped;             /* the mappings are there */
    struct pt_region_use *use;    /* one per region */
    /* the sums of count.c */
    unsigned tables[PT_LEVELS];
    unsigned held;
    uint64_t linked, private_, shared, proportional;
};

enum pt_state { PT_SEEN, PT_GONE, PT_DENIED, PT_KERNEL };
struct pt_process {
    int pid;
    enum pt_state state;
    bool asked;
    char comm[16];           /* any bytes */
    size_t memory;           /* index, if seen */
};

/* Tables that more than one link reaches, by how many. */
struct pt_sharing {
    enum pt_level level;
    unsigned processes, links;
    int64_t share_count;     /* the kernel's number of further links; -1 unknown */
    uint64_t tables;
};

struct pt_found {
    const char *method, *reader;    /* "walk", "pagemap", "status"; NULL */
    char why[320];                  /* of an estimate */
    const char *remedy;             /* what would make it exact; NULL */
    uint64_t distinct;              /* bytes */
    uint64_t everyone;              /* the same of all that was looked at, asked for or not */
    bool nested;                    /* there are processes beyond our pid namespace, which nothing here sees */
    uint64_t denied_bytes;          /* of those that may not be looked at, by the kernel's count; 0: not known */
    struct pt_objects objects;
    struct pt_process *process;     /* by pid */
    size_t processes, process_cap;
    struct pt_memory *memory;
    size_t memories, memory_cap;
    struct pt_sharing *sharing;
    size_t sharings;
    uint64_t checked, agree, more, less;    /* share counts against links */
    uint64_t reread, changed;               /* parents' entries read again; of these, changed meanwhile */
    unsigned pgd_bytes;
    uint64_t elapsed_us;
};

/* --- the machine ------------------------------------------------------------------------------ */

struct pt_machine {
    struct pt_reader *reader;
    struct pt_btf btf;
    struct pt_format format;
    uint64_t direct;         /* virtual address of physical address 0 */
    uint64_t vmemmap;        /* of struct page 0; 0: not found, then there are no share counts */
    uint64_t ns;             /* our pid namespace */
    unsigned ns_level;
    uint32_t uid;            /* ours, as the kernel stores it */
    uint64_t reread, changed;
};

static inline uint64_t pt_struct_page(const struct pt_machine *m, uint64_t frame)
{
    return m->vmemmap + frame / SR_PAGE * m->btf.size_page;
}

/* proof.c: fills in the rest of `m`, or says why what the reader gives cannot be trusted. */
int pt_prove(struct pt_machine *m, const struct pt_request *q, struct sr_error *e);

/* tasks.c */
struct pt_task {
    uint64_t task, mm, pgd;
    uint32_t flags;
    bool found, kernel, foreign;    /* foreign: a uid of it is not ours */
    int thread;                     /* the thread that has the memory, in our pid namespace */
    char comm[16];
};
int pt_tasks_find(struct pt_machine *m, const int *pids, size_t count, struct pt_task *tasks);
/* True if `task` still lives in `mm`. */
bool pt_task_still(struct pt_machine *m, uint64_t task, uint64_t mm);

/* walk.c */
int pt_walk(struct pt_machine *m, struct pt_memory *memory, bool leaves);
/* For each link: what the memory's tables lead to at that place now, 0 if nothing. */
int pt_walk_again(struct pt_machine *m, const struct pt_memory *memory, const struct pt_link *const *links,
                  size_t count, uint64_t *frames);
void pt_memory_deinit(struct pt_memory *memory);

/* count.c */
int pt_count(struct pt_machine *m, const struct pt_request *q, struct pt_found *found);

/* regions.c: which tables lie in the region's own VMAs; `sharers` of count.c says how shared each is. */
struct pt_table_set;
unsigned pt_table_sharers(const struct pt_table_set *set, const struct pt_link *link);
/* True for the first link to each table. */
bool pt_table_first(struct pt_table_set *set, const struct pt_link *link);
int pt_regions(const struct pt_machine *m, const struct pt_request *q, struct pt_found *found,
               const struct pt_table_set *set);

/* mappings.c */
int pt_objects_init(struct pt_objects *o);
void pt_objects_deinit(struct pt_objects *o);
/* The object of a mapping; names are copied when first met. PT_OTHERS where there are too many. */
uint32_t pt_objects_find(struct pt_objects *o, const struct pt_vma *v, const char *name, size_t length);
int pt_mappings(const struct pt_machine *m, struct pt_found *found, struct pt_table_set *set);

/* maps.c; objects NULL: of no interest */
int pt_maps_read(int fd, const struct pt_request *q, struct pt_objects *objects, struct pt_vma **vmas, size_t *count);
int pt_maps_region(const struct pt_request *q, uint64_t dev, uint64_t ino);

/* look.c, estimate.c: fill `found`. */
int pt_look(const struct pt_request *q, struct pt_found *found, struct sr_error *e);
int pt_estimate(const struct pt_request *q, struct pt_found *found, struct sr_error *e);
/* Puts what was asked for into found->process, sorted, and unless q->alone all others too, but never
 * this process: its own tables are of no interest to anyone. */
int pt_found_pids(const struct pt_request *q, struct pt_found *found);
struct pt_memory *pt_found_memory(struct pt_found *found, size_t *index);
void pt_found_deinit(struct pt_found *found);

/* privilege.c. Elevated: the caller has less of it than this process. */
struct pt_privilege { bool elevated; };
int pt_privilege_enter(struct pt_privilege *p);
/* Once a reader is open and proved: keeps what later steps need and no more. */
void pt_privilege_settle(void);
/* Of what its caller has not got, keeps nothing. */
int pt_privilege_drop(void);
/* Opens as the caller could have done it: without CAP_SYS_PTRACE. */
int pt_privilege_open_plain(const char *path);

/* report.c */
bool pt_report(const struct pt_request *q, struct pt_found *found);

/* grow `array` so that index `count` exists; false if there is no memory */
bool pt_grow(void **array, size_t *cap, size_t count, size_t size);
#define PT_GROW(array, cap, count) pt_grow((void **)&(array), &(cap), (count), sizeof *(array))

#endif
