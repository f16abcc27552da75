"""How a case says a figure."""

from __future__ import annotations

import json


def say(subject: str, figure: float, unit: str) -> None:
    """One line of JSON."""
    print(json.dumps({"subject": subject, "figure": figure, "unit": unit}), flush=True)
