/* store: putting, publishing, deleting, waiting. */
#include "sr_catalog.h"

#include <errno.h>
#include <limits.h>

#define SMALL 4096u    /* copied under the lock: shorter than taking it twice */
#define BATCH 64u      /* pages given back before others get the lock          */

static int bad(struct sr_region *r, struct sr_error *e, const char *what)
{
    return sr_fail(e, SR_E_CORRUPT, 0, "the catalog of region '%s' is damaged: %s", r->name, what);
}

/* --- life ------------------------------------------------------------------------------------- */

int sr_catalog_create(struct sr_region **out, const struct sr_region_spec *spec, struct sr_error *e)
{
    struct sr_region *r;
    int got = sr_region_make(&r, spec, e);
    if (got < 0) return got;
    got = sr_alloc_init(r, e);
    sr_index__init(r);
    sr_state_seal(sr_state(r));
    if (got == 0) got = sr_region_publish(r, spec, e);
    if (got < 0) {
        sr_region_close(r);
        return got;
    }
    *out = r;
    return 0;
}

int sr_catalog_attach(struct sr_region **out, const char *name, bool writable, uint32_t owner, struct sr_error *e)
{
    struct sr_region *r;
    int got = sr_region_attach(&r, name, writable, owner, e);
    if (got < 0) return got;
    if (r->row_was_dirty) {
        got = sr_catalog_sweep(r, e);
        if (got < 0) {
            sr_region_close(r);
            return got;
        }
    }
    *out = r;
    return 0;
}

/* --- the lock, with what it takes to be allowed to change something --------------------------- */

int sr_catalog__lock(struct sr_region *r, struct sr_error *e)
{
    bool abandoned;
    int got = sr_lock(r, &abandoned, e);
    if (got < 0) return got;
    struct sr_state *s = sr_state(r);
    bool damaged = sr_state_flags(s) & SR_STATE_DAMAGED, unsure = false;
    if (abandoned && !damaged) {
        got = sr_catalog__recover(r, e);
        /* Damage stays. What this process lacked, memory or address space, the next one may have. */
        unsure = got < 0;
        if (got == SR_E_CORRUPT) sr_state_set_flag(s, SR_STATE_DAMAGED);
    }
    if (damaged) got = sr_fail(e, SR_E_CORRUPT, 0, "region '%s' is damaged, and nothing can be changed in it any more", r->name);
    if (got == 0 && r->row_was_dirty) {
        /* Before anything is written under this row's number: what its former owner left. */
        got = sr_pending__sweep(r, e);
        if (got == 0) sr_member_settled(r);
    }
    if (got == 0) return 0;
    if (unsure || damaged) sr_unlock_unsure(r);
    else sr_unlock(r);
    return got;
}

static int lock_to_change(struct sr_region *r, struct sr_error *e)
{
    int got = sr_catalog__lock(r, e);
    if (got < 0) return got;
    if (!(sr_state_flags(sr_state(r)) & SR_STATE_SEALED)) return 0;
    sr_unlock(r);
    return sr_fail(e, SR_E_READ_ONLY, 0, "region '%s' is sealed", r->name);
}

static void announce(struct sr_region *r, uint64_t hash) { atomic_fetch_add(&sr_state(r)->st_watch[hash % SR_WATCH_WORDS], 1); }
/* A sleeper counts itself, then sleeps only if the word is what it saw; a writer changes the word, then
 * looks at the count. Both are locked instructions, so one of the two sees the other. */
static _Atomic uint32_t *waiters_of(struct sr_region *r, uint64_t hash) { return &sr_members(r)->mh_waiters[hash % SR_WATCH_WORDS]; }
static void wake(struct sr_region *r, uint64_t hash)
{
    if (SR_UNLIKELY(atomic_load(waiters_of(r, hash)) != 0)) sr_sys->futex_wake(&sr_state(r)->st_watch[hash % SR_WATCH_WORDS], INT_MAX);
}

/* --- withdrawn objects ------------------------------------------------------------------------ */

