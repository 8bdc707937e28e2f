"""JSON as every reader takes it.

Python would write NaN and Infinity, which are no JSON: jq, browsers and most libraries then refuse
the whole line or file. They are written as null here, in all that this program writes.
"""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(document: Any, **options: Any) -> str:
    """`document` as JSON; `options` are those of `json.dumps`."""
    return json.dumps(_finite(document), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
