/* blocks: sharedregion._blocks, what the drop-in for multiprocessing.shared_memory needs.
 *
 * A module of its own: it needs neither NumPy nor the rooms of a region, so that a program which only
 * changed an import does not load them.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sr_posix.h"
#ifdef SR_FAULTS
#include "sr_faults_python.h"
#endif

typedef struct {
    PyObject_HEAD
    struct sr_map map;
} srp_block_map;

static PyTypeObject *map_type;

/* OSError(errno, what): Python makes FileExistsError and the like of it. */
static PyObject *raise_errno(const struct sr_error *e)
{
    PyObject *args = Py_BuildValue("(is)", e->sys_errno, e->what);
    if (args == NULL) return NULL;
    PyErr_SetObject(PyExc_OSError, args);
    Py_DECREF(args);
    return NULL;
}

static srp_block_map *map_new(void)
{
    srp_block_map *self = PyObject_New(srp_block_map, map_type);
    if (self == NULL) return NULL;
    self->map = (struct sr_map){0};
    return self;
}

/* The descriptor with its mapping, or the error that took the place of the descriptor. */
static PyObject *made(int fd, srp_block_map *map, const struct sr_error *e)
{
    if (fd >= 0) return Py_BuildValue("(iN)", fd, (PyObject *)map);
    Py_DECREF((PyObject *)map);
    return raise_errno(e);
}

/* create(size, mode, large) -> (descriptor, BlockMap) */
static PyObject *blocks_create(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long size;
    unsigned mode;
    int large;
    if (!PyArg_ParseTuple(args, "KIp", &size, &mode, &large)) return NULL;
    srp_block_map *map = map_new();
    if (map == NULL) return NULL;
    struct sr_error e = {0};
    int fd;
    Py_BEGIN_ALLOW_THREADS
    fd = sr_posix_create(size, mode, large, &map->map, &e);
    Py_END_ALLOW_THREADS
    return made(fd, map, &e);
}

/* publish(descriptor, name, size) -> (descriptor, BlockMap), of no bytes where the descriptor is the first one */
static PyObject *blocks_publish(PyObject *module, PyObject *args)
{
    (void)module;
    int fd;
    const char *name;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "isK", &fd, &name, &size)) return NULL;
    srp_block_map *map = map_new();
    if (map == NULL) return NULL;
    struct sr_error e = {0};
    return made(sr_posix_publish(fd, name, size, &map->map, &e), map, &e);
}

/* map_block(descriptor, size) -> BlockMap, read-write */
static PyObject *blocks_map(PyObject *module, PyObject *args)
{
    (void)module;
    int fd;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "iK", &fd, &size)) return NULL;
    srp_block_map *map = map_new();
    if (map == NULL) return NULL;
    struct sr_error e = {0};
    if (sr_posix_map(fd, size, true, &map->map, &e) == 0) return (PyObject *)map;
    Py_DECREF((PyObject *)map);
    return raise_errno(&e);
}

/* collapse(descriptor, size) -> (large, empty, refused, errno) in ranges of 2 MiB */
static PyObject *blocks_collapse(PyObject *module, PyObject *args)
{
    (void)module;
    int fd;
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "iK", &fd, &size)) return NULL;
    struct sr_error e = {0};
    struct sr_posix_pages pages;
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_posix_collapse(fd, size, &pages, &e);
    Py_END_ALLOW_THREADS
    if (got < 0) return raise_errno(&e);
    return Py_BuildValue("(KKKi)", (unsigned long long)pages.large, (unsigned long long)pages.empty,
                         (unsigned long long)pages.refused, pages.why);
}

/* --- the mapping: lives as long as anything looks at it --------------------------------------- */

static void map_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    sr_sys_unmap(&((srp_block_map *)object)->map);
    PyObject_Free(object);
    Py_DECREF(type);
}

static int map_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    srp_block_map *self = (srp_block_map *)object;
    return PyBuffer_FillInfo(view, object, self->map.at, (Py_ssize_t)self->map.len, 0, flags);
}

static Py_ssize_t map_length(PyObject *object) { return (Py_ssize_t)((srp_block_map *)object)->map.len; }

/* close(): what mmap.mmap has. There is nothing to do: the last view unmaps. */
static PyObject *map_close(PyObject *object, PyObject *unused)
{
    (void)object, (void)unused;
    Py_RETURN_NONE;
}

static PyObject *map_address(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong((uintptr_t)((srp_block_map *)object)->map.at);
}

static PyTypeObject *make_map_type(void)
{
    static PyMethodDef methods[] = {{"close", map_close, METH_NOARGS, NULL}, {0}};
    static PyGetSetDef getset[] = {{"address", map_address, NULL, NULL, NULL}, {0}};
    static PyType_Slot slots[] = {{Py_tp_dealloc, map_dealloc}, {Py_tp_methods, methods},         {Py_tp_getset, getset},
                                  {Py_sq_length, map_length},   {Py_bf_getbuffer, map_getbuffer}, {0, NULL}};
    static PyType_Spec spec = {"sharedregion._blocks.BlockMap", sizeof(srp_block_map), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, slots};
    return (PyTypeObject *)PyType_FromSpec(&spec);
}

static PyMethodDef functions[] = {
    {"create", blocks_create, METH_VARARGS, NULL},
    {"publish", blocks_publish, METH_VARARGS, NULL},
    {"map_block", blocks_map, METH_VARARGS, NULL},
    {"collapse", blocks_collapse, METH_VARARGS, NULL},
    {0},
};

static int fill(PyObject *module)
{
#ifdef SR_FAULTS
    if (srp_faults_init(module) < 0) return -1;
#endif
    map_type = make_map_type();
    if (map_type == NULL || PyModule_AddType(module, map_type) < 0) return -1;
    return PyModule_AddStringConstant(module, "SHM_DIR", SR_SHM_DIR);
}

PyMODINIT_FUNC PyInit__blocks(void)
{
    static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "_blocks", NULL, -1, functions, NULL, NULL, NULL, NULL};
    PyObject *module = PyModule_Create(&def);
    if (module && fill(module) < 0) Py_CLEAR(module);
    return module;
}
