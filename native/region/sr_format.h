/* format: every byte of the catalog and members segments.
 *
 * The data segment holds object bytes and nothing else, so nothing of it is drawn.
 *
 * Catalog segment (readers map it read-only):
 *
 *        0 +---------------------------+
 *          | sr_head          1024 B   |  written once, checksummed; who and what this region is
 *     1024 +---------------------------+
 *          | sr_state         3072 B   |  the lock, counters, list heads, wait words
 *     4096 +---------------------------+
 *          | sr_alloc_head    4096 B   |  free lists by size class (drawn in alloc/sr_alloc.h)
 *     8192 +---------------------------+
 *          | commit map                |  48 granules of the data segment and a check to a word
 *   gen(0) +---------------------------+
 *          | generation 0      64 KiB  |   256 entries |  512 blocks |  2048 slots
 *   gen(1) +---------------------------+
 *          | generation 1     128 KiB  |   512 entries | 1024 blocks |  4096 slots
 *   gen(2) +---------------------------+
 *          | ...                       |
 *
 *   gen(g) = gen(0) + 64 KiB * (2^g - 1). A generation is
 *        0            entries   128 B each, 256 << g      32 KiB << g
 *       32 KiB << g   blocks     32 B each, 512 << g      16 KiB << g
 *       48 KiB << g   slots       8 B each, 2048 << g     16 KiB << g
 *
 *   Entries and blocks are numbered through all generations, from 0, and 0 is never used: it means
 *   none. The slots of one generation at a time are the index (sr_state.st_level); there are more
 *   than four slots for each entry up to and including that generation. So the segment grows by
 *   doubling, nothing ever moves, an address follows from a number by one count of leading zeros,
 *   and a small region touches one page table.
 *
 * Members segment (read-write for all; trusted only to delay reuse):
 *
 *        0 +---------------------------+
 *          | sr_members_head  4096 B   |
 *     4096 +---------------------------+
 *          | sr_row 0         4096 B   |  byte 0 of the file is locked while its owner lives
 *     8192 +---------------------------+
 *          | sr_row 1         4096 B   |  byte 1 ...
 *          | ...                       |
 *
 * All integers are little-endian, as the machine has them. A change of any drawing is a change of
 * SR_FORMAT_VERSION; the build stamp also refuses a build that was compiled with other constants.
 */
#ifndef SR_FORMAT_H
#define SR_FORMAT_H

#include "sr_base.h"

#define SR_FORMAT_VERSION 1u
#define SR_CATALOG_MAGIC UINT64_C(0x474F4C5441435253)   /* "SRCATLOG" */
#define SR_MEMBERS_MAGIC UINT64_C(0x5245424D454D5253)   /* "SRMEMBER" */

#define SR_REGION_NAME_MAX 230   /* bytes; NAME_MAX less "sharedregion." and ".members.4294967295" */
#define SR_OBJECT_NAME_MAX 255
#define SR_ROWS_MAX 16384u
#define SR_WATCH_WORDS 64u

#define SR_GEN_UNIT (64 * SR_KIB)
#define SR_GEN_ENTRIES 256u
#define SR_GEN_BLOCKS 512u
#define SR_GEN_SLOTS 2048u
#define SR_GEN_MAX 18u           /* 134 million entries */

#define SR_COMMIT_BITS 48u       /* granules to a word of the commit map; the rest is its check */
static inline uint64_t sr_commit_map_size(uint64_t mapped, uint64_t granule) { return (mapped / granule / SR_COMMIT_BITS + 1) * 8; }

#define SR_BLOCK_UNIT 64u        /* every block starts and ends on a cache line */

/* Changes with every constant that two builds must agree on. */
#define SR_BUILD_STAMP \
    ((uint32_t)(SR_FORMAT_VERSION * 0x01000193u ^ SR_ROWS_MAX * 0x9E37u ^ SR_GEN_ENTRIES * 0x85EBu ^ \
                SR_GEN_BLOCKS * 0xC2B2u ^ SR_COMMIT_BITS * 0x9E5Bu ^ SR_GEN_SLOTS * 0x27D4u ^ SR_WATCH_WORDS * 0x1656u))

