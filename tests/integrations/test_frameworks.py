"""What holds for all frameworks."""

import re
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sharedregion as sr
from sharedregion._frameworks import LEAST

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())


def test_extras_say_what_the_errors_say() -> None:
    """Each framework has an extra, and the version that an error asks for is the one that the extra brings."""
    extras = PROJECT["project"]["optional-dependencies"]
    for name, (least, extra) in LEAST.items():
        assert f"{name}>={least}" in extras[extra]


def test_tests_run_with_what_is_supported() -> None:
    """The versions that tests are run with are at least those."""
    group = {re.split("[=><]", line)[0]: line for line in PROJECT["dependency-groups"]["frameworks"]}
    assert set(LEAST) <= set(group)


#: What asks for the framework first: a program's import, or a server's start.
ASKING = {
    "torch": "import sharedregion.integrations.torch",
    "joblib": "import sharedregion.integrations.joblib",
    "gunicorn": "import sharedregion.integrations.gunicorn",
    "uvicorn": "from sharedregion.integrations.uvicorn import serve; serve('a:app', 'name', dict)",
    "distributed": "import sharedregion.integrations.dask",
    "ray": "import sharedregion.integrations.ray",
    "duckdb": "import sharedregion.integrations.duckdb",
}
ASK = """
import sys, types
if sys.argv[2] == "absent":
    class Nothing:
        def find_spec(self, name, path, target=None):
            if name.partition(".")[0] == sys.argv[1]: raise ModuleNotFoundError("none", name=name)
    sys.meta_path.insert(0, Nothing())
else:
    sys.modules[sys.argv[1]] = types.ModuleType(sys.argv[1])
    sys.modules[sys.argv[1]].__version__ = "0.0.7.dev1"
try: exec(sys.argv[3])
except ImportError as error: print(type(error).__name__, error)
"""


@pytest.mark.parametrize("how", ["absent", "old"])
@pytest.mark.parametrize("name", ASKING)
def test_absent_or_too_old(run: Callable[..., str], name: str, how: str) -> None:
    """Whoever asks for an integration without its framework, or with too old a one, is told which version would do."""
    least, extra = LEAST[name]
    said = run(ASK, name, how, ASKING[name])
    wrong = "is not installed" if how == "absent" else "0.0.7.dev1 is too old"
    assert said == (
        f"FrameworkMissing {name} {wrong}, version {least} or later is needed. "
        f'pip install "sharedregion[{extra}]", which brings {name} >= {least}\n'
    )


VALUES: dict[str, Callable[[Any], Any]] = {
    "torch": lambda torch: torch.ones(3),
    "pyarrow": lambda pyarrow: pyarrow.table({"a": [1]}),
    "polars": lambda polars: polars.DataFrame({"a": [1]}),
    "pandas": lambda pandas: pandas.DataFrame({"a": [1]}),
}


def test_each_framework_is_asked_for_somewhere() -> None:
    """The two tables above leave none out."""
    assert {*ASKING, *VALUES} == set(LEAST)


@pytest.mark.parametrize("name", VALUES)
def test_values_of_a_framework_that_is_too_old(
    monkeypatch: pytest.MonkeyPatch, unique: str, name: str
) -> None:
    """They are refused where they are placed, not only by whoever wants to read them."""
    framework = import_module(name)
    value = VALUES[name](framework)
    with sr.create(unique, size="1 MiB") as region:
        region["x"] = 5
        monkeypatch.setattr(framework, "__version__", "1.0")
        with pytest.raises(sr.FrameworkMissing, match=f"{name} 1.0 is too old, version {LEAST[name][0]}"):
            region["x"] = value
        assert region["x"] == 5
