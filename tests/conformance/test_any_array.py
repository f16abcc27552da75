"""Arrays as hypothesis finds them. By itself, so that the rest of conformance runs where only pytest is installed."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp

import sharedregion as sr


@given(
    array=hnp.arrays(
        hnp.array_dtypes(max_size=4) | hnp.scalar_dtypes(), hnp.array_shapes(min_side=0, max_dims=4)
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_array(region: sr.Region, array: np.ndarray) -> None:
    """Arrays of any dtype without objects, structured ones too."""
    region["a"] = array
    seen = region["a"]
    assert seen.dtype == array.dtype and seen.shape == array.shape
    assert seen.tobytes() == array.tobytes()