enum sr_head_flag {
    SR_HEAD_PERSIST = 1,    /* outlives its members                                    */
    SR_HEAD_KEPT = 2,       /* the data segment has no name; a keeper hands it out     */
    SR_HEAD_COMMITTED = 4,  /* all of it was committed at creation                     */
};

/* --- catalog ---------------------------------------------------------------------------------- */

struct sr_head {
    uint64_t hd_magic;          /*    0 */
    uint32_t hd_version;        /*    8 */
    uint32_t hd_stamp;          /*   12 */
    uint8_t hd_id[16];          /*   16  random; the same in the members segment               */
    uint64_t hd_size;           /*   32  bytes that objects may occupy                         */
    uint64_t hd_mapped;         /*   40  length of the data segment and its mappings           */
    uint32_t hd_kind;           /*   48  enum sr_kind                                          */
    uint32_t hd_generation;     /*   52  counts `replace`; in the names of the other segments  */
    uint32_t hd_flags;          /*   56  enum sr_head_flag                                     */
    uint32_t hd_gens;           /*   60  generations that the catalog segment has room for     */
    uint64_t hd_catalog_size;   /*   64 */
    uint64_t hd_gen0;           /*   72  where generation 0 begins                             */
    uint64_t hd_data_ino;       /*   80 */
    uint64_t hd_members_ino;    /*   88 */
    uint64_t hd_data_dev;       /*   96 */
    uint64_t hd_members_dev;    /*  104 */
    uint64_t hd_created_ns;     /*  112  CLOCK_REALTIME                                        */
    uint32_t hd_uid;            /*  120 */
    uint32_t hd_mode;           /*  124 */
    uint64_t hd_granule;        /*  128  of the commit map                                     */
    uint32_t hd_rows;           /*  136 */
    uint32_t hd_name_len;       /*  140 */
    char hd_name[240];          /*  144 */
    char hd_reason[576];        /*  384  why this backend was chosen; NUL-terminated           */
    uint64_t hd_share_dev;      /*  960  of the msharefs region; 0, as the next three, if none */
    uint64_t hd_share_ino;      /*  968 */
    uint64_t hd_share_size;     /*  976  its address space                                     */
    uint64_t hd_share_unit;     /*  984  what that is a multiple of                            */
    uint32_t hd_reserved[7];    /*  992 */
    uint32_t hd_crc;            /* 1020  of bytes 0..1020                                      */
};
SR_ASSERT_FIELD(struct sr_head, hd_id, 16);
SR_ASSERT_FIELD(struct sr_head, hd_catalog_size, 64);
SR_ASSERT_FIELD(struct sr_head, hd_granule, 128);
SR_ASSERT_FIELD(struct sr_head, hd_name, 144);
SR_ASSERT_FIELD(struct sr_head, hd_reason, 384);
SR_ASSERT_FIELD(struct sr_head, hd_share_dev, 960);
SR_ASSERT_FIELD(struct sr_head, hd_crc, 1020);
SR_ASSERT_SIZE(struct sr_head, 1024);

enum sr_state_flag {
    SR_STATE_SEALED = 1,    /* no change any more, by anyone                      */
    SR_STATE_DAMAGED = 2,   /* could not be put in order after a writer had died  */
};

/* Changed under the lock, except where a reader's need says atomic. Entries and blocks are found
 * by number; each list is linked through the entries or blocks themselves. */
