"""Measurements: each case in a process of its own, each figure beside a peer's in the same run."""
