"""Dask distributed on hosts made of namespaces: each node holds one copy, whatever dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_dask import SIZE, Cluster
from cluster_hosts import Wire, environment, inner, python


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(each: int = 2, **options: Any) -> Cluster:
        made.append(Cluster(tmp_path, each, **options))
        return made[-1]

    yield make
    for one in made:
        one.wire.close()


def _by_host(homes: dict[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for address, places in homes.items():
        found.setdefault(address.split("//")[1].split(":")[0], []).extend(places)
    return found


pytestmark = pytest.mark.root


def test_broadcast_costs_one_copy_a_node(cluster: Callable[..., Cluster]) -> None:
    """All workers of a node map one file, of the array's size; nothing is left when the last future is gone."""
    c = cluster()
    used: list[int] = []
    answer = c.drive("broadcast", meanwhile=lambda: used.extend(host.shm_bytes() for host in c.wire.hosts))
    assert answer["right"]
    for places in _by_host(answer["homes"]).values():
        assert len(places) == 2
        assert len(set(places)) == 1
        assert "private" not in places
    assert all(SIZE <= size < 1.5 * SIZE for size in used), used
    assert sum(count["placed"] for count in answer["counts"].values()) == 2
    assert sum(count["fetched"] for count in answer["counts"].values()) == 1
    c.nothing_left()


def test_frames_and_containers_cost_one_copy_a_node(cluster: Callable[..., Cluster]) -> None:
    """Every large piece of frames, tables, dictionaries and tensors lies in one file on each node, text too."""
    c = cluster()
    answer = c.drive("broadcast_frames")
    placed = sum(count["placed"] for count in answer.pop("counts").values())
    assert placed == 2 * len(answer) == 10
    for kind, found in answer.items():
        assert found["right"], kind
        for places in _by_host(found["homes"]).values():
            assert len(places) >= 2, kind
            assert len(set(places)) == 1, (kind, places)
            assert "private" not in places, kind
    c.nothing_left()


def test_values_that_each_process_copies_anyway(cluster: Callable[..., Cluster]) -> None:
    """bytes, text and lists of objects arrive as what they are, by Dask's own way: in a region they would be one more copy."""
    c = cluster()
    answer = c.drive("objects")
    assert answer["found"] == [["bytes", SIZE], ["str", SIZE], ["list", SIZE // 256]]
    assert sum(count["placed"] for count in answer["counts"].values()) == 0
    assert sum(count["refused"] for count in answer["counts"].values()) == 3
    assert "each process has a copy all the same" in c.logs()


def test_a_worker_that_gets_the_plugin_later(cluster: Callable[..., Cluster]) -> None:
    """Without it Dask's own way serves; with it values are mapped, though a neighbour had found it without."""
    assert cluster().drive("late", "engine")["answers"] == [[True, 0], [True, 1]]


def test_without_the_plugin_each_worker_has_a_copy(cluster: Callable[..., Cluster]) -> None:
    """What the test above would see if nothing were shared."""
    answer = cluster().drive("broadcast", "engine")
    assert answer["right"]
    assert all(places == ["private", "private"] for places in _by_host(answer["homes"]).values())


def test_results_cross_to_another_node_once(cluster: Callable[..., Cluster]) -> None:
    """A result that three others need: its neighbour maps it, the other node fetches it once for both."""
    c = cluster()
    answer = c.drive("chain")
    assert answer["right"]
    sums = {
        what: sum(count[what] for count in answer["counts"].values())
        for what in ("placed", "fetched", "mapped", "refused")
    }
    assert sums == {"placed": 2, "fetched": 1, "mapped": 2, "refused": 0}
    c.nothing_left()


def test_a_key_used_again_is_another_value(cluster: Callable[..., Cluster]) -> None:
    """What lingers under a key is not taken for what the key means now."""
    c = cluster()
    assert c.drive("same_key_again")["right"]
    c.nothing_left()


def test_a_worker_killed_in_the_middle(cluster: Callable[..., Cluster]) -> None:
    """The computation ends right, and nothing is left of the dead worker's regions."""
    c = cluster()
    answer = c.drive("lose", meanwhile=lambda: os.kill(inner(c.workers[1][0]), signal.SIGKILL))
    assert answer["right"]
    c.stop_workers()
    _swept(c)


def test_a_host_cut_off_in_the_middle(cluster: Callable[..., Cluster]) -> None:
    """The others compute it again; the cut-off workers give up, and their memory goes with them."""
    c = cluster()
    answer = c.drive("lose", meanwhile=lambda: c.wire.cut(1))
    assert answer["right"]
    c.stop_workers()
    _swept(c)


def test_a_node_without_room_falls_back(cluster: Callable[..., Cluster]) -> None:
    """Where a region cannot be made (huge pages that nobody reserved), Dask's own way serves, and the log says why."""
    c = cluster()
    answer = c.drive("broadcast", "backend=hugetlb")
    assert answer["right"]
    assert all(places == ["private", "private"] for places in _by_host(answer["homes"]).values())
    assert sum(count["refused"] for count in answer["counts"].values()) >= 1
    assert "travels in Dask's own way" in c.logs()
    assert "hugetlb" in c.logs()


def test_another_version_on_one_node(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """Nodes whose versions speak differently share nothing with each other, say so, and compute right."""
    preload = tmp_path / "other_version.py"
    preload.write_text("from sharedregion.integrations import dask\ndask.PROTOCOL = (1, 999)\n")
    c = cluster(preload=str(preload))
    answer = c.drive("chain")
    assert answer["right"]
    assert sum(count["fetched"] for count in answer["counts"].values()) == 0
    assert "another version of sharedregion" in c.logs()


def test_a_reference_of_another_machine(tmp_path: Path) -> None:
    """It gives ObjectNotFound there: never what lies under the same names on that machine."""
    with Wire(2) as wire:
        make = "import sharedregion as sr, numpy as np, pickle, sys\nr = sr.create('same', size='1 MiB')\nr['x'] = np.full(8, {})\n"
        here = wire.hosts[0].start(
            python(), "-c", make.format(1) + "print(pickle.dumps(r.ref('x')).hex(), flush=True); sys.stdin.read()",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=tmp_path,
        )  # fmt: skip
        assert here.stdout is not None
        sent = here.stdout.readline().strip()
        look = make.format(2) + (
            f"try:\n    print(pickle.loads(bytes.fromhex('{sent}')).get())\n"
            "except sr.ObjectNotFound as error:\n    print('ObjectNotFound', error)\n"
        )
        there = wire.hosts[1].start(
            python(), "-c", look, stdout=subprocess.PIPE, env=environment(), cwd=tmp_path
        )
        answer, _ = there.communicate(timeout=60)
        assert answer.startswith("ObjectNotFound")
        assert "another machine" in answer


def _swept(c: Cluster) -> None:
    """After the dead: what the next create on that host finds, it reclaims."""
    for host in c.wire.hosts:
        host.run(sys.executable, "-c", "import sharedregion as sr; sr.create(size=1).close()")
    c.nothing_left()