struct sr_state {
    alignas(64) _Atomic uint32_t st_lock;   /*   0  see lock.c                                 */
    alignas(64) _Atomic uint64_t st_seq;    /*  64  last publication number given out           */
    _Atomic uint32_t st_flags;              /*  72  enum sr_state_flag                          */
    _Atomic uint32_t st_level;              /*  76  generation whose slots are the index        */
    _Atomic uint32_t st_entries_high;       /*  80  entries below were used at some time        */
    uint32_t st_blocks_high;                /*  84 */
    uint32_t st_entries_committed;          /*  88  entries below have memory                   */
    uint32_t st_blocks_committed;           /*  92 */
    uint32_t st_free_entry;                 /*  96  head of a singly linked list                */
    uint32_t st_free_block;                 /* 100 */
    uint32_t st_pending;                    /* 104  head: being filled                          */
    uint32_t st_limbo;                      /* 108  head: withdrawn, perhaps still looked at    */
    uint32_t st_objects;                    /* 112 */
    uint32_t st_slots_used;                 /* 116  not empty, in the index                     */
    uint64_t st_used;                       /* 120  bytes of all blocks in use                  */
    uint32_t st_limbo_count;                /* 128 */
    uint32_t st_recoveries;                 /* 132 */
    uint32_t st_releases_seen;              /* 136  mh_releases at the last look through limbo  */
    alignas(64) _Atomic uint32_t st_watch[SR_WATCH_WORDS]; /* 192  futexes, by name hash        */
    uint8_t st_reserved[3072 - 192 - 4 * SR_WATCH_WORDS];
};
SR_ASSERT_FIELD(struct sr_state, st_seq, 64);
SR_ASSERT_FIELD(struct sr_state, st_level, 76);
SR_ASSERT_FIELD(struct sr_state, st_objects, 112);
SR_ASSERT_FIELD(struct sr_state, st_used, 120);
SR_ASSERT_FIELD(struct sr_state, st_watch, 192);
SR_ASSERT_SIZE(struct sr_state, 3072);

#define SR_STATE_AT 1024u
#define SR_ALLOC_AT 4096u
#define SR_COMMIT_MAP_AT 8192u

enum sr_entry_state {
    SR_ENTRY_FREE = 0,
    SR_ENTRY_PENDING = 1,   /* has a block and an owner, not yet to be found */
    SR_ENTRY_LIVE = 2,
    SR_ENTRY_LIMBO = 3,     /* withdrawn; its block waits for the last pin   */
    SR_ENTRY_MORE = 4,      /* holds more text of another entry              */
};
enum sr_entry_flag { SR_ENTRY_MUTABLE = 1 };

/* 128 bytes. What a reader relies on, 36..128, never changes while ent_seq is not 0, and is covered
 * by ent_crc together with ent_seq and the text of continuations. ent_seq is written last when an
 * object is published and cleared first when it is withdrawn. Name, then metadata, lie in ent_text
 * and go on in the continuation entries of ent_more. */
struct sr_entry {
    _Atomic uint64_t ent_seq;       /*   0  publication number, never given twice; 0: not there  */
    _Atomic uint64_t ent_version;   /*   8  48 bits of version, 16 of check (sr_version_pack)    */
    _Atomic uint32_t ent_state;     /*  16  enum sr_entry_state                                  */
    uint32_t ent_owner;             /*  20  row of who fills it                                  */
    uint32_t ent_prev;              /*  24  in pending or limbo                                  */
    uint32_t ent_next;              /*  28  the same, or free                                    */
    uint32_t ent_crc;               /*  32 */
    uint32_t ent_block;             /*  36 */
    uint64_t ent_hash;              /*  40  of the name                                          */
    uint64_t ent_off;               /*  48  in the data segment                                  */
    uint64_t ent_len;               /*  56  bytes of the object                                  */
    uint32_t ent_more;              /*  64 */
    uint8_t ent_type;               /*  68  which codec; the upper rooms' business               */
    uint8_t ent_flags;              /*  69  enum sr_entry_flag                                   */
    uint16_t ent_name_len;          /*  70 */
    uint16_t ent_meta_len;          /*  72 */
    uint16_t ent_owner_gen;         /*  74  generation of the owner's row                        */
    uint8_t ent_text[52];           /*  76 */
};
SR_ASSERT_FIELD(struct sr_entry, ent_version, 8);
SR_ASSERT_FIELD(struct sr_entry, ent_crc, 32);
SR_ASSERT_FIELD(struct sr_entry, ent_block, 36);
SR_ASSERT_FIELD(struct sr_entry, ent_hash, 40);
SR_ASSERT_FIELD(struct sr_entry, ent_more, 64);
SR_ASSERT_FIELD(struct sr_entry, ent_text, 76);
SR_ASSERT_SIZE(struct sr_entry, 128);

