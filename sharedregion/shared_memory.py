"""The drop-in for multiprocessing.shared_memory: same names, smaller page tables, without its faults.

A block is a file in /dev/shm of exactly the size that was asked for, with all its memory behind it
from the moment that its name appears; processes that use the standard library attach to it by name,
and the other way round. From 2 MiB on it lies in large pages, so that a process which touches 1 GiB
pays 4 KiB of page tables for it and not 2 MiB.

Lifetime, in three sentences. A block lives until somebody calls `unlink()`. The process that made it
registers it (unless `track=False`), so that it is also removed when all processes of that program have
ended and nobody else uses it. Memory stays mapped as long as anything looks at it: `close()` never
takes it from under an array.

On other systems than Linux on x86_64 this module is the standard library's.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
import struct
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import _posixshmem

    from sharedregion import _block_policy, _blocks, _tracking

    _supported = True
except ImportError:
    _supported = False

if TYPE_CHECKING:
    from sharedregion.region import Region

__all__ = ["ShareableList", "SharedMemory"]


def __getattr__(name: str) -> Any:
    # Programs find it here to unregister what they attached to; a worker that does not need not load it.
    if name == "resource_tracker":
        from multiprocessing import resource_tracker

        return resource_tracker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_O_CREX = os.O_CREAT | os.O_EXCL
_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"
#: Some systems allow 14 characters; the standard library keeps to it everywhere, and so do names here.
_SHM_SAFE_NAME_LENGTH = 14
#: What a file's name may have, and shm_open(3) takes, without the slash.
_NAME_MAX = 255
#: A block with no file in /dev/shm is the region of this name.
_REGION_PREFIX = "shm."
_REGION_OBJECT = "block"
#: Mappings of closed blocks, by the id of the view that may still be held.
_kept: dict[int, tuple[Any, weakref.ref[memoryview]]] = {}


def _make_filename() -> str:
    """A random name for a block."""
    return _SHM_NAME_PREFIX + os.urandom((_SHM_SAFE_NAME_LENGTH - len(_SHM_NAME_PREFIX)) // 2).hex()


def _plain(name: str) -> str:
    """The file's name in /dev/shm, or an error as shm_open(3) would give it."""
    if "\0" in name:
        raise ValueError("embedded null character")
    plain = name.lstrip("/")
    if not plain or "/" in plain:
        raise _error(errno.EINVAL, "a block's name may not be empty or contain '/'", name)
    if len(os.fsencode(plain)) > _NAME_MAX:
        try:
            _posixshmem.shm_open(name, os.O_RDONLY, mode=0)
        except OSError as error:
            raise _error(
                error.errno or errno.EINVAL, f"a block's name may have {_NAME_MAX} bytes", name
            ) from error
    return plain


def _error(number: int, more: str | None, name: str | None) -> OSError:
    """The OSError that the standard library raises, with a message that says more."""
    return OSError(number, f"{os.strerror(number)}: {more}", name)


def _has_file(plain: str) -> bool:
    """Whether a file has the name. What a program that is gone has left, for those who still use it, gives it up."""
    path = f"{_blocks.SHM_DIR}/{plain}"
    _tracking.remove_orphan(path)
    return os.path.lexists(path)


def _has_region(plain: str) -> bool:
    return os.path.lexists(f"{_blocks.SHM_DIR}/sharedregion.{_REGION_PREFIX}{plain}.catalog")


def _taken(name: str) -> OSError:
    return _error(
        errno.EEXIST, "there is a block of this name; attach without create=True, or unlink it", name
    )


def _size_text(size: int) -> str:
    from sharedregion._sizes import format_size

    return format_size(size)


def _room() -> str:
    try:
        shm = os.statvfs(_blocks.SHM_DIR)
    except OSError:
        return f"{_blocks.SHM_DIR} cannot be looked at"
    if shm.f_files and not shm.f_favail:
        return f"{_blocks.SHM_DIR} has no more files"
    return f"{_blocks.SHM_DIR} has {_size_text(shm.f_bavail * shm.f_frsize)} left"