static int free_if_unheld(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t block;
    int got = sr_entry__sound(r, n, e);    /* or another object's block would be given back */
    if (got == 0) got = sr_entry__block(r, n, &block, e);
    if (got < 0) return got;
    /* Who finds it by a reference pins it, and looks at the state again (sr_catalog_get_exact). So one
     * of the two sees the other. */
    if (sr_state_of(sr_entry(r, n), n) != SR_ENTRY_LEAVING) atomic_store(&sr_entry(r, n)->ent_state, sr_state_pack(SR_ENTRY_LEAVING, n));
    if (sr_pinned(r, block)) {
        atomic_store(&sr_entry(r, n)->ent_state, sr_state_pack(SR_ENTRY_LIMBO, n));
        return 0;
    }
    got = sr_list__remove(r, &s->st_limbo, n, e);
    if (got == 0) got = sr_alloc_give(r, block, e);
    if (got < 0) return got;
    s->st_limbo_count -= s->st_limbo_count > 0;
    sr_entry__free_chain(r, n);
    return 1;
}

int sr_limbo__flush(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t left = s->st_limbo_count;
    for (uint32_t n = s->st_limbo, next; n != 0; n = next) {
        uint32_t state = sr_entry_ok(r, n) ? sr_state_of(sr_entry(r, n), n) : SR_ENTRY_BAD;
        if (left-- == 0 || (state != SR_ENTRY_LIMBO && state != SR_ENTRY_LEAVING)) return bad(r, e, "the list of withdrawn objects");
        next = sr_entry(r, n)->ent_next;
        int got = free_if_unheld(r, n, e);
        if (got < 0) return got;
    }
    return left == 0 ? 0 : bad(r, e, "the list of withdrawn objects");
}

/* From here the object is gone, but for references to it. The one that was just withdrawn is looked at,
 * and the others only if some pin was dropped since. */
static int retire(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    sr_entry__withdraw(r, n);
    atomic_store(&sr_entry(r, n)->ent_state, sr_state_pack(SR_ENTRY_LEAVING, n));
    sr_list__push(r, &s->st_limbo, n);
    s->st_limbo_count++;
    uint32_t releases = atomic_load(&sr_members(r)->mh_releases);
    if (releases == s->st_releases_seen) {
        int got = free_if_unheld(r, n, e);
        return got < 0 ? got : 0;
    }
    s->st_releases_seen = releases;
    return sr_limbo__flush(r, e);
}

int sr_pending__sweep(struct sr_region *r, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t left = s->st_pending_count;
    for (uint32_t n = s->st_pending, next; n != 0; n = next) {
        if (!sr_entry_ok(r, n) || left-- == 0 || sr_state_of(sr_entry(r, n), n) != SR_ENTRY_PENDING)
            return bad(r, e, "the list of unfinished objects");
        struct sr_entry *entry = sr_entry(r, n);
        next = entry->ent_next;
        /* A damaged owner would look dead, and its block be given to others while it fills it. */
        int sound = sr_entry__sound(r, n, e);
        if (sound < 0) return sound;
        if (sr_member_alive(r, entry->ent_owner, entry->ent_owner_gen)) continue;
        uint32_t block;
        int got = sr_entry__block(r, n, &block, e);
        if (got == 0) got = sr_list__remove(r, &s->st_pending, n, e);
        if (got == 0) got = sr_alloc_give(r, block, e);
        if (got < 0) return got;
        s->st_pending_count -= s->st_pending_count > 0;
        sr_entry__free_chain(r, n);
    }
    return left == 0 ? 0 : bad(r, e, "the list of unfinished objects");
}

int sr_catalog_sweep(struct sr_region *r, struct sr_error *e)
{
    int got = sr_catalog__lock(r, e);
    if (got < 0) return got;
    got = sr_pending__sweep(r, e);
    if (got == 0) got = sr_limbo__flush(r, e);
    sr_unlock(r);
    return got;
}

/* --- drafts ----------------------------------------------------------------------------------- */

