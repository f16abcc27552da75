"""The native part of the drop-in for multiprocessing.shared_memory."""

SHM_DIR: str

class BlockMap:
    """A mapping of a block, unmapped with the last view of it."""
    @property
    def address(self) -> int: ...
    def __len__(self) -> int: ...
    def close(self) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def create(size: int, mode: int, large: bool, /) -> tuple[int, BlockMap]:
    """Make a block with its memory behind it and no name: a descriptor and a writable mapping. OSError."""

def publish(descriptor: int, name: str, size: int, /) -> tuple[int, BlockMap]:
    """Name it; a descriptor and mapping that show the name, or the descriptor itself and a mapping of no bytes. OSError."""

def map_block(descriptor: int, size: int, /) -> BlockMap:
    """Map a block read-write, at a multiple of 2 MiB if it is as large as that. OSError."""

def collapse(descriptor: int, size: int, /) -> tuple[int, int, int, int]:
    """Make large pages of every whole 2 MiB: ranges that are large now, empty, refused, and errno of the last refusal."""

# Only in builds with -Dfault_injection=true.
def fail_call(name: str, nth: int, errno: int, /) -> None: ...
def count_calls() -> None: ...
def fail_none() -> None: ...
def calls() -> dict[str, int]: ...
