/* tickets: what a handle owes to references that are under way. */
#include "sr_python.h"

/* --- handles that wait for them --------------------------------------------------------------- */

/* Handles that nothing in this process looks at any more, but whose row holds tickets of references
 * under way. */
static PyObject *lingering;

void srp_settle(void)
{
    for (Py_ssize_t i = lingering ? PyList_Size(lingering) : 0; i-- > 0;) {
        srp_region *waiting = (srp_region *)PyList_GetItem(lingering, i);
        if (waiting->r && sr_tickets_open(waiting->r, 0)) continue;
        Py_INCREF((PyObject *)waiting);
        PySequence_DelItem(lingering, i);
        if (waiting->closed && waiting->pins == 0) srp_region_give_back(waiting);
        Py_DECREF((PyObject *)waiting);
        if (i > PyList_Size(lingering)) i = PyList_Size(lingering);
    }
}

/* Called where objects die: an exception that is on its way is none of its business. */
void srp_linger(srp_region *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (lingering == NULL) lingering = PyList_New(0);
    bool there = false;
    for (Py_ssize_t i = lingering ? PyList_Size(lingering) : 0; i-- > 0;) there |= PyList_GetItem(lingering, i) == (PyObject *)self;
    if (lingering && !there) PyList_Append(lingering, (PyObject *)self);
    PyErr_Restore(type, value, traceback);
}

/* --- methods of Region ------------------------------------------------------------------------ */

/* _ticket(block) -> row; _claim(row, block) */
PyObject *srp_region_ticket(PyObject *object, PyObject *args)
{
    unsigned block;
    struct sr_region *r = ((srp_region *)object)->r;
    if (r == NULL) return srp_closed_error();
    if (!PyArg_ParseTuple(args, "I", &block)) return NULL;
    struct sr_error e;
    uint32_t row;
    return sr_ticket_issue(r, block, &row, &e) < 0 ? srp_raise(&e) : PyLong_FromUnsignedLong(row);
}

PyObject *srp_region_claim(PyObject *object, PyObject *args)
{
    unsigned row, block;
    struct sr_region *r = ((srp_region *)object)->r;
    if (r == NULL) return srp_closed_error();
    if (!PyArg_ParseTuple(args, "II", &row, &block)) return NULL;
    sr_ticket_claim(r, row, block);
    Py_RETURN_NONE;
}

/* _tickets(block=0) -> references under way to that block, or to any */
PyObject *srp_region_tickets(PyObject *object, PyObject *args)
{
    unsigned block = 0;
    if (!PyArg_ParseTuple(args, "|I", &block)) return NULL;
    struct sr_region *r = ((srp_region *)object)->r;
    return PyLong_FromUnsignedLong(r ? sr_tickets_open(r, block) : 0);
}
