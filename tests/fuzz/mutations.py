"""Sound files, spoilt: bytes flipped, cut, repeated and replaced, or JSON values exchanged."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st

PIECES = [
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"[", b"]" * 3, b'"', b"'", b",", b":", b"\n"),
    *(b"null", b"true", b"NaN", b"-1", b"0", b"1.5", b"1e999", b"9" * 40, b'"\\ud800"', b"../x"),
    *(b"\\u0000", b"<s>", b"{{ x }}", b"{%", b"!!python/name:os.system", b"&a *a", b"- - -"),
    *(struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32, 2**40, 2**60, 2**63, 2**64 - 1)),
    *(struct.pack("<I", n) for n in (0, 8, 9, 2**31, 2**32 - 1)),
]
"""What parsers trip over, in place of some bytes."""
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e300, float("nan")),
    *(float("inf"), "", "x", "auto", "../x", "/dev/zero", "\0", "\ud800", "y" * 5000, [], {}),
    *([None], [[]], ["x", 1], {"": None}, {"type": "x"}, {"content": 3}, [{"id": -1}]),
]
"""What may stand where something else was expected."""


@st.composite
def spoilt_bytes(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with one to six changes, mostly near its start, where headers are."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 6))):
        near = draw(st.sampled_from([64, 512, len(data)]))
        start = draw(st.integers(0, min(near, len(data))))
        length = draw(st.integers(0, 16))
        change = draw(st.sampled_from(["piece", "noise", "flip", "cut", "end", "repeat"]))
        if change == "piece":
            data[start : start + length] = draw(st.sampled_from(PIECES))
        elif change == "noise":
            data[start : start + length] = draw(st.binary(max_size=16))
        elif change == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[start : start + 8 * length]
        elif change == "end":
            del data[start:]
        elif change == "repeat":
            data[start:start] = data[start : start + 8 * length]
    return bytes(data)


@st.composite
def spoilt_json(draw: st.DrawFn, sound: Any) -> bytes:
    """The JSON document `sound` with one to four values exchanged, removed, renamed or added."""
    document = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 4))):
        parents = list(_containers(document))
        parent = draw(st.sampled_from(parents))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        value = copy.deepcopy(draw(st.sampled_from(VALUES)))
        if not keys:
            continue
        key = draw(st.sampled_from(keys[:40]))
        change = draw(st.sampled_from(["exchange", "exchange", "remove", "rename", "swap"]))
        if change == "exchange":
            parent[key] = value
        elif change == "remove":
            del parent[key]
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "type", "\0", str(key).upper()]))] = parent[key]
        elif change == "swap":
            parent[key] = copy.deepcopy(parent[draw(st.sampled_from(keys[:40]))])
    return json.dumps(document).encode()


def _containers(value: Any, depth: int = 0) -> Any:
    """Every object and list that holds something; of a long list the first few."""
    if not isinstance(value, dict | list) or depth > 6:
        return
    yield value
    for inner in list(value.values() if isinstance(value, dict) else value)[:30]:
        yield from _containers(inner, depth + 1)
