"""The law of arrows: every import and every include points down.

cli, integrations, bench -> tools -> objects -> _native -> C rooms -> sys -> kernel
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sharedregion"
NATIVE = ROOT / "native"

#: What a file is, by its first name below the package; a higher number may import lower ones.
LEVELS = {
    "errors": 0,
    "_signals": 0,
    "_sizes": 0,
    "_frameworks": 1,
    "_kernel": 1,
    "_policy": 2,
    "_block_policy": 2,
    "_native": 2,
    "_machine": 2,
    "_blocks": 2,
    "_elsewhere": 3,
    "region": 3,
    "opening": 3,
    "catalog": 3,
    "arrays": 3,
    "awaiting": 3,
    "references": 3,
    "records": 3,
    "files": 3,
    "mapped": 3,
    "codecs": 3,
    "_tracker": 6,
    "_tracking": 6,
    "_collapse": 6,
    "_install": 6,
    "_startup": 9,
    "shared_memory": 6,
    "managers": 6,
    "footprint": 6,
    "_alone": 6,
    "inventory": 6,
    "doctor": 6,
    "_demo": 6,
    "_guardian": 6,
    "_story": 6,
    "integrations": 7,
    "cli": 8,
    "bench": 8,
    "__main__": 9,
}
#: These look at nothing above the plainest things, whatever their level would allow.
ONLY = {
    "errors": set(),
    "_signals": set(),
    "_sizes": set(),
    "_frameworks": {"errors"},
    "_kernel": {"errors", "_kernel"},
    "_policy": {"errors", "_sizes", "_kernel"},
    "_machine": {"_kernel", "_native"},
    "_block_policy": set(),
    "_tracker": set(),
}
#: The public face may import all that it shows, and never what is imported only when asked for.
FACE = {name for name, level in LEVELS.items() if level <= 6} - {"_demo", "_signals", "_story", "_tracker"}
HEAVY = [
    "numpy",
    "multiprocessing",
    "click",
    "rich",
    "matplotlib",
    "torch",
    "pandas",
    "psutil",
    "sharedregion.cli",
    "sharedregion.bench",
]


def _nodes(path: Path) -> Iterator[ast.AST]:
    """All of the file but what is under `if TYPE_CHECKING`: names for the type checker alone are no arrows."""
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        node = queue.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            queue += node.orelse
        else:
            queue += ast.iter_child_nodes(node)


def _imports(path: Path) -> set[str]:
    """First names below the package that the file imports, at any depth of the code; "" for the face itself."""
    found: set[str] = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute, so that the arrows can be read"
            assert node.module
            names = [node.module]
            if node.module == "sharedregion":
                names = [f"sharedregion.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sharedregion":
                found.add(parts[1] if len(parts) > 1 and parts[1] in LEVELS else "")
    return found


def _files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def _room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def test_every_file_of_the_package_has_a_level() -> None:
    assert {_room(path) for path in _files()} - LEVELS.keys() == {"__init__"}


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room, imports = _room(path), _imports(path)
    if room == "__init__":
        assert imports <= FACE
        return
    if room in ONLY:
        assert imports <= ONLY[room]
        return
    for name in imports:
        if name == "":
            assert LEVELS[room] >= 6, f"{path} is below the face and imports it"
        else:
            assert name == room or LEVELS[name] <= LEVELS[room], f"{path} imports {name}, which is above it"


def test_importing_the_package_imports_no_command_line_and_no_framework() -> None:
    code = "import sys, sharedregion; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "sharedregion.errors" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["_kernel.facts", "_policy", "_sizes", "errors"])
def test_the_lower_python_rooms_use_the_standard_library_alone(module: str) -> None:
    for path in [PACKAGE / f"{module.replace('.', '/')}.py", *(PACKAGE / "_kernel").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"sharedregion"}, (
                    f"{path} imports {name}"
                )


@pytest.mark.parametrize(
    "path",
    [path for path in _files() if _room(path) not in ("cli", "__main__")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "exit", "quit", "sys.exit"), f"{path}:{node.lineno} calls {called}"


# ---- The C rooms --------------------------------------------------------------------------------

MAIN_ROOMS = ["base", "sys", "backend", "region", "alloc", "catalog", "python"]
BELOW = {room: set(MAIN_ROOMS[: i + 1]) for i, room in enumerate(MAIN_ROOMS)} | {
    "keeper": {"base", "sys", "keeper"},
    "posix": {"base", "sys", "backend", "posix"},
    "ptwalk": {"base", "sys", "ptwalk"},
}
# The keeper's room is on base and sys alone, so all from the region up may ask it for descriptors.
for _room_above in ("region", "alloc", "catalog", "python"):
    BELOW[_room_above] |= {"keeper"}
BELOW["python"] |= {"posix"}
_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def _sources() -> list[Path]:
    return sorted(p for p in NATIVE.rglob("*") if p.suffix in (".c", ".h") and p.parts[-2] != "tests")


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(NATIVE)))
def test_includes_point_down(path: Path) -> None:
    room = path.relative_to(NATIVE).parts[0]
    homes = {header.name: header.relative_to(NATIVE).parts[0] for header in NATIVE.rglob("*.h")}
    for quote, name in _INCLUDE.findall(path.read_text()):
        base = name.rsplit("/", 1)[-1]
        if quote == "<":
            assert base != "Python.h" or room == "python", f"{path} includes Python.h"
            continue
        assert base in homes or base.startswith("Python"), f"{path} includes {name}, which no room has"
        if base in homes:
            assert homes[base] in BELOW[room], (
                f"{path} includes {name} of {homes[base]}, which is above {room}"
            )


def test_headers_have_names_of_their_own() -> None:
    """The check above finds a header's room by its name."""
    names = [header.name for header in NATIVE.rglob("*.h") if "tests" not in header.parts]
    assert len(names) == len(set(names))
