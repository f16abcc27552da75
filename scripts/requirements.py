"""Print the requirements that pyproject.toml names, so that they stand in one place.

    python scripts/requirements.py build run test lint

`build` is what the build backend needs, `run` the package's own dependencies, `bench` the extra of that
name; any other word is a dependency group. Older pips know no groups, hence this script.
"""

import sys
import tomllib
from pathlib import Path


def main(words: list[str]) -> None:
    """One requirement a line, in the order asked for."""
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
    known = {
        "build": project["build-system"]["requires"],
        "run": project["project"]["dependencies"],
        "bench": project["project"]["optional-dependencies"]["bench"],
        **project["dependency-groups"],
    }
    for word in words:
        if word not in known:
            raise SystemExit(f"requirements.py: {word!r} is not one of {', '.join(known)}")
    print("\n".join(dict.fromkeys(line for word in words for line in known[word])))


main(sys.argv[1:])
