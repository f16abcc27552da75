"""What holds for all frameworks."""

import re
import tomllib
from pathlib import Path

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
