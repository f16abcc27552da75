"""Dask distributed: one copy of a large value on each node, mapped by all of its workers.

    client.register_plugin(sharedregion.integrations.dask.NodePlugin())

Dask goes on moving and scheduling. What changes is how a worker gets a value that another one has:

    same node    The owner places the value in a region of its own (`sharedregion.share`), keeps that
                 instead of its private copy, and sends a reference: the asker maps the same memory.
    other node   Of the workers of a node, one is responsible for a value (chosen by hashing among
                 those that live). It fetches the value once, by Dask's own comms, and places it;
                 its neighbours ask it, and get references.

A value is its *token*: made by the worker that first shared it, carried along with it. Two values
that had the same key at different times have different tokens, so that neither is taken for the other.

Whatever does not fit (a value below the threshold, one that cannot be placed, a node without room, a
worker without this plugin or with another version of it, a neighbour that died meanwhile) travels in
Dask's own way; why is logged. The memory of a value goes with the last process that looks at it: there
is nothing to clean up after a worker or a node.

A node is a kernel that runs, with a /dev/shm: containers that share neither are nodes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import sys
import uuid
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sharedregion import _native, codecs
from sharedregion._frameworks import load

distributed = load("distributed")

# ruff: noqa: E402  What is missing or too old is said before anything is taken from it.
from dask.sizeof import sizeof as _dask_sizes
from distributed import worker as _worker_module
from distributed.comm import get_address_host
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.protocol import dask_deserialize, dask_serialize
from distributed.protocol import numpy as _dask_numpy
from distributed.sizeof import safe_sizeof as sizeof
from distributed.utils import offload
from distributed.utils_comm import retry_operation

from sharedregion._kernel.node import node_identity
from sharedregion._sizes import parse_size
from sharedregion.codecs import buffer, text
from sharedregion.errors import FrameworkMissing, NotPlaceable, SharedRegionError
from sharedregion.opening import share_with_reference
from sharedregion.references import Reference, claim, open_reference, place_of

__all__ = ["NodePlugin", "register"]

_sizes: Any = _dask_sizes  # It has no types.
log = logging.getLogger("sharedregion.dask")

#: How long a worker keeps what it fetched for its neighbours, in seconds after it was last asked for.
LINGER = 5.0
#: Bytes below which an array of a region is sent as any other.
_WORTHWHILE = 64 << 10
#: Those that speak of the same things by the same words. Raised with every change of what is sent.
PROTOCOL = (1, _native.FORMAT_VERSION)


class Placed(NamedTuple):
    """A value of this worker that lies in a region."""

    value: Any
    reference: Reference
    token: str


#: Plugins of this process by the address of their worker: a process may hold several workers.
_plugins: dict[str, NodePlugin] = {}
_engine: Callable[..., Awaitable[Any]] | None = None


async def _route(rpc: Any, keys: Collection[Any], worker: str, *, who: str | None = None, **how: Any) -> Any:
    """Stands in for Dask's function by which one worker gets keys from another."""
    assert _engine is not None
    plugin = _plugins.get(who) if who is not None else None
    if plugin is None:
        return await _engine(rpc, keys, worker, who=who, **how)
    found: dict[Any, Any] = {}
    try:
        found = await plugin.obtain(keys, worker)
    except asyncio.CancelledError:
        raise
    except (OSError, SharedRegionError) as error:
        log.info("keys of %s come in Dask's own way: %r", worker, error)
    except Exception:  # Whatever went wrong on the short way, the long one is still there.
        log.exception("keys of %s come in Dask's own way", worker)
    missing = [key for key in keys if key not in found]
    if missing:
        answer = await _engine(rpc, missing, worker, who=who, **how)
        if answer["status"] != "OK":
            return answer
        found.update(answer["data"])
    return {"status": "OK", "data": found}


def _serialize_array(array: Any, context: Any = None) -> tuple[dict[str, Any], list[Any]]:
    """Dask's own form of an array, and beside it where the array lies, for who can map it.

    The bytes go along, since a sender does not know who will read them: through a scheduler, say.
    """
    header, frames = _dask_numpy.serialize_numpy_ndarray(array, context)
    place = place_of(array) if type(array) is np.ndarray and array.nbytes >= _WORTHWHILE else None
    if place is not None and not array.flags.writeable:
        header["sharedregion"] = (node_identity(), PROTOCOL, pickle.dumps(place))
    return header, frames


def _deserialize_array(header: dict[str, Any], frames: list[Any]) -> Any:
    where = header.pop("sharedregion", None)
    if where is not None and where[0] == node_identity() and tuple(where[1]) == PROTOCOL:
        with contextlib.suppress(SharedRegionError, OSError):
            return claim(*pickle.loads(where[2]))  # noqa: S301  Dask's own messages are pickles, too.
    return _dask_numpy.deserialize_numpy_ndarray(header, frames)


