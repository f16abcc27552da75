"""What README and the documentation print is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: A block of Python followed by a block without a language: a program and what it prints.
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\s*^```(?:text)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONFIG = ROOT / "mkdocs.yml"


def _examples() -> list[tuple[Path, int, str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in EXAMPLE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append((page, line, match[1], match[2]))
    return found


def _pattern(printed: str) -> str:
    """`...` in the page stands for anything, as in doctest."""
    return ".*".join(re.escape(part) for part in printed.split("..."))


@pytest.mark.parametrize(
    ("page", "line", "code", "printed"),
    _examples(),
    ids=lambda value: (
        f"{value.name}" if isinstance(value, Path) else f"{value}" if isinstance(value, int) else ""
    ),
)
def test_examples_print_what_the_page_says(
    tmp_path: Path, page: Path, line: int, code: str, printed: str
) -> None:
    script = tmp_path / "example.py"
    script.write_text(code)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHAREDREGION_")}
    done = subprocess.run(
        [sys.executable, str(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, f"{page}:{line}\n{done.stderr}"
    assert re.fullmatch(_pattern(printed), done.stdout, re.DOTALL), f"{page}:{line}\n{done.stdout}"


def test_there_are_examples() -> None:
    """The pattern above still finds them: README has two."""
    assert sum(page.name == "README.md" for page, *_ in _examples()) >= 2
    assert len(_examples()) >= 7


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs warns of it too, but not everybody who adds a page builds the site."""
    navigation = CONFIG.read_text().split("\nnav:")[1]
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation, page
