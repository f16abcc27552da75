"""gunicorn and uvicorn, real ones on loopback: weights placed once, new versions and new masters without a pause."""

import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import sharedregion as sr

CONFIG = """
import os, numpy as np
from sharedregion.integrations.gunicorn import Shared

bind = "127.0.0.1:0"
workers = 2
worker_tmp_dir = "/dev/shm"
pidfile = "server.pid"
graceful_timeout = 20
timeout = 10
control_socket_disable = True

def load():
    return {"w": np.full(300_000, float(open("value").read()))}

shared = Shared(os.environ["REGION"], load)
on_starting, on_reload, post_fork, on_exit = shared.hooks
"""

APPLICATION = """
import json, os
from sharedregion.integrations.gunicorn import region

def app(environ, start_response):
    r = region(os.environ["REGION"])
    w = r["w"]
    answer = {"pid": os.getpid(), "parent": os.getppid(), "value": float(w[-1]), "whole": bool((w == w[0]).all()),
              "writable": [r.writable, bool(w.flags.writeable)], "id": r._id.hex()}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""


class Server:
    """A server in a process group of its own, and its log."""

    def __init__(self, command: list[str], folder: Path, region: str) -> None:
        self.log = folder / "log"
        environment = os.environ | {"REGION": region, "PYTHONPATH": str(folder)}
        environment.pop("PYTHONSAFEPATH", None)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        match = until(lambda: re.search(r"127\.0\.0\.1:(\d{2,})", self.log.read_text()), self.log.read_text)
        self.port = int(match[1])

    def ask(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.status == 200
            answer: dict[str, Any] = json.loads(response.read())
            return answer
        finally:
            connection.close()

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                self.process.poll()
                try:
                    os.killpg(self.process.pid, 0)
                except ProcessLookupError:
                    return
                time.sleep(0.05)


def until(look: Callable[[], Any], say: Callable[[], str] = str, seconds: float = 90) -> Any:
    """What `look` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)
    return found


class Visitor:
    """Asks without a pause, and counts what went wrong."""

    def __init__(self, server: Server) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._visit)

    def _visit(self) -> None:
        while not self._over.is_set():
            try:
                self.answers.append(self._server.ask())
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(repr(error))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def gunicorn(tmp_path: Path, unique: str) -> Iterator[Server]:
    (tmp_path / "value").write_text("1")
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "application.py").write_text(APPLICATION)
    server = Server([sys.executable, "-m", "gunicorn", "application:app"], tmp_path, unique)
    yield server
    server.stop()


def all_answer(server: Server, **wanted: Any) -> bool:
    return all(all(answer[k] == v for k, v in wanted.items()) for answer in [server.ask() for _ in range(8)])


def test_gunicorn_through_all_its_signals(gunicorn: Server, unique: str, tmp_path: Path) -> None:
    """Placed once by the master; workers killed, new versions, SIGHUP, SIGUSR2 with a new generation: not one request fails."""
    first = until(gunicorn.ask)
    assert first["value"] == 1 and first["whole"] and first["writable"] == [False, False]
    master = gunicorn.process.pid
    assert first["parent"] == master

    os.kill(first["pid"], signal.SIGKILL)
    pids = until(lambda: {gunicorn.ask()["pid"] for _ in range(20)} - {first["pid"]})
    assert all_answer(gunicorn, value=1, id=first["id"]) and pids

    with Visitor(gunicorn) as visitor:
        with sr.attach(unique, writable=True) as writer:
            writer["w"] = np.full(300_000, 2.0)
            until(lambda: all_answer(gunicorn, value=2))

        (tmp_path / "value").write_text("3")
        os.kill(master, signal.SIGHUP)
        until(lambda: all_answer(gunicorn, value=3, id=first["id"]), gunicorn.log.read_text)

        (tmp_path / "value").write_text("4")
        os.kill(master, signal.SIGUSR2)
        until(lambda: any(gunicorn.ask()["value"] == 4 for _ in range(8)), gunicorn.log.read_text)
        new = until(lambda: next((a for a in [gunicorn.ask() for _ in range(20)] if a["value"] == 4), None))
        assert new["parent"] != master and new["id"] != first["id"]
        with sr.attach(unique) as region:
            assert region._id.hex() == new["id"], "the name is the new master's"
        # A worker of the old master, restarted now, sees what its own master placed.
        old = next((a for a in [gunicorn.ask() for _ in range(50)] if a["parent"] == master), None)
        if old is not None:
            assert old["value"] == 3 and old["id"] == first["id"]
        os.kill(master, signal.SIGTERM)
        until(lambda: gunicorn.process.poll() is not None)
        until(lambda: all_answer(gunicorn, value=4, id=new["id"], parent=new["parent"]))
    assert len(visitor.answers) > 20 and all(a["whole"] for a in visitor.answers)
    assert not visitor.failures

    os.kill(new["parent"], signal.SIGTERM)
    until(lambda: unique not in sr.regions())


