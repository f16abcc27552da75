/* onlooker: a region seen by someone who has not joined it. Nothing of it can change the region. */
#include "sr_python.h"

typedef struct {
    PyObject_HEAD
    struct sr_region *r;
} srp_onlooker;

/* Text that another process wrote. */
static PyObject *text_of(const char *text) { return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "backslashreplace"); }

/* --- what region and onlooker have in common ---------------------------------------------------- */

PyObject *srp_found_tuple(const struct sr_found *f)
{
    return Py_BuildValue("(s#iiy#KKKII)", f->text, (Py_ssize_t)f->name_len, f->type, f->flags, f->text + f->name_len, (Py_ssize_t)f->meta_len,
                         (unsigned long long)f->len, (unsigned long long)f->seq, (unsigned long long)f->version, f->entry, f->block);
}

PyObject *srp_damaged(struct sr_region *r, const char *what)
{
    struct sr_error e;
    sr_fail(&e, SR_E_CORRUPT, 0, "region '%s' is damaged: %s", r->name, what);
    return srp_raise(&e);
}

static int append(PyObject *list, PyObject *item)
{
    int got = item ? PyList_Append(list, item) : -1;
    Py_XDECREF(item);
    return got;
}

PyObject *srp_objects(struct sr_region *r)
{
    PyObject *list = PyList_New(0);
    struct sr_error e = {0};
    struct sr_found f;
    struct sr_walk walk = {0};
    uint32_t cursor = 0;
    int got = SR_E_NO_OBJECT;
    while (list && (got = r->onlooker ? sr_catalog_next(r, &cursor, &f, &e) : sr_catalog_walk(r, &walk, &f, &e)) >= 0) {
        if (got == 1) {
            walk = (struct sr_walk){0};
            Py_DECREF(list);
            list = PyList_New(0);
        } else if (append(list, srp_found_tuple(&f)) < 0) {
            Py_CLEAR(list);
        }
    }
    if (list == NULL || got == SR_E_NO_OBJECT) return list;
    Py_DECREF(list);
    return srp_raise(&e);
}

PyObject *srp_members(struct sr_region *r)
{
    PyObject *list = PyList_New(0);
    uint32_t high = sr_rows_high(r);
    for (uint32_t n = 0; list && n < high; n++) {
        struct sr_who who;
        int got = sr_member_who(r, n, &who);
        if (got == 0) continue;
        PyObject *item = got < 0 ? srp_damaged(r, "what a member says of itself")
                                 : Py_BuildValue("(IIIOKI)", n, who.pid, who.uid, who.writer ? Py_True : Py_False, (unsigned long long)who.joined_ns, who.pins);
        if (append(list, item) < 0) Py_CLEAR(list);
    }
    return list;
}

/* --- the type ----------------------------------------------------------------------------------- */

/* Onlooker(name) */
static PyObject *onlooker_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"name", NULL};
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "s", names, &name)) return NULL;
    struct sr_error e = {0};
    struct sr_region *r;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_region_look(&r, name, &e);
    Py_END_ALLOW_THREADS
    if (got < 0) return srp_raise(&e);
    PyObject *(*alloc)(PyTypeObject *, Py_ssize_t) = (PyObject *(*)(PyTypeObject *, Py_ssize_t))PyType_GetSlot(type, Py_tp_alloc);
    srp_onlooker *self = (srp_onlooker *)alloc(type, 0);
    if (self) self->r = r;
    else sr_region_look_away(r);
    return (PyObject *)self;
}

static void onlooker_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (((srp_onlooker *)object)->r) sr_region_look_away(((srp_onlooker *)object)->r);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *onlooker_head(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = ((srp_onlooker *)object)->r;
    const struct sr_head *h = &r->head;
    return Py_BuildValue("{sNsKsKsssNsy#sIsIsIsIsKsN}", "name", text_of(h->hd_name), "size", (unsigned long long)h->hd_size, "mapped",
                         (unsigned long long)h->hd_mapped, "backend", r->backend->name, "reason", text_of(h->hd_reason), "id",
                         (const char *)h->hd_id, (Py_ssize_t)sizeof h->hd_id, "generation", h->hd_generation, "flags", h->hd_flags, "uid",
                         h->hd_uid, "mode", h->hd_mode, "created_ns", (unsigned long long)h->hd_created_ns, "files", srp_files(h));
}

