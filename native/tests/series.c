/* series: a second msharefs interface beside the first. Its operations are written and listed, and
 * everything else stays as it is: which one a machine has is found by trying, and a descriptor of a
 * region goes to the series that made it. This one is by calls and needs no mount; it is a memfd.
 */
struct sr_msharefs_abi;
extern const struct sr_msharefs_abi by_calls;
#define SR_MSHAREFS_SERIES &v3, &by_calls
#include "../sys/msharefs.c"

#include <unistd.h>

#include "support.h"

#define UNIT (UINT64_C(1) << 30)

static const char *asked;    /* the last operation */

static int calls_unit(const char *path, uint64_t *unit)
{
    if (*path) return -ENODEV;
    *unit = UNIT;
    return 0;
}
static int calls_make(const char *path, unsigned mode) { return (void)mode, *path ? -EINVAL : sr_sys->memfd_create("by calls", MFD_CLOEXEC); }
static bool calls_mine(int region)
{
    char link[64], target[64] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", region);
    return readlink(link, target, sizeof target - 1) > 0 && strstr(target, "by calls");
}
static int calls_size(int region, uint64_t size) { return asked = "size", sr_sys->ftruncate(region, (off_t)size); }
static int calls_reader(int region) { return asked = "reader", sr_sys_reopen(region, O_RDONLY); }
static int calls_place(int region, uint64_t at, uint64_t len, int fd, uint64_t from)
{
    asked = "place";
    return (void)region, (void)fd, at + len <= UNIT && at == from ? 0 : -EINVAL;
}
static int calls_remove(int region, uint64_t at, uint64_t len) { return asked = "remove", (void)region, (void)at, (void)len, 0; }
static int calls_attach(int region, uint64_t size, uint64_t unit, struct sr_map *map)
{
    asked = "attach";
    return sr_sys_map(map, size, unit, PROT_READ, MAP_SHARED | MAP_NORESERVE, region, 0);
}

const struct sr_msharefs_abi by_calls = {
    .name = "by calls", .unit = calls_unit, .make = calls_make, .mine = calls_mine, .size = calls_size, .reader = calls_reader,
    .place = calls_place, .remove = calls_remove, .attach = calls_attach,
};

#define ASKED(what, call) do { EXPECT((call) >= 0, #call); EXPECT(strcmp(asked, what) == 0, #call " went to " #what); } while (0)

int main(void)
{
    struct sr_msharefs m;
    struct sr_map map;
    EXPECT(sr_msharefs_find("", &m) == 0 && m.unit == UNIT && strcmp(sr_msharefs_abi_name(&m), "by calls") == 0, "found without a mount");
    SR_FD region = sr_msharefs_make(&m, 0600);
    EXPECT(region >= 0, "a region of the second series");
    SR_FD memory = sr_sys->memfd_create("memory", MFD_CLOEXEC);
    ASKED("size", sr_msharefs_size(region, UNIT));
    ASKED("place", sr_msharefs_place(region, 0, SR_LARGE_PAGE, memory, 0));
    ASKED("remove", sr_msharefs_remove(region, 0, SR_LARGE_PAGE));
    ASKED("attach", sr_msharefs_attach(region, UNIT, UNIT, &map));
    EXPECT(sr_is_aligned((uintptr_t)map.at, UNIT), "at a multiple of the unit");
    SR_FD reader = sr_msharefs_reader(region);
    EXPECT(reader >= 0 && calls_mine(reader), "a descriptor for readers");
    sr_sys_unmap(&map);

    /* What no series made is nobody's; and what is no mount is not taken for one. */
    asked = "nobody";
    EXPECT(sr_msharefs_size(memory, UNIT) == -ENOTTY && sr_msharefs_place(memory, 0, SR_PAGE, memory, 0) == -ENOTTY, "a memfd is no region");
    EXPECT(sr_msharefs_remove(memory, 0, SR_PAGE) == -ENOTTY && sr_msharefs_reader(memory) == -ENOTTY, "a memfd is no region");
    EXPECT(sr_msharefs_attach(memory, UNIT, UNIT, &map) == -ENOTTY && strcmp(asked, "nobody") == 0, "a memfd is no region");
    EXPECT(sr_msharefs_find("/proc", &m) == -ENODEV, "/proc is no msharefs");

    const char *mount = t_msharefs();
    if (mount == NULL) return puts("v3 beside it was not looked for: SHAREDREGION_MSHAREFS names no msharefs"), 0;
    EXPECT(sr_msharefs_find(mount, &m) == 0 && strcmp(sr_msharefs_abi_name(&m), "v3") == 0, "v3 where it is mounted");
    SR_FD old = sr_msharefs_make(&m, 0600);
    EXPECT(old >= 0 && sr_msharefs_size(old, m.unit) == 0 && strcmp(asked, "nobody") == 0, "a region of v3 beside it");
    return 0;
}