def register() -> None:
    """Send arrays that lie in a region so that who is on the same node can map them; say what values weigh. Idempotent.

    `NodePlugin` calls it where it is made and where it runs: in clients and workers.
    """
    dask_serialize.register(np.ndarray, _serialize_array)
    dask_deserialize.register(np.ndarray, _deserialize_array)
    for framework, tell in _SIZES.items():
        if framework in sys.modules:
            tell()
        else:
            _sizes.register_lazy(framework, tell)


def _tell_polars() -> None:
    import polars as pl

    _sizes.register((pl.DataFrame, pl.Series), lambda frame: int(frame.estimated_size()))


def _tell_torch() -> None:
    import torch

    _sizes.register(torch.Tensor, lambda tensor: int(tensor.nbytes))


#: Dask takes values that it does not know for a few bytes, and no such value would be shared.
_SIZES = {"polars": _tell_polars, "torch": _tell_torch}


def _hook() -> None:
    """Put `_route` where Dask looks its own function up."""
    global _engine
    if _engine is None:
        _engine = _worker_module.get_data_from_worker
        _worker_module.get_data_from_worker = _route


def _unhook() -> None:
    global _engine
    if _engine is not None and not _plugins:
        _worker_module.get_data_from_worker = _engine
        _engine = None


def _check_engine() -> None:
    """The places of distributed that this file builds on, looked at and not assumed from a version."""
    wanted = ("rpc", "keys", "worker", "who")
    function = getattr(_worker_module, "get_data_from_worker", None)
    if function is _route:
        return
    if function is None or not set(wanted) <= inspect.signature(function).parameters.keys():
        raise FrameworkMissing(
            f"distributed {distributed.__version__} gets data between workers in a way that this version of "
            "sharedregion does not know",
            "2024.1 to 2026.8 were tried",
        )


def _share(value: Any, backend: str) -> tuple[Any, Reference]:
    """As `sharedregion.share`, of what comes back as what it was, and as views of the region."""
    codec = codecs.codec_for(value)
    refused = codec in (buffer, text)
    if (prepare := getattr(codec, "prepare", None)) is not None:
        made = prepare(value)
        refused = 2 * sum(part.nbytes for part in made.buffers) < made.size
    if refused:
        raise NotPlaceable(f"of a {type(value).__name__} like this each process has a copy all the same")
    shared, reference = share_with_reference(value, backend)
    if type(shared) is not type(value):
        raise NotPlaceable(f"a {type(value).__name__} would come back as a {type(shared).__name__}")
    return shared, reference


