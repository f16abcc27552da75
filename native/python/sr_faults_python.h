/* faults: what both modules have in builds with -Dfault_injection=true. */
#ifndef SR_FAULTS_PYTHON_H
#define SR_FAULTS_PYTHON_H

#include <Python.h>

/* Give the module fail_call, count_calls, fail_none and calls; -1 with an exception set. */
int srp_faults_init(PyObject *module);

#endif
