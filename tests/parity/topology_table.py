"""Writes docs/topologies.md: every topology on one machine against one process.

python -m tests.parity.topology_table docs/topologies.md            (or: make topologies)
python -m tests.parity.topology_table docs/topologies.md --shared   the last table alone
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.model_files import ROOT
from tests.support.tiny_runs import torchrun_module

TENSOR_PARALLEL = (1, 2, 4)
DATA_PARALLEL = (1, 2)
LIMITS = {"loss": 1e-5, "grad_norm": 1e-5, "adapter": 3e-5, "distance": 3e-5}
"""Sums over shards are rounded in another order, in float32. Of the trained values the limit is
wider: Adam divides each gradient by its own size, so that the smallest, which rounding moves most,
weigh as much as the others; 1.1e-5 was seen on a CPU with AMX, 6e-6 on one without. How far they
have moved cannot be farther off than they are."""
DEVIATIONS = ("loss", "grad_norm", "adapter")
"""Those that have a column."""
HEAD = """\
# Every topology against one process

`make topologies` made this page. Five optimizer steps in float32 with dropout 0.05, adapters on
all seven linear layers, the last window of an epoch shorter than the others; a model of two blocks
with biases, grouped-query heads and an untied output. Under ZeRO-3 every parameter is cut up. Each
case is compared with one process that uses plain torch alone. A deviation is relative: of the loss
and the gradient's norm to their own size, the largest over the steps; of the adapter to how far the
five steps moved it. Adam's eps is 1e-6 here: at 1e-8 an element whose gradient is all rounding
moves by the whole rate, and a few e-5 of the adapter is then rounding.

State is what the optimizer holds: bytes on each rank, and bytes per parameter of one whole adapter.
12 is float32 masters and two moments; in float32 under ZeRO-0 the parameters are their own masters.

"""
SHARDED = """
## The base sharded

The same with `--shard_base`, where there is more than one data-parallel rank and ZeRO 0 to 2.

"""
SHARED_DEGREES = ((1, 2, 1), (2, 2, 1), (1, 2, 2), (1, 4, 1))
"""Tensor-, sequence- and data-parallel."""
SHARED = """
## The tokens of a row shared

The same with `--sequence_parallel` (SP): each row of two documents is cut over so many ranks,
wherever that falls. What the adapters of TP 2 x SP 2 lie apart by is rounding that Adam has made
whole steps of, as loss and norm say.

"""
COLUMNS = (
    *("TP", "DP", "ZeRO", "accumulation", "recomputed", "loss", "gradient norm", "adapter"),
    *("replicas", "state: bytes a rank", "bytes a parameter"),
)


def rows(tensor: int, data: int, folder: Path, sequence: int = 1, *more: str) -> list[dict]:
    out = folder / f"{tensor}-{sequence}-{data}.json"
    degrees = ["--tensor_parallel", str(tensor), "--sequence_parallel", str(sequence)]
    arguments = [*degrees, "--out", str(out), *more]
    done = torchrun_module("tests.parity.topologies", *arguments, ranks=tensor * sequence * data)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(out.read_text())


def line(row: dict, shared: bool = False) -> str:
    deviations = [f"{row[what]:.1e}" for what in DEVIATIONS]
    held = row["optimizer_bytes"]
    cells = [
        row["tensor_parallel"],
        *([row["sequence_parallel"]] if shared else []),
        row["data_parallel"],
        f"{row['zero_stage']}{', base sharded' if shared and row['shard_base'] else ''}",
        row["accumulation"],
        *(row["checkpointing"], *deviations),
        "equal" if row["replicas_equal"] else "DIFFER",
        f"{min(held):,}" if min(held) == max(held) else f"{min(held):,} to {max(held):,}",
        f"{row['bytes_per_parameter']:.2f}",
    ]
    return joined(cells)


def joined(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def shared_table(folder: Path) -> tuple[str, list[dict]]:
    """Blocks recomputed or not, the base whole or not."""
    found: list[dict] = []
    for tensor, sequence, data in SHARED_DEGREES:
        found += rows(tensor, data, folder, sequence, "--checkpointing", "none,block")
        print(f"{len(found)} cases of shared tokens", file=sys.stderr, flush=True)
    return SHARED + table(found, shared=True), found


def only_shared(page: Path) -> int:
    before = page.read_text().partition(SHARED.splitlines()[1])[0].rstrip("\n") + "\n"
    with tempfile.TemporaryDirectory() as folder:
        text, found = shared_table(Path(folder))
    page.write_text(before + text)
    return 0 if all(map(is_within, found)) else 1


def main(page: Path) -> int:
    found: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for tensor_parallel in TENSOR_PARALLEL:
            for data_parallel in DATA_PARALLEL:
                found += rows(tensor_parallel, data_parallel, Path(folder))
                print(f"{len(found)} cases", file=sys.stderr, flush=True)
        text, of_shared = shared_table(Path(folder))
    whole = [row for row in found if not row["shard_base"]]
    sharded = [row for row in found if row["shard_base"]]
    page.write_text(HEAD + table(whole) + SHARDED + table(sharded) + text)
    print(ending(found + of_shared))
    return 0 if all(map(is_within, found + of_shared)) else 1


def table(found: list[dict], shared: bool = False) -> str:
    columns = (COLUMNS[0], "SP", *COLUMNS[1:]) if shared else COLUMNS
    lines = [joined(columns), joined("---" for _ in columns)]
    lines += [line(row, shared) for row in found]
    return "\n".join(lines) + "\n" + ending(found)


def is_within(row: dict) -> bool:
    within = all(row[what] <= limit for what, limit in LIMITS.items())
    return within and row["replicas_equal"]


def ending(found: list[dict]) -> str:
    loss, norm, adapter = (max(row[what] for row in found) for what in DEVIATIONS)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"\n{sum(map(is_within, found))} of {len(found)} cases within 1e-05 (adapters: 3e-05); "
        f"the largest deviations: loss {loss:.1e}, gradient norm {norm:.1e}, adapter "
        f"{adapter:.1e}. Made after commit {commit}.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("page", type=Path)
    parser.add_argument("--shared", action="store_true")
    given = parser.parse_args()
    sys.exit((only_shared if given.shared else main)(given.page))
