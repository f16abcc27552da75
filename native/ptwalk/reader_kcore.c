/* reader_kcore: kernel memory through /proc/kcore, or an image of the same form.
 *
 * /proc/kcore is an ELF core file of the kernel: a PT_LOAD header for each range of kernel
 * addresses, and notes, one of which (type 4, NT_TASKSTRUCT, by fs/proc/kcore.c) holds the
 * task_struct of the thread that reads it.
 */
#include "reader.h"
#include "sr_sys.h"

#include <errno.h>
#include <elf.h>
#include <stdlib.h>

enum { SEGMENTS_MAX = 1 << 20, NOTE_TASK = 4 };

struct segment { uint64_t at, len, offset; };
struct kcore_reader {
    struct pt_reader pub;
    int fd;
    size_t count;
    struct segment *segment;    /* by address, none overlapping the next */
    uint64_t note_offset, note_len;
};

static int by_address(const void *a, const void *b)
{
    const struct segment *x = a, *y = b;
    return x->at < y->at ? -1 : x->at > y->at;
}

static const struct segment *find(const struct kcore_reader *k, uint64_t at)
{
    size_t low = 0, high = k->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (k->segment[mid].at <= at) low = mid + 1;
        else high = mid;
    }
    return low ? &k->segment[low - 1] : NULL;
}

static bool read_piece(const struct kcore_reader *k, uint64_t offset, void *to, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = sr_sys->pread(k->fd, (char *)to + done, len - done, (off_t)(offset + done));
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static int kcore_fetch(struct pt_reader *pub, struct pt_want *wants, size_t count)
{
    const struct kcore_reader *k = (struct kcore_reader *)pub;
    for (size_t i = 0; i < count; i++) {
        struct pt_want *w = &wants[i];
        const struct segment *s = find(k, w->at);
        w->ok = s && sr_range_ok(w->at - s->at, w->len, s->len) && read_piece(k, s->offset + (w->at - s->at), w->to, w->len);
        if (!w->ok) memset(w->to, 0, w->len);
    }
    return 0;
}

static int kcore_current(struct pt_reader *pub, void *task, size_t len)
{
    const struct kcore_reader *k = (struct kcore_reader *)pub;
    for (uint64_t at = 0; sr_range_ok(at, sizeof(Elf64_Nhdr), k->note_len);) {
        Elf64_Nhdr note;
        if (!read_piece(k, k->note_offset + at, &note, sizeof note)) return -EIO;
        at += sizeof note;
        uint64_t name = sr_align_up(note.n_namesz, 4), body = sr_align_up(note.n_descsz, 4);
        if (!sr_range_ok(at, name + body, k->note_len)) return -EBADMSG;
        if (note.n_type == NOTE_TASK) {
            if (note.n_descsz < len) return -EBADMSG;
            return read_piece(k, k->note_offset + at + name, task, len) ? 0 : -EIO;
        }
        at += name + body;
    }
    return -ENOENT;
}

static void kcore_close(struct pt_reader *pub)
{
    struct kcore_reader *k = (struct kcore_reader *)pub;
    sr_sys_close(&k->fd);
    free(k->segment);
    free(k);
}

static int read_headers(struct kcore_reader *k, const char *path, struct sr_error *e)
{
    Elf64_Ehdr h;
    if (!read_piece(k, 0, &h, sizeof h) || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0 || h.e_ident[EI_CLASS] != ELFCLASS64 ||
        h.e_machine != EM_X86_64 || h.e_type != ET_CORE || h.e_phentsize != sizeof(Elf64_Phdr))
        return sr_fail(e, SR_E_CORRUPT, 0, "%s is no core file of an x86_64 kernel", path);
    uint64_t count = h.e_phnum;
    if (count == PN_XNUM) {
        /* More than fit the field: the number is in the first section header. */
        Elf64_Shdr first;
        if (h.e_shoff == 0 || !read_piece(k, h.e_shoff, &first, sizeof first))
            return sr_fail(e, SR_E_CORRUPT, 0, "%s does not say how many segments it has", path);
        count = first.sh_info;
    }
    if (count == 0 || count > SEGMENTS_MAX) return sr_fail(e, SR_E_CORRUPT, 0, "%s has %llu segments", path, (unsigned long long)count);
    k->segment = malloc(count * sizeof k->segment[0]);
    if (k->segment == NULL) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory for the segments of %s", path);
    for (uint64_t i = 0; i < count; i++) {
        Elf64_Phdr p;
        if (!read_piece(k, h.e_phoff + i * sizeof p, &p, sizeof p))
            return sr_fail(e, SR_E_CORRUPT, 0, "%s ends within its headers", path);
        if (p.p_type == PT_NOTE) {
            k->note_offset = p.p_offset;
            k->note_len = p.p_filesz;
        } else if (p.p_type == PT_LOAD && p.p_filesz && p.p_vaddr <= UINT64_MAX - p.p_filesz && p.p_offset <= INT64_MAX - p.p_filesz) {
            k->segment[k->count++] = (struct segment){p.p_vaddr, p.p_filesz, p.p_offset};
        }
    }
    qsort(k->segment, k->count, sizeof k->segment[0], by_address);
    return 0;
}

int pt_reader_kcore_open(struct pt_reader **reader, const char *path, struct sr_error *e)
{
    struct kcore_reader *k = calloc(1, sizeof *k);
    if (k == NULL) return sr_fail(e, SR_E_NO_MEMORY, 0, "no memory");
    k->pub = (struct pt_reader){"kcore", kcore_fetch, kcore_current, kcore_close};
    k->fd = sr_sys->openat(AT_FDCWD, path, O_RDONLY, 0);
    int r = k->fd < 0 ? sr_fail(e, SR_E_UNAVAILABLE, k->fd, "%s cannot be opened", path) : read_headers(k, path, e);
    if (r < 0) {
        kcore_close(&k->pub);
        return r;
    }
    *reader = &k->pub;
    return 0;
}
