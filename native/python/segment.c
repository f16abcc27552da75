/* segment: data memory by itself, with no catalog: for measuring, and for what builds on it. */
#include "sr_python.h"

typedef struct {
    PyObject_HEAD
    const struct sr_backend *backend;
    int fd;
    uint64_t size;
    struct sr_map map;      /* read-write, for committing */
} srp_segment;

typedef struct {
    PyObject_HEAD
    struct sr_map map;
    bool writable;
} srp_mapping;

/* Segment.create(kind, size, place="shm"|"memfd") */
static PyObject *segment_create(PyObject *cls, PyObject *args, PyObject *keywords)
{
    (void)cls;
    static char *names[] = {"kind", "size", "place", NULL};
    const char *kind, *place = "memfd";
    unsigned long long size;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "sK|s", names, &kind, &size, &place)) return NULL;
    const struct sr_backend *backend = sr_backend_of_name(kind);
    if (backend == NULL) return PyErr_Format(PyExc_ValueError, "unknown kind of memory '%s'", kind);
    if (size == 0 || sr_backend_padded(backend, size) > INT64_MAX / 2) return PyErr_Format(PyExc_ValueError, "a segment cannot have %llu bytes", size);
    srp_segment *self = PyObject_New(srp_segment, srp_types.segment);
    if (self == NULL) return NULL;
    self->backend = backend;
    self->size = sr_backend_padded(backend, size);
    self->map = (struct sr_map){0};
    struct sr_error e = {0};
    SR_FD dir = sr_sys->openat(AT_FDCWD, SR_SHM_DIR, O_RDONLY | O_DIRECTORY, 0);
    self->fd = backend->make(strcmp(place, "memfd") == 0 ? SR_PLACE_MEMFD : SR_PLACE_SHM_DIR, dir, self->size, 0600, &e);
    int got = self->fd < 0 ? self->fd : backend->map(self->fd, self->size, true, &self->map, &e);
    if (got == 0) return (PyObject *)self;
    Py_DECREF((PyObject *)self);
    return srp_raise(&e);
}

static void segment_dealloc(PyObject *object)
{
    srp_segment *self = (srp_segment *)object;
    PyTypeObject *type = Py_TYPE(object);
    sr_sys_unmap(&self->map);
    sr_sys_close(&self->fd);
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *segment_commit(PyObject *object, PyObject *args)
{
    srp_segment *self = (srp_segment *)object;
    unsigned long long at, len;
    if (!PyArg_ParseTuple(args, "KK", &at, &len)) return NULL;
    uint64_t granule = self->backend->granule;
    if (!sr_is_aligned(at | len, granule) || !sr_range_ok(at, len, self->size))
        return PyErr_Format(PyExc_ValueError, "commit takes whole granules of %llu bytes inside the segment", (unsigned long long)granule);
    struct sr_error e = {0};
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = self->backend->commit(self->fd, &self->map, at, len, &e);
    Py_END_ALLOW_THREADS
    if (got < 0) return srp_raise(&e);
    Py_RETURN_NONE;
}

static PyObject *segment_map(PyObject *object, PyObject *args)
{
    srp_segment *self = (srp_segment *)object;
    int writable = 0;
    if (!PyArg_ParseTuple(args, "|p", &writable)) return NULL;
    SR_FD fd = sr_sys_reopen(self->fd, writable ? O_RDWR : O_RDONLY);
    srp_mapping *map = PyObject_New(srp_mapping, srp_types.mapping);
    if (map == NULL) return NULL;
    map->map = (struct sr_map){0};
    map->writable = writable;
    struct sr_error e = {0};
    int got = fd < 0 ? sr_fail(&e, SR_E_SYSTEM, fd, "the segment cannot be opened again") : self->backend->map(fd, self->size, writable, &map->map, &e);
    if (got == 0) return (PyObject *)map;
    Py_DECREF((PyObject *)map);
    return srp_raise(&e);
}

/* unmap(): drop the read-write mapping; commit is not possible any more. */
static PyObject *segment_unmap(PyObject *object, PyObject *unused)
{
    (void)unused;
    sr_sys_unmap(&((srp_segment *)object)->map);
    Py_RETURN_NONE;
}

static PyObject *segment_size(PyObject *o, void *u) { (void)u; return PyLong_FromUnsignedLongLong(((srp_segment *)o)->size); }
static PyObject *segment_file(PyObject *o, void *u)
{
    (void)u;
    struct stat st;
    if (sr_sys->fstat(((srp_segment *)o)->fd, &st) < 0) return PyErr_Format(PyExc_ValueError, "closed");
    return Py_BuildValue("(KK)", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
}

PyTypeObject *srp_segment_type(void)
{
    static PyMethodDef methods[] = {
        {"create", (PyCFunction)(void (*)(void))segment_create, METH_VARARGS | METH_KEYWORDS | METH_CLASS, NULL},
        {"commit", segment_commit, METH_VARARGS, NULL},
        {"map", segment_map, METH_VARARGS, NULL},
        {"unmap", segment_unmap, METH_NOARGS, NULL},
        {0},
    };
    static PyGetSetDef getset[] = {{"size", segment_size, NULL, NULL, NULL}, {"file", segment_file, NULL, NULL, NULL}, {0}};
    static PyType_Slot slots[] = {{Py_tp_dealloc, segment_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset}, {0, NULL}};
    static PyType_Spec spec = {"sharedregion._native.Segment", sizeof(srp_segment), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}

/* --- mapping ---------------------------------------------------------------------------------- */

static void mapping_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    sr_sys_unmap(&((srp_mapping *)object)->map);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int mapping_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    srp_mapping *self = (srp_mapping *)object;
    return PyBuffer_FillInfo(view, object, self->map.at, (Py_ssize_t)self->map.len, !self->writable, flags);
}

/* touch(start, stop, step) -> sum of the bytes read */
static PyObject *mapping_touch(PyObject *object, PyObject *args)
{
    srp_mapping *self = (srp_mapping *)object;
    unsigned long long start, stop, step;
    if (!PyArg_ParseTuple(args, "KKK", &start, &stop, &step)) return NULL;
    if (step == 0 || stop > self->map.len) return PyErr_Format(PyExc_ValueError, "outside the mapping");
    unsigned long long sum = 0;
    Py_BEGIN_ALLOW_THREADS
    for (unsigned long long at = start; at < stop; at += step) sum += *(volatile unsigned char *)(self->map.at + at);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(sum);
}

static PyObject *mapping_address(PyObject *o, void *u) { (void)u; return PyLong_FromUnsignedLongLong((uintptr_t)((srp_mapping *)o)->map.at); }

PyTypeObject *srp_mapping_type(void)
{
    static PyMethodDef methods[] = {{"touch", mapping_touch, METH_VARARGS, NULL}, {0}};
    static PyGetSetDef getset[] = {{"address", mapping_address, NULL, NULL, NULL}, {0}};
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, mapping_dealloc}, {Py_tp_methods, methods}, {Py_tp_getset, getset}, {Py_bf_getbuffer, mapping_getbuffer}, {0, NULL}};
    static PyType_Spec spec = {"sharedregion._native.Mapping", sizeof(srp_mapping), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}
