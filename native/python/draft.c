/* draft: an object being filled. Lends its bytes for writing; published or dropped. */
#include "sr_python.h"

typedef struct {
    PyObject_HEAD
    srp_region *region;
    struct sr_draft draft;
    struct sr_desc desc;
    char *text;            /* own copy of name and meta */
    bool published;
    PyObject *pin;         /* once published: by which the array is found, as if it had been got */
} srp_draft;

PyObject *srp_draft_new(srp_region *region, const struct sr_desc *desc, const struct sr_draft *draft)
{
    struct sr_error e;
    /* Held by this process like any object: what was filled stays valid after publication even if
     * the object is replaced at once. */
    if (sr_pin(region->r, draft->block, draft->entry, 0, &e) < 0) {
        sr_draft_drop(region->r, desc, draft);
        return srp_raise(&e);
    }
    srp_draft *self = PyObject_New(srp_draft, srp_types.draft);
    char *text = PyMem_Malloc((size_t)desc->name_len + desc->meta_len + 1);
    if (self == NULL || text == NULL) {
        PyMem_Free(text);
        if (self) PyObject_Free(self), Py_DECREF((PyObject *)srp_types.draft);
        sr_unpin(region->r, draft->block);
        sr_draft_drop(region->r, desc, draft);
        return PyErr_NoMemory();
    }
    memcpy(text, desc->name, desc->name_len);
    memcpy(text + desc->name_len, desc->meta, desc->meta_len);
    self->region = (srp_region *)Py_NewRef((PyObject *)region);
    srp_region_pin_added(region);
    self->draft = *draft;
    self->desc = *desc;
    self->desc.name = text;
    self->desc.meta = (const uint8_t *)text + desc->name_len;
    self->text = text;
    self->published = false;
    self->pin = NULL;
    return (PyObject *)self;
}

/* An array may look at the bytes for as long as this object lives; so an unpublished block is given
 * back here, and not before. */
static void draft_dealloc(PyObject *object)
{
    srp_draft *self = (srp_draft *)object;
    PyTypeObject *type = Py_TYPE(object);
    struct sr_region *r = self->region->r;
    if (!self->published) {
        Py_BEGIN_ALLOW_THREADS
        sr_draft_drop(r, &self->desc, &self->draft);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(self->pin);
    sr_unpin(r, self->draft.block);
    srp_region_pin_dropped(self->region);
    Py_DECREF((PyObject *)self->region);
    PyMem_Free(self->text);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *draft_publish(PyObject *object, PyObject *unused)
{
    (void)unused;
    srp_draft *self = (srp_draft *)object;
    if (self->published) {
        PyErr_SetString(PyExc_ValueError, "the object is already published");
        return NULL;
    }
    struct sr_region *r = srp_open(self->region);
    if (r == NULL) return NULL;
    struct sr_error e;
    uint64_t seq;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_draft_publish(r, &self->desc, &self->draft, &seq, &e);
    Py_END_ALLOW_THREADS
    if (got < 0) return srp_raise(&e);
    self->published = true;
    const struct sr_found f = {.seq = seq, .version = seq, .len = self->draft.len, .off = self->draft.off, .entry = self->draft.entry,
                               .block = self->draft.block, .type = self->desc.type, .flags = self->desc.flags};
    if (sr_pin(r, f.block, f.entry, seq, &e) < 0 || (self->pin = srp_pin_new(self->region, &f)) == NULL) PyErr_Clear();
    return PyLong_FromUnsignedLongLong(seq);
}

/* fill(offset, buffer) */
static PyObject *draft_fill(PyObject *object, PyObject *args)
{
    srp_draft *self = (srp_draft *)object;
    unsigned long long offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Ky*", &offset, &data)) return NULL;
    const char *wrong = NULL;
    if (self->published) wrong = "the object is already published";
    else if (!sr_range_ok(offset, (uint64_t)data.len, self->draft.len)) wrong = "outside the object";
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
    } else {
        /* The caller's reference to this object keeps block and mapping, the buffer its bytes. */
        Py_BEGIN_ALLOW_THREADS
        sr_catalog_copy(self->region->r->data.at + self->draft.off.at + offset, data.buf, (uint64_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    if (wrong) return NULL;
    Py_RETURN_NONE;
}

static int draft_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    srp_draft *self = (srp_draft *)object;
    return PyBuffer_FillInfo(view, object, self->region->r->data.at + self->draft.off.at, (Py_ssize_t)self->draft.len,
                             self->published, flags);
}

PyTypeObject *srp_draft_type(void)
{
    static PyMethodDef methods[] = {
        {"publish", draft_publish, METH_NOARGS, NULL}, {"fill", draft_fill, METH_VARARGS, NULL}, {0}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, draft_dealloc},
        {Py_tp_methods, methods},
        {Py_bf_getbuffer, draft_getbuffer},
        {0, NULL},
    };
    static PyType_Spec spec = {"sharedregion._native.Draft", sizeof(srp_draft), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