def test_gunicorn_restarts_a_worker_after_the_name_has_gone(gunicorn: Server, unique: str) -> None:
    """Workers inherit the region: one that starts after the name was taken away sees the same memory."""
    first = until(gunicorn.ask)
    sr.unlink(unique)
    with sr.create(unique, size="1 MiB") as other:
        other["w"] = np.zeros(3)
        for pid in {gunicorn.ask()["pid"] for _ in range(20)}:
            os.kill(pid, signal.SIGKILL)
        until(lambda: first["pid"] not in {answer["pid"] for answer in _try(gunicorn)})
        assert all_answer(gunicorn, value=1, id=first["id"])


def _try(server: Server) -> list[dict[str, Any]]:
    try:
        return [server.ask() for _ in range(10)]
    except (OSError, http.client.HTTPException):
        return [{"pid": pid} for pid in range(1)]


def test_gunicorn_killed_leaves_nothing(gunicorn: Server, unique: str) -> None:
    """The master killed: its workers end by themselves, and the last one takes the names away."""
    until(gunicorn.ask)
    gunicorn.process.kill()
    gunicorn.process.wait()
    until(lambda: not [name for name in os.listdir("/dev/shm") if unique in name])


def test_asking_outside_a_worker() -> None:
    """region() in a process that is no worker says what to configure."""
    from sharedregion.integrations.gunicorn import region

    with pytest.raises(sr.RegionNotFound, match=r"gunicorn\.conf\.py"):
        region("nothing")


ASGI = """
import json, os
from sharedregion.integrations.uvicorn import Attached

async def application(scope, receive, send):
    assert scope["type"] == "http"
    r = scope["state"]["region"]
    w = r["w"]
    answer = {"pid": os.getpid(), "parent": os.getppid(), "value": float(w[-1]), "whole": bool((w == w[0]).all()),
              "writable": [r.writable, bool(w.flags.writeable)], "id": r._id.hex()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

app = Attached(application, os.environ["REGION"])
"""

SERVE = """
import os, socket, numpy as np
from sharedregion.integrations.uvicorn import serve

def load():
    return {"w": np.full(300_000, 1.0)}

if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve("asgi:app", os.environ["REGION"], load, host="127.0.0.1", port=port, workers=2)
"""


def test_uvicorn(tmp_path: Path, unique: str) -> None:
    """Its workers attach when they start, one that was killed is restarted and attaches again, a new version is seen at once."""
    (tmp_path / "asgi.py").write_text(ASGI)
    (tmp_path / "serve.py").write_text(SERVE)
    server = Server([sys.executable, "serve.py"], tmp_path, unique)
    try:
        first = until(
            lambda: next((a for a in _try(server) if a.get("value") == 1), None), server.log.read_text
        )
        assert first["whole"] and first["writable"] == [False, False]
        assert {m.pid for m in sr.attach(unique).members()} >= {first["pid"]}
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: len({a["pid"] for a in _try(server)} - {first["pid"], 0}) == 2, server.log.read_text)
        with sr.attach(unique, writable=True) as writer:
            writer["w"] = np.full(300_000, 2.0)
        until(lambda: all_answer(server, value=2, id=first["id"], whole=True))
    finally:
        server.stop()
    until(lambda: unique not in sr.regions())


def test_without_a_region_a_worker_does_not_start(unique: str) -> None:
    """The ASGI application fails at startup with what is missing, not at the first request."""
    import asyncio

    from sharedregion.integrations.uvicorn import Attached

    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("never reached")

    with pytest.raises(sr.RegionNotFound, match=unique):
        asyncio.run(Attached(application, unique)({"type": "lifespan"}, None, None))


PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/servers.md").read_text()


@pytest.mark.parametrize(
    ("what", "files"),
    [("gunicorn", ["gunicorn.conf.py", "application.py"]), ("uvicorn", ["asgi.py", "serve.py"])],
)
def test_the_how_to_runs_as_printed(tmp_path: Path, what: str, files: list[str]) -> None:
    """The files and the command of the page serve what they say; the port alone is another."""
    np.save(tmp_path / "weights.npy", np.arange(1000.0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    region = f"test-{secrets.token_hex(6)}"
    for name in files:
        text = re.search(rf"<!-- file: {name} -->\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
        assert text, name
        (tmp_path / name).write_text(text[1].replace("8000", port).replace('"model"', f'"{region}"'))
    command = re.search(rf"<!-- run: {what} -->\n```\n(.*?)\n```", PAGE)
    assert command
    words = command[1].replace("8000", port).split()
    words = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
    server = Server(words, tmp_path, region)
    try:

        def body() -> bytes:
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
            try:
                connection.request("GET", "/")
                return connection.getresponse().read()
            except OSError:
                return b""
            finally:
                connection.close()

        assert until(body, server.log.read_text) == b"499500.0"
    finally:
        server.stop()
    until(lambda: region not in sr.regions())
