"""gunicorn: the master places, forked workers see it.

    # gunicorn.conf.py
    from sharedregion.integrations.gunicorn import Shared

    def load():                                   # in the master, once, and again at SIGHUP
        return {"weights": numpy.load("weights.npy")}

    shared = Shared("model", load)
    on_starting, on_reload, post_fork, on_exit = shared.hooks

    # in the application
    from sharedregion.integrations.gunicorn import region
    weights = region("model")["weights"]          # ask at each request, and a new version is seen at once

A worker inherits a read-only handle of the master's region; nothing is attached to by name, so a
worker that is restarted sees what its master placed, whoever has the name by then. A new version is
published without a pause by SIGHUP, or by any process of the same user that attaches with
`writable=True` and places an object under the same name. SIGUSR2 starts a new master, which places
its own generation under the name (`replace=True`); the workers of the old one keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sharedregion._frameworks import load as load_framework
from sharedregion.errors import RegionNotFound
from sharedregion.integrations.placing import Host
from sharedregion.region import Region

load_framework("gunicorn")

__all__ = ["Shared", "region"]

#: Reading the configuration again (SIGHUP) makes new objects of everything in it: what lasts is here.
_hosts: dict[str, Host] = {}
_regions: dict[str, Region] = {}

Hook = Callable[..., None]


class Shared:
    """Objects that the master places in the region `name`, as `load()` returns them: a mapping of names to values.

    `size` defaults to twice what they need, so that a new version has room beside the old one.
    `options` are those of `sharedregion.create`.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Mapping[str, Any]],
        *,
        size: int | str | None = None,
        **options: Any,
    ) -> None:
        known = _hosts.get(name)
        if known is None:
            _hosts[name] = Host(name, load, size, options)
        else:
            known.load, known.size, known.options = load, size, dict(options)
        self.name = name

    def on_starting(self, server: Any) -> None:
        """In the master, before the first worker."""
        region = _hosts[self.name].place()
        server.log.info("sharedregion: %r of %s: %s", self.name, region.backend, region.reason)

    def on_reload(self, server: Any) -> None:
        """In the master, at SIGHUP: a new version of everything, before new workers are started."""
        _hosts[self.name].place()
        server.log.info("sharedregion: %r has new versions", self.name)

    def post_fork(self, server: Any, worker: Any) -> None:
        """In each worker, at its start."""
        _regions[self.name] = _hosts[self.name].in_child()

    def on_exit(self, server: Any) -> None:
        """In the master, at its end."""
        _hosts[self.name].close()

    @property
    def hooks(self) -> tuple[Hook, Hook, Hook, Hook]:
        """on_starting, on_reload, post_fork, on_exit, by which gunicorn knows them."""
        return self.on_starting, self.on_reload, self.post_fork, self.on_exit


def region(name: str) -> Region:
    """In a worker: the region that the master placed. RegionNotFound."""
    try:
        return _regions[name]
    except KeyError:
        raise RegionNotFound(
            f"this process is not a gunicorn worker that shares '{name}'",
            "make a Shared of that name in gunicorn.conf.py, and set its hooks there",
        ) from None
