/* error: filling struct sr_error, and text that cannot overflow. */
#include "sr_base.h"

#include <stdarg.h>
#include <stdio.h>

/* A cut must not leave half a UTF-8 character behind: the text becomes a Python str. */
void sr_end_on_character(char *s)
{
    size_t n = strlen(s);
    size_t back = 0;
    while (back < n && back < 4 && ((unsigned char)s[n - 1 - back] & 0xC0) == 0x80) back++;
    if (back == n || n == 0) return;
    unsigned char lead = (unsigned char)s[n - 1 - back];
    size_t need = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
    if (need > back) s[n - 1 - back] = '\0';
}

int sr_fail(struct sr_error *e, int code, int neg_errno, const char *format, ...)
{
    if (e == NULL) return code;
    va_list ap;
    va_start(ap, format);
    memset(e, 0, sizeof *e);
    e->code = code;
    e->sys_errno = neg_errno < 0 ? -neg_errno : neg_errno;
    vsnprintf(e->what, sizeof e->what, format, ap);
    va_end(ap);
    sr_end_on_character(e->what);
    return code;
}

void sr_text_add(struct sr_text *t, const char *format, ...)
{
    if (t->cut) return;
    va_list ap;
    va_start(ap, format);
    int n = vsnprintf(t->at + t->len, t->cap - t->len, format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= t->cap - t->len) {
        t->cut = true;
        t->at[t->len] = '\0';
        return;
    }
    t->len += (size_t)n;
}
