/* steps, code: which addresses belong to region, alloc and catalog, and which were executed. */
#define _GNU_SOURCE
#include <elf.h>
#include <link.h>
#include <sys/mman.h>

#include "steps.h"

uintptr_t code_base;
uint8_t *room_of;       /* per byte of code: 0 none, else 1 + index in functions */
struct function functions[FUNCTIONS_MAX];
uint32_t functions_count;

static int find_base(struct dl_phdr_info *info, size_t size, void *out)
{
    (void)size;
    *(uintptr_t *)out = info->dlpi_addr;
    return 1;    /* the first is the program itself */
}

static bool our_file(const char *file)
{
    static const char *const files[] = {"alloc.c", "place.c", "names.c", "segment.c", "commit.c", "create.c", "reclaim.c", "member.c", "lock.c", "state.c", "view.c", "files.c", "share.c", "msharefs.c",
                                        "entries.c", "index.c", "store.c", "recover.c"};
    for (size_t i = 0; i < SR_ARRAY_LEN(files); i++)
        if (strcmp(file, files[i]) == 0) return true;
    return false;
}

static bool our_name(const char *name)
{
    static const char *const prefixes[] = {"sr_alloc_", "sr_catalog_", "sr_draft_", "sr_index__", "sr_entry__", "sr_list__",
        "sr_limbo__", "sr_pending__", "sr_region_", "sr_member_", "sr_pin", "sr_unpin", "sr_ticket", "sr_lock", "sr_unlock", "sr_view_", "sr_share_", "sr_msharefs_"};
    for (size_t i = 0; i < SR_ARRAY_LEN(prefixes); i++)
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return false;
}

/* Which addresses belong to region, alloc and catalog: by the program's own symbol table. */
void read_symbols(void)
{
    dl_iterate_phdr(find_base, &code_base);
    SR_FD fd = sr_sys->openat(AT_FDCWD, "/proc/self/exe", O_RDONLY, 0);
    struct stat st;
    EXPECT(fd >= 0 && sr_sys->fstat(fd, &st) == 0, "the program cannot read itself");
    const char *file = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    EXPECT(file != MAP_FAILED, "the program cannot map itself");
    room_of = calloc(CODE_MAX, 1);
    const Elf64_Ehdr *elf = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + elf->e_shoff);
    for (int i = 0; i < elf->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *strings = file + sections[sections[i].sh_link].sh_offset, *source = "";
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            const Elf64_Sym *s = &symbols[k];
            const char *name = strings + s->st_name;
            if (ELF64_ST_TYPE(s->st_info) == STT_FILE) source = name;
            if (ELF64_ST_TYPE(s->st_info) != STT_FUNC || s->st_size == 0 || s->st_value + s->st_size > CODE_MAX) continue;
            bool file_scope = ELF64_ST_BIND(s->st_info) == STB_LOCAL && source[0] != '\0';
            if (!(file_scope && our_file(source)) && !our_name(name)) continue;
            struct function *f = &functions[functions_count++];
            EXPECT(functions_count < SR_ARRAY_LEN(functions), "too many functions");
            *f = (struct function){.at = (uint32_t)s->st_value, .size = (uint32_t)s->st_size};
            snprintf(f->name, sizeof f->name, "%.47s", name);
            memset(room_of + s->st_value, 1, s->st_size);
        }
    }
    EXPECT(functions_count > 50, "the program was stripped of its symbols");
}
