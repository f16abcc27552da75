/* region: a member's handle. The Python class Region derives from it, so that region[name] of an
 * array is one call into C. */
#include "sr_python.h"

#include <structmember.h>

/* --- life ------------------------------------------------------------------------------------- */

PyObject *srp_closed_error(void)
{
    struct sr_error e;
    sr_fail(&e, SR_E_CLOSED, 0, "the region is closed");
    return srp_raise(&e);
}

struct sr_region *srp_open(srp_region *self)
{
    if (self->r && !self->closed) return self->r;
    srp_closed_error();
    return NULL;
}

/* The same, for what hands out objects or changes them. With the keeper of an msharefs region goes what
 * readers see: a look at it would be SIGSEGV. Writers map the memory itself, and may still save it. */
static struct sr_region *open_live(srp_region *self, bool change)
{
    struct sr_region *r = srp_open(self);
    if (r == NULL || !(change || !r->writable) || !sr_region_lost(r)) return r;
    struct sr_error e;
    sr_fail(&e, SR_E_LOST, 0, "the keeper of region '%s' has ended, and with it what readers see of its memory", r->name);
    return srp_raise(&e), NULL;
}

static srp_region *all_regions;    /* guarded by the GIL */

bool srp_region_maps(const void *at)
{
    for (const srp_region *region = all_regions; region; region = region->next) {
        const struct sr_map *data = &region->r->data, *share = &region->r->share;
        if ((uintptr_t)at - (uintptr_t)data->at < data->len || (uintptr_t)at - (uintptr_t)share->at < share->len) return true;
    }
    return false;
}

void srp_region_give_back(srp_region *self)
{
    struct sr_region *r = self->r;
    self->r = NULL;
    if (r == NULL) return;
    *self->link = self->next;
    if (self->next) self->next->link = self->link;
    Py_BEGIN_ALLOW_THREADS
    sr_region_close(r);
    Py_END_ALLOW_THREADS
}

void srp_region_pin_added(srp_region *self) { self->pins++; }

/* Kept alive by the caller's reference. Arrays outlive close(); with the last of them it is carried
 * out, unless references are under way. */
void srp_region_pin_dropped(srp_region *self)
{
    if (--self->pins > 0 || self->r == NULL) return;
    if (sr_tickets_open(self->r, 0)) {
        srp_linger(self);
        return;
    }
    if (self->closed) srp_region_give_back(self);
}

/* For work without the GIL: close() in another thread must not unmap under it. */
static struct sr_region *enter(srp_region *self)
{
    struct sr_region *r = open_live(self, true);
    if (r) srp_region_pin_added(self);
    return r;
}
static void leave(srp_region *self) { srp_region_pin_dropped(self); }

static PyObject *make(PyTypeObject *type, struct sr_region *r)
{
    PyObject *(*alloc)(PyTypeObject *, Py_ssize_t) = (PyObject *(*)(PyTypeObject *, Py_ssize_t))PyType_GetSlot(type, Py_tp_alloc);
    srp_region *self = (srp_region *)alloc(type, 0);
    if (self == NULL) {
        sr_region_close(r);
        return NULL;
    }
    self->r = r;
    self->next = all_regions;
    self->link = &all_regions;
    if (all_regions) all_regions->link = &self->next;
    all_regions = self;
    return (PyObject *)self;
}

static PyObject *region_create(PyObject *cls, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"name", "size", "backend", "place", "mode", "persist", "replace", "commit_all", "reason", "keeper", "msharefs", NULL};
    struct sr_region_spec spec = {0};
    const char *backend, *place;
    unsigned long long size;
    int persist, replace, commit_all;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sKssIpppzz|z", names, &spec.name, &size, &backend, &place, &spec.mode,
                                     &persist, &replace, &commit_all, &spec.reason, &spec.keeper, &spec.msharefs))
        return NULL;
    spec.size = size;
    spec.persist = persist;
    spec.replace = replace;
    spec.commit_all = commit_all;
    spec.place = strcmp(place, "memfd") == 0 ? SR_PLACE_MEMFD : strcmp(place, "hugetlb") == 0 ? SR_PLACE_HUGETLB : SR_PLACE_SHM_DIR;
    spec.backend = sr_backend_of_name(backend);
    if (spec.backend == NULL) return PyErr_Format(PyExc_ValueError, "unknown kind of memory '%s'", backend);
    struct sr_error e = {0};
    struct sr_region *r;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_create(&r, &spec, &e);
    Py_END_ALLOW_THREADS
    return got < 0 ? srp_raise(&e) : make((PyTypeObject *)cls, r);
}

