"""`python -m tests.unit.data.preparing ROWS TOKENIZER [stand still]` prepares rows as if they were
many, and prints their digest; or stands still once it has begun to write."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from llama.data.prepare import Reading, prepare
from llama.data.store import entry, making, tokenised
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.templates import load_template

ADD = entry.Sink.add


def add_and_stand_still(sink: entry.Sink, arrays: Any) -> None:
    ADD(sink, arrays)
    print("making", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    tokenised.SMALL, making.PART_ROWS = 0, 7
    if sys.argv[3:]:
        entry.Sink.add = add_and_stand_still
    tokenizer = load_tokenizer(Path(sys.argv[2]))
    made = prepare([Path(sys.argv[1])], load_template("chatml", tokenizer), tokenizer, Reading(600))
    print(made.packed.digest)
