"""PyTorch: tensors in regions, what travels, and what is refused."""

import faulthandler
import gc
import io
import os
import pickle
import signal
import warnings
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

import sharedregion as sr
from sharedregion import _native

DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
]  # fmt: skip


def lies_in_region(tensor: torch.Tensor) -> bool:
    return _native.locate(tensor.data_ptr(), tensor.nbytes) is not None


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_without_a_copy(unique: str, name: str) -> None:
    """A tensor is got from the region's own memory, bit for bit, bfloat16 and 8-bit floats too."""
    with sr.create(unique, size="4 MiB") as region:
        tensor = (torch.randn(37, 5) * 3).to(getattr(torch, name))
        region["t"] = tensor
        got = region["t"]
        assert got.dtype == tensor.dtype and got.shape == tensor.shape and lies_in_region(got)
        assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))


def test_layouts(unique: str) -> None:
    """channels_last stays; views with gaps, broadcast and conjugated ones, scalars and empty ones become right."""
    with sr.create(unique, size="4 MiB") as region:
        dense = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
        wanted = [
            dense, torch.arange(100.0)[::7], torch.ones(1).expand(5, 4), torch.randn(4, dtype=torch.complex64).conj(),
            torch.tensor(2.5), torch.zeros(0, 3), torch.zeros(3, 0, 2), torch.randn(6, 5).T, torch.nn.Parameter(torch.ones(3)),
        ]  # fmt: skip
        for n, tensor in enumerate(wanted):
            region[f"t{n}"] = tensor
            got = region[f"t{n}"]
            assert (
                type(got) is torch.Tensor and got.shape == tensor.shape and torch.equal(got, tensor.detach())
            )
            assert not got.requires_grad
        assert region["t0"].stride() == dense.stride() and region["t7"].stride() == (1, 5)


def test_no_warning_and_no_torch_for_those_who_do_not_ask(run, unique: str) -> None:
    """Attaching to a region full of tensors loads no torch; the first tensor that is asked for does, without a warning."""
    with sr.create(unique, size="1 MiB") as region:
        region["t"] = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
        region["x"] = np.arange(3)
        code = """
import sys, warnings
warnings.simplefilter("error")
import sharedregion as sr
region = sr.attach(sys.argv[1])
print(list(region), region["x"].tolist(), "torch" in sys.modules)
print(region["t"].tolist(), region["t"].dtype)
"""
        lines = run(code, unique).splitlines()
        assert lines == ["['t', 'x'] [0, 1, 2] False", "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] torch.bfloat16"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.zeros(3, device="meta"), "device meta.*cpu()"),
        (lambda: torch.eye(3).to_sparse(), "sparse.*to_dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: {"w": torch.zeros(3, device="meta")}, "device meta.*cpu()"),
        (lambda: [torch.ones(3, requires_grad=True) * 2], "detach"),
    ],
)
def test_what_cannot_lie_in_a_region_says_why(unique: str, make, says: str) -> None:
    """A tensor on another device, or of more than one piece, is refused with what to do, and nothing is lost."""
    with sr.create(unique, size="1 MiB") as region:
        region["t"] = torch.ones(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = make()
        with pytest.raises(sr.NotPlaceable, match=says):
            region["t"] = value
        assert torch.equal(region["t"], torch.ones(3))


def in_child(work) -> int:
    """The wait status of a forked child that does the work."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1]


def test_a_write_in_place_is_a_signal_unless_asked_for(unique: str) -> None:
    """torch has no read-only tensors: the write is SIGSEGV; copy_on_write and mutable are the ways to write."""
    with sr.create(unique, size="1 MiB") as region, sr.attach(unique) as reader:
        region["t"] = torch.zeros(1000)
        region.put("m", torch.zeros(1000), mutable=True)
        assert in_child(lambda: reader["t"].add_(1)) == signal.SIGSEGV
        assert in_child(lambda: reader["m"].add_(1)) == signal.SIGSEGV
        assert in_child(lambda: reader.get("t", copy_on_write=True).add_(1).sum() == 1000) == 0
        assert region["t"].sum() == 0
        assert in_child(lambda: region["m"].add_(1).sum() == 1000) == 0
        assert region["m"].sum() == 1000 and reader["m"].sum() == 1000


def test_models_and_state_dicts(unique: str) -> None:
    """A module and a state dict come back as themselves, weights in the region, tied ones tied; training works on private ones."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
    model[2].weight = model[0].weight
    shared = sr.share(model)
    x = torch.randn(4, 32)
    assert torch.equal(shared(x), model(x))
    assert all(
        lies_in_region(p) and type(p) is torch.nn.Parameter and p.requires_grad for p in shared.parameters()
    )
    assert shared[2].weight is shared[0].weight
    with sr.create(unique, size="1 MiB") as region:
        region["state"] = model.state_dict()
        state = region["state"]
        assert state["0.weight"].data_ptr() == state["2.weight"].data_ptr() and lies_in_region(
            state["0.bias"]
        )
        own = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32))
        own.load_state_dict(region.get("state", copy_on_write=True), assign=True)
        own.requires_grad_()
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        own(x).square().mean().backward()
        optimizer.step()
        assert not torch.equal(own[0].weight, region["state"]["0.weight"])
        assert torch.equal(region["state"]["0.weight"], model[0].weight)