static int check_desc(struct sr_region *r, const struct sr_desc *d, struct sr_error *e)
{
    if (d->name_len == 0) return sr_fail(e, SR_E_INVALID, -EINVAL, "an object's name may not be empty");
    if (d->name_len > SR_OBJECT_NAME_MAX)
        return sr_fail(e, SR_E_INVALID, -ENAMETOOLONG, "an object's name may have %d bytes of UTF-8", SR_OBJECT_NAME_MAX);
    if (d->meta_len > SR_META_MAX)
        return sr_fail(e, SR_E_INVALID, -E2BIG, "the description of the object's type has %u bytes, %u are possible", d->meta_len, SR_META_MAX);
    (void)r;
    return 0;
}

static const uint8_t *text_at(const struct sr_desc *d, size_t at, size_t *have)
{
    if (at < d->name_len) return *have = d->name_len - at, (const uint8_t *)d->name + at;
    return *have = (size_t)d->name_len + d->meta_len - at, d->meta + (at - d->name_len);
}

static void copy_text(uint8_t *to, const struct sr_desc *d, size_t at, size_t len)
{
    while (len) {
        size_t have;
        const uint8_t *from = text_at(d, at, &have);
        have = sr_min(have, len);
        memcpy(to, from, have);
        to += have;
        at += have;
        len -= have;
    }
}

/* Entry n and its continuations, filled but for block and checksum. */
static int fill_entry(struct sr_region *r, uint32_t n, const struct sr_desc *d, uint64_t hash, struct sr_error *e)
{
    struct sr_entry *entry = sr_entry(r, n);
    size_t text = (size_t)d->name_len + d->meta_len, at = sr_min(text, sizeof entry->ent_text);
    /* Not what it was in its last life: a reference to that must not be led here. */
    atomic_store_explicit(&entry->ent_version, 0, memory_order_relaxed);
    memset((char *)entry + offsetof(struct sr_entry, ent_prev), 0, sizeof *entry - offsetof(struct sr_entry, ent_prev));
    entry->ent_owner = sr_member_row(r);
    entry->ent_owner_gen = (uint16_t)sr_member_gen(r);
    entry->ent_hash = hash;
    entry->ent_len = d->len;
    entry->ent_type = d->type;
    entry->ent_flags = d->flags;
    entry->ent_name_len = d->name_len;
    entry->ent_meta_len = d->meta_len;
    copy_text(entry->ent_text, d, 0, at);
    uint32_t *link = &entry->ent_more;
    while (at < text) {
        uint32_t more;
        int got = sr_entry__new(r, &more, e);
        if (got < 0) return got;
        struct sr_more *m = (struct sr_more *)sr_entry(r, more);
        size_t piece = sr_min(text - at, sizeof m->more_text);
        m->more_next = 0;
        m->more_reserved = 0;
        copy_text(m->more_text, d, at, piece);
        atomic_store(&m->more_state, sr_state_pack(SR_ENTRY_MORE, more));
        *link = more;
        link = &m->more_next;
        at += piece;
    }
    return 0;
}

static int take_block(struct sr_region *r, uint64_t len, struct sr_extent *extent, struct sr_error *e)
{
    int got = sr_alloc_take(r, len, extent, e);
    if (got != SR_E_FULL) return got;
    /* Before saying so: what the dead hold, and what nobody looks at any more. */
    got = sr_pending__sweep(r, e);
    if (got == 0) got = sr_limbo__flush(r, e);
    return got == 0 ? sr_alloc_take(r, len, extent, e) : got;
}

/* The checksum of an entry that says what this process knows, and in shared memory only what else was
 * taken for it. */
static uint32_t crc_of(struct sr_region *r, const struct sr_desc *d, uint64_t hash, const struct sr_draft *draft, const struct sr_entry *entry)
{
    const size_t text = (size_t)d->name_len + d->meta_len, inlined = sr_min(text, sizeof entry->ent_text);
    struct sr_entry want = {
        .ent_owner = sr_member_row(r), .ent_owner_gen = (uint16_t)sr_member_gen(r), .ent_block = draft->block, .ent_hash = hash,
        .ent_off = draft->off.at, .ent_len = d->len, .ent_more = entry->ent_more, .ent_type = d->type, .ent_flags = d->flags,
        .ent_name_len = d->name_len, .ent_meta_len = d->meta_len,
    };
    uint8_t tail[SR_TEXT_MAX];
    copy_text(want.ent_text, d, 0, inlined);
    copy_text(tail, d, inlined, text - inlined);
    return sr_catalog__crc(&want, draft->entry, tail, text - inlined);
}

