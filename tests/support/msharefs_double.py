"""A stand-in for msharefs: `msharefs_double.py DIRECTORY UNIT` mounts it there and serves until it is ended.

A file system in user space, spoken to the kernel by /dev/fuse itself, so that names, sizes, ioctls,
locks and descriptors are real system calls. A region is mapped by the kernel too: the memory file of
its first object is passed through (FUSE_PASSTHROUGH), so that what is written to the memory file is
seen in the region at once. What is not shown stands in README.md beside this file.

Standard input takes lines: `refuse WHAT ERRNO` makes the next and all later WHAT (create, size,
ioctl, place, unmap, map, info) fail with that error (brick: a size is taken, and the file useless for
good); `allow` ends that; `unit N` is a new unit;
`show` says what regions there are. Each is answered by one line of JSON. The first line of output
says that the mount is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import stat
import struct
import sys
import time
from dataclasses import asdict, dataclass, field, replace

MAGIC = 0x4D534852
PAGE = 4096

# The ioctls of series v3.
CREATE_MAPPING, UNMAP = 0x40287800, 0x40107801
CREATE = struct.Struct("=QQQIII4x")
RANGE = struct.Struct("=QQ")
MAP_SHARED, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 0x01, 0x10, 0x20, 0x100000
MAP_TYPE = 0x0F

# /dev/fuse: requests that this file system answers, by number.
HEADER_IN, HEADER_OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
BACKING_OPEN, BACKING_CLOSE = 0x4010E501, 0x4004E502
INIT_EXT, PASSTHROUGH = 1 << 30, 1 << 5
OPEN_DIRECT_IO, OPEN_NOFLUSH, OPEN_PASSTHROUGH = 1, 32, 128
SET_MODE, SET_UID, SET_GID, SET_SIZE = 1, 2, 4, 8
ROOT = 1
FOREVER_AGO = 0


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number))
        self.number = number


@dataclass
class Thread:
    """The thread that made a file: with its end the region is empty."""

    tid: int
    started: str

    @classmethod
    def of(cls, tid: int) -> Thread:
        return cls(tid, _start_of(tid))

    @property
    def lives(self) -> bool:
        return self.started != "" and _start_of(self.tid) == self.started


def _start_of(tid: int) -> str:
    """When it was started, in ticks; "" of one that has ended, whether it is waited for or not."""
    try:
        with open(f"/proc/{tid}/stat", encoding="ascii", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


@dataclass
class Placed:
    """One object: a range of the region, and the file whose bytes are seen there."""

    at: int
    length: int
    device: int
    inode: int
    prot: int
    flags: int


@dataclass
class Node:
    """A file or a directory."""

    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    links: int = 1
    size: int = 0
    bricked: bool = False
    owner: Thread | None = None
    objects: list[Placed] = field(default_factory=list)
    names: dict[bytes, int] = field(default_factory=dict)
    memory: int = -1
    backing: int = 0
    opened: int = 0
    looked_up: int = 0

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def empty(self) -> bool:
        return self.owner is None or not self.owner.lives


class Double:
    def __init__(self, folder: str, unit: int) -> None:
        self.unit = unit
        self.refused: dict[str, int] = {}
        self.nodes = {
            ROOT: Node(ROOT, stat.S_IFDIR | 0o777, links=2, names={b"mshare_info": 2}),
            2: Node(2, stat.S_IFREG | 0o444),
        }
        self.next = 3
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = (
            f"fd={self.device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions".encode()
        )
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"msharefs", os.fsencode(folder), b"fuse.msharefs", 6, options) != 0:
            raise OSError(ctypes.get_errno(), "mount", folder)
        self.answers = {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            6: self.not_permitted,  # symlink
            8: self.not_permitted,  # mknod
            9: self.mkdir,
            10: self.unlink,
            11: self.unlink,
            12: self.rename,
            14: self.open,
            15: self.read,
            16: self.no_io,  # write
            17: self.statfs,
            18: self.release,
            20: self.no_io,  # fsync
            21: self.not_supported,  # setxattr
            22: self.not_supported,  # getxattr
            26: self.init,
            27: self.opendir,
            28: self.readdir,
            29: self.nothing,  # releasedir
            35: self.create,
            39: self.ioctl,
            43: self.fallocate,
            45: self.rename2,
            51: self.not_supported,  # tmpfile
        }

    # --- answers ---------------------------------------------------------------------------------

    def check(self, what: str) -> None:
        if what in self.refused:
            raise Refusal(self.refused[what])

    def attributes(self, node: Node) -> bytes:
        # What has no name is reached by a descriptor that was handed out. A test build opens it anew to
        # map it, and must be let in as the descriptor's owner would be.
        mode = node.mode | 0o444 if node.links <= 0 else node.mode
        return ATTRIBUTES.pack(
            *(
                node.number,
                node.size,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                mode,
                max(0, node.links),
                node.uid,
                node.gid,
                0,
                PAGE,
                0,
            )
        )

    def entry(self, node: Node) -> bytes:
        node.looked_up += 1
        return struct.pack("<QQQQII", node.number, 0, 0, 0, 0, 0) + self.attributes(node)

    def init(self, node: Node, body: bytes) -> bytes:
        _, minor = struct.unpack_from("<II", body)
        return struct.pack(
            "<IIIIHHIIHHIIH22x", 7, min(minor, 40), 0, INIT_EXT, 16, 12, 1 << 17, 1, 32, 0, PASSTHROUGH, 1, 0
        )

    def nothing(self, node: Node, body: bytes) -> bytes:
        return b""

    def not_permitted(self, node: Node, body: bytes) -> bytes:
        raise Refusal(errno.EPERM)

    def not_supported(self, node: Node, body: bytes) -> bytes:
        raise Refusal(errno.EOPNOTSUPP)

    def no_io(self, node: Node, body: bytes) -> bytes:
        raise Refusal(errno.EINVAL)

    def statfs(self, node: Node, body: bytes) -> bytes:
        # The kernel says FUSE's own magic number; the count of files is how a test build knows this one.
        return struct.pack("<QQQQQIIII24x", 0, 0, 0, MAGIC, 0, PAGE, 255, PAGE, 0)

    # --- names -----------------------------------------------------------------------------------

    def lookup(self, node: Node, body: bytes) -> bytes:
        number = node.names.get(body.rstrip(b"\0"))
        if number is None:
            raise Refusal(errno.ENOENT)
        return self.entry(self.nodes[number])

    def new(self, folder: Node, name: bytes, mode: int) -> Node:
        if name in folder.names:
            raise Refusal(errno.EEXIST)
        node = Node(self.next, mode, self.caller[0], self.caller[1])
        self.next += 1
        self.nodes[node.number] = node
        folder.names[name] = node.number
        return node

    def mkdir(self, node: Node, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<II", body)
        return self.entry(self.new(node, body[8:].rstrip(b"\0"), stat.S_IFDIR | mode & 0o7777))

    def create(self, node: Node, body: bytes) -> bytes:
        self.check("create")
        _, mode, _, _ = struct.unpack_from("<IIII", body)
        made = self.new(node, body[16:].rstrip(b"\0"), stat.S_IFREG | mode & 0o7777)
        # The thread that does this owns the region: nobody else can, and nothing hands it on.
        made.owner = Thread.of(self.caller[2])
        made.opened += 1
        return self.entry(made) + struct.pack("<QIi", made.number, OPEN_DIRECT_IO | OPEN_NOFLUSH, 0)

    def unlink(self, node: Node, body: bytes) -> bytes:
        name = body.rstrip(b"\0")
        if name == b"mshare_info":
            raise Refusal(errno.EPERM)
        gone = self.nodes[node.names[name]]
        if gone.is_folder and gone.names:
            raise Refusal(errno.ENOTEMPTY)
        del node.names[name]
        gone.links -= 1 + gone.is_folder
        self.forget(gone, 0)
        return b""

    def rename(self, node: Node, body: bytes, skip: int = 8) -> bytes:
        (target,) = struct.unpack_from("<Q", body)
        old, new, _ = body[skip:].split(b"\0", 2)
        if b"mshare_info" in (old, new):
            raise Refusal(errno.EPERM)
        replaced = self.nodes[target].names.pop(new, None)
        self.nodes[target].names[new] = node.names.pop(old)
        if replaced is not None:
            self.nodes[replaced].links -= 1
            self.forget(self.nodes[replaced], 0)
        return b""

    def rename2(self, node: Node, body: bytes) -> bytes:
        return self.rename(node, body, 16)

    def opendir(self, node: Node, body: bytes) -> bytes:
        return struct.pack("<QIi", node.number, 0, 0)

    def readdir(self, node: Node, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for place, (name, number) in enumerate(sorted(node.names.items()), 1):
            kind = self.nodes[number].mode >> 12
            line = struct.pack("<QQII", number, place, len(name), kind) + name
            line += bytes(-len(line) % 8)
            if place > offset and len(found) + len(line) <= size:
                found += line
        return found

    def forget(self, node: Node, count: int) -> None:
        node.looked_up -= count
        if node.number != ROOT and node.links <= 0 and node.looked_up <= 0 and node.opened <= 0:
            self.drop_memory(node)
            self.nodes.pop(node.number, None)

    # --- attributes and sizes --------------------------------------------------------------------

    def getattr(self, node: Node, body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self.attributes(node)

    def setattr(self, node: Node, body: bytes) -> bytes:
        fields = struct.unpack_from("<IIQQQQQQIIIIIIII", body)
        valid, size, mode, uid, gid = fields[0], fields[3], fields[11], fields[13], fields[14]
        if valid & SET_SIZE:
            self.resize(node, size)
        if valid & SET_MODE:
            node.mode = stat.S_IFMT(node.mode) | mode & 0o7777
        if valid & SET_UID:
            node.uid = uid
        if valid & SET_GID:
            node.gid = gid
        return self.getattr(node, b"")

    def resize(self, node: Node, size: int) -> None:
        """Once, in whole units; nothing at all is a size too, with which nothing can be done any more."""
        if node.number == 2 or node.is_folder or node.size or node.bricked or size % self.unit:
            raise Refusal(errno.EINVAL)
        self.check("size")
        node.bricked = size == 0 or "brick" in self.refused
        node.size = 0 if node.bricked else size

    def fallocate(self, node: Node, body: bytes) -> bytes:
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        if mode:
            raise Refusal(errno.EOPNOTSUPP)
        if offset:
            raise Refusal(errno.EINVAL)
        self.resize(node, length)
        return b""

    # --- opening and mapping ---------------------------------------------------------------------

    def open(self, node: Node, body: bytes) -> bytes:
        flags, _ = struct.unpack_from("<II", body)
        if flags & os.O_DIRECT:
            raise Refusal(errno.EINVAL)
        if node.number == 2:
            self.check("info")
        node.opened += 1
        if node.backing == 0:
            return struct.pack("<QIi", node.number, OPEN_DIRECT_IO | OPEN_NOFLUSH, 0)
        return struct.pack("<QIi", node.number, OPEN_PASSTHROUGH | OPEN_NOFLUSH, node.backing)

    def release(self, node: Node, body: bytes) -> bytes:
        node.opened -= 1
        self.forget(node, 0)
        return b""

    def read(self, node: Node, body: bytes) -> bytes:
        if node.number != 2:
            raise Refusal(errno.EINVAL)
        _, offset, size = struct.unpack_from("<QQI", body)
        return f"{self.unit}\n".encode()[offset : offset + size]

    def ioctl(self, node: Node, body: bytes) -> bytes:
        _, _, command, _, size, _ = struct.unpack_from("<QIIQII", body)
        data = body[32 : 32 + size]
        if node.number == 2 or node.is_folder:
            raise Refusal(errno.ENOTTY)
        if node.size == 0:
            raise Refusal(errno.EINVAL)
        self.check("ioctl")
        if command == CREATE_MAPPING:
            self.place(node, *CREATE.unpack(data))
        elif command == UNMAP:
            self.unmap(node, *RANGE.unpack(data))
        elif command == TEST_MAP:
            self.check("map")
            length = -(-RANGE.unpack(data)[0] // PAGE) * PAGE
            if node.empty or length != node.size:
                raise Refusal(errno.EINVAL)
            instead = 0 if node.backing else os.getpid() | node.memory << 32
            return struct.pack("<iIII", 0, 0, 0, 0) + RANGE.pack(length, instead)
        else:
            raise Refusal(errno.ENOTTY)
        return struct.pack("<iIII", 0, 0, 0, 0)

    def place(self, node: Node, at: int, size: int, offset: int, prot: int, flags: int, fd: int) -> None:
        self.check("place")
        if flags & MAP_TYPE != MAP_SHARED or not flags & MAP_FIXED or at % PAGE or size == 0:
            raise Refusal(errno.EINVAL)
        length = -(-size // PAGE) * PAGE
        offset -= offset % PAGE
        if at >= node.size or at + length > node.size:
            raise Refusal(errno.EINVAL)
        if flags & MAP_ANONYMOUS:
            raise Refusal(errno.EOPNOTSUPP)  # not shown
        path = f"/proc/{self.caller[2]}/fd/{ctypes.c_int32(fd).value}"
        try:
            # Asked for by name: a look at a file of this mount would wait for this very program.
            if os.readlink(path).startswith(f"{FOLDER}/"):
                raise Refusal(errno.EINVAL)
            with open(f"/proc/{self.caller[2]}/fdinfo/{ctypes.c_int32(fd).value}") as info:
                access = int(info.read().split("flags:")[1].split()[0], 8) & os.O_ACCMODE
            there = os.stat(path)
        except OSError:
            raise Refusal(errno.EBADF) from None
        if access == os.O_WRONLY or (prot & 2 and access != os.O_RDWR) or not stat.S_ISREG(there.st_mode):
            raise Refusal(errno.EACCES)
        huge = os.statvfs(path).f_bsize
        if huge > PAGE and (at % huge or offset % huge):
            raise Refusal(errno.EINVAL)
        if huge > PAGE:
            length = -(-size // huge) * huge
        for other in list(node.objects):
            if other.at < at + length and at < other.at + other.length:
                if flags & MAP_FIXED_NOREPLACE:
                    raise Refusal(errno.EEXIST)
                self.unmap(
                    node, max(at, other.at), min(at + length, other.at + other.length) - max(at, other.at)
                )
        if node.memory < 0:
            self.pass_through(node, path)
        inside = os.fstat(node.memory)
        if (inside.st_dev, inside.st_ino, at) != (there.st_dev, there.st_ino, offset):
            self.copy(node, path, at, min(length, max(0, there.st_size - offset)), offset)
        node.objects.append(Placed(at, length, there.st_dev, there.st_ino, prot, flags))

    def pass_through(self, node: Node, path: str) -> None:
        node.memory = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        if os.fstatvfs(node.memory).f_bsize > PAGE:
            return  # the kernel does not pass hugetlb through
        node.backing = fcntl.ioctl(
            self.device, BACKING_OPEN, bytearray(struct.pack("<iIQ", node.memory, 0, 0))
        )

    def drop_memory(self, node: Node) -> None:
        if node.backing:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.device, BACKING_CLOSE, struct.pack("<I", node.backing))
        if node.memory >= 0:
            os.close(node.memory)
        node.memory, node.backing = -1, 0

    def copy(self, node: Node, path: str, at: int, length: int, offset: int) -> None:
        """Bytes of another file: only one file can be passed through, so they are copied into that."""
        end = -(-(at + length) // (2 << 20)) * (2 << 20)
        if os.fstat(node.memory).st_size < end:
            os.ftruncate(node.memory, end)
        with open(path, "rb") as file:
            file.seek(offset)
            done = 0
            while done < length and (piece := file.read(min(1 << 20, length - done))):
                done += os.pwrite(node.memory, piece, at + done)

    def unmap(self, node: Node, at: int, size: int) -> None:
        self.check("unmap")
        length = -(-size // PAGE) * PAGE
        if size == 0 or at % PAGE or at + length > node.size:
            raise Refusal(errno.EINVAL)
        left = []
        for one in node.objects:
            if at >= one.at + one.length or at + length <= one.at:
                left.append(one)
                continue
            if one.at < at:
                left.append(replace(one, length=at - one.at))
            if one.at + one.length > at + length:
                end = one.at + one.length
                left.append(replace(one, at=at + length, length=end - at - length))
        node.objects = left

    # --- the loop --------------------------------------------------------------------------------

    def serve(self) -> None:
        commands = b""
        while True:
            ready, _, _ = select.select([self.device, 0], [], [])
            if 0 in ready:
                piece = os.read(0, 4096)
                if not piece:
                    return
                commands += piece
                while b"\n" in commands:
                    line, _, commands = commands.partition(b"\n")
                    print(json.dumps(self.command(line.decode().split())), flush=True)
            if self.device in ready and not self.one_request():
                return

    def command(self, words: list[str]) -> list[dict[str, object]]:
        if words[0] == "refuse":
            self.refused[words[1]] = int(words[2])
        elif words[0] == "allow":
            self.refused.clear()
        elif words[0] == "unit":
            self.unit = int(words[1])
        return [
            {
                "inode": node.number,
                "size": node.size,
                "names": node.links,
                "owner": node.owner.tid if node.owner else 0,
                "empty": node.empty,
                "objects": [asdict(one) for one in sorted(node.objects, key=lambda one: one.at)],
            }
            for node in self.nodes.values()
            if node.number > 2 and not node.is_folder
        ]

    def one_request(self) -> bool:
        try:
            request = os.read(self.device, (1 << 17) + PAGE)
        except OSError as error:
            # ENOENT: the request was taken back; ENODEV: the mount is gone.
            return error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)
        _, opcode, unique, number, uid, gid, tid, _, _ = HEADER_IN.unpack_from(request)
        body = request[HEADER_IN.size :]
        self.caller = (uid, gid, tid)
        if opcode in (2, 42):
            self.forgets(opcode, number, body)
            return True
        if opcode in (36, 38):
            return opcode == 36
        result, data = 0, b""
        answer = self.answers.get(opcode)
        try:
            if answer is None:
                raise Refusal(errno.ENOSYS)
            data = answer(self.nodes.get(number, self.nodes[ROOT]), body)
        except Refusal as refusal:
            result = -refusal.number
        except OSError as error:
            result = -(error.errno or errno.EIO)
        with contextlib.suppress(FileNotFoundError):
            os.write(self.device, HEADER_OUT.pack(HEADER_OUT.size + len(data), result, unique) + data)
        return True

    def forgets(self, opcode: int, number: int, body: bytes) -> None:
        if opcode == 2:
            pairs = [(number, struct.unpack_from("<Q", body)[0])]
        else:
            (count, _) = struct.unpack_from("<II", body)
            pairs = [struct.unpack_from("<QQ", body, 8 + 16 * k) for k in range(count)]
        for which, lookups in pairs:
            if which in self.nodes:
                self.forget(self.nodes[which], lookups)


#: Not msharefs's: what a test build asks before it maps a region, since a mapping asks this program nothing.
TEST_MAP = 0xC01078FF
FOLDER = ""


def main() -> None:
    global FOLDER
    FOLDER = sys.argv[1]
    # Whoever ends the tests ends this program, and the mount must not stay.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    double = Double(FOLDER, int(sys.argv[2]))
    pid = os.getpid()
    print(pid, time.time(), flush=True)
    try:
        double.serve()
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(FOLDER), 2)


if __name__ == "__main__":
    main()
