/* private view: an object's bytes, writable, what is written seen by this process alone. */
#include "sr_python.h"

typedef struct {
    PyObject_HEAD
    PyObject *pin;        /* the block must not change under the pages that are still shared */
    struct sr_map map;
    unsigned char *at;
    uint64_t len;
} srp_private_view;

PyObject *srp_private_view_new(PyObject *object, PyObject *unused)
{
    (void)unused;
    srp_pin *pin = (srp_pin *)object;
    srp_private_view *self = PyObject_New(srp_private_view, srp_types.private_view);
    if (self == NULL) return NULL;
    *self = (srp_private_view){.ob_base = self->ob_base, .pin = Py_NewRef(object), .at = pin->at, .len = pin->len};
    if (pin->len == 0) return (PyObject *)self;
    struct sr_region *r = pin->region->r;
    struct sr_error e = {0};
    if (pin->of_file) {
        Py_DECREF((PyObject *)self);
        sr_fail(&e, SR_E_UNAVAILABLE, 0, "a file that is mapped into the region cannot be mapped for copying on write");
        return srp_raise(&e);
    }
    uint64_t skip = 0;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_region_map_private(r, (sr_off){(uint64_t)(pin->at - r->data.at)}, pin->len, &self->map, &skip, &e);
    Py_END_ALLOW_THREADS
    if (got < 0) {
        Py_DECREF((PyObject *)self);
        return srp_raise(&e);
    }
    self->at = self->map.at + skip;
    return (PyObject *)self;
}

static void view_dealloc(PyObject *object)
{
    srp_private_view *self = (srp_private_view *)object;
    PyTypeObject *type = Py_TYPE(object);
    sr_sys_unmap(&self->map);
    Py_DECREF(self->pin);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int view_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    srp_private_view *self = (srp_private_view *)object;
    return PyBuffer_FillInfo(view, object, self->at, (Py_ssize_t)self->len, 0, flags);
}

PyTypeObject *srp_private_view_type(void)
{
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, view_dealloc},
        {Py_bf_getbuffer, view_getbuffer},
        {0, NULL},
    };
    static PyType_Spec spec = {"sharedregion._native.PrivateView", sizeof(srp_private_view), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