def _check_headroom(size: int, name: str) -> None:
    """OSError where taking the memory would be answered with the end of a process."""
    from sharedregion._kernel.cgroup import memory_limits
    from sharedregion._kernel.procfs import meminfo

    for limit in memory_limits():
        if size > limit.headroom:
            raise _error(
                errno.ENOMEM,
                f"the block needs {_size_text(size)}, and the memory limit of {limit.group} leaves "
                f"{_size_text(limit.headroom)}",
                name,
            )
    found = meminfo()
    available = found.get("MemAvailable", size) + found.get("SwapFree", 0)
    if size > available:
        raise _error(
            errno.ENOMEM,
            f"the block needs {_size_text(size)}, and {_size_text(available)} of memory are available",
            name,
        )


class SharedMemory:
    """A shared memory block, made or attached to by name.

    `SharedMemory(name, create=True, size=n)` makes a block of n bytes; without `name` it gets one that
    is free. `SharedMemory(name)` attaches to one. With `track=False` the block outlives the program
    that made it. `buf` is a writable memoryview of exactly `size` bytes.

    `backend` says what a new block is made of: "thp" or "shm", which is chosen by the size if it is
    not given, or "hugetlb" or "msharefs": such a block has no file in /dev/shm, so that only this
    class finds it by its name, and unless `track=False` it is gone with its last user. The variable
    SHAREDREGION_SHM_BACKEND stands in for the argument.
    """

    _name: str | None = None
    _fd = -1
    _mmap: Any = None
    _buf: memoryview | None = None
    _flags = os.O_RDWR
    _mode = 0o600
    _prepend_leading_slash = True
    _track = True
    _size = 0
    _region: Region | None = None

    def __init__(
        self,
        name: str | None = None,
        create: bool = False,
        size: int = 0,
        *,
        track: bool = True,
        backend: str | None = None,
    ) -> None:
        if not size >= 0:
            raise ValueError(f"'size' must be a positive integer, not {size!r}")
        if create:
            self._flags = _O_CREX | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True: to attach, say which block")
        self._track = track
        if create:
            self._create(name, operator.index(size), backend)
        else:
            assert name is not None
            self._attach("/" + name if self._prepend_leading_slash else name)
        self._buf = memoryview(self._mmap)

    # -- making and attaching ----------------------------------------------------------------------

    def _create(self, name: str | None, size: int, backend: str | None) -> None:
        kind = _block_policy.choose(size, backend, os.environ)
        make = self._create_region if kind in _block_policy.NAMELESS else self._create_file
        if name is not None:
            make("/" + name if self._prepend_leading_slash else name, size, kind)
            return
        while True:
            # Looked up at each use: programs replace it to choose their own names.
            made = _make_filename()
            try:
                make(made, size, kind)
            except FileExistsError:
                continue
            return

    def _create_file(self, name: str, size: int, kind: str) -> None:
        plain = _plain(name)
        # Found before the memory is filled; publish() decides.
        if _has_file(plain) or self._is_region(name):
            self.close()
            raise _taken(name)
        if size > sys.maxsize:
            raise OverflowError(f"a block cannot have {size} bytes")
        if size >= _block_policy.HEADROOM_FROM:
            _check_headroom(size, name)
        try:
            self._fd, self._mmap = _blocks.create(size, self._mode, kind == "thp")
            if self._track:
                _tracking.announce(name, self._fd)
            named, again = _blocks.publish(self._fd, plain, size)
            if named != self._fd:
                os.close(self._fd)
                self._fd, self._mmap = named, again
        except FileExistsError as error:
            self.close()
            raise _taken(name) from error
        except OSError as error:
            self.close()
            what = error.strerror
            if error.errno == errno.ENOSPC:
                what = f"the block needs {_size_text(size)}, and {_room()}"
            raise _error(error.errno or errno.EIO, what, name) from error
        self._name, self._size = name, size
        if self._track:
            _tracking.watch(name)

    def _attach(self, name: str) -> None:
        plain = _plain(name)
        try:
            fd = _posixshmem.shm_open(name, self._flags, mode=self._mode)
        except FileNotFoundError as error:
            if self._attach_region(name):
                return
            raise _error(errno.ENOENT, f"no block of this name is in {_blocks.SHM_DIR}", name) from error
        except PermissionError as error:
            raise _error(error.errno or errno.EACCES, _who_may(plain), name) from error
        try:
            found = os.fstat(fd)
            size = found.st_size
            if found.st_mode & stat.S_ISVTX and not _tracking.used_by_others(found):
                # Its program is gone, and at most this process still looks at it.
                _tracking.remove_orphan(f"{_blocks.SHM_DIR}/{plain}")
                raise FileNotFoundError(errno.ENOENT, "the program that made the block is gone")
            if size == 0:
                # Made by somebody who has not given it its size yet, or never will.
                raise ValueError(f"cannot mmap an empty file: block {name!r} has no bytes")
            self._mmap = _blocks.map_block(fd, size)
        except OSError as error:
            # It stays with whoever made it, here and below: a failed attach takes nothing away.
            os.close(fd)
            raise _error(error.errno or errno.EIO, error.strerror, name) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._name, self._size = fd, name, size

    def _create_region(self, name: str, size: int, kind: str) -> None:
        import sharedregion

        plain = _plain(name)
        if _has_file(plain):
            raise _taken(name)
        try:
            region = sharedregion.create(
                _REGION_PREFIX + plain,
                size=size + 4096,
                backend=kind,
                persist=not self._track,
                mode=self._mode,
            )
        except FileExistsError as error:
            raise _taken(name) from error
        except ValueError as error:
            raise _error(errno.EINVAL, str(error), name) from error
        try:
            self._mmap = region.zeros(_REGION_OBJECT, size, "u1", mutable=True)
        except BaseException:
            region.unlink()
            region.close()
            raise
        self._region, self._name, self._size = region, name, size

    def _attach_region(self, name: str) -> bool:
        plain = _plain(name)
        if not _has_region(plain):
            return False
        import sharedregion

        try:
            region = sharedregion.attach(_REGION_PREFIX + plain, writable=True)
        except FileNotFoundError:
            return False
        try:
            self._mmap = region[_REGION_OBJECT]
        except KeyError:
            # Its creator has made the region, and the block in it not yet.
            region.close()
            return False
        self._region, self._name, self._size = region, name, self._mmap.nbytes
        return True

    def _is_region(self, name: str) -> bool:
        """Whether a block that has no file has the name."""
        try:
            return self._attach_region(name)
        except OSError:
            return True

    # -- what the standard library's has -----------------------------------------------------------

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, (self.name, False, self.size)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self) -> memoryview | None:
        """A memoryview of the block's bytes; None after `close()`."""
        return self._buf

    @property
    def name(self) -> str | None:
        """The name by which other processes attach."""
        if self._name is not None and self._prepend_leading_slash and self._name.startswith("/"):
            return self._name[1:]
        return self._name

    @property
    def size(self) -> int:
        """Bytes, as asked for at creation; the same for everybody who attaches."""
        return self._size

    def close(self) -> None:
        """Let go of the block. Views and arrays of it stay valid; their last one unmaps it."""
        if self._buf is not None:
            # Some (torch.frombuffer) look at the memory and hold nothing but this view, which does not
            # know: released or not, the memory goes when it goes.
            view = id(self._buf)
            _kept[view] = self._mmap, weakref.ref(self._buf, partial(_kept.pop, view))
            # Refused where somebody looks through it: the mapping is theirs from now on.
            with suppress(BufferError):
                self._buf.release()
            self._buf = None
        self._mmap = None
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._region is not None:
            region, self._region = self._region, None
            region.close()

    def unlink(self) -> None:
        """Remove the block's name; its memory is gone with the last process that maps it.

        FileNotFoundError if it has been removed already.
        """
        if not self._name:
            return
        plain = _plain(self._name)
        nameless = self._region is not None or not os.path.lexists(f"{_blocks.SHM_DIR}/{plain}")
        if nameless and self._unlink_region(plain):
            return
        try:
            _posixshmem.shm_unlink(self._name)
        except FileNotFoundError as error:
            raise _error(errno.ENOENT, "the block has been unlinked already", self._name) from error
        _tracking.forget(self._name)

    def _unlink_region(self, plain: str) -> bool:
        if not _has_region(plain):
            return False
        import sharedregion

        sharedregion.unlink(_REGION_PREFIX + plain)
        return True


