"""`python -m tests.support.export_benchmark FOLDER TOKENIZER [SHAPE]`: what it costs to export a
model of SHAPE (llama-7b) in bf16, of random values and with LLaMA's TOKENIZER, with an adapter
merged into it, beside what it costs to copy its files; docs/benchmarks/export.md says what came of
it. FOLDER, on the disk that is to be measured, is made and needs room for the model twice. One JSON
object a line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llama.adapters import peft_format
from llama.model.config import LINEARS, PART_OF
from llama.model.presets import PRESETS
from llama.settings import LoRAOptions

RANK = 16
FORMATS: tuple[tuple[str, ...], ...] = (
    ("hf",),
    ("hf", "--verify", "false"),
    ("meta", "--shards", "2", "--verify", "false"),
    ("gguf", "--verify", "false"),
    ("gguf", "--quantize", "q8_0", "--verify", "false"),
)


def write_adapter(folder: Path, shape: str) -> None:
    """Of rank 16 on every linear layer, of random values."""
    config, generator = PRESETS[shape], torch.Generator().manual_seed(0)
    state = {}
    for layer in range(config.n_layers):
        for target in LINEARS:
            rows, columns = config.linear_shape(target)
            name = f"layers.{layer}.{PART_OF[target]}.{target}.lora"
            state[f"{name}.a"] = 0.01 * torch.randn(RANK, columns, generator=generator)
            state[f"{name}.b"] = 0.01 * torch.randn(rows, RANK, generator=generator)
    options = LoRAOptions(RANK, 2.0 * RANK, 0.0, LINEARS)
    peft_format.save(folder, state, peft_format.AdapterConfig(options, f"random:{shape}"))


def forget(folder: Path) -> None:
    """Have the system read the folder's files from the disk when they are read next."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(words: list[str]) -> dict[str, Any]:
    """Run a command: its seconds, until what it wrote is on the disk, and the most memory of its
    own that it had, without the pages of mapped files."""
    started, most = time.monotonic(), 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        if found := re.search(r"RssAnon:\s+(\d+) kB", status.read_text()):
            most = max(most, int(found[1]) >> 10)
        time.sleep(0.01)
    assert process.returncode == 0, words
    os.sync()
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": most}


def main(folder: Path, tokenizer: Path, shape: str) -> None:
    export = [sys.executable, "launcher/export.py"]
    folder.mkdir(parents=True)
    base, adapter, out = folder / "base", folder / "adapter", folder / "out"
    made = ["--model", f"random:{shape}", "--tokenizer", str(tokenizer), "--format", "hf"]
    more = ["--dtype", "bfloat16", "--verify", "false", "--output_dir", str(base)]
    subprocess.run([*export, *made, *more], check=True)
    write_adapter(adapter, shape)
    size = sum(path.stat().st_size for path in base.iterdir())
    of_base = ["--model", str(base), "--adapter", str(adapter), "--output_dir", str(out)]
    ways = {"cp": ["cp", "-r", str(base), str(out)]}
    ways |= {" ".join(way): [*export, *of_base, "--format", *way] for way in FORMATS}
    ways["cp, again"] = ways["cp"]
    for name, words in ways.items():
        forget(base)
        found = measured(words)
        rate = round(size / found["seconds"] / 2**20)
        print(
            json.dumps({"way": name, "mib": size >> 20, **found, "mib_a_second": rate}), flush=True
        )
        shutil.rmtree(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "llama-7b")
