"""Test folders are no packages: what the tests of this one share is loaded by its path."""

import importlib.util
import sys
from pathlib import Path

for _name, _file in {
    "cluster_hosts": "hosts.py",
    "cluster_dask": "dask_cluster.py",
    "cluster_ray": "ray_cluster.py",
}.items():
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(_file))
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_name] = _module
    _spec.loader.exec_module(_module)