def _who_may(plain: str) -> str:
    try:
        found = os.stat(f"{_blocks.SHM_DIR}/{plain}")
    except OSError:
        return f"{_blocks.SHM_DIR} may not be looked into"
    return f"the block belongs to user {found.st_uid} and has mode {found.st_mode & 0o7777:o}; this is user {os.geteuid()}"


_encoding = "utf8"
_WORD = 8
_INT, _STR, _BYTES, _NONE = 0, 1, 2, 3
_NUMBERS = {bool: "xxxxxxx?", int: "q", float: "d", type(None): "xxxxxx?x"}


def _packed(value: Any) -> tuple[str | None, int, bytes]:
    """Format of a number (None for text), how it is read back, and its bytes. Nothing is changed yet."""
    if isinstance(value, str):
        return None, _STR, value.encode(_encoding)
    if isinstance(value, bytes):
        return None, _BYTES, value
    format_ = _NUMBERS.get(type(value))
    if format_ is None:
        raise KeyError(
            f"{type(value).__name__} cannot be an item of a ShareableList: int, float, bool, str, bytes and None can"
        )
    return format_, _NONE if value is None else _INT, struct.pack(format_, value)


def _text_room(text: str | bytes, length: int) -> int:
    """Bytes set aside for a text: as the standard library counts, in characters, where they suffice."""
    room = _WORD * (len(text) // _WORD + 1)
    return room if length <= room else _WORD * (length // _WORD + 1)


def _text_format(data: bytes, slot: int) -> str:
    """How the length of a text is written down.

    The standard library writes the room that the text has ("16s") and takes NULs off its end when it
    reads. So does this class, as long as that loses nothing. A text that ends in NUL is written with
    its length and a space ("5s "): struct ignores the space, the standard library can read it and, as
    the last character is no "s", gives the slot a format of its own when it writes. A length below
    the room with no space is how later versions of the standard library may write; both are read.
    """
    if not data.endswith(b"\0"):
        return f"{slot}s"
    exact = f"{len(data)}s "
    return exact if len(exact) <= _WORD else exact[:-1]


class ShareableList:
    """A list of fixed length in a block: int (64 bits), float, bool, str, bytes and None.

    Items can be replaced by others; a text has the room that it had at first. Text keeps its trailing
    NULs and may hold any character.
    """

    # The layout is the standard library's, in native byte order:
    #
    #   q            number of items, n
    #   q * (n + 1)  where each item starts in the data area; the last one is where the area ends
    #   data area    the items, each in whole words of 8 bytes
    #   8s * n       the struct format of each item, padded with NULs
    #   b * n        how each item is read back: 0 as it is, 1 str, 2 bytes, 3 None
    _types_mapping: ClassVar[dict[type, str]] = {
        int: "q",
        float: "d",
        bool: "xxxxxxx?",
        str: "%ds",
        bytes: "%ds",
        type(None): "xxxxxx?x",
    }
    _alignment = _WORD

    shm: SharedMemory

    def __init__(self, sequence: Iterable[Any] | None = None, *, name: str | None = None) -> None:
        if name is None or sequence is not None:
            self._fill([] if sequence is None else list(sequence), name)
        else:
            self.shm = SharedMemory(name)
            try:
                self._read_layout()
            except BaseException:
                self.shm.close()
                raise

    def _fill(self, items: list[Any], name: str | None) -> None:
        packed = [_packed(item) for item in items]
        offsets = [0]
        formats = []
        for item, (format_, _, data) in zip(items, packed, strict=True):
            room = _WORD if format_ else _text_room(item, len(data))
            text = format_ or _text_format(data, room)
            if len(text) > _WORD:
                raise ValueError(f"a text of {len(data)} bytes is too long for a ShareableList")
            formats.append(text)
            offsets.append(offsets[-1] + room)
        self._list_len = len(items)
        self._allocated_offsets = offsets
        size = self._offset_back_transform_codes + self._list_len
        self.shm = SharedMemory(name, create=True, size=size)
        buf = self._bytes
        struct.pack_into(f"q{len(offsets)}q", buf, 0, self._list_len, *offsets)
        for n, (_, code, data) in enumerate(packed):
            at = self._offset_data_start + offsets[n]
            buf[at : at + len(data)] = data
            struct.pack_into("8s", buf, self._offset_packing_formats + n * _WORD, formats[n].encode())
            struct.pack_into("b", buf, self._offset_back_transform_codes + n, code)

    def _read_layout(self) -> None:
        buf = self._bytes
        room = len(buf)
        (count,) = struct.unpack_from("q", buf, 0) if room >= 2 * _WORD else (-1,)
        if not 0 <= count <= (room - 2 * _WORD) // _WORD:
            raise ValueError(f"block {self.shm.name!r} holds no ShareableList")
        offsets = list(struct.unpack_from(f"{count + 1}q", buf, _WORD))
        ordered = offsets[0] == 0 and all(a <= b for a, b in pairwise(offsets))
        self._list_len, self._allocated_offsets = count, offsets
        if not ordered or self._offset_back_transform_codes + count > room:
            raise ValueError(f"block {self.shm.name!r} holds no ShareableList")

    @property
    def _bytes(self) -> memoryview:
        buf = self.shm.buf
        if buf is None:
            raise ValueError("operation on a closed ShareableList")
        return buf

    def _index(self, position: int, what: str) -> int:
        position = operator.index(position)
        found = position + self._list_len if position < 0 else position
        if not 0 <= found < self._list_len:
            raise IndexError(f"{what}: {position} in a list of {self._list_len}")
        return found

    def _get_packing_format(self, position: int) -> str:
        position = self._index(position, "Requested position out of range.")
        at = self._offset_packing_formats + position * _WORD
        return bytes(self._bytes[at : at + _WORD]).rstrip(b"\0").decode(_encoding)

    def _slot(self, position: int) -> tuple[int, int]:
        """Where the item starts in the block, and the room that it has."""
        start, end = self._allocated_offsets[position : position + 2]
        return self._offset_data_start + start, end - start

    def __getitem__(self, position: int) -> Any:
        """The item; a new object each time."""
        position = self._index(position, "index out of range")
        at, room = self._slot(position)
        code = struct.unpack_from("b", self._bytes, self._offset_back_transform_codes + position)[0]
        format_ = self._get_packing_format(position)
        if code == _NONE:
            return None
        if code not in (_STR, _BYTES):
            return struct.unpack_from(format_, self._bytes, at)[0]
        length = struct.calcsize(format_)
        data = bytes(self._bytes[at : at + length])
        if length >= room and format_.endswith("s"):
            # The room is written down, not the length.
            data = data.rstrip(b"\0")
        return data.decode(_encoding) if code == _STR else data

    def __setitem__(self, position: int, value: Any) -> None:
        """Replace the item. ValueError if a text needs more room than there is; then nothing is changed."""
        position = self._index(position, "assignment index out of range")
        at, room = self._slot(position)
        format_, code, data = _packed(value)
        if format_ is None:
            if len(data) > room:
                raise ValueError(
                    f"bytes/str item exceeds available storage: {len(data)} bytes, and there is room for {room}"
                )
            format_ = _text_format(data, room)
            data = data.ljust(room, b"\0")
        buf = self._bytes
        struct.pack_into("8s", buf, self._offset_packing_formats + position * _WORD, format_.encode())
        struct.pack_into("b", buf, self._offset_back_transform_codes + position, code)
        buf[at : at + len(data)] = data

    def __iter__(self) -> Iterator[Any]:
        for position in range(self._list_len):
            yield self[position]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(self.__class__, name=self.shm.name), ()

    def __len__(self) -> int:
        return int(struct.unpack_from("q", self._bytes, 0)[0])

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self) -> str:
        """The struct format of all items together."""
        return "".join(self._get_packing_format(n) for n in range(self._list_len))

    @property
    def _offset_data_start(self) -> int:
        return (self._list_len + 2) * _WORD

    @property
    def _offset_packing_formats(self) -> int:
        return self._offset_data_start + self._allocated_offsets[-1]

    @property
    def _offset_back_transform_codes(self) -> int:
        return self._offset_packing_formats + self._list_len * _WORD

    def count(self, value: Any) -> int:
        """How many items equal `value`."""
        return sum(value == entry for entry in self)

    def index(self, value: Any) -> int:
        """The first position of `value`; ValueError if it is not there."""
        for position, entry in enumerate(self):
            if value == entry:
                return position
        raise ValueError(f"{value!r} not in this container")

    __class_getitem__: Any = classmethod(types.GenericAlias)


if _supported:
    # Once started, the tracker serves the whole program: it has to be ours from the start.
    import multiprocessing.util

    _tracking.arm(multiprocessing.util)
else:
    import multiprocessing.shared_memory

    sys.modules[__name__] = multiprocessing.shared_memory