def test_views_of_one_memory_that_mean_other_numbers() -> None:
    """Conjugated and negated views look at the memory of others and are not taken for them."""
    numbers = torch.randn(4, dtype=torch.complex64)
    imaginary = numbers.conj().imag
    views = {"x": numbers, "conj": numbers.conj(), "imag": numbers.imag, "neg": imaginary}
    assert imaginary.is_neg() and imaginary.data_ptr() == numbers.imag.data_ptr()
    shared = sr.share(views)
    for name, view in views.items():
        assert torch.equal(shared[name], view), name


def test_written_out_with_data() -> None:
    """torch.save and pickle write the numbers: a checkpoint is never empty."""
    tensor = sr.share(torch.arange(10_000.0))
    file = io.BytesIO()
    torch.save({"t": tensor}, file)
    assert len(file.getvalue()) > 40_000
    file.seek(0)
    assert torch.equal(torch.load(file)["t"], tensor)
    again = pickle.loads(pickle.dumps(tensor))
    assert torch.equal(again, tensor) and not lies_in_region(again)
    assert not lies_in_region(tensor.clone()) and lies_in_region(tensor)


def test_references_of_tensors_and_storages() -> None:
    """Views, parameters and storages go as references; tensors elsewhere go torch's own way."""
    tensor = sr.share(torch.randn(100, 20).to(torch.bfloat16))
    for view in (tensor, tensor[::2], tensor.T, tensor[3:5, 1], torch.nn.Parameter(tensor)):
        sent = ForkingPickler.dumps(view)
        again = pickle.loads(sent)
        assert len(sent) < 300 and again.data_ptr() == view.data_ptr() and torch.equal(again, view)
        assert type(again) is type(view) and again.requires_grad == view.requires_grad
    storage = tensor.untyped_storage()
    assert pickle.loads(ForkingPickler.dumps(storage)).data_ptr() == storage.data_ptr()
    elsewhere = torch.zeros(10)
    pickle.loads(ForkingPickler.dumps(elsewhere))
    assert elsewhere.is_shared(), "torch moves what it sends"
    assert not tensor.is_shared() and lies_in_region(tensor), "and leaves ours where it is"
    with pytest.raises(RuntimeError, match="non-leaf"):
        ForkingPickler.dumps(torch.nn.Parameter(tensor.float()) * 2)


def test_a_reference_asks_for_no_more_than_there_is() -> None:
    """A tensor's memory claims to be writable; its reference attaches for writing only to what was placed as mutable."""
    from sharedregion.codecs.tensor import _reference

    with sr.create(size="1 MiB") as region, sr.attach(region.name) as reader:
        region["t"] = torch.ones(10)
        region.put("m", torch.ones(10), mutable=True)
        for tensor, writable in ((region["t"], False), (region["m"], True), (reader["m"], False)):
            *_, what = _reference(tensor.data_ptr(), tensor.nbytes)[1]
            assert what[-1] is writable


ORDERS = {
    "torch first": "import torch\nimport sharedregion as sr",
    "sharedregion first": "import sharedregion as sr\nimport torch",
    "a region first": "import sharedregion as sr\nregion = sr.create(size='1 MiB')\nimport torch",
    "torch.multiprocessing last": "import sharedregion as sr, numpy\nx = sr.share(numpy.ones(3))\nimport torch.multiprocessing\nimport torch",
    "looked for first": "import importlib.util, sharedregion as sr\nregion = sr.create(size='1 MiB')\nassert importlib.util.find_spec('torch')\nimport torch",
}
SEND = """
import sys
{imports}
import torch.multiprocessing as mp

def look(queue, answers, *more):
    for tensor in (queue.get(), *more):
        there = sr._native.locate(tensor.data_ptr(), 8) is not None
        answers.put((tensor.sum().item(), tensor.is_shared(), there))
    answers.put(tensor)

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    tensor = sr.share(torch.arange(10_000.0))
    at, total = tensor.data_ptr(), tensor.sum().item()
    queue, answers = context.Queue(), context.Queue()
    process = context.Process(target=look, args=(queue, answers, tensor, tensor[:]))
    process.start()
    queue.put(tensor)
    assert [answers.get(timeout=120) for _ in range(3)] == [(total, False, True)] * 3
    back = answers.get(timeout=120)
    process.join()
    assert back.data_ptr() == tensor.data_ptr() == at and not tensor.is_shared()
    print("well")
"""


