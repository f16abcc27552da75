"""Ray on two hosts made of namespaces: references on a node, Ray's own store between nodes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_hosts import python, wait_for
from cluster_ray import RayCluster

TOTAL = float(sum(range((16 << 20) // 8)))

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def drive() -> Iterator[Callable[[str], Any]]:
    with RayCluster() as cluster:
        yield cluster.run


def test_tasks_and_actors_of_a_node_map_the_array(drive: Callable[[str], Any]) -> None:
    """They map the driver's very memory; what was put is held though its maker dropped it; then it goes."""
    answer = drive("near")
    assert answer["held"] == [TOTAL, answer["home"]]
    assert answer["seen"] == [[TOTAL, "Pin", answer["home"]]] * 2
    assert answer["plain"][:2] == [TOTAL, "ndarray"]
    assert answer["later"][:2] == [TOTAL, "Pin"]
    assert answer["gone"]


def test_frames(drive: Callable[[str], Any]) -> None:
    """Numbers of frames and tables and the text of tables are the driver's very memory."""
    answer = drive("frames")
    assert answer["seen"].keys() == {"pyarrow", "pandas"}
    for kind, (total, places, home) in answer["seen"].items():
        assert total == TOTAL, kind
        assert places == [home], kind
    assert answer["gone"]


def test_a_result_in_a_region(drive: Callable[[str], Any]) -> None:
    """The worker that made it has dropped it, and the reference holds it."""
    answer = drive("result")
    assert answer["seen"][:2] == [float((16 << 20) // 8), "Pin"]
    assert answer["gone"]


def test_another_node_gets_the_bytes(drive: Callable[[str], Any]) -> None:
    """Right ones, by one copy in Ray's store for both tasks, and in time nothing of it is left on the array's node."""
    answer = drive("far")
    assert [total for total, *_ in answer["seen"]] == [TOTAL, TOTAL]
    assert all(base != "Pin" for _, base, _ in answer["seen"])
    [home] = {home for *_, home in answer["seen"]}
    assert home not in ("private", answer["home"])
    assert answer["outlets"] == []
    assert answer["gone"]


def test_the_process_that_sent_it_is_killed(drive: Callable[[str], Any]) -> None:
    """The value is lost, as Ray says it; who has it mapped keeps it; nothing is left of it."""
    answer = drive("owner_killed")
    assert answer["error"] != "none"
    assert answer["still"] == float((16 << 20) // 8)
    assert answer["gone"]


def test_a_host_cut_off_in_the_middle() -> None:
    """What was computed there is computed again; what lay in a region there is lost, and said; nothing is left on either."""
    with RayCluster() as cluster:
        other = cluster.wire.hosts[1]
        answer = cluster.run("host_cut", meanwhile=lambda: cluster.wire.cut(1))
        assert answer["right"]
        assert answer["nodes"] == 1
        assert "ObjectNotFound" in answer["error"]
        assert answer["gone"]
        wait_for("the other host's Ray to give up", lambda: other.processes[0].poll() is not None, 120)

        def empty() -> bool:
            # Who comes later collects. A worker looks once a second whether its Ray lives, so it may outlive
            # `ray start`, on a busy machine by many seconds, and until its end the region is in use.
            other.run(python(), "-c", "import sharedregion as sr; sr.create(size=1).close()")
            return not other.shm()

        wait_for("that host to be empty", empty)


def test_another_version(drive: Callable[[str], Any]) -> None:
    """A clear error."""
    assert "another version of sharedregion" in drive("other_version")["error"]
