"""CPython's tests that the drop-in does not pass, each with its reason. A test here that passes is an error too."""

#: test method -> why
KNOWN = {
    "test_shared_memory_tracking": (
        "It asserts that the exit of a process which attached unlinks the block and warns (cpython#82300): "
        "one of the faults that are gone. It is in Python 3.13 and later."
    ),
}