class NodePlugin(WorkerPlugin):
    """Registered by `client.register_plugin`; makes each node hold one copy of a large value.

    `threshold` is the least size (bytes, or text such as "1 MiB") of a value that is shared; Dask's own
    estimate of its size counts. `backend` is that of `sharedregion.create`.
    """

    name = "sharedregion"
    idempotent = True

    def __init__(self, threshold: int | str = "1 MiB", backend: str = "auto") -> None:
        register()
        self.threshold = parse_size(threshold)
        self.backend = backend

    # --- life -----------------------------------------------------------------------------------

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker."""
        _check_engine()
        register()
        self.worker = worker
        self.node = node_identity()
        self.counts = {"placed": 0, "fetched": 0, "mapped": 0, "refused": 0}
        self._placed: dict[Any, Placed] = {}
        self._tokens: dict[Any, tuple[Any, str]] = {}
        self._lingering: dict[str, tuple[Placed, asyncio.TimerHandle]] = {}
        self._fetching: dict[str, asyncio.Task[Placed | None]] = {}
        self._placing: dict[Any, asyncio.Task[Placed | None]] = {}
        self._peers: dict[str, tuple[bool, bool]] = {}
        self._warned: set[str] = set()
        worker.handlers["sharedregion_hello"] = self._hello
        worker.handlers["sharedregion_tokens"] = self._say_tokens
        worker.handlers["sharedregion_lend"] = self._lend
        worker.handlers["sharedregion_fetch"] = self._fetch_for_neighbour
        _plugins[worker.address] = self
        _hook()

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker closes or the plugin is removed."""
        for operation in ("hello", "tokens", "lend", "fetch"):
            worker.handlers.pop(f"sharedregion_{operation}", None)
        for _, timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        self._placed.clear()
        self._tokens.clear()
        for address, plugin in list(_plugins.items()):
            if plugin is self:
                del _plugins[address]
        _unhook()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Called by Dask when a task of the worker changes its state."""
        if finish in ("released", "forgotten", "cancelled"):
            self._placed.pop(key, None)
            self._tokens.pop(key, None)

    # --- what this worker has --------------------------------------------------------------------

    def _token(self, key: Any, value: Any) -> str:
        known = self._tokens.get(key)
        if known is None or known[0] is not value:
            known = self._tokens[key] = (value, uuid.uuid4().hex)
        return known[1]

    async def _place(self, value: Any, token: str) -> Placed | None:
        """A copy of the value in a region of its own; None, and said why, if there can be none."""
        try:
            shared, reference = await offload(_share, value, self.backend)
        except (SharedRegionError, OSError, MemoryError, ValueError, TypeError) as error:
            self.counts["refused"] += 1
            self._warn(f"a value of {sizeof(value)} bytes travels in Dask's own way: {error}")
            return None
        self.counts["placed"] += 1
        return Placed(shared, reference, token)

    async def _place_own(self, key: Any) -> Placed | None:
        """A value of this worker, moved into a region: what was private is dropped."""
        value = self.worker.data[key]
        placed = self._placed.get(key)
        if placed is not None and placed.value is value:
            return placed
        if sizeof(value) < self.threshold:
            return None
        task = self._placing.get(key)
        if task is None:
            task = asyncio.create_task(self._place(value, self._token(key, value)))
            self._placing[key] = task
            task.add_done_callback(partial(_drop, self._placing, key))
        placed = await asyncio.shield(task)
        if placed is None:
            return None
        if self.worker.data.get(key) is value:
            self._keep(key, placed)
        return placed

    def _keep(self, key: Any, placed: Placed) -> None:
        if key in self.worker.data:
            self.worker.data[key] = placed.value
        self._placed[key] = placed
        self._tokens[key] = (placed.value, placed.token)

    def _warn(self, text: str) -> None:
        level = logging.INFO if text in self._warned else logging.WARNING
        self._warned.add(text)
        log.log(level, "%s", text)

    # --- what others ask for ---------------------------------------------------------------------

    async def _hello(self, comm: Any = None) -> dict[str, Any]:
        return {"node": self.node, "protocol": PROTOCOL, "uid": os.geteuid()}

    async def _say_tokens(self, comm: Any = None, keys: Collection[Any] = ()) -> dict[Any, str]:
        """Tokens of those keys that are here and large enough to be shared."""
        data = self.worker.data
        values = {key: data[key] for key in keys if key in data}
        return {
            key: self._token(key, value) for key, value in values.items() if sizeof(value) >= self.threshold
        }

    async def _lend(self, comm: Any, keys: Collection[Any] = ()) -> Any:
        """References to the values of these keys, which lie in this worker."""
        lent = {key: await self._place_own(key) for key in keys if key in self.worker.data}
        return await self._hand_over(comm, {key: placed for key, placed in lent.items() if placed})

    async def _fetch_for_neighbour(self, comm: Any, keys: Collection[Any] = (), source: str = "") -> Any:
        """References to values that lie in a worker of another node, fetched once for this one."""
        return await self._hand_over(comm, await self._fetch(keys, source))

    async def _hand_over(self, comm: Any, lent: dict[Any, Placed]) -> Any:
        """Answer, and hold the memory until the asker has mapped it."""
        await comm.write(
            {key: (*placed.reference.ticketless(), placed.token) for key, placed in lent.items()}
        )
        with contextlib.suppress(OSError):
            await comm.read()
        del lent
        return Status.dont_reply

    # --- what this worker asks for ---------------------------------------------------------------

    async def obtain(self, keys: Collection[Any], source: str) -> dict[Any, Any]:
        """What can be mapped of these keys, which the worker at `source` has."""
        wanted = [key for key in keys if self._may_be_large(key)]
        if not wanted:
            return {}
        speaks, near = await self._peer(source)
        if not speaks:
            return {}
        if near:
            return self._adopt(await self._borrow("sharedregion_lend", source, wanted))
        found: dict[Any, Any] = {}
        neighbours = await self._neighbours()
        groups: dict[str, list[Any]] = {}
        for key in wanted:
            groups.setdefault(_responsible(key, neighbours), []).append(key)
        for address, group in groups.items():
            if address == self.worker.address:
                found |= self._adopt(await self._fetch(group, source))
                continue
            try:
                found |= self._adopt(await self._borrow("sharedregion_fetch", address, group, source=source))
            except (OSError, SharedRegionError) as error:
                self._peers.pop(address, None)
                log.info("neighbour %s does not answer: %r", address, error)
        return found

    def _may_be_large(self, key: Any) -> bool:
        task = self.worker.state.tasks.get(key)
        return task is None or task.nbytes is None or task.nbytes >= self.threshold

    async def _peer(self, address: str) -> tuple[bool, bool]:
        """Whether the worker there has this plugin, and whether it is on this node."""
        known = self._peers.get(address)
        if known is None:
            try:
                answer = await self.worker.rpc(address).sharedregion_hello()
            except OSError:
                return False, False
            except Exception:  # noqa: BLE001  An unknown operation is whatever the other side raises.
                answer = {}
            speaks = tuple(answer.get("protocol", ())) == PROTOCOL
            if answer and not speaks:
                self._warn(f"{address} has another version of sharedregion: nothing is shared with it")
            near = speaks and answer["node"] == self.node and answer["uid"] == os.geteuid()
            known = (speaks, near)
            if answer:  # Who has no plugin may get it any moment.
                self._peers[address] = known
        return known

    async def _neighbours(self) -> list[str]:
        """Addresses of the workers of this node, this one included."""
        own = self.worker.address
        host = get_address_host(own)
        everybody = await retry_operation(self.worker.scheduler.ncores)
        addresses = [address for address in everybody if address != own and get_address_host(address) == host]
        answers = await asyncio.gather(*(self._peer(address) for address in addresses))
        return sorted(
            [own, *(address for address, (_, near) in zip(addresses, answers, strict=True) if near)]
        )

    async def _borrow(
        self, operation: str, address: str, keys: list[Any], **arguments: Any
    ) -> dict[Any, Placed]:
        """Ask a neighbour for references and map them, while it holds what they stand for."""
        rpc = self.worker.rpc
        comm = await rpc.connect(address)
        try:
            await comm.write({"op": operation, "keys": keys, "reply": True, **arguments})
            answer = await comm.read()
            if not isinstance(answer, dict) or answer.get("status") in ("error", "uncaught-error"):
                raise OSError(f"{address} answered {str(answer)[:200]}")
            found = {}
            for key in keys:
                if key in answer:
                    *what, token = answer[key]
                    reference = open_reference(*what)
                    found[key] = Placed(reference.get(), reference, token)
                    self.counts["mapped"] += 1
            await comm.write("OK")
        except BaseException:
            comm.abort()
            raise
        finally:
            rpc.reuse(address, comm)
        return found

    def _adopt(self, found: dict[Any, Placed]) -> dict[Any, Any]:
        """Remember where the values lie that the worker is about to have under these keys."""
        for key, placed in found.items():
            self._placed[key] = placed
            self._tokens[key] = (placed.value, placed.token)
        return {key: placed.value for key, placed in found.items()}

    async def _fetch(self, keys: Collection[Any], source: str) -> dict[Any, Placed]:
        """Values of another node's worker, each fetched and placed once, however many ask."""
        tokens = await self.worker.rpc(source).sharedregion_tokens(keys=list(keys))
        found: dict[Any, Placed] = {}
        for key, token in tokens.items():
            here = self._lingering.get(token)
            if here is not None:
                found[key] = here[0]
                self._linger(here[0])
                continue
            task = self._fetching.get(token)
            if task is None:
                task = asyncio.create_task(self._fetch_one(key, token, source))
                self._fetching[token] = task
                task.add_done_callback(partial(_drop, self._fetching, token))
            placed = await asyncio.shield(task)
            if placed is not None:
                found[key] = placed
        return found

    async def _fetch_one(self, key: Any, token: str, source: str) -> Placed | None:
        near = await self._from_neighbour(key, token)
        if near is not None:
            self._linger(near)
            return near
        assert _engine is not None
        while True:
            answer = await _engine(self.worker.rpc, [key], source, who=self.worker.address)
            if answer["status"] == "OK":
                break
            await asyncio.sleep(0.1)
        if key not in answer["data"]:
            return None
        self.counts["fetched"] += 1
        value = answer["data"].pop(key)
        placed = await self._place(value, token)
        if placed is not None:
            self._linger(placed)
        return placed

    async def _from_neighbour(self, key: Any, token: str) -> Placed | None:
        """The value from this node, if any worker of it has it already."""
        own = self.worker.address
        if (await self._say_tokens(keys=[key])).get(key) == token:
            return await self._place_own(key)
        for address in await self._neighbours():
            if address == own:
                continue
            with contextlib.suppress(OSError, SharedRegionError):
                tokens = await self.worker.rpc(address).sharedregion_tokens(keys=[key])
                if tokens.get(key) == token:
                    return (await self._borrow("sharedregion_lend", address, [key])).get(key)
        return None

    def _linger(self, placed: Placed) -> None:
        """Neighbours that were told to get the same value ask one after the other."""
        known = self._lingering.pop(placed.token, None)
        if known is not None:
            known[1].cancel()
        timer = asyncio.get_running_loop().call_later(LINGER, self._lingering.pop, placed.token, None)
        self._lingering[placed.token] = (placed, timer)


def _drop(where: dict[Any, Any], key: Any, _: object) -> None:
    where.pop(key, None)


def _responsible(key: Any, addresses: list[str]) -> str:
    """The worker of a node that fetches this key: the same for all that ask (rendezvous hashing)."""
    return max(addresses, key=lambda address: hashlib.blake2b(f"{address}\0{key}".encode()).digest())
