/* reader_record: passes everything on to another reader and writes what it gave to a descriptor. */
#include "reader.h"
#include "sr_sys.h"

#include <errno.h>
#include <stdlib.h>

struct record_reader {
    struct pt_reader pub;
    struct pt_reader *inner;
    int fd;
};

static int put(int fd, const void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = sr_sys->write(fd, (const char *)data + done, len - done);
        if (n <= 0) return n < 0 ? (int)n : -EIO;
        done += (size_t)n;
    }
    return 0;
}

static int put_record(int fd, uint64_t at, const void *data, uint64_t len)
{
    uint64_t head[2] = {at, len};
    int r = put(fd, head, sizeof head);
    return r < 0 ? r : put(fd, data, len);
}

static int record_fetch(struct pt_reader *pub, struct pt_want *wants, size_t count)
{
    struct record_reader *rec = (struct record_reader *)pub;
    int r = pt_fetch(rec->inner, wants, count);
    for (size_t i = 0; r == 0 && i < count; i++)
        if (wants[i].ok) r = put_record(rec->fd, wants[i].at, wants[i].to, wants[i].len);
    return r;
}

static int record_current(struct pt_reader *pub, void *task, size_t len)
{
    struct record_reader *rec = (struct record_reader *)pub;
    int r = rec->inner->current(rec->inner, task, len);
    return r < 0 ? r : put_record(rec->fd, 1, task, len);
}

static void record_close(struct pt_reader *pub)
{
    struct record_reader *rec = (struct record_reader *)pub;
    rec->inner->close(rec->inner);
    free(rec);
}

int pt_reader_record_open(struct pt_reader **reader, struct pt_reader *inner, int fd)
{
    struct record_reader *rec = calloc(1, sizeof *rec);
    if (rec == NULL) return -ENOMEM;
    *rec = (struct record_reader){{inner->name, record_fetch, record_current, record_close}, inner, fd};
    *reader = &rec->pub;
    return 0;
}