static PyObject *onlooker_stats(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = ((srp_onlooker *)object)->r;
    struct sr_stats s;
    uint64_t backed;
    int got;
    Py_BEGIN_ALLOW_THREADS
    sr_catalog_stats(r, &s);
    got = sr_region_backed(r, &backed);
    Py_END_ALLOW_THREADS
    if (!s.sound) return srp_damaged(r, "its figures");
    PyObject *memory = got < 0 ? Py_NewRef(Py_None) : PyLong_FromUnsignedLongLong(backed);
    return Py_BuildValue("{sKsKsKsNsIsIsIsIsIsI}", "size", (unsigned long long)s.size, "used", (unsigned long long)s.used, "largest",
                         (unsigned long long)s.largest, "backed", memory, "objects", s.objects, "limbo", s.limbo, "pending", s.pending, "members",
                         s.members, "recoveries", s.recoveries, "flags", s.flags);
}

static PyObject *onlooker_objects(PyObject *object, PyObject *unused) { (void)unused; return srp_objects(((srp_onlooker *)object)->r); }
static PyObject *onlooker_members(PyObject *object, PyObject *unused) { (void)unused; return srp_members(((srp_onlooker *)object)->r); }

static int count_one(PyObject *dict, uint32_t block)
{
    PyObject *key = PyLong_FromUnsignedLong(block), *seen = key ? PyDict_GetItemWithError(dict, key) : NULL;
    PyObject *next = PyErr_Occurred() ? NULL : PyLong_FromLong(seen ? PyLong_AsLong(seen) + 1 : 1);
    int got = next ? PyDict_SetItem(dict, key, next) : -1;
    Py_XDECREF(next);
    Py_XDECREF(key);
    return got;
}

/* holders() -> {block: how many living members hold it, by pin or by a reference under way} */
static PyObject *onlooker_holders(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct sr_region *r = ((srp_onlooker *)object)->r;
    PyObject *dict = PyDict_New();
    uint32_t high = sr_rows_high(r);
    for (uint32_t n = 0; dict && n < high; n++) {
        if (sr_rows_held(r, n, 1) == 0 || !sr_rows_ok(r, n + 1)) continue;
        const struct sr_row *row = sr_row(r, n);
        int got = 0;
        for (uint32_t k = 0; k < SR_ROW_PINS && got == 0; k++) {
            uint32_t block = sr_pin_of(row, n, k);
            if (block) got = count_one(dict, block);
        }
        for (uint32_t k = 0; k < SR_ROW_TICKETS && got == 0; k++) {
            uint32_t block;
            if (sr_ticket_of(row, n, k, &block)) got = count_one(dict, block);
        }
        if (got < 0) Py_CLEAR(dict);
    }
    return dict;
}

PyTypeObject *srp_onlooker_type(void)
{
    static PyMethodDef methods[] = {
        {"head", onlooker_head, METH_NOARGS, NULL},       {"stats", onlooker_stats, METH_NOARGS, NULL},
        {"objects", onlooker_objects, METH_NOARGS, NULL}, {"members", onlooker_members, METH_NOARGS, NULL},
        {"holders", onlooker_holders, METH_NOARGS, NULL}, {0},
    };
    static PyType_Slot slots[] = {{Py_tp_new, onlooker_new}, {Py_tp_dealloc, onlooker_dealloc}, {Py_tp_methods, methods}, {0, NULL}};
    static PyType_Spec spec = {"sharedregion._native.Onlooker", sizeof(srp_onlooker), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