int sr_catalog_give_back(struct sr_region *r, uint64_t bytes, uint64_t *given, struct sr_error *e)
{
    *given = 0;
    for (uint64_t pages = 1; *given < bytes && pages;) {
        int got = sr_catalog__lock(r, e);
        if (got < 0) return got;
        if (sr_state_flags(sr_state(r)) & SR_STATE_SEALED) return sr_unlock(r), 0;    /* the kernel may refuse it */
        uint64_t left = bytes - *given, granule = r->head.hd_granule;
        got = sr_alloc_reclaim(r, sr_min(left / granule + (left % granule > 0), BATCH), &pages, e);
        sr_unlock(r);
        if (got < 0) return got;
        *given += pages * granule;
    }
    return 0;
}

uint64_t sr_catalog_fresh(struct sr_region *r, uint64_t len)
{
    if (sr_catalog__lock(r, NULL) < 0) return 0;
    uint64_t fresh = sr_alloc_fresh(r, len);
    sr_unlock(r);
    return fresh;
}

/* Under the lock: one batch of the pages that have to go before more is committed. *more: not all. */
static int give_back(struct sr_region *r, bool *more, struct sr_error *e)
{
    uint64_t pages, excess = sr_alloc_excess(r);
    int got = excess ? sr_alloc_reclaim(r, sr_min(excess, BATCH), &pages, e) : 0;
    *more = got == 0 && sr_alloc_excess(r) > 0;
    return got;
}

/* Memory behind a draft, whose block was taken. Without the lock: it may take long. */
static int commit_draft(struct sr_region *r, const struct sr_draft *draft, bool excess, struct sr_error *e)
{
    while (excess) {
        int got = sr_catalog__lock(r, e);
        if (got < 0) return got;
        got = give_back(r, &excess, e);
        sr_unlock(r);
        if (got < 0) return got;
    }
    int got = sr_region_commit(r, draft->off, draft->len, e);
    if (got != SR_E_FULL) return got;
    /* No more memory is to be had. What this region has and does not need will do. */
    uint64_t pages = 0;
    if (sr_catalog_give_back(r, sr_region_uncommitted(r, draft->off, draft->len), &pages, NULL) < 0 || pages == 0) return got;
    return sr_region_commit(r, draft->off, draft->len, e);
}

/* Under the lock. */
static int begin(struct sr_region *r, const struct sr_desc *d, uint64_t hash, struct sr_draft *draft, struct sr_error *e)
{
    uint32_t n;
    struct sr_extent extent;
    int got = sr_index__grow(r, e);
    if (got == 0) got = sr_entry__new(r, &n, e);
    if (got < 0) return got;
    got = fill_entry(r, n, d, hash, e);
    if (got == 0) got = take_block(r, d->len, &extent, e);
    if (got < 0) {
        sr_entry__free_chain(r, n);
        return got;
    }
    struct sr_entry *entry = sr_entry(r, n);
    entry->ent_block = extent.block;
    entry->ent_off = extent.off;
    *draft = (struct sr_draft){n, extent.block, {extent.off}, d->len};
    entry->ent_crc = crc_of(r, d, hash, draft, entry);
    atomic_store(&entry->ent_state, sr_state_pack(SR_ENTRY_PENDING, n));
    sr_list__push(r, &sr_state(r)->st_pending, n);
    sr_state(r)->st_pending_count++;
    return 0;
}

/* 0 if this process's own unfinished object is as it was begun: nothing of it is taken from shared
 * memory, so that damage meanwhile is not published under a checksum of its own. */
