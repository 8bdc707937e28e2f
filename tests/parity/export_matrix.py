"""Writes docs/exports.md: every family through every format, against transformers.

LLAMA_TEST_ASSETS=FOLDER python -m tests.parity.export_matrix docs/exports.md
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llama.errors import UserError
from llama.model.config import LINEARS, ModelConfig
from tests.bad_inputs.setting import write_adapter
from tests.parity.families import (
    FAMILIES,
    Family,
    Inputs,
    Subject,
    exported,
    published,
    transformers_of,
)
from tests.parity.logits_on_ranks import Jobs, logits_of, tokens
from tests.support.closeness import difference
from tests.support.model_files import ROOT

LIMIT = 1e-4
ROUNDING = 0.1
"""By what share of it the distance of Q8_0 may differ from that of quantising alone: two float32
sums that differ in their last bit fall to either side of a step about once in 100,000 weights."""
READ = "read"
OUTS: dict[str, dict[str, Any]] = {
    "hf": {"format_": "hf"},
    "meta": {"format_": "meta"},
    "meta, cut": {"format_": "meta"},
    "gguf f32": {"format_": "gguf"},
    "gguf q8_0": {"format_": "gguf", "quantize": "q8_0"},
}
"""What `export` is asked for, by column."""
QUANTISED = "gguf q8_0"
GGUF_FILE = "model.gguf"
COLUMNS = ("family", "in", "TP", READ, *OUTS, "q8_0 moves", "quantising alone")
NONE = "-"
HEAD = f"""\
# Every family through every format

```bash
LLAMA_TEST_ASSETS=FOLDER python -m tests.parity.export_matrix docs/exports.md
```

made this page. Each family is a tiny model of random weights with the rules of its shape, written
by transformers under the config.json of its release; below them stand published models, whole. Each
has an adapter on all seven linear layers, its factors drawn around 0 with a deviation of 0.1. It is
read from each format (`in`), by one process or with its heads spread over more (`TP`), and written
by `export` with the adapter merged.

A cell is the largest difference of a logit from transformers with PEFT's adapter beside its base,
in float32, over the largest logit: at most {LIMIT:.0e}. `read` is the model as it was read, with
the adapter beside it. The others are what `export` wrote, read again on as many ranks by this
program and, of `hf` and `gguf`, by transformers too: the larger of the two. `meta` is one shard,
`meta, cut` as many as the family has ranks in its lines of more than one. transformers takes no
rotary scaling from a GGUF file, so it is given the base's.

`gguf q8_0` is held to what transformers makes of the same file, whose blocks `gguf` dequantises.
The two last columns say how far that is from float32, and how far PEFT's merged weights are once
`gguf` has quantised them: the first is the second to within {ROUNDING:.0%}.

`{NONE}`: Meta's params.json has no field for it (linear rotary scaling, a head dimension that is
not the width over the heads), and `export` refuses by name.

