"""Found first by every Python that `sharedregion run` starts: installs the drop-in, then steps aside.

The sitecustomize module that would have been found otherwise runs after it. Other versions of Python
than this package is for are left alone, so this file is written for all of them.
"""

import os
import sys


def _install(folder):  # other Pythons read this file too: no annotations
    import importlib.util

    try:
        import sharedregion
    except ImportError:
        # An interpreter of its own, in which this package is not installed. The drop-in needs nothing
        # else, and its native part is the same for all versions.
        spec = importlib.util.spec_from_file_location(
            "sharedregion", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        sharedregion = importlib.util.module_from_spec(spec)
        sys.modules["sharedregion"] = sharedregion
        spec.loader.exec_module(sharedregion)
    sharedregion.install()


def _step_aside(here):
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize
    except ImportError as error:
        # Python 2 does not say which module was missing.
        if getattr(error, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        # The import system, which is in the middle of loading this file, expects the name to be there.
        sys.modules.setdefault("sitecustomize", own)


_here = os.path.dirname(os.path.abspath(__file__))
if sys.version_info >= (3, 11):
    try:
        _install(os.path.dirname(_here))
    except Exception as error:
        sys.stderr.write("sharedregion: multiprocessing.shared_memory stays the standard one: %s\n" % error)
_step_aside(_here)
