/* region, between its own files. */
#ifndef SR_REGION_PRIVATE_H
#define SR_REGION_PRIVATE_H

#include "sr_keeper.h"
#include "sr_region.h"

#define SR_FILE_NAME 256
#define SR_SOCKET_PATH (sizeof SR_SHM_DIR + SR_FILE_NAME)

enum sr_segment { SR_SEGMENT_CATALOG, SR_SEGMENT_MEMBERS, SR_SEGMENT_DATA };

/* names.c */
void sr_region__file_name(char out[SR_FILE_NAME], const char *region, enum sr_segment segment, uint32_t generation);
void sr_region__socket_name(char out[SR_FILE_NAME], const uint8_t id[16]);
void sr_region__socket_path(char out[SR_SOCKET_PATH], const uint8_t id[16]);

/* files.c: the handle's descriptors, checked, and opened anew if the application closed them; -errno. */
int sr_region__members_fd(struct sr_region *r);
int sr_region__catalog_fd(struct sr_region *r);
int sr_region__data_fd(struct sr_region *r);
int sr_region__share_fd(struct sr_region *r);
bool sr_region__is(int fd, uint64_t dev, uint64_t ino);
/* Close it unless it has become somebody else's. */
void sr_region__close_own(int *fd, uint64_t dev, uint64_t ino);

/* view.c: the first, small mappings of catalog and members. */
int sr_region__view(struct sr_region *r, struct sr_error *e);

/* onlook.c: an onlooker's view grows by copying. */
bool sr_region__copy_gens(struct sr_region *r, unsigned from, unsigned until);
bool sr_region__copy_rows(struct sr_region *r, uint32_t from, uint32_t until);
/* share.c: all of it does nothing where the memory is not on msharefs. */
int sr_region__plan_share(struct sr_head *h, const struct sr_region_spec *spec, struct sr_error *e);
bool sr_region__share_ok(const struct sr_head *h, const struct sr_backend *b);
/* Get the region that the keeper has made, show in it what is committed, and try whether it works. */
int sr_region__make_share(struct sr_region *r, const struct sr_region_spec *spec, struct sr_error *e);
/* From the keeper, whose user must be `uid`; -errno. */
int sr_region__open_share(const struct sr_head *head, uint32_t uid, bool writable);
/* Map it: a reader's data, and what a writer sees of files. */
int sr_region__attach_share(struct sr_region *r, struct sr_map *map, struct sr_error *e);
void sr_region__touch_share(struct sr_region *r);
/* After granules were committed and before they are marked; after the mark is taken away and before
 * they are punched. */
int sr_region__show(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e);
int sr_region__hide(struct sr_region *r, uint64_t at, uint64_t len, struct sr_error *e);
/* Whether the granule at `at` is never given back. */
bool sr_region__stays(const struct sr_region *r, uint64_t at);
/* commit.c: say that granules [from, to) have memory, or have not. */
void sr_region__mark(const struct sr_region *r, uint64_t from, uint64_t to, bool yes);

/* segment.c */
int sr_region__open_dir(struct sr_error *e);
/* A checked head; SR_E_NOT_FOUND, SR_E_DENIED, SR_E_CORRUPT. Returns the catalog's descriptor. */
int sr_region__open_catalog(int dir, const char *name, bool writable, uint32_t owner, struct sr_head *head, struct sr_error *e);
/* The members segment that belongs to `head`, read-write; -ESTALE if the name has gone to another. */
int sr_region__open_members(int dir, const struct sr_head *head);
int sr_region__open_named(int dir, const struct sr_head *head, enum sr_segment segment, int flags, uint64_t dev, uint64_t ino);
/* The data segment of `head`; -ESTALE: the name has gone to another; -ECONNREFUSED or -ENOENT: no keeper. */
int sr_region__open_data(int dir, const struct sr_head *head, uint32_t uid, bool writable);
struct sr_region *sr_region__new(const char *name, struct sr_error *e);
void sr_region__free(struct sr_region *r);
int sr_region__map_small(int fd, uint64_t len, bool writable, struct sr_map *map, struct sr_error *e);
bool sr_region__same_file(int dir, const char *name, uint64_t dev, uint64_t ino);
/* While somebody (a keeper, the last member) holds all rows to remove the names: wait for it. */
void sr_region__await_removal(int members_fd, uint32_t rows);
/* Until the keeper has given the memory back, or somebody has joined. */
void sr_region__await_keeper(int dir, int members_fd, const struct sr_head *head);

/* reclaim.c */
/* The catalog that has the name now, opened and locked: whoever replaces it locks it alone, whoever
 * removes its name locks it with others, so that none takes away what another has just put there.
 * -ENOENT; -EAGAIN if somebody is stopped in the middle of it. */
int sr_region__lock_name(int dir, const char *region, bool alone);
/* Remove the names that are this generation's, the catalog's first. -errno of the catalog's. */
int sr_region__remove_names(int dir, const struct sr_head *head);
/* Segments of `name` and `generation` that no catalog speaks of and no living process holds: 1 if
 * removed, or with `look` if that could be done. */
int sr_region__remove_half_made(int dir, const char *name, uint32_t generation, bool look);

#endif
