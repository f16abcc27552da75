"""Ray: arrays that lie in a region go to tasks and actors of the same node as references.

    ray.init(runtime_env={"worker_process_setup_hook": "sharedregion.integrations.ray.register"})
    sharedregion.integrations.ray.register()        # the driver, too

Then an array of a region (from `sr.share`, `region[name]`), as an argument, in `ray.put` or as a result, is
not copied into Ray's store: who gets it on the same node maps the region. So are the numbers of pandas
frames, and what Arrow tables are made of. Others travel as they did.

On another node the array comes by Ray's own store: an actor on the array's node puts it there once, and Ray
brings it to each node once, whose workers share that copy, by pages of 4 KiB. The actor ends when nobody
has asked it for half a minute.

Ray knows when nobody can get a value any more, and tells nobody. So each reference contains an object of
Ray's own, of a few bytes, which Ray counts as in use as long as the value can be got; the sender looks twice
a second which of these are in use, and holds the arrays of those. As with everything that a process owns in
Ray, a value is lost with the process that sent it, unless somebody has it mapped.
"""

# ruff: noqa: E402  What is missing or too old is said before anything is taken from it.
from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedregion import _native
from sharedregion._frameworks import load

ray = load("ray")

from ray.util import register_serializer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sharedregion._kernel.node import node_identity
from sharedregion.awaiting import when_imported
from sharedregion.errors import ObjectNotFound, SharedRegionError
from sharedregion.references import claim, place_of

__all__ = ["register"]

Array = NDArray[Any]

#: Bytes below which an array of a region is sent as any other: a reference takes longer than the copy.
WORTHWHILE = 64 << 10
#: What is sent has this shape; those that speak of other shapes refuse it.
PROTOCOL = (1, _native.FORMAT_VERSION)
#: Seconds between two looks at what is in use, and how long an array's node keeps a copy for other nodes.
LOOK, KEEP = 0.5, 30.0
_NAMESPACE = "sharedregion"

_held: dict[bytes, Array] = {}
_lock = threading.Lock()
_looker: threading.Thread | None = None


def register() -> None:
    """Teach this process's Ray. Idempotent; to be called in the driver and in each worker process."""
    register_serializer(np.ndarray, serializer=_serialize, deserializer=_deserialize)
    when_imported("pyarrow", _register_buffers)


def _register_buffers(pyarrow: Any) -> None:
    register_serializer(pyarrow.Buffer, serializer=_serialize_buffer, deserializer=_deserialize_buffer)


# --- what is sent -------------------------------------------------------------------------------


def _serialize(array: Array) -> tuple[Any, ...]:
    return _reference(array) or _plain(array)


def _serialize_buffer(buffer: Any) -> tuple[Any, ...]:
    """Of Arrow's, which tables are made of."""
    return (_reference(np.frombuffer(buffer, np.uint8)) if buffer.size else None) or _plain(buffer)


def _reference(array: Array) -> tuple[Any, ...] | None:
    place = None
    if array.nbytes >= WORTHWHILE and not array.flags.writeable:
        place = place_of(array)
    if place is None:
        return None
    marker = ray.put(b"")
    _hold(marker, array)
    return "region", PROTOCOL, node_identity(), ray.get_runtime_context().get_node_id(), place, marker


def _plain(value: Any) -> tuple[Any, ...]:
    """What an array or buffer says of itself: its bytes stay out of the pickle, in Ray's store."""
    return ("plain", *value.__reduce_ex__(5)[:3])


def _deserialize_buffer(sent: tuple[Any, ...]) -> Any:
    import pyarrow as pa

    value: Any = _deserialize(sent)
    return pa.py_buffer(value) if isinstance(value, np.ndarray) else value


def _deserialize(sent: tuple[Any, ...]) -> Array:
    if sent[0] == "plain":
        _, function, arguments, *state = sent
        array: Array = function(*arguments)
        if state and state[0] is not None:
            array.__setstate__(state[0])
        return array
    _, protocol, node, ray_node, place, marker = sent
    if tuple(protocol) != PROTOCOL:
        raise SharedRegionError(
            "an array was sent by another version of sharedregion", "install the same version on all nodes"
        )
    if node != node_identity():
        return _from_other_node(ray_node, place, marker)
    return claim(*place)


# --- how long it is held ------------------------------------------------------------------------


def _hold(marker: Any, array: Array) -> None:
    global _looker
    with _lock:
        _held[marker.hex().encode()] = array
        if _looker is None or not _looker.is_alive():
            _looker = threading.Thread(target=_look, name="sharedregion-ray", daemon=True)
            _looker.start()


def _look() -> None:
    """Drop the arrays whose marker Ray no longer counts; ends when none is left."""
    global _looker
    while True:
        time.sleep(LOOK)
        with _lock:
            asked = set(_held)
            if not asked or not ray.is_initialized():
                _held.clear()
                _looker = None
                return
        used = {
            _hex(name) for name in ray._private.worker.global_worker.core_worker.get_all_reference_counts()
        }
        with _lock:
            gone = [_held.pop(name) for name in asked - used]
        del gone


def _hex(name: bytes | str) -> bytes:
    return name.encode() if isinstance(name, str) else name


# --- other nodes --------------------------------------------------------------------------------


class _Outlet:
    """On the node of an array: puts it into Ray's store for others, once. Ends when nobody has asked for a while."""

    def __init__(self) -> None:
        self._copies: dict[Any, tuple[float, Any]] = {}
        self._end: threading.Timer | None = None

    def copy(self, place: tuple[Any, ...], marker: list[Any]) -> list[Any]:
        """A reference of Ray's to a copy of the array; in a list, so that Ray does not resolve it."""
        if self._end is not None:
            self._end.cancel()
        # With its process its copies go: Ray keeps what somebody has mapped.
        self._end = threading.Timer(KEEP, ray.get_runtime_context().current_actor.__ray_terminate__.remote)
        self._end.daemon = True
        self._end.start()
        now = time.monotonic()
        self._copies = {key: made for key, made in self._copies.items() if now - made[0] < KEEP}
        key = repr(place)
        if key not in self._copies:
            array = claim(*place)
            self._copies[key] = (now, ray.put(_Copy(array)))
        return [self._copies[key][1]]


class _Copy:
    """An array on its way to another node: its bytes go along."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, _plain(self.array)[1:]


def _copied(*plain: Any) -> Array:
    return _deserialize(("plain", *plain))


def _from_other_node(ray_node: str, place: tuple[Any, ...], marker: Any) -> Array:
    try:
        try:
            return _by_outlet(ray_node, place, marker)
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
            return _by_outlet(ray_node, place, marker)  # It was about to end: here is another one.
    except ray.exceptions.RayTaskError as error:
        raise ObjectNotFound("an array of another node is gone") from error
    except ray.exceptions.RayError as error:
        raise ObjectNotFound(f"the node of an array does not answer: {error}") from error


def _by_outlet(ray_node: str, place: tuple[Any, ...], marker: Any) -> Array:
    outlet = (
        ray.remote(_Outlet)
        .options(
            name=f"outlet-{ray_node}",
            namespace=_NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray_node, soft=False),
        )
        .remote()
    )
    [copy] = ray.get(outlet.copy.remote(place, [marker]))
    array: Array = ray.get(copy)
    return array
