/* module: sharedregion._native. */
#include "sr_python.h"
#ifdef SR_FAULTS
#include "sr_faults_python.h"
#endif

struct srp_types srp_types;

static PyObject *native_unlink(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    unsigned long owner = SR_NO_OWNER;
    if (!PyArg_ParseTuple(args, "s|k", &name, &owner)) return NULL;
    struct sr_error e = {0};
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_region_unlink(name, (uint32_t)owner, &e);    /* may wait for a keeper */
    Py_END_ALLOW_THREADS
    if (got < 0) return srp_raise(&e);
    Py_RETURN_NONE;
}

static PyObject *native_reclaim(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    int look = 0;
    unsigned long owner = SR_NO_OWNER;
    if (!PyArg_ParseTuple(args, "s|pk", &name, &look, &owner)) return NULL;
    struct sr_error e = {0};
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_region_reclaim_of(name, (uint32_t)owner, look, &e);
    Py_END_ALLOW_THREADS
    return got < 0 ? srp_raise(&e) : PyBool_FromLong(got);
}

/* peek(name) -> {...} of the head, and whether a member lives */
static PyObject *native_remove_half_made(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    unsigned generation;
    int look = 0;
    if (!PyArg_ParseTuple(args, "sI|p", &name, &generation, &look)) return NULL;
    return PyBool_FromLong(sr_region_remove_half_made(name, generation, look) == 1);
}

static PyObject *native_peek(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    struct sr_error e = {0};
    struct sr_head h;
    bool live;
    if (sr_region_peek(name, &h, &live, &e) < 0) return srp_raise(&e);
    const struct sr_backend *b = sr_backend_of_kind(h.hd_kind);
    return Py_BuildValue("{sssKsKsssssIsIsKsOsN}", "name", h.hd_name, "size", (unsigned long long)h.hd_size, "mapped",
                         (unsigned long long)h.hd_mapped, "backend", b->name, "reason", h.hd_reason, "flags", h.hd_flags, "uid", h.hd_uid,
                         "created_ns", (unsigned long long)h.hd_created_ns, "live", live ? Py_True : Py_False, "files", srp_files(&h));
}

/* remove_leftover(file, look) -> whether it is nobody's (and now gone, unless look) */
static PyObject *native_remove_leftover(PyObject *module, PyObject *args)
{
    (void)module;
    const char *file;
    int look;
    if (!PyArg_ParseTuple(args, "sp", &file, &look)) return NULL;
    if (strchr(file, '/')) return PyErr_Format(PyExc_ValueError, "a file of " SR_SHM_DIR ", not a path");
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_region_remove_leftover(file, look);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(got);
}

static PyObject *native_check_name(PyObject *module, PyObject *name)
{
    (void)module;
    Py_ssize_t len;
    const char *text = PyUnicode_AsUTF8AndSize(name, &len);
    if (text == NULL) return NULL;
    struct sr_error e = {0};
    if (sr_region_check_name(text, (size_t)len, &e) < 0) return srp_raise(&e);
    Py_RETURN_NONE;
}

static PyObject *native_settle(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    srp_settle();
    Py_RETURN_NONE;
}

PyObject *srp_files(const struct sr_head *h)
{
    unsigned long long data[] = {h->hd_data_dev, h->hd_data_ino}, members[] = {h->hd_members_dev, h->hd_members_ino};
    if (h->hd_share_ino == 0) return Py_BuildValue("(KKKK)", data[0], data[1], members[0], members[1]);
    return Py_BuildValue("(KKKKKK)", data[0], data[1], members[0], members[1], (unsigned long long)h->hd_share_dev, (unsigned long long)h->hd_share_ino);
}

