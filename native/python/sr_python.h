/* python: the binding. Limited API (3.11), one file per Python type.
 *
 * Room 6. What is here turns arguments into the structs of the rooms below and codes into
 * exceptions; it holds no policy and no state of its own but the types. Public documentation stands
 * in sharedregion/_native.pyi.
 */
#ifndef SR_PYTHON_H
#define SR_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "sr_catalog.h"

/* One per process: the module is not made for subinterpreters. */
struct srp_types {
    PyTypeObject *region, *pin, *draft, *segment, *mapping, *onlooker, *private_view;
};
extern struct srp_types srp_types;

typedef struct srp_region {
    PyObject_HEAD
    struct sr_region *r;        /* NULL once everything is given back            */
    Py_ssize_t pins;            /* Pin and Draft objects that refer to it        */
    bool closed;                /* close() was called                            */
    PyObject *weakrefs;
    struct srp_region *next, **link;    /* all handles of this process that map a region */
} srp_region;

/* Holds a block: the base of every array that looks at it. */
typedef struct srp_pin {
    PyObject_HEAD
    srp_region *region;
    struct srp_pin *next, **link;    /* all pins of this process, to find one by address */
    unsigned char *at;
    uint64_t len, seq;
    uint32_t entry, block;
    uint8_t flags, writable, of_file;    /* of_file: `at` is not in the block, but in a file beside the memory */
} srp_pin;

/* errors.c */
int srp_errors_init(void);
/* Set the exception for e and return NULL. */
PyObject *srp_raise(const struct sr_error *e);

/* region.c */
PyTypeObject *srp_region_type(void);
/* The handle if it is open; NULL with RegionClosed set. */
struct sr_region *srp_open(srp_region *self);
void srp_region_pin_added(srp_region *region);
void srp_region_pin_dropped(srp_region *region);
/* Leave the region, or what is left of that. */
void srp_region_give_back(srp_region *region);
PyObject *srp_closed_error(void);
/* Whether the address lies in the data segment of a region that is mapped here. */
bool srp_region_maps(const void *at);

/* (name, type, flags, meta, nbytes, seq, version, entry, block) */
PyObject *srp_found_tuple(const struct sr_found *f);
/* [found tuple, ...] of all objects, unordered */
PyObject *srp_objects(struct sr_region *r);
/* [(row, pid, uid, writer, joined_ns, pins), ...] of the living */
/* RegionCorrupt; NULL. */
PyObject *srp_damaged(struct sr_region *r, const char *what);
PyObject *srp_members(struct sr_region *r);

/* tickets.c */
/* Keep the handle until its references have arrived, though nothing else here looks at it. */
void srp_linger(srp_region *region);
/* Let go of handles whose references have all arrived. */
void srp_settle(void);
PyObject *srp_region_ticket(PyObject *region, PyObject *args);
PyObject *srp_region_claim(PyObject *region, PyObject *args);
PyObject *srp_region_tickets(PyObject *region, PyObject *args);

/* onlooker.c */
PyTypeObject *srp_onlooker_type(void);

/* pin.c */
PyTypeObject *srp_pin_type(void);
/* Takes over one hold of f->block. On failure the hold is dropped. */
PyObject *srp_pin_new(srp_region *region, const struct sr_found *f);
PyObject *srp_locate(PyObject *module, PyObject *args);
/* (device, inode) of data and members segment, one after the other, and of the msharefs region. */
PyObject *srp_files(const struct sr_head *h);

/* private.c */
PyTypeObject *srp_private_view_type(void);
/* pin._private() -> PrivateView */
PyObject *srp_private_view_new(PyObject *pin, PyObject *unused);

/* draft.c */
PyTypeObject *srp_draft_type(void);
PyObject *srp_draft_new(srp_region *region, const struct sr_desc *desc, const struct sr_draft *draft);

/* segment.c */
PyTypeObject *srp_segment_type(void);
PyTypeObject *srp_mapping_type(void);

/* arrays.c: the only file that includes NumPy's headers */
int srp_arrays_init(void);
/* An ndarray over a pin as the metadata says; NotImplemented if the metadata is not of the plain
 * kind and Python has to read it. */
PyObject *srp_array_of(PyObject *pin, const struct sr_found *f, const unsigned char *at, bool writable);

/* An array whose bytes can be placed as they are, and the metadata that describes it. */
struct srp_plain {
    uint8_t meta[4 + 8 * 64 + 8];
    size_t meta_len;
    const void *data;
    uint64_t nbytes;
};
bool srp_array_plain(PyObject *value, struct srp_plain *plain);
PyObject *srp_set_reducer(PyObject *module, PyObject *function);
PyObject *srp_reduce(PyObject *module, PyObject *array);

#define SRP_TYPE_NDARRAY 1
#define SRP_TYPE_FILE 7    /* its description begins with offset and length in the msharefs region */

#endif