/* A continuation: the same 128 bytes, seen otherwise. ent_state at 16 stays where it is. */
struct sr_more {
    uint64_t more_zero;             /*   0  where ent_seq would be: not there                    */
    uint32_t more_next;             /*   8 */
    uint32_t more_reserved;         /*  12 */
    _Atomic uint32_t more_state;    /*  16  SR_ENTRY_MORE                                        */
    uint8_t more_text[108];         /*  20 */
};
SR_ASSERT_FIELD(struct sr_more, more_state, offsetof(struct sr_entry, ent_state));
SR_ASSERT_SIZE(struct sr_more, 128);

enum sr_block_state { SR_BLOCK_NONE = 0, SR_BLOCK_FREE = 1, SR_BLOCK_USED = 2 };

/* 32 bytes. Blocks tile [0, hd_size) without gap or overlap, in the order of the physical links. */
struct sr_block {
    uint64_t blk_off;          /*  0  multiple of SR_BLOCK_UNIT                                  */
    uint64_t blk_len_state;    /*  8  length; the low 6 bits hold enum sr_block_state            */
    uint32_t blk_prev;         /* 16  physical neighbours                                        */
    uint32_t blk_next;         /* 20 */
    uint32_t blk_free_prev;    /* 24  in its size class                                          */
    uint32_t blk_free_next;    /* 28  the same; or the next unused descriptor                    */
};
SR_ASSERT_FIELD(struct sr_block, blk_prev, 16);
SR_ASSERT_SIZE(struct sr_block, 32);

/* A slot of the index: the upper half of the name's hash above the number of the entry. */
#define SR_SLOT_EMPTY UINT64_C(0)
#define SR_SLOT_TOMB (UINT64_C(0xFFFFFFFF) << 32)    /* entry 0: was used, chains go on */
static inline uint64_t sr_slot_pack(uint64_t hash, uint32_t entry) { return (hash & ~UINT64_C(0xFFFFFFFF)) | entry; }
static inline uint32_t sr_slot_entry(uint64_t slot) { return (uint32_t)slot; }
static inline bool sr_slot_matches(uint64_t slot, uint64_t hash) { return (slot ^ hash) >> 32 == 0; }

/* A version with its own check, since it changes while the entry's checksum does not. */
static inline uint64_t sr_version_pack(uint64_t version, uint64_t seq)
{
    uint64_t mixed = (version ^ (seq << 1)) * UINT64_C(0x9E3779B97F4A7C15);
    return (version << 16) | (mixed >> 48);
}
static inline bool sr_version_unpack(uint64_t packed, uint64_t seq, uint64_t *version)
{
    *version = packed >> 16;
    return sr_version_pack(*version, seq) == packed;
}

/* --- members ---------------------------------------------------------------------------------- */

struct sr_members_head {
    uint64_t mh_magic;                /*  0 */
    uint32_t mh_version;              /*  8 */
    uint32_t mh_stamp;                /* 12 */
    uint8_t mh_id[16];                /* 16 */
    uint32_t mh_rows;                 /* 32 */
    uint32_t mh_crc;                  /* 36  of bytes 0..36                                      */
    _Atomic uint32_t mh_rows_high;    /* 40  rows below were used at some time                   */
    _Atomic uint32_t mh_releases;     /* 44  counts dropped pins: a hint to look through limbo   */
    _Atomic uint32_t mh_cursor;       /* 48  where the next joiner looks for rows of the dead    */
    _Atomic uint32_t mh_keeper;       /* 52  its thread; SR_DEATH_MARK once it has ended (msharefs)*/
    uint32_t mh_reserved[2];
    _Atomic uint64_t mh_clean[SR_ROWS_MAX / 64]; /* 64  a bit for each row left cleanly: a hint  */
    uint8_t mh_reserved2[4096 - 64 - SR_ROWS_MAX / 8];
};
SR_ASSERT_FIELD(struct sr_members_head, mh_clean, 64);
SR_ASSERT_FIELD(struct sr_members_head, mh_rows_high, 40);
SR_ASSERT_FIELD(struct sr_members_head, mh_keeper, 52);
SR_ASSERT_SIZE(struct sr_members_head, 4096);

