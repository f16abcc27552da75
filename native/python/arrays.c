/* arrays: ndarrays over pinned blocks. The only file that knows NumPy's C API.
 *
 * Metadata of a plain array (sharedregion/arrays.py writes and reads the same):
 *
 *    0  u8   1: plain; 2: the dtype is a description that Python reads; 3: the same, packed
 *    1  u8   1: Fortran order
 *    2  u8   number of dimensions, at most 64 (NumPy 2's own limit)
 *    3  u8   length of the dtype's string
 *    4  u64  each dimension
 *    .  ...  dtype string, as ndarray.dtype.str, for example "<f4"
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include "sr_python.h"

#include <numpy/arrayobject.h>

#define META_PLAIN 1
#define META_FORTRAN 1
#define DTYPES 32

/* dtype strings seen before: making a descriptor from its string takes longer than all the rest. */
static struct { char text[16]; uint8_t len; PyArray_Descr *descr; } dtypes[DTYPES];

int srp_arrays_init(void)
{
    import_array1(-1);
    return 0;
}

/* A new reference. */
static PyArray_Descr *descr_of(const char *text, size_t len)
{
    unsigned home = 0;
    for (size_t i = 0; i < len; i++) home = home * 31 + (unsigned char)text[i];
    home %= DTYPES;
    bool cachable = len < sizeof dtypes[0].text;
    if (cachable && dtypes[home].descr && dtypes[home].len == len && memcmp(dtypes[home].text, text, len) == 0)
        return (PyArray_Descr *)Py_NewRef((PyObject *)dtypes[home].descr);
    PyObject *string = PyUnicode_DecodeASCII(text, (Py_ssize_t)len, "strict");
    if (string == NULL) return NULL;
    PyArray_Descr *descr = NULL;
    int ok = PyArray_DescrConverter(string, &descr);
    Py_DECREF(string);
    if (!ok) return NULL;
    if (cachable) {
        Py_XDECREF((PyObject *)dtypes[home].descr);
        dtypes[home].descr = (PyArray_Descr *)Py_NewRef((PyObject *)descr);
        dtypes[home].len = (uint8_t)len;
        memcpy(dtypes[home].text, text, len);
    }
    return descr;
}

static PyObject *damaged(void)
{
    struct sr_error e;
    sr_fail(&e, SR_E_CORRUPT, 0, "the description of an array contradicts itself");
    return srp_raise(&e);
}

PyObject *srp_array_of(PyObject *pin, const struct sr_found *f, const unsigned char *at, bool writable)
{
    const uint8_t *meta = f->text + f->name_len;
    if (f->meta_len < 4) return damaged();
    if (meta[0] != META_PLAIN) Py_RETURN_NOTIMPLEMENTED;
    unsigned ndim = meta[2], dtype_len = meta[3];
    if (ndim > NPY_MAXDIMS || f->meta_len != 4 + 8 * ndim + dtype_len) return damaged();
    npy_intp dims[NPY_MAXDIMS];
    uint64_t items = 1;
    for (unsigned i = 0; i < ndim; i++) {
        uint64_t dim;
        memcpy(&dim, meta + 4 + 8 * i, 8);
        if (dim > NPY_MAX_INTP || (dim && items > UINT64_MAX / dim)) return damaged();
        dims[i] = (npy_intp)dim;
        items *= dim;
    }
    PyArray_Descr *descr = descr_of((const char *)meta + 4 + 8 * ndim, dtype_len);
    if (descr == NULL) {
        PyErr_Clear();
        return damaged();
    }
    uint64_t item = (uint64_t)PyDataType_ELSIZE(descr);
    if (PyDataType_REFCHK(descr) || (item && items > UINT64_MAX / item) || items * item != f->len) {
        Py_DECREF((PyObject *)descr);
        return damaged();
    }
    int flags = NPY_ARRAY_ALIGNED | (writable ? NPY_ARRAY_WRITEABLE : 0);
    if (meta[1] & META_FORTRAN) flags |= NPY_ARRAY_F_CONTIGUOUS;
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, (int)ndim, dims, NULL, (void *)(uintptr_t)at, flags, NULL);
    if (array == NULL) return NULL;
    if (PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(pin)) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

/* --- placing ---------------------------------------------------------------------------------- */

bool srp_array_plain(PyObject *value, struct srp_plain *plain)
{
    if (Py_TYPE(value) != &PyArray_Type) return false;
    PyArrayObject *array = (PyArrayObject *)value;
    PyArray_Descr *descr = PyArray_DESCR(array);
    /* Numbers and bool: what their dtype string says is kind, order and size. Some have fields beside that. */
    if (PyDataType_HASFIELDS(descr) || !(descr->type_num <= NPY_CLONGDOUBLE || descr->type_num == NPY_HALF)) return false;
    bool c_order = PyArray_IS_C_CONTIGUOUS(array);
    if (!c_order && !PyArray_IS_F_CONTIGUOUS(array)) return false;
    unsigned ndim = (unsigned)PyArray_NDIM(array);
    uint8_t *meta = plain->meta;
    meta[0] = META_PLAIN;
    meta[1] = c_order ? 0 : META_FORTRAN;
    meta[2] = (uint8_t)ndim;
    for (unsigned i = 0; i < ndim; i++) {
        uint64_t dim = (uint64_t)PyArray_DIM(array, (int)i);
        memcpy(meta + 4 + 8 * i, &dim, 8);
    }
    npy_intp item = PyDataType_ELSIZE(descr);
    char *text = (char *)meta + 4 + 8 * ndim;
    int len = 0;
    text[len++] = descr->byteorder == '=' ? '<' : descr->byteorder;
    text[len++] = descr->kind;
    if (item >= 10) text[len++] = (char)('0' + item / 10);
    text[len++] = (char)('0' + item % 10);
    meta[3] = (uint8_t)len;
    plain->meta_len = 4 + 8 * ndim + (size_t)len;
    plain->data = PyArray_DATA(array);
    plain->nbytes = (uint64_t)PyArray_NBYTES(array);
    return true;
}

/* --- sending ---------------------------------------------------------------------------------- */

static PyObject *reduce_inside;    /* sharedregion.references: what to send for an array in a region */

PyObject *srp_set_reducer(PyObject *module, PyObject *function)
{
    (void)module;
    Py_XDECREF(reduce_inside);
    reduce_inside = Py_NewRef(function);
    Py_RETURN_NONE;
}

/* For ForkingPickler, which asks for every array that is sent: an array elsewhere must cost next to
 * nothing more than without us. */
PyObject *srp_reduce(PyObject *module, PyObject *value)
{
    (void)module;
    if (reduce_inside && Py_TYPE(value) == &PyArray_Type && srp_region_maps(PyArray_DATA((PyArrayObject *)value))) {
        PyObject *found = PyObject_CallFunctionObjArgs(reduce_inside, value, NULL);
        if (found != Py_None) return found;
        Py_DECREF(found);
    }
    return PyObject_CallMethod(value, "__reduce_ex__", "i", 4);
}