@pytest.mark.parametrize("order", ORDERS)
def test_torch_multiprocessing_leaves_tensors_where_they_are(run, order: str) -> None:
    """In every order of imports a tensor goes to another process and back by reference, and stays in the region."""
    assert run(SEND.format(imports=ORDERS[order]), "fork") == "well\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_by_other_start_methods(run, method: str) -> None:
    """The same for the other ways to start a process, where arguments are sent too."""
    assert run(SEND.format(imports=ORDERS["sharedregion first"]), method) == "well\n"


def test_a_worker_killed_while_it_holds_tensors(start, unique: str) -> None:
    """The pins of a killed process hold nothing up: the block is free again, and others never noticed."""
    with sr.create(unique, size="4 MiB") as region:
        region["t"] = torch.ones(100_000)
        worker = start(
            """
import sys, torch, sharedregion as sr
t = sr.attach(sys.argv[1])["t"]
print("holds", flush=True)
sys.stdin.read()
""",
            unique,
        )
        mine = region["t"]
        del region["t"]
        worker.kill()
        worker.wait()
        assert mine.sum() == 100_000
        assert region.stats().withdrawn == 1
        del mine
        gc.collect()
        region._sweep()
        assert region.stats().withdrawn == 0 and region.stats().used < 400_000


def test_a_region_that_went_away(unique: str) -> None:
    """A reference to a tensor whose region is gone is ObjectNotFound, not a crash and not other bytes."""
    with sr.create(unique, size="1 MiB") as region:
        region["t"] = torch.ones(1000)
        sent = ForkingPickler.dumps(region["t"])
        pickle.loads(sent)
    del region
    gc.collect()
    _native.settle()
    with pytest.raises(sr.ObjectNotFound):
        pickle.loads(sent)


def test_a_damaged_description(unique: str) -> None:
    """A description that contradicts itself is RegionCorrupt."""
    from sharedregion.codecs import tensor

    with sr.create(unique, size="1 MiB") as region:
        good = tensor.describe("float32", (10, 10))
        bad = [
            b"", good[:20], tensor.describe("float32", (10, 11)), tensor.describe("nonsense", (1,)),
            tensor.describe("float32", (2, 2), (1 << 62, 1 << 62)), tensor.describe("Tensor", (1,)), b"\x09" + good[1:],
            tensor.describe("float32", (1,), (1 << 63,)), tensor.describe("int8", (0, 1 << 63)),
        ]  # fmt: skip
        for n, meta in enumerate(bad):
            region._put(f"t{n}", tensor.NUMBER, 0, meta, bytes(400))
            with pytest.raises(sr.RegionCorrupt):
                region[f"t{n}"]
        region._put("t", tensor.NUMBER, 0, good, bytes(400))
        assert region["t"].sum() == 0


ABSENT = """
import sys, sharedregion as sr
class Nothing:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch": raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Nothing())
region = sr.attach(sys.argv[1])
try: region["t"]
except ImportError as error: print(type(error).__name__, error)
print(region["x"].sum())
"""


def test_without_torch(run, unique: str) -> None:
    """A worker without torch gets one clear error for a tensor, and all else as ever."""
    with sr.create(unique, size="1 MiB") as region:
        region["t"] = torch.ones(3)
        region["x"] = np.ones(3)
        first, second = run(ABSENT, unique).splitlines()
        assert first.startswith("FrameworkMissing torch is not installed, version 2.4 or later is needed")
        assert 'pip install "sharedregion[torch]"' in first and second == "3.0"


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the version that is there and the one that is needed."""
    from sharedregion._frameworks import load

    monkeypatch.setattr(torch, "__version__", "1.13.1+cpu")
    with pytest.raises(ImportError, match=r"torch 1.13.1\+cpu is too old, version 2.4 or later"):
        load("torch")
