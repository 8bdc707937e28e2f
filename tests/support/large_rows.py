"""`python -m tests.support.large_rows N FILE [text]`: N rows of Alpaca's shape, for measuring the
way of data, or as many plain texts of about 50 tokens; JSONL, or a JSON list where FILE ends in
.json.

Words follow a few thousand made of syllables, by Zipf's law; lengths follow those of Alpaca's
52,002 rows: 60 characters of instruction in the mean, an input in 4 of 10 rows, 270 of output.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

_SYLLABLES = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]


def rows(count: int, seed: int = 0, texts: bool = False) -> Iterator[dict[str, str]]:
    """As many rows, the same for the same seed."""
    dice = random.Random(seed)
    words = ["".join(dice.choices(_SYLLABLES, k=dice.randint(1, 4))) for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    drawn = dice.choices(words, weights, k=200_000)

    def text(mean: float) -> str:
        length = max(2, int(dice.expovariate(1 / mean)))
        start = dice.randrange(len(drawn) - length)
        said = " ".join(drawn[start : start + length])
        return said.capitalize() + dice.choice(".?!")

    for number in range(count):
        if texts:
            yield {"text": f"{text(15)} ({number})"}
            continue
        given = text(10) if dice.random() < 0.4 else ""
        yield {"instruction": f"{text(9)} ({number})", "input": given, "output": text(45)}


def write(path: Path, count: int, texts: bool = False) -> None:
    """JSONL, or a JSON list as Alpaca is published."""
    as_list = path.suffix == ".json"
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows(count, texts=texts)):
            between = ("[" if number == 0 else ",\n") if as_list else ""
            file.write(between + json.dumps(row) + ("" if as_list else "\n"))
        file.write("]\n" if as_list else "")


if __name__ == "__main__":
    write(Path(sys.argv[2]), int(sys.argv[1]), sys.argv[3:] == ["text"])
