"""Tokenizers' files that were cut short or changed: they load or are refused, and nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from llama.errors import UserError
from llama.tokenizer.load import load_tokenizer
from tests.support.model_files import ROOT
from tests.support.tokenizer_files import (
    byte_description,
    gguf_of,
    smollm2_gguf,
    write_gguf,
    write_tokenizer_json,
)
from tests.unit.tokenizer.test_load_tokenizer import assert_refused


def damaged(data: bytes, dice: random.Random) -> bytes:
    """`data` cut short, or with some bytes changed."""
    if dice.random() < 0.4:
        return data[: dice.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(dice.choice([1, 3, 30])):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def assert_loads_or_refuses(path: Path) -> None:
    with suppress(UserError):
        load_tokenizer(path).encode("some text 123")


def test_damaged_small_files_raise_nothing_else(tmp_path: Path) -> None:
    dice = random.Random(0)
    sources = [
        write_tokenizer_json(tmp_path).read_bytes(),
        write_gguf(tmp_path / "g", **gguf_of(byte_description())).read_bytes(),
    ]
    for _ in range(150):
        for source in sources:
            (tmp_path / "x").write_bytes(damaged(source, dice))
            assert_loads_or_refuses(tmp_path / "x")


FUZZ = """
import random, sys
from pathlib import Path
from tests.unit.tokenizer.test_damaged import assert_loads_or_refuses, damaged
source, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
dice = random.Random(1)
for _ in range(200):
    target.write_bytes(damaged(source, dice))
    assert_loads_or_refuses(target)
print("survived")
"""


def test_damaged_sentencepiece_does_not_crash_the_process(trimming: Path, tmp_path: Path) -> None:
    source = trimming / "tokenizer.model"
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(source), str(tmp_path / "x")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "survived" in done.stdout


def test_truncated_files(llama2_model: Path, tmp_path: Path) -> None:
    for source in (llama2_model, smollm2_gguf()):
        with source.open("rb") as file:
            data = file.read(min(300_000, source.stat().st_size // 2))
        (tmp_path / "x").write_bytes(data)
        assert_refused(tmp_path / "x")
