"""uvicorn: the process that starts the workers places, each worker attaches when it starts.

    # application.py
    from sharedregion.integrations.uvicorn import Attached

    async def application(scope, receive, send):
        weights = scope["state"]["region"]["weights"]     # at each request: a new version is seen at once
        ...

    app = Attached(application, "model")

    # serve.py
    from sharedregion.integrations.uvicorn import serve

    if __name__ == "__main__":
        serve("application:app", "model", load, workers=4)

uvicorn starts its workers anew (spawn), so that they attach by name; a worker that is restarted does
so again. Any process of the same user can publish a new version: `attach(name, writable=True)`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from sharedregion import opening
from sharedregion._frameworks import load as load_framework
from sharedregion.integrations.placing import Host
from sharedregion.region import Region

__all__ = ["Attached", "serve"]

Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Any, Any], Awaitable[None]]


class Attached:
    """An ASGI application whose workers have the region `name` as `scope["state"]["region"]`.

    It is attached to at the server's startup, which fails with RegionNotFound if there is none; where
    a server does not announce its startup, at the first request. For any ASGI server.
    """

    def __init__(self, application: Application, name: str, *, key: str = "region", **options: Any) -> None:
        self._application = application
        self._name = name
        self._key = key
        self._options = options
        self._region: Region | None = None

    def _attached(self) -> Region:
        if self._region is None or self._region.closed:
            self._region = opening.attach(self._name, **self._options)
        return self._region

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """As ASGI asks for."""
        region = self._attached()
        scope.setdefault("state", {})[self._key] = region
        await self._application(scope, receive, send)
        if scope["type"] == "lifespan":
            # It has returned, not failed: the server has shut down. One that knows no lifespan raises.
            region.close()


def serve(
    application: str,
    name: str,
    load: Callable[[], Mapping[str, Any]],
    *,
    size: int | str | None = None,
    region_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Place what `load()` returns in the region `name`, and run uvicorn with `options` until it ends.

    `application` is "module:attribute". `size` defaults to twice what the objects need.
    """
    uvicorn = load_framework("uvicorn")
    host = Host(name, load, size, region_options or {})
    host.place()
    try:
        uvicorn.run(application, **options)
    finally:
        host.close()
