/* errors: the one table between codes and exceptions. */
#include "sr_python.h"

#include <errno.h>

static const struct { int code; const char *name, *remedy; } table[] = {
    {SR_E_SYSTEM, "SharedRegionError", NULL},
    {SR_E_EXISTS, "RegionExists", "attach() to it, or create(..., replace=True), or unlink() it first"},
    {SR_E_NOT_FOUND, "RegionNotFound", "sharedregion.regions() lists what there is; a region ends with its last process unless made with persist=True"},
    {SR_E_FULL, "RegionFull", "delete objects, or create a larger region"},
    {SR_E_CORRUPT, "RegionCorrupt", "unlink() the region and create it anew"},
    {SR_E_LOST, "RegionLost", "create the region anew"},
    {SR_E_UNAVAILABLE, "BackendUnavailable", "sharedregion.backends() says what each kind of memory needs"},
    {SR_E_READ_ONLY, "ReadOnlyRegion", NULL},
    {SR_E_NO_OBJECT, "ObjectNotFound", NULL},
    {SR_E_DENIED, "RegionDenied", "attach as its owner, or pass owner= and have its mode changed"},
    {SR_E_CLOSED, "RegionClosed", NULL},
    {SR_E_TIMEOUT, "RegionTimeout", NULL},
};
static PyObject *classes[SR_ARRAY_LEN(table)];

int srp_errors_init(void)
{
    PyObject *module = PyImport_ImportModule("sharedregion.errors");
    if (module == NULL) return -1;
    int result = 0;
    for (size_t i = 0; i < SR_ARRAY_LEN(table) && result == 0; i++) {
        classes[i] = PyObject_GetAttrString(module, table[i].name);
        if (classes[i] == NULL) result = -1;
    }
    Py_DECREF(module);
    return result;
}

static PyObject *extra(const struct sr_error *e)
{
    PyObject *dict = PyDict_New();
    if (dict == NULL || e->code != SR_E_FULL || e->wanted == 0) return dict;
    const struct { const char *name; uint64_t value; } fields[] = {
        {"wanted", e->wanted}, {"free", e->free}, {"largest", e->largest}};
    for (size_t i = 0; i < SR_ARRAY_LEN(fields); i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(fields[i].value);
        if (value == NULL || PyDict_SetItemString(dict, fields[i].name, value) < 0) {
            Py_XDECREF(value);
            Py_DECREF(dict);
            return NULL;
        }
        Py_DECREF(value);
    }
    return dict;
}

/* Where the kernel's own words say more than ours. */
static bool in_kernels_words(const struct sr_error *e)
{
    return e->sys_errno && (e->code == SR_E_SYSTEM || e->code == SR_E_UNAVAILABLE || e->code == SR_E_LOST);
}

static PyObject *build(size_t i, const struct sr_error *e)
{
    char what[SR_WHAT_MAX + 128];
    struct sr_text text = {.at = what, .cap = sizeof what};
    sr_text_add(&text, "%s", e->what);
    if (in_kernels_words(e)) sr_text_add(&text, " (%s)", strerror(e->sys_errno));
    PyObject *keywords = extra(e);
    const char *remedy = table[i].remedy;
    /* Neither to be replaced nor to be unlinked by this one. */
    if (e->code == SR_E_EXISTS && e->sys_errno == EACCES) remedy = "choose another name, or have its owner unlink() it";
    PyObject *args = Py_BuildValue("(szN)", what, remedy,
                                   e->sys_errno ? PyLong_FromLong(e->sys_errno) : Py_NewRef(Py_None));
    PyObject *exception = keywords && args ? PyObject_Call(classes[i], args, keywords) : NULL;
    Py_XDECREF(keywords);
    Py_XDECREF(args);
    return exception;
}

PyObject *srp_raise(const struct sr_error *e)
{
    if (e->code == SR_E_NO_MEMORY) return PyErr_NoMemory();
    if (e->code == SR_E_INVALID) {
        PyErr_SetString(PyExc_ValueError, e->what);
        return NULL;
    }
    for (size_t i = 0; i < SR_ARRAY_LEN(table); i++) {
        if (table[i].code != e->code) continue;
        PyObject *exception = build(i, e);
        if (exception) {
            PyErr_SetObject(classes[i], exception);
            Py_DECREF(exception);
        }
        return NULL;
    }
    PyErr_Format(PyExc_SystemError, "unknown error %d: %s", e->code, e->what);
    return NULL;
}
