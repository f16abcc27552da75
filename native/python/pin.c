/* pin: the object that holds a block, and lends its bytes. */
#include "sr_python.h"

/* Guarded by the GIL. */
static srp_pin *all_pins;

/* Of a file that is mapped beside the memory: where, as its description says. */
static int find_file(srp_region *region, const struct sr_found *f, unsigned char **at, uint64_t *len)
{
    struct sr_error e = {0};
    uint64_t place[2];
    int got = SR_E_CORRUPT;
    if (f->meta_len < sizeof place) {
        sr_fail(&e, SR_E_CORRUPT, 0, "the description of a mapped file is cut short");
    } else {
        memcpy(place, f->text + f->name_len, sizeof place);
        *len = place[1];
        got = sr_region_file_at(region->r, place[0], place[1], at, &e);
    }
    if (got < 0) srp_raise(&e);
    return got;
}

PyObject *srp_pin_new(srp_region *region, const struct sr_found *f)
{
    unsigned char *file = NULL;
    uint64_t file_len = 0;
    if (f->type == SRP_TYPE_FILE && find_file(region, f, &file, &file_len) < 0) {
        sr_unpin(region->r, f->block);
        return NULL;
    }
    srp_pin *self = PyObject_New(srp_pin, srp_types.pin);
    if (self == NULL) {
        sr_unpin(region->r, f->block);
        return NULL;
    }
    self->region = (srp_region *)Py_NewRef((PyObject *)region);
    srp_region_pin_added(region);
    self->at = file ? file : region->r->data.at + f->off.at;
    self->len = file ? file_len : f->len;
    self->of_file = file != NULL;
    self->seq = f->seq;
    self->entry = f->entry;
    self->block = f->block;
    self->flags = f->flags;
    self->writable = region->r->writable && (f->flags & SR_ENTRY_MUTABLE) && file == NULL;
    self->next = all_pins;
    self->link = &all_pins;
    if (all_pins) all_pins->link = &self->next;
    all_pins = self;
    return (PyObject *)self;
}

static void pin_dealloc(PyObject *object)
{
    srp_pin *self = (srp_pin *)object;
    PyTypeObject *type = Py_TYPE(object);
    *self->link = self->next;
    if (self->next) self->next->link = self->link;
    sr_unpin(self->region->r, self->block);
    srp_region_pin_dropped(self->region);
    Py_DECREF((PyObject *)self->region);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int pin_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    srp_pin *self = (srp_pin *)object;
    return PyBuffer_FillInfo(view, object, self->at, (Py_ssize_t)self->len, !self->writable, flags);
}

/* (object, object) -> what a reference needs to know: region handle, entry, publication, block,
 * offset of the address in the object. */
static PyObject *describe(srp_pin *pin, const unsigned char *at)
{
    return Py_BuildValue("(OIKIKb)", (PyObject *)pin->region, pin->entry, (unsigned long long)pin->seq, pin->block,
                         (unsigned long long)(at - pin->at), (int)pin->flags);
}

/* locate(address, nbytes) -> (region, entry, seq, block, offset, flags) or None. */
PyObject *srp_locate(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long address, nbytes;
    if (!PyArg_ParseTuple(args, "KK", &address, &nbytes)) return NULL;
    const unsigned char *at = (const unsigned char *)(uintptr_t)address;
    for (srp_pin *pin = all_pins; pin; pin = pin->next)
        if (at >= pin->at && (uint64_t)(at - pin->at) <= pin->len && nbytes <= pin->len - (uint64_t)(at - pin->at)) return describe(pin, at);
    Py_RETURN_NONE;
}

static PyObject *pin_get_seq(PyObject *self, void *unused) { (void)unused; return PyLong_FromUnsignedLongLong(((srp_pin *)self)->seq); }
static PyObject *pin_get_region(PyObject *self, void *unused) { (void)unused; return Py_NewRef((PyObject *)((srp_pin *)self)->region); }

static PyGetSetDef pin_getset[] = {
    {"seq", pin_get_seq, NULL, NULL, NULL},
    {"region", pin_get_region, NULL, NULL, NULL},
    {0},
};

static PyMethodDef pin_methods[] = {
    {"_private", srp_private_view_new, METH_NOARGS, NULL},
    {0},
};

PyTypeObject *srp_pin_type(void)
{
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, pin_dealloc},
        {Py_tp_getset, pin_getset},
        {Py_tp_methods, pin_methods},
        {Py_bf_getbuffer, pin_getbuffer},
        {0, NULL},
    };
    static PyType_Spec spec = {"sharedregion._native.Pin", sizeof(srp_pin), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