static int still_ours(struct sr_region *r, const struct sr_desc *d, uint64_t hash, const struct sr_draft *draft, struct sr_error *e)
{
    const struct sr_entry *entry = sr_entry(r, draft->entry);
    uint32_t state = sr_state_of(entry, draft->entry);
    bool ours = state == SR_ENTRY_PENDING && entry->ent_owner == sr_member_row(r) && entry->ent_owner_gen == (uint16_t)sr_member_gen(r);
    if (ours && entry->ent_crc == crc_of(r, d, hash, draft, entry)) return 0;
    if (state == SR_ENTRY_BAD || sr_entry__sound(r, draft->entry, NULL) < 0) return bad(r, e, "an unfinished object");
    return sr_fail(e, SR_E_LOST, 0, "the unfinished object in region '%s' is not this process's", r->name);
}

/* Before an object is withdrawn: that it is what it says. A damaged entry, which the index has already
 * told, or block must not take another object's block with it. */
static int check_leaving(struct sr_region *r, uint32_t n, struct sr_error *e)
{
    uint32_t block;
    uint64_t last, seq = sr_seq_of(sr_entry(r, n), n);
    if (!sr_word_unpack(atomic_load(&sr_state(r)->st_seq), SR_STATE_SALT(st_seq), &last) || seq > last) return bad(r, e, "the publication number of an object");
    return sr_entry__block(r, n, &block, e);
}

static int next_seq(struct sr_region *r, uint64_t *seq, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    if (!sr_word_unpack(atomic_load(&s->st_seq), SR_STATE_SALT(st_seq), seq) || *seq >= SR_WORD_MAX) return bad(r, e, "the last publication number");
    ++*seq;
    sr_state_put(&s->st_seq, *seq, SR_STATE_SALT(st_seq));
    return 0;
}

/* Under the lock. */
static int publish(struct sr_region *r, const struct sr_desc *d, uint64_t hash, const struct sr_draft *draft, uint64_t *out, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    struct sr_entry *entry = sr_entry(r, draft->entry);
    uint32_t old = 0;
    uint64_t seq;
    uint64_t slot = SR_NO_SLOT;
    int got = sr_index__find(r, hash, d->name, d->name_len, &slot, &old, e);
    if (got == SR_E_NO_OBJECT) got = 0;
    else if (got == 0) got = check_leaving(r, old, e);
    if (got == 0) got = sr_list__remove(r, &s->st_pending, draft->entry, e);
    if (got < 0) return got;
    s->st_pending_count -= s->st_pending_count > 0;
    got = next_seq(r, &seq, e);
    if (got < 0) return got;
    atomic_store(&entry->ent_version, sr_version_pack(seq, seq));
    atomic_store(&entry->ent_state, sr_state_pack(SR_ENTRY_LIVE, draft->entry));
    atomic_store(&entry->ent_seq, sr_seq_pack(seq, draft->entry));    /* from here the object exists, also after a kill */
    got = sr_index__store(r, hash, slot, draft->entry, e);
    if (got < 0) return got;
    if (old) {
        got = retire(r, old, e);
    } else {
        s->st_objects++;
    }
    announce(r, hash);
    *out = seq;
    return got;
}

int sr_draft_begin(struct sr_region *r, const struct sr_desc *d, struct sr_draft *draft, struct sr_error *e)
{
    int got = check_desc(r, d, e);
    if (got == 0) got = lock_to_change(r, e);
    if (got < 0) return got;
    bool excess = false;
    got = begin(r, d, sr_hash64(d->name, d->name_len), draft, e);
    int given = got == 0 ? give_back(r, &excess, e) : 0;
    sr_unlock(r);
    if (got < 0) return got;
    got = given < 0 ? given : commit_draft(r, draft, excess, e);
    if (got < 0) {
        if (got == SR_E_FULL && e) e->wanted = d->len;
        sr_draft_drop(r, d, draft);
    }
    return got;
}

int sr_draft_publish(struct sr_region *r, const struct sr_desc *d, const struct sr_draft *draft, uint64_t *seq, struct sr_error *e)
{
    /* Stores that bypass the cache (a large memcpy uses them) are not ordered by the lock. */
    __builtin_ia32_sfence();
    int got = lock_to_change(r, e);
    if (got < 0) return got;
    uint64_t hash = sr_hash64(d->name, d->name_len);
    got = still_ours(r, d, hash, draft, e);
    if (got == 0) got = publish(r, d, hash, draft, seq, e);
    sr_unlock(r);
    if (got == 0) wake(r, hash);
    return got;
}

