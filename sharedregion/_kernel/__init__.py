"""Read-only views of Linux: what the machine offers, as data.

Every function takes the root path of the tree that it reads, so that made-up and recorded trees can
stand in for the machine. A file that is missing, unreadable or malformed gives None or nothing,
never an exception: kernels differ, and containers hide things. Nothing here decides anything.
"""
