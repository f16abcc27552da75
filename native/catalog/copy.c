/* copy: filling a block, with several threads once it is large. They only copy; what they wrote is
 * ordered before publication by their end and the fence in sr_draft_publish.
 */
#include "sr_catalog.h"

#define SHARE_MIN (UINT64_C(32) << 20)    /* below this a thread costs more than it brings */

struct copying { unsigned char *to; const unsigned char *from; };

static int copy_part(void *arg, uint64_t at, uint64_t len)
{
    const struct copying *c = arg;
    memcpy(c->to + at, c->from + at, len);
    return 0;
}

void sr_catalog_copy(void *to, const void *from, uint64_t len)
{
    struct copying c = {to, from};
    if (len) sr_sys_in_parts(len, SR_PAGE, SHARE_MIN, copy_part, &c);
}