"""


@dataclass(frozen=True)
class Row:
    """One line of the table: relative differences, None where there is no such format."""

    family: str
    source: str
    degree: int
    cells: dict[str, float | None]
    moved: float
    alone: float

    @property
    def problems(self) -> list[str]:
        """What of it is beyond its limit."""
        beyond = [
            name for name, cell in self.cells.items() if cell is not None and not cell <= LIMIT
        ]
        if not abs(self.moved / self.alone - 1) <= ROUNDING:
            beyond.append(COLUMNS[-2])
        return beyond

    def line(self) -> str:
        cells = [NONE if cell is None else f"{cell:.1e}" for cell in self.cells.values()]
        ends = [f"{self.moved:.2e}", f"{self.alone:.2e}"]
        return joined([self.family, self.source, self.degree, *cells, *ends])


class Theirs:
    """What transformers and PEFT make of a base and an adapter."""

    def __init__(self, made: Inputs, adapter: Path) -> None:
        from peft import PeftModel

        self._ids = tokens(made.config.vocab_size)
        self._rope = made.base.config.rope_parameters
        adapted: Any = PeftModel.from_pretrained(made.base, str(adapter)).eval()
        self.logits = self._of(adapted)
        merged = adapted.merge_and_unload()
        with torch.no_grad():
            for parameter in merged.parameters():
                parameter.copy_(quantised(parameter))
        self.alone = difference(self._of(merged), self.logits)

    def exported(self, name: str, out: Path) -> torch.Tensor | None:
        """Of what `export` wrote; None where transformers does not read it."""
        if name == "hf":
            return self._of(transformers_of(out))
        if OUTS[name]["format_"] != "gguf":
            return None
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(out, gguf_file=GGUF_FILE)
        config.rope_parameters = self._rope
        return self._of(transformers_of(out, gguf_file=GGUF_FILE, config=config))

    @torch.no_grad()
    def _of(self, model: Any) -> torch.Tensor:
        return model(self._ids[None]).logits[0]


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """A matrix as Q8_0 has it, where its rows are whole blocks."""
    kind = GGMLQuantizationType.Q8_0
    if weight.dim() < 2 or weight.shape[1] % GGML_QUANT_SIZES[kind][0]:
        return weight
    blocks = gguf.quantize(weight.detach().numpy(), kind)
    return torch.from_numpy(gguf.dequantize(blocks, kind))


def rows_of(subject: Subject, folder: Path, degrees: Iterable[int] | None = None) -> list[Row]:
    """The lines of one family, made in `folder`, which is new."""
    made = subject.write(folder / "in")
    adapter = folder / "adapter"
    write_adapter(adapter, targets=LINEARS, size=0.1, config=made.config)
    theirs = Theirs(made, adapter)
    written: dict[str, dict[str, Path | None]] = {}
    jobs: Jobs = {}
    for source, model in made.models.items():
        jobs[f"{source} {READ}"] = str(model), str(adapter)
        written[source] = {}
        for name in OUTS:
            out = folder / "out" / source / name.replace(", ", "-").replace(" ", "-")
            written[source][name] = _exported(name, out, model, adapter, made, subject.degree)
            if written[source][name] is not None:
                jobs[f"{source} {name}"] = str(out), None
    seen = {
        f"{source} {name}": logits
        for source, outs in written.items()
        for name, out in outs.items()
        if out is not None and (logits := theirs.exported(name, out)) is not None
    }
    found = []
    for degree in degrees or (1, subject.degree):
        ours = logits_of(jobs, degree, folder)
        for source in made.models:
            of_source = {name: _cell(f"{source} {name}", ours, seen, theirs) for name in ALL}
            moved = difference(ours[f"{source} {QUANTISED}"], theirs.logits)
            found.append(Row(subject.name, source, degree, of_source, moved, theirs.alone))
    return found


ALL = (READ, *OUTS)


def _exported(
    name: str, out: Path, model: Path | str, adapter: Path, made: Inputs, degree: int
) -> Path | None:
    more = dict(OUTS[name])
    if name == "meta, cut":
        more["shards"] = degree
    try:
        return exported(
            out, more.pop("format_"), model, adapter=adapter, tokenizer=made.tokenizer, **more
        )
    except UserError as error:
        if "params.json has no field" not in str(error):
            raise
        return None


def _cell(
    job: str, ours: dict[str, torch.Tensor], seen: dict[str, torch.Tensor], theirs: Theirs
) -> float | None:
    """How far from transformers: our reading, and for what it reads itself its own."""
    if job not in ours:
        return None
    if job.endswith(QUANTISED):
        return difference(ours[job], seen[job])
    readings = [ours[job], *([seen[job]] if job in seen else [])]
    return max(difference(reading, theirs.logits) for reading in readings)


def joined(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def rules(family: Family) -> str:
    """A family's line of the second table."""
    config: ModelConfig = family.config
    scaling = type(config.rope_scaling).__name__.removesuffix("Scaling").lower()
    cells = [
        *(family.name, family.like, f"{config.n_heads} over {config.n_kv_heads}"),
        *(config.dim, config.head_dim, config.ffn_dim, config.vocab_size),
        *(f"{config.norm_eps:g}", f"{config.rope_theta:g}"),
        f"{scaling}, {config.rope_scaling.factor:g}" if config.rope_scaling else "none",
        "yes" if config.tied_embedding else "no",
        "sentencepiece" if family.is_sentencepiece else "tokenizer.json",
    ]
    return joined(cells)


RULES_TITLE = "## The families' rules"
RULES = (
    *("family", "after", "heads over key/value heads", "width", "of a head", "feed-forward"),
    *("vocabulary", "eps", "theta", "rotary scaling", "tied", "tokenizer"),
)


def page(found: list[Row], commit: str) -> str:
    cells = [cell for row in found for cell in row.cells.values() if cell is not None]
    beyond = sum(bool(row.problems) for row in found)
    end = (
        f"{len(cells)} cells in {len(found)} lines, {beyond} lines beyond their limits; the "
        f"largest cell is {max(cells):.1e}. Made after commit {commit}."
    )
    table = [joined(COLUMNS), joined("---" for _ in COLUMNS), *(row.line() for row in found)]
    shapes = [joined(RULES), joined("---" for _ in RULES), *map(rules, FAMILIES)]
    return HEAD + "\n\n".join(["\n".join(table), end, RULES_TITLE, "\n".join(shapes)]) + "\n"


def main(path: Path) -> int:
    found: list[Row] = []
    for subject in (*FAMILIES, *published()):
        with tempfile.TemporaryDirectory() as folder:
            found += rows_of(subject, Path(folder) / "new")
            shutil.rmtree(Path(folder) / "new")
        print(f"{subject.name}: {len(found)} lines", file=sys.stderr, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    path.write_text(page(found, commit))
    for row in found:
        if row.problems:
            print(f"{row.line()}: {', '.join(row.problems)}", file=sys.stderr)
    return 1 if any(row.problems for row in found) else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
