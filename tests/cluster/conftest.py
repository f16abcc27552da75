"""Test folders are no packages: what the tests of this one share is loaded by its path."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("cluster_hosts", Path(__file__).with_name("hosts.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["cluster_hosts"] = _module
_spec.loader.exec_module(_module)