enum sr_row_state { SR_ROW_CLEAN = 0, SR_ROW_USED = 1, SR_ROW_LEAVING = 2 /* its process is ending */ };
enum sr_row_access { SR_ROW_READER = 1, SR_ROW_WRITER = 2 };

#define SR_ROW_TICKETS 96u
#define SR_ROW_PINS 816u

struct sr_row {
    _Atomic uint32_t row_gen;         /*  0  counts owners                                        */
    _Atomic uint32_t row_state;       /*  4  enum sr_row_state; CLEAN again after a clean leave   */
    _Atomic uint32_t row_access;      /*  8  enum sr_row_access                                   */
    _Atomic uint32_t row_pins_high;   /* 12  pins at and above are 0                              */
    uint64_t row_joined_ns;           /* 16  CLOCK_REALTIME                                       */
    uint32_t row_pid;                 /* 24  as the member saw itself; to show, never to rely on  */
    uint32_t row_uid;                 /* 28 */
    _Atomic uint32_t row_tickets_used;/* 32  tickets at and above were never used                 */
    uint32_t row_reserved[7];         /* 36 */
    _Atomic uint64_t row_tickets[SR_ROW_TICKETS]; /* 64  block << 32 | references in flight       */
    _Atomic uint32_t row_pins[SR_ROW_PINS];       /* 832 blocks                                   */
};
SR_ASSERT_FIELD(struct sr_row, row_pid, 24);
SR_ASSERT_FIELD(struct sr_row, row_tickets, 64);
SR_ASSERT_FIELD(struct sr_row, row_pins, 832);
SR_ASSERT_SIZE(struct sr_row, 4096);

/* --- where things are ------------------------------------------------------------------------- */

static inline uint64_t sr_gen_at(uint64_t gen0, unsigned g) { return gen0 + SR_GEN_UNIT * ((UINT64_C(1) << g) - 1); }
static inline unsigned sr_entry_gen(uint32_t n) { return sr_log2_floor((n / SR_GEN_ENTRIES) + 1u); }
static inline unsigned sr_block_gen(uint32_t n) { return sr_log2_floor((n / SR_GEN_BLOCKS) + 1u); }
static inline uint64_t sr_entry_at(uint64_t gen0, uint32_t n)
{
    unsigned g = sr_entry_gen(n);
    uint64_t first = (uint64_t)SR_GEN_ENTRIES * ((UINT64_C(1) << g) - 1);
    return sr_gen_at(gen0, g) + (n - first) * sizeof(struct sr_entry);
}
static inline uint64_t sr_block_at(uint64_t gen0, uint32_t n)
{
    unsigned g = sr_block_gen(n);
    uint64_t first = (uint64_t)SR_GEN_BLOCKS * ((UINT64_C(1) << g) - 1);
    return sr_gen_at(gen0, g) + ((32 * SR_KIB) << g) + (n - first) * sizeof(struct sr_block);
}
static inline uint64_t sr_slots_at(uint64_t gen0, unsigned g) { return sr_gen_at(gen0, g) + ((48 * SR_KIB) << g); }
static inline uint64_t sr_slots_count(unsigned g) { return (uint64_t)SR_GEN_SLOTS << g; }
/* Entries and blocks of the first `gens` generations; entry and block 0 included. */
static inline uint32_t sr_entries_limit(unsigned gens) { return (uint32_t)(SR_GEN_ENTRIES * ((UINT64_C(1) << gens) - 1)); }
static inline uint32_t sr_blocks_limit(unsigned gens) { return (uint32_t)(SR_GEN_BLOCKS * ((UINT64_C(1) << gens) - 1)); }

_Static_assert(SR_GEN_ENTRIES * sizeof(struct sr_entry) == 32 * SR_KIB, "entries of generation 0");
_Static_assert(SR_GEN_BLOCKS * sizeof(struct sr_block) == 16 * SR_KIB, "blocks of generation 0");
_Static_assert(SR_GEN_SLOTS * sizeof(uint64_t) == 16 * SR_KIB, "slots of generation 0");
_Static_assert(SR_GEN_BLOCKS * ((UINT64_C(1) << SR_GEN_MAX) - 1) <= UINT32_MAX, "block numbers fit");

#endif