void sr_draft_drop(struct sr_region *r, const struct sr_desc *d, const struct sr_draft *draft)
{
    if (sr_catalog__lock(r, NULL) < 0) return;    /* whoever sweeps will find it without an owner */
    struct sr_state *s = sr_state(r);
    if (still_ours(r, d, sr_hash64(d->name, d->name_len), draft, NULL) == 0 && sr_list__remove(r, &s->st_pending, draft->entry, NULL) == 0 &&
        sr_alloc_give(r, draft->block, NULL) == 0) {
        s->st_pending_count -= s->st_pending_count > 0;
        sr_entry__free_chain(r, draft->entry);
    }
    sr_unlock(r);
}

/* Small, and no memory to be committed: one lock for all of it. 1: not possible this way. */
static int put_small(struct sr_region *r, const struct sr_desc *d, uint64_t hash, const void *data, uint64_t *seq, struct sr_error *e)
{
    struct sr_draft draft;
    int got = lock_to_change(r, e);
    if (got < 0) return got;
    got = begin(r, d, hash, &draft, e);
    if (got == 0 && sr_region_uncommitted(r, draft.off, draft.len)) {
        bool excess;
        int given = give_back(r, &excess, e);
        sr_unlock(r);
        got = given < 0 ? given : commit_draft(r, &draft, excess, e);
        if (got < 0) {
            sr_draft_drop(r, d, &draft);
            return got;
        }
        if (d->len) memcpy(r->data.at + draft.off.at, data, d->len);
        got = sr_draft_publish(r, d, &draft, seq, e);
        if (got < 0) sr_draft_drop(r, d, &draft);
        return got;
    }
    if (got == 0) {
        if (d->len) memcpy(r->data.at + draft.off.at, data, d->len);
        got = publish(r, d, hash, &draft, seq, e);
    }
    sr_unlock(r);
    if (got == 0) wake(r, hash);
    return got;
}

int sr_catalog_put(struct sr_region *r, const struct sr_desc *d, const void *data, uint64_t *seq, struct sr_error *e)
{
    int got = check_desc(r, d, e);
    if (got < 0) return got;
    if (d->len <= SMALL) return put_small(r, d, sr_hash64(d->name, d->name_len), data, seq, e);
    struct sr_draft draft;
    got = sr_draft_begin(r, d, &draft, e);
    if (got < 0) return got;
    sr_catalog_copy(r->data.at + draft.off.at, data, d->len);
    got = sr_draft_publish(r, d, &draft, seq, e);
    if (got < 0) sr_draft_drop(r, d, &draft);
    return got;
}

/* --- changes ---------------------------------------------------------------------------------- */

static int missing(struct sr_region *r, const char *name, size_t len, struct sr_error *e)
{
    return sr_fail(e, SR_E_NO_OBJECT, 0, "region '%s' has no object '%.*s'", r->name, (int)sr_min(len, SR_OBJECT_NAME_MAX), name);
}

static int withdraw(struct sr_region *r, const char *name, size_t len, uint64_t hash, uint64_t seq, struct sr_error *e)
{
    struct sr_state *s = sr_state(r);
    uint32_t n = 0;
    uint64_t slot;
    int got = sr_index__find(r, hash, name, len, &slot, &n, e);
    if (got == SR_E_NO_OBJECT || (got == 0 && seq && sr_seq_of(sr_entry(r, n), n) != seq)) return missing(r, name, len, e);
    if (got == 0) got = check_leaving(r, n, e);
    if (got < 0) return got;
    sr_entry__withdraw(r, n);
    sr_index__clear(r, slot);
    s->st_objects -= s->st_objects > 0;
    got = retire(r, n, e);
    announce(r, hash);
    return got;
}

int sr_catalog_delete(struct sr_region *r, const char *name, size_t len, uint64_t seq, struct sr_error *e)
{
    if (len > SR_OBJECT_NAME_MAX) return missing(r, name, len, e);
    int got = lock_to_change(r, e);
    if (got < 0) return got;
    uint64_t hash = sr_hash64(name, len);
    got = withdraw(r, name, len, hash, seq, e);
    sr_unlock(r);
    if (got == 0) wake(r, hash);
    return got;
}

