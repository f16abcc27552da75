"""What a broadcast to two hosts with four workers each costs: `make cluster`, as root.

    python tests/cluster/measure.py [--size "1 GiB"]

Dask and Ray by themselves and with regions, in one run: copies and memory on each host, page tables, time.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401  Loads what the tests share.
from cluster_dask import Cluster
from cluster_ray import RayCluster

from sharedregion._sizes import format_size, parse_size


def dask(size: int, options: list[str]) -> dict[str, Any]:
    """One broadcast; by host: distinct copies, growth of PSS and VmPTE over all workers, shared memory."""
    folder = Path(tempfile.mkdtemp(prefix="dask"))
    cluster = Cluster(folder, 4, shm=str(3 * size))
    shm: list[int] = []
    try:
        answer = cluster.drive(
            "broadcast",
            *options,
            size=size,
            meanwhile=lambda: shm.extend(h.shm_bytes() for h in cluster.wire.hosts),
        )
    finally:
        cluster.wire.close()
        shutil.rmtree(folder, ignore_errors=True)
    nodes: dict[str, Any] = {}
    for number, host in enumerate(cluster.wire.hosts):
        workers = [worker for worker in answer["homes"] if f"//{host.address}:" in worker]
        places = [place for worker in workers for place in answer["homes"][worker]]
        nodes[f"host {number + 1}"] = {
            "copies": len({p for p in places if p != "private"}) + places.count("private"),
            "pss": sum(answer["grown"][worker][0] for worker in workers),
            "tables": sum(answer["grown"][worker][1] for worker in workers),
            "shm": shm[number],
        }
    return {"seconds": answer["seconds"], "right": answer["right"], "nodes": nodes}


def main() -> None:
    """Measure and print; JSON lines with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1 GiB", help="of the array")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    size = parse_size(arguments.size)
    rows: list[tuple[str, dict[str, Any]]] = []
    for name, options in (("Dask by itself", ["engine"]), ("Dask with regions", [])):
        rows.append((name, dask(size, options)))
    with RayCluster(store=3 * size) as ray:
        for name, by in (("Ray by itself", "plasma"), ("Ray with regions", "region")):
            rows.append((name, ray.run("broadcast", BROADCAST_BYTES=str(size), BROADCAST_BY=by)))
    if arguments.json:
        for name, row in rows:
            print(json.dumps({"subject": name, "bytes": size, **row}))
        return
    print(
        f"{format_size(size)} to 2 hosts, 4 workers each; memory is the growth of all four workers of a host\n"
    )
    print(f"{'':18}  {'where':9} {'copies':>6} {'PSS':>10} {'page tables':>12} {'time':>8}")
    for name, row in rows:
        for number, (node, of) in enumerate(sorted(row["nodes"].items())):
            first = number == 0
            print(
                f"{name if first else '':18}  {node:9} {of['copies']:6} {format_size(max(of['pss'], 0)):>10} "
                f"{format_size(max(of['tables'], 0)):>12} {row['seconds']:7.2f}s"
                + ("" if row["right"] else "  WRONG")
            )


if __name__ == "__main__":
    main()
