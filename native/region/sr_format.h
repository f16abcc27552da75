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

#define SR_FORMAT_VERSION 3u
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
                SR_GEN_BLOCKS * 0xC2B2u ^ SR_COMMIT_BITS * 0x9E5Bu ^ SR_GEN_SLOTS * 0x27D4u ^ SR_WATCH_WORDS * 0x1656u ^ SR_ROW_PINS * 0x3C6Eu))

/* --- words that say of themselves whether they are sound ------------------------------------- */

/* 48 bits of value above 15 of check and a 1: so that zeros are never sound, and `salt`, which is made
 * of the word's place, so that a sound word elsewhere is none here. A bit that flips, or a run of
 * zeros or noise, is told with all but one chance in 65,536; old bytes put back in their own place are
 * not. Costs two multiplications. */
enum sr_salt { SR_SALT_STATE = 1, SR_SALT_SLOT, SR_SALT_ENTRY, SR_SALT_ENTRY_STATE, SR_SALT_VERSION, SR_SALT_ROW, SR_SALT_PIN, SR_SALT_TICKET, SR_SALT_LOCK, SR_SALT_WITHDRAWN };
#define SR_SALT(kind, at) ((uint64_t)(kind) << 56 | (uint64_t)(at))
#define SR_WORD_MAX ((UINT64_C(1) << 48) - 1)

