/* state: the words of the catalog's state as the holders of the lock leave them to each other. */
#include "sr_region.h"

static uint64_t sum(const struct sr_state *s)
{
    const size_t from = offsetof(struct sr_state, st_seq), to = offsetof(struct sr_state, st_sum);
    uint32_t crc = sr_crc32c(0, (const char *)s + from, to - from);
    return (uint64_t)~crc << 32 | crc;    /* neither zeros nor one word twice are a sum */
}

void sr_state_init(struct sr_state *s)
{
    sr_state_put(&s->st_seq, 0, SR_STATE_SALT(st_seq));
    sr_state_put(&s->st_flags, 0, SR_STATE_SALT(st_flags));
    sr_state_put(&s->st_level, 0, SR_STATE_SALT(st_level));
    sr_state_put(&s->st_entries_high, 1, SR_STATE_SALT(st_entries_high));
    s->st_blocks_high = 1;
    s->st_entries_committed = SR_GEN_ENTRIES;
    s->st_blocks_committed = SR_GEN_BLOCKS;
    sr_state_seal(s);
}

void sr_state_seal(struct sr_state *s)
{
    const uint64_t told[SR_TOLD_COUNT] = {
        [SR_TOLD_OBJECTS] = s->st_objects, [SR_TOLD_UNITS_USED] = s->st_used / SR_BLOCK_UNIT, [SR_TOLD_LIMBO] = s->st_limbo_count,
        [SR_TOLD_PENDING] = s->st_pending_count, [SR_TOLD_RECOVERIES] = s->st_recoveries,
    };
    for (uint32_t i = 0; i < SR_TOLD_COUNT; i++) {
        uint64_t word = sr_word_pack(told[i], SR_STATE_SALT(st_told) + i);
        if (atomic_load_explicit(&s->st_told[i], memory_order_relaxed) != word) atomic_store_explicit(&s->st_told[i], word, memory_order_release);
    }
    s->st_sum = sum(s);
}

bool sr_state_is_sealed(const struct sr_state *s) { return s->st_sum == sum(s); }

void sr_state_unseal(struct sr_state *s) { s->st_sum = ~sum(s); }