int sr_catalog_bump(struct sr_region *r, const char *name, size_t len, uint64_t *version, struct sr_error *e)
{
    if (len > SR_OBJECT_NAME_MAX) return missing(r, name, len, e);
    __builtin_ia32_sfence();
    int got = lock_to_change(r, e);
    if (got < 0) return got;
    uint64_t hash = sr_hash64(name, len);
    uint32_t n = 0;
    uint64_t slot;
    got = sr_index__find(r, hash, name, len, &slot, &n, e);
    if (got == SR_E_NO_OBJECT) got = missing(r, name, len, e);
    else if (got == 0 && !(sr_entry(r, n)->ent_flags & SR_ENTRY_MUTABLE))
        got = sr_fail(e, SR_E_READ_ONLY, 0, "object '%.*s' is not mutable: put a new version of it instead", (int)len, name);
    if (got == 0) got = next_seq(r, version, e);
    if (got == 0) {
        atomic_store(&sr_entry(r, n)->ent_version, sr_version_pack(*version, sr_seq_of(sr_entry(r, n), n)));
        announce(r, hash);
    }
    sr_unlock(r);
    if (got == 0) wake(r, hash);
    return got;
}

int sr_catalog_seal(struct sr_region *r, struct sr_error *e)
{
    int got = sr_catalog__lock(r, e);
    if (got < 0) return got;
    sr_state_set_flag(sr_state(r), SR_STATE_SEALED);
    sr_unlock(r);
    sr_region_seal_memory(r);
    return 0;
}

/* --- waiting, numbers ------------------------------------------------------------------------- */

int sr_catalog_wait(struct sr_region *r, const char *name, size_t len, uint64_t newer_than, uint64_t slice_ns, uint64_t *version, struct sr_error *e)
{
    if (len > SR_OBJECT_NAME_MAX) return missing(r, name, len, e);
    uint64_t hash = sr_hash64(name, len);
    const _Atomic uint32_t *word = &sr_state(r)->st_watch[hash % SR_WATCH_WORDS];
    uint32_t seen = atomic_load(word);
    struct sr_found f;
    int got = sr_catalog_get(r, name, len, false, &f, e);
    if (got < 0 && got != SR_E_NO_OBJECT) return got;
    if (got == 0 && f.version > newer_than) return *version = f.version, 0;
    const struct timespec slice = {.tv_sec = (time_t)(slice_ns / 1000000000u), .tv_nsec = (long)(slice_ns % 1000000000u)};
    atomic_fetch_add(waiters_of(r, hash), 1);
    sr_sys->futex_wait(word, seen, &slice);
    atomic_fetch_sub(waiters_of(r, hash), 1);
    return 1;
}

void sr_catalog_stats(struct sr_region *r, struct sr_stats *out)
{
    const struct sr_state *s = sr_state(r);
    uint64_t told[SR_TOLD_COUNT];
    bool sound = true;
    for (uint32_t i = 0; i < SR_TOLD_COUNT; i++) sound &= sr_state_told(s, (enum sr_told)i, &told[i]);
    *out = (struct sr_stats){
        .size = sr_align_down(r->head.hd_size, SR_BLOCK_UNIT),
        .used = told[SR_TOLD_UNITS_USED] * SR_BLOCK_UNIT,
        .largest = sr_alloc_largest(r),
        .objects = (uint32_t)told[SR_TOLD_OBJECTS],
        .limbo = (uint32_t)told[SR_TOLD_LIMBO],
        .pending = (uint32_t)told[SR_TOLD_PENDING],
        .recoveries = (uint32_t)told[SR_TOLD_RECOVERIES],
        .flags = sr_state_flags(s),
        .sound = sound,
    };
    /* An onlooker has no copy of the commit map. */
    if (!r->onlooker) out->committed = sr_alloc_committed(r);
    uint32_t high = sr_rows_high(r);
    for (uint32_t n = 0; n < high; n++) out->members += sr_rows_held(r, n, 1) > 0;
}
