"""The page of a suite: a line for each work, from what `suite.py` has noted of its processes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from llama.commands.benchmark.sub_run import gib, markdown

HEAD = [
    *("row", "work", "ours, ms", "tokens/s", "best peer", "ms", "tokens/s"),
    *("ours / peer (min - max)", "share of the matrix rate", "peak GiB, ours", "peer", "notes"),
]
NO_RATE = "-"
Run = dict[str, Any]


def page(document: dict[str, Any]) -> str:
    """Markdown: the table, the machine, the versions, and every command."""
    runs = document["runs"]
    lines = dict.fromkeys((run["row"], run["work"]) for run in runs)
    rows = [_line([run for run in runs if (run["row"], run["work"]) == line]) for line in lines]
    return "\n".join(
        [
            f"# {document['suite']}",
            "",
            f"`{document['command']}`",
            "",
            markdown(HEAD, rows),
            "",
            *_machine(runs),
            "",
            "Each side ran in a process of its own, one after the other. A ratio is of tokens a "
            "second, each run of ours over the median of that peer's. Ours drops 0.05 of the "
            "adapters' inputs, the peers nothing. Memory is what tensors took; with Unsloth's "
            "CUDA graphs (`+graphs`), of both what the allocator reserved.",
            "",
            "```",
            *dict.fromkeys(_command(run) for run in runs if run["command"]),
            "```",
            "",
        ]
    )


def _line(runs: Sequence[Run]) -> list[str]:
    own = [run["result"] for run in runs if run["side"] == "ours" and run["error"] is None]
    peers = {
        side: [run for run in runs if run["side"] == side and run["error"] is None]
        for side in dict.fromkeys(run["side"] for run in runs if run["side"] != "ours")
    }
    speeds = {side: _median(side_runs) for side, side_runs in peers.items() if side_runs}
    best = max(speeds, key=lambda side: speeds[side], default=None)
    notes = dict.fromkeys(f"{r['side']}: {_short(r['error'])}" for r in runs if r["error"])
    first = runs[0]
    start = [str(first["row"]), first["work"]]
    if not own:
        return [*start, *[NO_RATE] * (len(HEAD) - 3), "; ".join(notes)]
    if first["what"] == "run":
        whole = [run["seconds"] for run in runs if run["error"] is None]
        steps = statistics.median(result["step_seconds_median"] for result in own)
        said = f"{statistics.median(whole):.1f} s in all, {own[0]['steps']} steps"
        return [*start, f"{steps * 1e3:.1f}", *[NO_RATE] * 8, "; ".join([said, *notes])]
    rates = [speed(result, first["what"]) for result in own]
    shares = [result["matrix_share"] for result in own if result["matrix_share"]]
    reserved = bool(best and _graphs(peers[best][0]))
    theirs = [NO_RATE] * 4
    if best:
        ratios = sorted(rate / speeds[best] for rate in rates)
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} - {ratios[-1]:.3f})"
        name = best + "+graphs" * reserved
        theirs = [name, _ms([r["result"] for r in peers[best]]), f"{speeds[best]:,.0f}", ratio]
    return [
        *start,
        _ms(own),
        f"{statistics.median(rates):,.0f}",
        *theirs,
        f"{statistics.median(shares):.1%}" if shares else NO_RATE,
        _peak(own, reserved),
        _peak([r["result"] for r in peers[best]], reserved) if best else NO_RATE,
        "; ".join([*_others(speeds, best), *notes]),
    ]


def speed(result: dict[str, Any], what: str) -> float:
    """Real tokens a second: of the median step, or where steps differ in size of all of them."""
    if what == "rows":
        return result["tokens"] / result["seconds"]
    return result["tokens_per_second"]["median"]


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(speed(run["result"], run["what"]) for run in runs)


def _others(speeds: dict[str, float], best: str | None) -> list[str]:
    return [f"{side} {rate:,.0f} tokens/s" for side, rate in speeds.items() if side != best]


def _ms(results: Sequence[dict[str, Any]]) -> str:
    median = statistics.median(result["seconds_per_step"]["median"] for result in results)
    return f"{median * 1e3:.1f}"


def _peak(results: Sequence[dict[str, Any]], reserved: bool) -> str:
    name = "reserved_memory_bytes" if reserved else "peak_memory_bytes"
    return gib(max((result.get(name) or 0 for result in results), default=0))


def _graphs(run: Run) -> bool:
    return "UNSLOTH_BLOCK_CUDAGRAPHS" in (run["environment"] or {})


def _short(error: str) -> str:
    return error if len(error) < 160 else f"{error[:157]}..."


def _command(run: Run) -> str:
    """As a shell takes it."""
    said = [f"{name}={value}" for name, value in (run["environment"] or {}).items()]
    return " ".join([*said, run["command"]])


def _machine(runs: Sequence[Run]) -> list[str]:
    """Hardware and versions, as the first process of ours and of each peer tells them."""
    found = []
    for side in dict.fromkeys(run["side"] for run in runs):
        results = [r["result"] for r in runs if r["side"] == side and r["result"]]
        told = [result for result in results if "packages" in result]
        if not told:
            continue
        versions = ", ".join(" ".join(pair) for pair in told[0]["packages"].items())
        if side == "ours":
            rates = [result["matrix_tflops"] for result in told if result["matrix_tflops"]]
            rate = f"{min(rates):.0f} to {max(rates):.0f} TFLOP/s" if rates else "not measured"
            found.append(f"{told[0]['device']}, {told[0]['cpu']}; matrix rate {rate}.")
        found.append(f"{side}: {versions}.")
    return found
