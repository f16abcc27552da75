"""NumPy arrays and references of a region through torch.multiprocessing, whichever was imported first."""

import pytest

ORDERS = {
    "torch.multiprocessing first": "import torch.multiprocessing\nimport sharedregion as sr",
    "torch first, its multiprocessing last": "import torch\nimport sharedregion as sr\nimport torch.multiprocessing",
    "sharedregion first": "import sharedregion as sr\nimport torch.multiprocessing",
    "a region first": "import sharedregion as sr\nsr.create(size='1 MiB')\nimport torch.multiprocessing",
    "multiprocessing's pickler between": "import sharedregion as sr\nfrom multiprocessing.reduction import ForkingPickler\nimport torch.multiprocessing",
}
#: mp is torch.multiprocessing; what it pickles with is multiprocessing's own pickler, which it teaches more.
SEND = """
import sys
{imports}
import numpy as np
from multiprocessing.reduction import ForkingPickler
import torch.multiprocessing as mp

def look(x, reference=None):
    base = x
    while isinstance(base, np.ndarray): base = base.base
    there = type(base).__name__ == "Pin" and not x.flags.writeable
    return there, int(x.sum()), None if reference is None else int(reference.get().sum())

def fill(part): part[...] = 7
def work(queue, answers):
    x, reference = queue.get()
    answers.put(look(x, reference))
    answers.put(x[5:])

if __name__ == "__main__":
    region = sr.create(size="1 MiB")
    region["x"] = np.arange(1000)
    x, total = region["x"], 499500
    assert len(ForkingPickler.dumps(x)) < 300
    context = mp.get_context(sys.argv[1])
    with context.Pool(2) as pool:
        assert pool.starmap(look, [(x, region.ref("x"))] * 4 + [(x[:0], None)]) == [(True, total, total)] * 4 + [(True, 0, None)]
        z = region.zeros("z", (4, 100), "i4", mutable=True)
        pool.map(fill, [z[i] for i in range(4)])
        assert (z == 7).all()
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=work, args=(queue, answers))
    process.start()
    y = sr.share(np.ones(50_000, "u1"))
    queue.put((y, region.ref("x")))
    del y
    assert answers.get(timeout=120) == (True, 50_000, total)
    back = answers.get(timeout=120)
    assert back.sum() == 49_995 and not back.flags.owndata
    process.join()
    print("well")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_arrays_and_references_in_every_order_of_imports(run, order: str) -> None:
    """They go by reference through torch's Pool, Queue and Process, and mutable ones stay writable."""
    assert run(SEND.format(imports=ORDERS[order]), "fork") == "well\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("order", ["torch.multiprocessing first", "sharedregion first"])
def test_arrays_and_references_by_other_start_methods(run, order: str, method: str) -> None:
    """The same where workers import everything themselves."""
    assert run(SEND.format(imports=ORDERS[order]), method) == "well\n"