static PyObject *region_attach(PyObject *cls, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"name", "writable", "owner", NULL};
    const char *name;
    int writable;
    unsigned long owner = SR_NO_OWNER;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sp|k", names, &name, &writable, &owner)) return NULL;
    struct sr_error e = {0};
    struct sr_region *r;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_attach(&r, name, writable, (uint32_t)owner, &e);
    Py_END_ALLOW_THREADS
    return got < 0 ? srp_raise(&e) : make((PyTypeObject *)cls, r);
}

static void region_dealloc(PyObject *object)
{
    srp_region *self = (srp_region *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->weakrefs) PyObject_ClearWeakRefs(object);
    srp_region_give_back(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static int region_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyObject *region_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    srp_region *self = (srp_region *)object;
    if (!self->closed) {
        self->closed = true;
        self->pins++;
        srp_region_pin_dropped(self);
        srp_settle();
    }
    Py_RETURN_NONE;
}

static PyObject *region_retire(PyObject *object, PyObject *unused)
{
    (void)unused;
    srp_region *self = (srp_region *)object;
    if (self->r) {
        Py_BEGIN_ALLOW_THREADS
        sr_region_retire(self->r);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

/* --- names ------------------------------------------------------------------------------------ */

static const char *name_of(PyObject *name, Py_ssize_t *len)
{
    if (!PyUnicode_Check(name)) {
        PyErr_Format(PyExc_TypeError, "an object's name is a str, not %R", (PyObject *)Py_TYPE(name));
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(name, len);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "an object's name is text that UTF-8 can hold, not %R", name);
    }
    return text;
}

/* The same where an object is looked for: none has a name that is no text. */
static const char *known_name_of(PyObject *name, Py_ssize_t *len)
{
    const char *text = name_of(name, len);
    if (text || !PyErr_ExceptionMatches(PyExc_ValueError)) return text;
    PyErr_Clear();
    struct sr_error e;
    sr_fail(&e, SR_E_NO_OBJECT, 0, "no object has a name that UTF-8 cannot hold");
    srp_raise(&e);
    return NULL;
}

/* name, type, flags, meta -> a desc that borrows from the arguments. */
static int desc_of(PyObject *name, int type, int flags, const char *meta, Py_ssize_t meta_len, uint64_t len, struct sr_desc *d)
{
    Py_ssize_t name_len;
    const char *text = name_of(name, &name_len);
    if (text == NULL) return -1;
    *d = (struct sr_desc){
        .name = text, .meta = (const uint8_t *)meta, .len = len,
        .name_len = (uint16_t)sr_min((uint64_t)name_len, UINT16_MAX), .meta_len = (uint16_t)sr_min((uint64_t)meta_len, UINT16_MAX),
        .type = (uint8_t)type, .flags = (uint8_t)flags,
    };
    return 0;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* An array, or what _decode(type, flags, meta, pin) makes of it. */
static PyObject *result_of(srp_region *self, const struct sr_found *f)
{
    PyObject *pin = srp_pin_new(self, f);
    if (pin == NULL) return NULL;
    const srp_pin *p = (const srp_pin *)pin;
    PyObject *result = NULL;
    if (f->type == SRP_TYPE_NDARRAY) result = srp_array_of(pin, f, p->at, p->writable);
    if (f->type != SRP_TYPE_NDARRAY || result == Py_NotImplemented) {
        Py_XDECREF(result);
        PyObject *meta = PyBytes_FromStringAndSize((const char *)f->text + f->name_len, f->meta_len);
        result = meta ? PyObject_CallMethod((PyObject *)self, "_decode", "iiOO", f->type, f->flags, meta, pin) : NULL;
        Py_XDECREF(meta);
    }
    Py_DECREF(pin);
    return result;
}

static PyObject *region_subscript(PyObject *object, PyObject *key)
{
    srp_region *self = (srp_region *)object;
    struct sr_region *r = open_live(self, false);
    if (r == NULL) return NULL;
    Py_ssize_t len;
    const char *name = known_name_of(key, &len);
    if (name == NULL) return NULL;
    struct sr_error e;
    struct sr_found f;
    return sr_catalog_get(r, name, (size_t)len, true, &f, &e) < 0 ? srp_raise(&e) : result_of(self, &f);
}

static PyObject *region_get_exact(PyObject *object, PyObject *args)
{
    srp_region *self = (srp_region *)object;
    unsigned entry;
    unsigned long long seq;
    /* For references also after close(), while arrays hold the region. */
    struct sr_region *r = self->r;
    if (r == NULL) return srp_closed_error();
    if (!self->closed && open_live(self, false) == NULL) return NULL;
    if (!PyArg_ParseTuple(args, "IK", &entry, &seq)) return NULL;
    struct sr_error e;
    struct sr_found f;
    if (sr_catalog_get_exact(r, entry, seq, &f, &e) < 0) return srp_raise(&e);
    return srp_pin_new(self, &f);
}

/* _open_exact(entry, seq) -> the object of that publication */
static PyObject *region_open_exact(PyObject *object, PyObject *args)
{
    srp_region *self = (srp_region *)object;
    unsigned entry;
    unsigned long long seq;
    struct sr_region *r = open_live(self, false);
    if (r == NULL || !PyArg_ParseTuple(args, "IK", &entry, &seq)) return NULL;
    struct sr_error e;
    struct sr_found f;
    return sr_catalog_get_exact(r, entry, seq, &f, &e) < 0 ? srp_raise(&e) : result_of(self, &f);
}

static int region_contains(PyObject *object, PyObject *key)
{
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL) return -1;
    if (!PyUnicode_Check(key)) return 0;
    Py_ssize_t len;
    const char *name = PyUnicode_AsUTF8AndSize(key, &len);
    if (name == NULL && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return PyErr_Clear(), 0;
    if (name == NULL) return -1;
    struct sr_error e;
    struct sr_found f;
    int got = sr_catalog_get(r, name, (size_t)len, false, &f, &e);
    if (got == SR_E_NO_OBJECT) return 0;
    if (got < 0) return srp_raise(&e), -1;
    return 1;
}

/* _info(name) -> (name, type, flags, meta, nbytes, seq, version, entry, block) */
static PyObject *region_info(PyObject *object, PyObject *key)
{
    struct sr_region *r = srp_open((srp_region *)object);
    Py_ssize_t len;
    const char *name = r ? known_name_of(key, &len) : NULL;
    if (name == NULL) return NULL;
    struct sr_error e;
    struct sr_found f;
    return sr_catalog_get(r, name, (size_t)len, false, &f, &e) < 0 ? srp_raise(&e) : srp_found_tuple(&f);
}

/* _list() -> [_info(...), ...], unordered */
static PyObject *region_list(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = srp_open((srp_region *)object);
    return r ? srp_objects(r) : NULL;
}

/* --- writing ---------------------------------------------------------------------------------- */

/* _put(name, type, flags, meta, buffer) -> seq */
static PyObject *region_put(PyObject *object, PyObject *args)
{
    PyObject *name;
    int type, flags;
    Py_buffer meta, data;
    if (!PyArg_ParseTuple(args, "Uiiy*y*", &name, &type, &flags, &meta, &data)) return NULL;
    struct sr_region *r = enter((srp_region *)object);
    struct sr_desc d;
    struct sr_error e = {0};
    uint64_t seq = 0;
    int got = 0;
    bool described = r && desc_of(name, type, flags, meta.buf, meta.len, (uint64_t)data.len, &d) == 0;
    if (described) {
        Py_BEGIN_ALLOW_THREADS
        got = sr_catalog_put(r, &d, data.buf, &seq, &e);
        Py_END_ALLOW_THREADS
    }
    if (r) leave((srp_region *)object);
    PyBuffer_Release(&meta);
    PyBuffer_Release(&data);
    if (!described) return NULL;
    return got < 0 ? srp_raise(&e) : PyLong_FromUnsignedLongLong(seq);
}

/* _begin(name, type, flags, meta, nbytes) -> Draft */
static PyObject *region_begin(PyObject *object, PyObject *args)
{
    PyObject *name;
    int type, flags;
    const char *meta;
    Py_ssize_t meta_len;
    unsigned long long nbytes;
    srp_region *self = (srp_region *)object;
    struct sr_region *r = open_live(self, true);
    if (r == NULL || !PyArg_ParseTuple(args, "Uiiy#K", &name, &type, &flags, &meta, &meta_len, &nbytes)) return NULL;
    struct sr_desc d;
    if (desc_of(name, type, flags, meta, meta_len, nbytes, &d) < 0) return NULL;
    struct sr_error e = {0};
    struct sr_draft draft;
    int got;
    srp_region_pin_added(self);
    Py_BEGIN_ALLOW_THREADS
    got = sr_draft_begin(r, &d, &draft, &e);
    Py_END_ALLOW_THREADS
    PyObject *made = got < 0 ? srp_raise(&e) : srp_draft_new(self, &d, &draft);
    leave(self);
    return made;
}

/* Larger arrays take the way through Python, which first asks how much memory may be taken. */
#define DIRECT (UINT64_C(1) << 20)

static int put_plain(srp_region *self, PyObject *key, const struct srp_plain *plain)
{
    struct sr_region *r = open_live(self, true);
    struct sr_desc d;
    if (r == NULL || desc_of(key, SRP_TYPE_NDARRAY, 0, (const char *)plain->meta, (Py_ssize_t)plain->meta_len, plain->nbytes, &d) < 0) return -1;
    struct sr_error e = {0};
    uint64_t seq;
    int got;
    srp_region_pin_added(self);
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_put(r, &d, plain->data, &seq, &e);
    Py_END_ALLOW_THREADS
    leave(self);
    if (got < 0) return srp_raise(&e), -1;
    return 0;
}

static int delete(srp_region *self, PyObject *key, uint64_t seq)
{
    struct sr_region *r = open_live(self, true);
    Py_ssize_t len;
    const char *name = r ? known_name_of(key, &len) : NULL;
    if (name == NULL) return -1;
    struct sr_error e = {0};
    int got;
    srp_region_pin_added(self);
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_delete(r, name, (size_t)len, seq, &e);
    Py_END_ALLOW_THREADS
    leave(self);
    if (got < 0) return srp_raise(&e), -1;
    return 0;
}

static int region_ass_subscript(PyObject *object, PyObject *key, PyObject *value)
{
    struct srp_plain plain;
    if (value != NULL && srp_array_plain(value, &plain) && plain.nbytes <= DIRECT) return put_plain((srp_region *)object, key, &plain);
    if (value != NULL) {
        PyObject *done = PyObject_CallMethod(object, "put", "OO", key, value);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    return delete((srp_region *)object, key, 0);
}

/* _delete(name, seq): if it is that publication */
static PyObject *region_delete(PyObject *object, PyObject *args)
{
    PyObject *key;
    unsigned long long seq;
    if (!PyArg_ParseTuple(args, "UK", &key, &seq) || delete((srp_region *)object, key, seq) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *region_publish(PyObject *object, PyObject *key)
{
    struct sr_region *r = open_live((srp_region *)object, true);
    Py_ssize_t len;
    const char *name = r ? name_of(key, &len) : NULL;
    if (name == NULL) return NULL;
    struct sr_error e = {0};
    uint64_t version;
    int got;
    srp_region_pin_added((srp_region *)object);
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_bump(r, name, (size_t)len, &version, &e);
    Py_END_ALLOW_THREADS
    leave((srp_region *)object);
    return got < 0 ? srp_raise(&e) : PyLong_FromUnsignedLongLong(version);
}

/* _wait(name, newer_than, slice_ns) -> version or None: a slice is over, look at signals */
static PyObject *region_wait(PyObject *object, PyObject *args)
{
    PyObject *key;
    unsigned long long newer_than, slice;
    if (!PyArg_ParseTuple(args, "UKK", &key, &newer_than, &slice)) return NULL;
    struct sr_region *r = open_live((srp_region *)object, true);
    if (r == NULL) return NULL;
    Py_ssize_t len;
    const char *name = name_of(key, &len);
    if (name == NULL) return NULL;
    struct sr_error e = {0};
    uint64_t version;
    int got;
    srp_region_pin_added((srp_region *)object);    /* close() in another thread must not unmap under the wait */
    Py_BEGIN_ALLOW_THREADS
    got = sr_catalog_wait(r, name, (size_t)len, newer_than, slice, &version, &e);
    Py_END_ALLOW_THREADS
    srp_region_pin_dropped((srp_region *)object);
    if (got < 0) return srp_raise(&e);
    if (got == 1) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(version);
}

/* --- the rest --------------------------------------------------------------------------------- */

static PyObject *simple(PyObject *object, int (*work)(struct sr_region *, struct sr_error *))
{
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL) return NULL;
    struct sr_error e = {0};
    int got;
    srp_region_pin_added((srp_region *)object);
    Py_BEGIN_ALLOW_THREADS
    got = work(r, &e);
    Py_END_ALLOW_THREADS
    leave((srp_region *)object);
    if (got < 0) return srp_raise(&e);
    Py_RETURN_NONE;
}

static PyObject *region_seal(PyObject *o, PyObject *unused) { (void)unused; return simple(o, sr_catalog_seal); }
static PyObject *region_sweep(PyObject *o, PyObject *unused) { (void)unused; return simple(o, sr_catalog_sweep); }
static PyObject *region_check(PyObject *o, PyObject *unused) { (void)unused; return simple(o, sr_catalog_check); }
static PyObject *region_repair(PyObject *o, PyObject *unused) { (void)unused; return simple(o, sr_catalog_repair); }

/* _fresh(nbytes) -> bytes of memory that a put would take beyond what the region has
 * _give_back(nbytes) -> bytes that the region had no use for and gave back, about so many at most
 * _trim() -> the same of all, if it may */
enum give { FRESH, GIVE_BACK, TRIM };
static PyObject *give_back_memory(PyObject *object, PyObject *nbytes, enum give what)
{
    struct sr_region *r = open_live((srp_region *)object, true);
    if (r == NULL) return NULL;
    unsigned long long len = nbytes ? PyLong_AsUnsignedLongLong(nbytes) : 0;
    if (PyErr_Occurred()) return NULL;
    struct sr_error e = {0};
    uint64_t bytes = 0;
    int got = 0;
    srp_region_pin_added((srp_region *)object);
    Py_BEGIN_ALLOW_THREADS
    if (what == FRESH) bytes = sr_catalog_fresh(r, len);
    else got = what == TRIM ? sr_catalog_trim(r, &bytes, &e) : sr_catalog_give_back(r, len, &bytes, &e);
    Py_END_ALLOW_THREADS
    leave((srp_region *)object);
    return got < 0 ? srp_raise(&e) : PyLong_FromUnsignedLongLong(bytes);
}
static PyObject *region_fresh(PyObject *o, PyObject *nbytes) { return give_back_memory(o, nbytes, FRESH); }
static PyObject *region_give_back(PyObject *o, PyObject *nbytes) { return give_back_memory(o, nbytes, GIVE_BACK); }
static PyObject *region_trim(PyObject *o, PyObject *unused) { (void)unused; return give_back_memory(o, NULL, TRIM); }

static PyObject *region_stats(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL) return NULL;
    struct sr_stats s;
    sr_catalog_stats(r, &s);
    if (!s.sound) return srp_damaged(r, "its figures");
    return Py_BuildValue("{sKsKsKsKsIsIsIsIsIsI}", "size", (unsigned long long)s.size, "used", (unsigned long long)s.used,
                         "largest", (unsigned long long)s.largest, "committed", (unsigned long long)s.committed, "objects", s.objects,
                         "limbo", s.limbo, "pending", s.pending, "members", s.members, "recoveries", s.recoveries, "flags", s.flags);
}

/* _members() -> [(row, pid, uid, writer, joined_ns, pins), ...] of the living */
static PyObject *region_members(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = srp_open((srp_region *)object);
    return r ? srp_members(r) : NULL;
}

static PyObject *region_head(PyObject *object, PyObject *unused)
{
    (void)unused;
    srp_region *self = (srp_region *)object;
    if (self->r == NULL) return srp_closed_error();
    const struct sr_head *h = &self->r->head;
    return Py_BuildValue("{sssKsKsssssy#sIsIsIsKsN}", "name", self->r->name, "size", (unsigned long long)h->hd_size, "mapped",
                         (unsigned long long)h->hd_mapped, "backend", self->r->backend->name, "reason", h->hd_reason, "id",
                         (const char *)h->hd_id, (Py_ssize_t)sizeof h->hd_id, "generation", h->hd_generation, "flags", h->hd_flags, "uid", h->hd_uid,
                         "created_ns", (unsigned long long)h->hd_created_ns, "files", srp_files(h));
}

/* _data() -> (address, mapped length) */
static PyObject *region_data(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL) return NULL;
    return Py_BuildValue("(KKO)", (unsigned long long)(uintptr_t)r->data.at, (unsigned long long)r->data.len, r->writable ? Py_True : Py_False);
}

static PyObject *region_uncommitted(PyObject *object, PyObject *args)
{
    unsigned long long off, len;
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL || !PyArg_ParseTuple(args, "KK", &off, &len)) return NULL;
    if (!sr_range_ok(off, len, r->head.hd_mapped)) return PyErr_Format(PyExc_ValueError, "outside the region");
    return PyLong_FromUnsignedLongLong(sr_region_uncommitted(r, (sr_off){off}, len));
}

/* Not open either: in a forked child that could not become a member. */
static PyObject *region_get_closed(PyObject *o, void *u)
{
    (void)u;
    const srp_region *self = (srp_region *)o;
    return PyBool_FromLong(self->closed || self->r == NULL || !self->r->open);
}
static PyObject *region_get_writable(PyObject *o, void *u) { (void)u; return PyBool_FromLong(((srp_region *)o)->r && ((srp_region *)o)->r->writable); }
static PyObject *region_get_mapped(PyObject *o, void *u) { (void)u; return PyBool_FromLong(((srp_region *)o)->r != NULL); }
static PyObject *region_get_held(PyObject *o, void *u) { (void)u; return PyLong_FromSsize_t(((srp_region *)o)->pins); }
static Py_ssize_t region_length(PyObject *object)
{
    struct sr_region *r = srp_open((srp_region *)object);
    if (r == NULL) return -1;
    uint64_t objects;
    if (sr_state_told(sr_state(r), SR_TOLD_OBJECTS, &objects)) return (Py_ssize_t)objects;
    srp_damaged(r, "number of objects");
    return -1;
}

/* _show_file(fd, nbytes) -> offset in the msharefs region */
static PyObject *region_show_file(PyObject *object, PyObject *args)
{
    int fd;
    unsigned long long nbytes;
    struct sr_region *r = open_live((srp_region *)object, true);
    if (r == NULL || !PyArg_ParseTuple(args, "iK", &fd, &nbytes)) return NULL;
    struct sr_error e = {0};
    uint64_t at;
    return sr_region_show_file(r, fd, nbytes, &at, &e) < 0 ? srp_raise(&e) : PyLong_FromUnsignedLongLong(at);
}

/* _hide_file(offset, nbytes) */
static PyObject *region_hide_file(PyObject *object, PyObject *args)
{
    unsigned long long at, nbytes;
    struct sr_region *r = open_live((srp_region *)object, true);
    if (r == NULL || !PyArg_ParseTuple(args, "KK", &at, &nbytes)) return NULL;
    struct sr_error e = {0};
    if (sr_region_hide_file(r, at, nbytes, &e) < 0) return srp_raise(&e);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_show_file", region_show_file, METH_VARARGS, NULL},
    {"_hide_file", region_hide_file, METH_VARARGS, NULL},
    {"_create", (PyCFunction)(void (*)(void))region_create, METH_VARARGS | METH_KEYWORDS | METH_CLASS, NULL},
    {"_attach", (PyCFunction)(void (*)(void))region_attach, METH_VARARGS | METH_KEYWORDS | METH_CLASS, NULL},
    {"close", region_close, METH_NOARGS, NULL},
    {"publish", region_publish, METH_O, NULL},
    {"_retire", region_retire, METH_NOARGS, NULL},
    {"_get_exact", region_get_exact, METH_VARARGS, NULL},
    {"_open_exact", region_open_exact, METH_VARARGS, NULL},
    {"_info", region_info, METH_O, NULL},
    {"_list", region_list, METH_NOARGS, NULL},
    {"_put", region_put, METH_VARARGS, NULL},
    {"_begin", region_begin, METH_VARARGS, NULL},
    {"_delete", region_delete, METH_VARARGS, NULL},
    {"_wait", region_wait, METH_VARARGS, NULL},
    {"_seal", region_seal, METH_NOARGS, NULL},
    {"_sweep", region_sweep, METH_NOARGS, NULL},
    {"_check", region_check, METH_NOARGS, NULL},
    {"_repair", region_repair, METH_NOARGS, NULL},
    {"_trim", region_trim, METH_NOARGS, NULL},
    {"_fresh", region_fresh, METH_O, NULL},
    {"_give_back", region_give_back, METH_O, NULL},
    {"_stats", region_stats, METH_NOARGS, NULL},
    {"_members", region_members, METH_NOARGS, NULL},
    {"_head", region_head, METH_NOARGS, NULL},
    {"_data", region_data, METH_NOARGS, NULL},
    {"_uncommitted", region_uncommitted, METH_VARARGS, NULL},
    {"_ticket", srp_region_ticket, METH_VARARGS, NULL},
    {"_claim", srp_region_claim, METH_VARARGS, NULL},
    {"_tickets", srp_region_tickets, METH_VARARGS, NULL},
    {0},
};
static PyGetSetDef getset[] = {
    {"closed", region_get_closed, NULL, NULL, NULL},
    {"writable", region_get_writable, NULL, NULL, NULL},
    {"_mapped", region_get_mapped, NULL, NULL, NULL},
    {"_held", region_get_held, NULL, NULL, NULL},
    {0},
};
static PyMemberDef members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(srp_region, weakrefs), READONLY, NULL},
    {0},
};

PyTypeObject *srp_region_type(void)
{
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, region_dealloc},
        {Py_tp_traverse, region_traverse},
        {Py_tp_methods, methods},
        {Py_tp_getset, getset},
        {Py_tp_members, members},
        {Py_mp_subscript, region_subscript},
        {Py_mp_ass_subscript, region_ass_subscript},
        {Py_mp_length, region_length},
        {Py_sq_contains, region_contains},
        {0, NULL},
    };
    static PyType_Spec spec = {"sharedregion._native.RegionHandle", sizeof(srp_region), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