/* msharefs_try(path) -> (name of the series, unit) */
static PyObject *msharefs_try(PyObject *module, PyObject *text)
{
    (void)module;
    const char *path = PyUnicode_AsUTF8AndSize(text, NULL);
    if (path == NULL) return NULL;
    struct sr_msharefs found;
    struct sr_error e = {0};
    int got;
    Py_BEGIN_ALLOW_THREADS
    got = sr_share_try(path, &found, &e);
    Py_END_ALLOW_THREADS
    return got < 0 ? srp_raise(&e) : Py_BuildValue("(sK)", sr_msharefs_abi_name(&found), (unsigned long long)found.unit);
}

/* msharefs_find(path) -> the same, without making a region, or None if it is no msharefs that this build knows */
static PyObject *msharefs_find(PyObject *module, PyObject *text)
{
    (void)module;
    const char *path = PyUnicode_AsUTF8AndSize(text, NULL);
    if (path == NULL) return NULL;
    struct sr_msharefs found;
    if (sr_msharefs_find(path, &found) < 0) Py_RETURN_NONE;
    return Py_BuildValue("(sK)", sr_msharefs_abi_name(&found), (unsigned long long)found.unit);
}

static PyMethodDef functions[] = {
    {"settle", native_settle, METH_NOARGS, NULL},
    {"unlink", native_unlink, METH_VARARGS, NULL},
    {"reclaim", native_reclaim, METH_VARARGS, NULL},
    {"remove_half_made", native_remove_half_made, METH_VARARGS, NULL},
    {"remove_leftover", native_remove_leftover, METH_VARARGS, NULL},
    {"peek", native_peek, METH_VARARGS, NULL},
    {"check_name", native_check_name, METH_O, NULL},
    {"msharefs_try", msharefs_try, METH_O, NULL},
    {"msharefs_find", msharefs_find, METH_O, NULL},
    {"locate", srp_locate, METH_VARARGS, NULL},
    {"reduce", srp_reduce, METH_O, NULL},
    {"set_reducer", srp_set_reducer, METH_O, NULL},
    {0},
};

static int add_type(PyObject *module, PyTypeObject **slot, PyTypeObject *type)
{
    *slot = type;
    return type == NULL ? -1 : PyModule_AddType(module, type);
}

static int fill(PyObject *module)
{
#ifdef SR_FAULTS
    if (srp_faults_init(module) < 0) return -1;
#endif
    if (srp_errors_init() < 0 || srp_arrays_init() < 0) return -1;
    if (add_type(module, &srp_types.region, srp_region_type()) < 0 || add_type(module, &srp_types.pin, srp_pin_type()) < 0 ||
        add_type(module, &srp_types.draft, srp_draft_type()) < 0 || add_type(module, &srp_types.segment, srp_segment_type()) < 0 ||
        add_type(module, &srp_types.mapping, srp_mapping_type()) < 0 || add_type(module, &srp_types.onlooker, srp_onlooker_type()) < 0 ||
        add_type(module, &srp_types.private_view, srp_private_view_type()) < 0)
        return -1;
    const struct { const char *name; long value; } numbers[] = {
        {"FORMAT_VERSION", SR_FORMAT_VERSION}, {"NAME_MAX", SR_REGION_NAME_MAX}, {"OBJECT_NAME_MAX", SR_OBJECT_NAME_MAX},
        {"MUTABLE", SR_ENTRY_MUTABLE}, {"SEALED", SR_STATE_SEALED}, {"PERSIST", SR_HEAD_PERSIST}, {"KEPT", SR_HEAD_KEPT},
        {"COMMITTED", SR_HEAD_COMMITTED},
    };
    for (size_t i = 0; i < SR_ARRAY_LEN(numbers); i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0) return -1;
    return PyModule_AddStringConstant(module, "SHM_DIR", SR_SHM_DIR);
}

PyMODINIT_FUNC PyInit__native(void)
{
    static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, functions, NULL, NULL, NULL, NULL};
    PyObject *module = PyModule_Create(&def);
    if (module && fill(module) < 0) Py_CLEAR(module);
    return module;
}