static inline uint64_t sr_word_check(uint64_t value, uint64_t salt)
{
    return (value ^ salt * UINT64_C(0x9E3779B97F4A7C15)) * UINT64_C(0xBF58476D1CE4E5B9) >> 49;
}
static inline uint64_t sr_word_pack(uint64_t value, uint64_t salt) { return value << 16 | sr_word_check(value & SR_WORD_MAX, salt) << 1 | 1; }
static inline bool sr_word_sound(uint64_t word, uint64_t salt) { return sr_word_pack(word >> 16, salt) == word; }
static inline bool sr_word_unpack(uint64_t word, uint64_t salt, uint64_t *value)
{
    *value = word >> 16;
    return sr_word_sound(word, salt);
}
/* The same in 32 bits, for values of 16. */
static inline uint32_t sr_half_pack(uint32_t value, uint64_t salt)
{
    return value << 16 | (uint32_t)(sr_word_check(value & 0xFFFFu, salt) << 1) | 1u;
}
static inline bool sr_half_unpack(uint32_t word, uint64_t salt, uint32_t *value)
{
    *value = word >> 16;
    return sr_half_pack(*value, salt) == word;
}

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
    uint64_t hd_mapped;         /*   40  length of the data segment and its mappings: whole granules */
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
 * by number; each list is linked through the entries or blocks themselves.
 *
 * How damage here is met: what readers, or a recovery, believe are words of their own soundness
 * (sr_word_pack, salted with the field's offset). The rest is covered by st_sum, which whoever gives
 * the lock back makes and the next one compares; if it is not so, everything that follows from the
 * entries is made anew, as after a death. What the region is asked for without the lock is in
 * st_told, written at the same time. */
enum sr_told { SR_TOLD_OBJECTS, SR_TOLD_UNITS_USED, SR_TOLD_LIMBO, SR_TOLD_PENDING, SR_TOLD_RECOVERIES, SR_TOLD_COUNT };

struct sr_state {
    alignas(64) _Atomic uint64_t st_lock;   /*   0  see lock.c                                 */
    alignas(64) _Atomic uint64_t st_seq;    /*  64  word: last publication number given out     */
    _Atomic uint64_t st_flags;              /*  72  word: enum sr_state_flag                    */
    _Atomic uint64_t st_level;              /*  80  word: generation whose slots are the index, */
                                            /*      and above 8 bits how often slots were moved */
    _Atomic uint64_t st_entries_high;       /*  88  word: entries below were used at some time  */
    uint32_t st_blocks_high;                /*  96 */
    uint32_t st_entries_committed;          /* 100  entries below have memory                   */
    uint32_t st_blocks_committed;           /* 104 */
    uint32_t st_free_entry;                 /* 108  head of a singly linked list                */
    uint32_t st_free_block;                 /* 112 */
    uint32_t st_pending;                    /* 116  head: being filled                          */
    uint32_t st_limbo;                      /* 120  head: withdrawn, perhaps still looked at    */
    uint32_t st_objects;                    /* 124 */
    uint64_t st_used;                       /* 128  bytes of all blocks in use                  */
    uint32_t st_slots_used;                 /* 136  not empty, in the index                     */
    uint32_t st_limbo_count;                /* 140 */
    uint32_t st_pending_count;              /* 144 */
    uint32_t st_recoveries;                 /* 148 */
    uint32_t st_releases_seen;              /* 152  mh_releases at the last look through limbo  */
    uint32_t st_reserved1;                  /* 156 */
    uint64_t st_sum;                        /* 160  of bytes 64..160, as the last writer left them */
    alignas(64) _Atomic uint64_t st_told[SR_TOLD_COUNT]; /* 192  words: what is asked without the lock */
    alignas(64) _Atomic uint32_t st_watch[SR_WATCH_WORDS]; /* 256  futexes, by name hash        */
    uint8_t st_reserved[3072 - 256 - 4 * SR_WATCH_WORDS];
};
SR_ASSERT_FIELD(struct sr_state, st_seq, 64);
SR_ASSERT_FIELD(struct sr_state, st_level, 80);
SR_ASSERT_FIELD(struct sr_state, st_objects, 124);
SR_ASSERT_FIELD(struct sr_state, st_used, 128);
SR_ASSERT_FIELD(struct sr_state, st_sum, 160);
SR_ASSERT_FIELD(struct sr_state, st_told, 192);
SR_ASSERT_FIELD(struct sr_state, st_watch, 256);
SR_ASSERT_SIZE(struct sr_state, 3072);

#define SR_STATE_SALT(field) SR_SALT(SR_SALT_STATE, offsetof(struct sr_state, field))
static inline void sr_state_put(_Atomic uint64_t *word, uint64_t value, uint64_t salt) { atomic_store(word, sr_word_pack(value, salt)); }
/* A word that is not sound says the worst. */
static inline uint32_t sr_state_flags(const struct sr_state *s)
{
    uint64_t flags;
    bool sound = sr_word_unpack(atomic_load(&s->st_flags), SR_STATE_SALT(st_flags), &flags);
    return sound ? (uint32_t)flags : SR_STATE_DAMAGED;
}
static inline void sr_state_set_flag(struct sr_state *s, enum sr_state_flag flag)
{
    sr_state_put(&s->st_flags, sr_state_flags(s) | flag, SR_STATE_SALT(st_flags));
}
static inline bool sr_state_told(const struct sr_state *s, enum sr_told which, uint64_t *value)
{
    return sr_word_unpack(atomic_load(&s->st_told[which]), SR_STATE_SALT(st_told) + which, value);
}

#define SR_STATE_AT 1024u
#define SR_ALLOC_AT 4096u
#define SR_COMMIT_MAP_AT 8192u

enum sr_entry_state {
    SR_ENTRY_FREE = 0,
    SR_ENTRY_PENDING = 1,   /* has a block and an owner, not yet to be found */
    SR_ENTRY_LIVE = 2,
    SR_ENTRY_LIMBO = 3,     /* withdrawn; its block waits for the last pin   */
    SR_ENTRY_MORE = 4,      /* holds more text of another entry              */
    SR_ENTRY_LEAVING = 5,   /* as LIMBO, while a writer looks for pins       */
    SR_ENTRY_BAD = 6,       /* never stored: what is there says nothing      */
};
enum sr_entry_flag { SR_ENTRY_MUTABLE = 1 };

/* 128 bytes. What a reader relies on, 32..128, never changes from the moment that the entry is
 * PENDING until it is FREE again, and is covered by ent_crc together with the entry's number and the
 * text of continuations. ent_seq is written last when an object is published and cleared first when
 * it is withdrawn. Name, then metadata, lie in ent_text and go on in the continuation entries of
 * ent_more. */
struct sr_entry {
    _Atomic uint64_t ent_seq;       /*   0  word: publication number, never given twice; 0: not there */
    _Atomic uint64_t ent_version;   /*   8  word, salted with ent_seq; once withdrawn, what that was */
    _Atomic uint32_t ent_state;     /*  16  half word: enum sr_entry_state                       */
    uint32_t ent_prev;              /*  20  in pending or limbo                                  */
    uint32_t ent_next;              /*  24  the same, or free                                    */
    uint32_t ent_crc;               /*  28 */
    uint32_t ent_owner;             /*  32  row of who fills it                                  */
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
SR_ASSERT_FIELD(struct sr_entry, ent_crc, 28);
SR_ASSERT_FIELD(struct sr_entry, ent_owner, 32);
SR_ASSERT_FIELD(struct sr_entry, ent_hash, 40);
SR_ASSERT_FIELD(struct sr_entry, ent_more, 64);
SR_ASSERT_FIELD(struct sr_entry, ent_text, 76);
SR_ASSERT_SIZE(struct sr_entry, 128);

/* A continuation: the same 128 bytes, seen otherwise. ent_seq (not there) and ent_state stay where they are. */
struct sr_more {
    _Atomic uint64_t more_seq;      /*   0  word: 0                                              */
    uint32_t more_next;             /*   8 */
    uint32_t more_reserved;         /*  12 */
    _Atomic uint32_t more_state;    /*  16  SR_ENTRY_MORE                                        */
    uint8_t more_text[108];         /*  20 */
};
SR_ASSERT_FIELD(struct sr_more, more_state, offsetof(struct sr_entry, ent_state));
SR_ASSERT_SIZE(struct sr_more, 128);

#define SR_SEQ_BAD UINT64_MAX    /* the word is not sound; no publication has that number */
static inline uint64_t sr_seq_pack(uint64_t seq, uint32_t n) { return sr_word_pack(seq, SR_SALT(SR_SALT_ENTRY, n)); }
static inline uint64_t sr_seq_of(const struct sr_entry *entry, uint32_t n)
{
    uint64_t seq;
    return sr_word_unpack(atomic_load_explicit(&entry->ent_seq, memory_order_seq_cst), SR_SALT(SR_SALT_ENTRY, n), &seq) ? seq : SR_SEQ_BAD;
}
static inline uint32_t sr_state_pack(enum sr_entry_state state, uint32_t n) { return sr_half_pack(state, SR_SALT(SR_SALT_ENTRY_STATE, n)); }
/* enum sr_entry_state, or SR_ENTRY_BAD. */
static inline uint32_t sr_state_of(const struct sr_entry *entry, uint32_t n)
{
    uint32_t state;
    bool sound = sr_half_unpack(atomic_load(&entry->ent_state), SR_SALT(SR_SALT_ENTRY_STATE, n), &state);
    return sound && state < SR_ENTRY_BAD ? state : SR_ENTRY_BAD;
}

enum sr_block_state {
    SR_BLOCK_NONE = 0,
    SR_BLOCK_FREE = 1,
    SR_BLOCK_USED = 2,
    SR_BLOCK_WARM = 3,      /* free, and there may be memory behind whole granules of it */
};

/* 32 bytes. Blocks tile [0, hd_mapped) without gap or overlap, in the order of the physical links. */
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

/* A slot of the index: a word of 21 bits of the name's hash above 27 of the entry's number, salted with
 * the slot's place: a slot that was zeroed, or came from elsewhere, is no empty one, so that a name
 * that is there is never taken for missing. */
#define SR_SLOT_ENTRY_BITS 27u
#define SR_SLOT_EMPTY UINT64_C(0)
#define SR_SLOT_TOMB (SR_WORD_MAX >> SR_SLOT_ENTRY_BITS << SR_SLOT_ENTRY_BITS)    /* entry 0: was used, chains go on */
static inline uint64_t sr_slot_value(uint64_t hash, uint32_t entry) { return hash >> (16 + SR_SLOT_ENTRY_BITS) << SR_SLOT_ENTRY_BITS | entry; }
static inline uint32_t sr_slot_entry(uint64_t value) { return (uint32_t)(value & ((UINT64_C(1) << SR_SLOT_ENTRY_BITS) - 1)); }
static inline bool sr_slot_matches(uint64_t value, uint64_t hash) { return value >> SR_SLOT_ENTRY_BITS == hash >> (16 + SR_SLOT_ENTRY_BITS); }
static inline uint64_t sr_slot_salt(unsigned level, uint64_t at) { return SR_SALT(SR_SALT_SLOT, (uint64_t)level << 40 | at); }

/* A version, salted with the publication that it is of: it changes while the entry's checksum does not. */
static inline uint64_t sr_version_pack(uint64_t version, uint64_t seq) { return sr_word_pack(version, SR_SALT(SR_SALT_VERSION, seq)); }
static inline bool sr_version_unpack(uint64_t packed, uint64_t seq, uint64_t *version)
{
    return sr_word_unpack(packed, SR_SALT(SR_SALT_VERSION, seq), version);
}

/* The publication that an entry in LIMBO was, for references to it. */
static inline uint64_t sr_withdrawn_pack(uint64_t seq, uint32_t n) { return sr_word_pack(seq, SR_SALT(SR_SALT_WITHDRAWN, n)); }

/* --- members ---------------------------------------------------------------------------------- */

struct sr_members_head {
    uint64_t mh_magic;                /*  0 */
    uint32_t mh_version;              /*  8 */
    uint32_t mh_stamp;                /* 12 */
    uint8_t mh_id[16];                /* 16 */
    uint32_t mh_rows;                 /* 32 */
    uint32_t mh_crc;                  /* 36  of bytes 0..36                                      */
    _Atomic uint32_t mh_rows_high;    /* 40  half word: rows below were used at some time        */
    _Atomic uint32_t mh_releases;     /* 44  counts dropped pins: a hint to look through limbo   */
    _Atomic uint32_t mh_cursor;       /* 48  where the next joiner looks for rows of the dead    */
    _Atomic uint32_t mh_keeper;       /* 52  its thread; SR_DEATH_MARK once it has ended (msharefs)*/
    uint32_t mh_reserved[2];
    _Atomic uint64_t mh_clean[SR_ROWS_MAX / 64]; /* 64  a bit for each row left cleanly: a hint  */
    /* Who sleeps on st_watch[k]: a writer wakes nobody where this is 0. A sleeper that is killed counts
     * for ever, which costs a system call; one that is not counted looks again after its slice. */
    _Atomic uint32_t mh_waiters[SR_WATCH_WORDS];      /* 2112 */
    uint8_t mh_reserved2[4096 - 64 - SR_ROWS_MAX / 8 - 4 * SR_WATCH_WORDS];
};
SR_ASSERT_FIELD(struct sr_members_head, mh_clean, 64);
SR_ASSERT_FIELD(struct sr_members_head, mh_rows_high, 40);
SR_ASSERT_FIELD(struct sr_members_head, mh_keeper, 52);
SR_ASSERT_FIELD(struct sr_members_head, mh_waiters, 2112);
SR_ASSERT_SIZE(struct sr_members_head, 4096);

enum sr_row_state { SR_ROW_CLEAN = 0, SR_ROW_USED = 1, SR_ROW_LEAVING = 2 /* its process is ending */ };
enum sr_row_access { SR_ROW_READER = 1, SR_ROW_WRITER = 2 };

#define SR_ROW_TICKETS 96u
#define SR_ROW_PINS 408u

/* What a row says of its member's pins is believed in one direction only: words that are not sound
 * hold everything, as long as the member lives. */
enum sr_row_lock { SR_ROW_OUT = 0, SR_ROW_TRYING = 1 /* may have the lock */, SR_ROW_WAITING = 2 /* has it not */ };

struct sr_row {
    _Atomic uint32_t row_gen;         /*  0  half word: counts owners                             */
    _Atomic uint32_t row_state;       /*  4  half word: enum sr_row_state; CLEAN after a clean leave */
    _Atomic uint32_t row_access;      /*  8  half word: enum sr_row_access                        */
    uint32_t row_reserved0;           /* 12 */
    uint64_t row_joined_ns;           /* 16  CLOCK_REALTIME                                       */
    uint32_t row_pid;                 /* 24  as the member saw itself; to show, never to rely on  */
    uint32_t row_uid;                 /* 28 */
    uint32_t row_reserved1;           /* 32 */
    _Atomic uint32_t row_lock;        /* 36  half word: enum sr_row_lock                          */
    uint32_t row_who_crc;             /* 40  of bytes 16..32                                      */
    uint32_t row_reserved2;           /* 44 */
    _Atomic uint64_t row_high;        /* 48  sr_high_pack: pins and tickets at and above are none */
    uint32_t row_reserved3[2];        /* 56 */
    _Atomic uint64_t row_tickets[SR_ROW_TICKETS]; /* 64  words: block << 21 | references in flight */
    _Atomic uint64_t row_pins[SR_ROW_PINS];       /* 832 words: blocks                            */
};
SR_ASSERT_FIELD(struct sr_row, row_pid, 24);
SR_ASSERT_FIELD(struct sr_row, row_lock, 36);
SR_ASSERT_FIELD(struct sr_row, row_high, 48);
SR_ASSERT_FIELD(struct sr_row, row_tickets, 64);
SR_ASSERT_FIELD(struct sr_row, row_pins, 832);
SR_ASSERT_SIZE(struct sr_row, 4096);

#define SR_ROW_SALT(field, n) SR_SALT(SR_SALT_ROW, (uint64_t)(n) << 16 | offsetof(struct sr_row, field))
static inline uint64_t sr_pin_salt(uint32_t row, uint32_t k) { return SR_SALT(SR_SALT_PIN, (uint64_t)row << 16 | k); }
static inline uint64_t sr_ticket_salt(uint32_t row, uint32_t k) { return SR_SALT(SR_SALT_TICKET, (uint64_t)row << 16 | k); }
/* Twice, since a number that is too low by mistake would let go of what is held: no damage of four bytes
 * is taken for right, and of eight one in some billions. */
static inline uint64_t sr_high_pack(uint32_t pins, uint32_t tickets, uint32_t row)
{
    uint32_t both = pins << 16 | tickets;
    return (uint64_t)(~both ^ row * 0x9E3779B1u) << 32 | both;
}
static inline bool sr_high_unpack(uint64_t word, uint32_t row, uint32_t *pins, uint32_t *tickets)
{
    *pins = (uint32_t)word >> 16;
    *tickets = (uint32_t)word & 0xFFFFu;
    return sr_high_pack(*pins, *tickets, row) == word && *pins <= SR_ROW_PINS && *tickets <= SR_ROW_TICKETS;
}
#define SR_TICKET_COUNT_BITS 21u
#define SR_TICKET_COUNT_MAX ((UINT64_C(1) << SR_TICKET_COUNT_BITS) - 1)
/* What a row of a living member holds by its k-th pin, 0 for nothing that is sound; by its k-th ticket, how often. */
static inline uint32_t sr_pin_of(const struct sr_row *row, uint32_t n, uint32_t k)
{
    uint64_t block;
    return sr_word_unpack(atomic_load(&row->row_pins[k]), sr_pin_salt(n, k), &block) ? (uint32_t)block : 0;
}
static inline uint64_t sr_ticket_of(const struct sr_row *row, uint32_t n, uint32_t k, uint32_t *block)
{
    uint64_t value;
    bool sound = sr_word_unpack(atomic_load(&row->row_tickets[k]), sr_ticket_salt(n, k), &value);
    *block = sound ? (uint32_t)(value >> SR_TICKET_COUNT_BITS) : 0;
    return sound ? value & SR_TICKET_COUNT_MAX : 0;
}
#define SR_ROWS_HIGH_SALT SR_SALT(SR_SALT_ROW, UINT64_C(1) << 48)

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
_Static_assert(SR_GEN_BLOCKS * ((UINT64_C(1) << SR_GEN_MAX) - 1) < UINT64_C(1) << (48 - SR_TICKET_COUNT_BITS), "block numbers fit");
_Static_assert(SR_GEN_ENTRIES * ((UINT64_C(1) << SR_GEN_MAX) - 1) < UINT64_C(1) << SR_SLOT_ENTRY_BITS, "entry numbers fit");
_Static_assert(SR_ROWS_MAX <= 0xFFFFu, "a number of rows fits into a half word");

#endif
