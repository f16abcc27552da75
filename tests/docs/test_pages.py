"""What README and the documentation print is what happens."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: A block of Python, and what it prints where a block without a language follows.
EXAMPLE = re.compile(
    r"^(<!-- file: .*\n)?```python\n(.*?)^```$(?:\n\s*^```(?:text)?\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
CONFIG = ROOT / "mkdocs.yml"


def _blocks(page: Path) -> list[tuple[str, int, str]]:
    """Code, line and what is printed, of what is not a file of its own."""
    text = page.read_text()
    return [
        (match[2], text.count("\n", 0, match.start()) + 1, match[3] or "")
        for match in EXAMPLE.finditer(text)
        if not match[1]
    ]


def _examples() -> list[tuple[Path, int, str, str]]:
    """Programs: fragments import nothing."""
    return [
        (page, line, code, printed)
        for page in PAGES
        for code, line, printed in _blocks(page)
        if "import " in code
    ]


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
    # As on a terminal: lines of this process and of those that it starts come in the order in which they are printed.
    environment["PYTHONUNBUFFERED"] = "1"
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


def test_fragments() -> None:
    """All Python of the pages is run, here or by the tests of servers (`<!-- file: NAME -->`), but for this."""
    everything = [len(re.findall(r"^ *```python$", page.read_text(), re.MULTILINE)) for page in PAGES]
    served = [page.read_text().count("<!-- file: ") for page in PAGES]
    assert len(_examples()) == sum(everything) - sum(served) - 1
    [fragment] = [page.name for page in PAGES for code, _, _ in _blocks(page) if "import " not in code]
    assert fragment == "msharefs.md"


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs warns of it too, but not everybody who adds a page builds the site."""
    navigation = CONFIG.read_text().split("\nnav:")[1]
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation, page
