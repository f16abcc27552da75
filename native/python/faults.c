/* faults: kernel calls made to fail, for tests. Built with -Dfault_injection=true only, into each of
 * the two modules, since each has a table of calls of its own. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sr_faults_python.h"
#include "sr_sys.h"

/* fail_call(name, nth, errno): the nth call of that name from now on fails, once */
static PyObject *fail_call(PyObject *module, PyObject *args)
{
    (void)module;
    const char *name;
    unsigned nth;
    int error;
    if (!PyArg_ParseTuple(args, "sIi", &name, &nth, &error)) return NULL;
    if (sr_faults_arm(name, nth, error) < 0) return PyErr_Format(PyExc_ValueError, "there is no call '%s' that could fail so", name);
    Py_RETURN_NONE;
}

/* count_calls(): count from now on, and let none fail */
static PyObject *count_calls(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    sr_faults_watch();
    Py_RETURN_NONE;
}

static PyObject *fail_none(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    sr_faults_disarm();
    Py_RETURN_NONE;
}

/* calls() -> {name: count} of those that were made */
static PyObject *calls(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *dict = PyDict_New();
    const char *name;
    unsigned count;
    for (unsigned i = 0; dict && (name = sr_faults_counted(i, &count)) != NULL; i++) {
        PyObject *number = count ? PyLong_FromUnsignedLong(count) : NULL;
        if (number && PyDict_SetItemString(dict, name, number) < 0) Py_CLEAR(dict);
        Py_XDECREF(number);
    }
    return dict;
}

static PyMethodDef functions[] = {
    {"fail_call", fail_call, METH_VARARGS, NULL},
    {"count_calls", count_calls, METH_NOARGS, NULL},
    {"fail_none", fail_none, METH_NOARGS, NULL},
    {"calls", calls, METH_NOARGS, NULL},
    {0},
};

int srp_faults_init(PyObject *module) { return PyModule_AddFunctions(module, functions); }
