"""All bad inputs, and the page of them.

python -m tests.bad_inputs.table > docs/bad_inputs.md
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bad_inputs.cases import (
    adapters,
    combining,
    command_line,
    data,
    deepspeed_file,
    environment,
    exporting,
    groups,
    hosts,
    planning,
    reporting,
    tasks,
    tokenizers,
    verifying,
    weights,
)
from tests.bad_inputs.setting import Case, build, run

AREAS: dict[str, list[Case]] = {
    "DeepSpeed JSON": deepspeed_file.CASES,
    "Command line": command_line.CASES,
    "Groups of ranks": groups.CASES,
    "Data": data.CASES,
    "Tokenizer and template": tokenizers.CASES,
    "Model": weights.CASES,
    "Adapter": adapters.CASES,
    "Launcher and devices": environment.CASES,
    "Hostfile": hosts.CASES,
    "`verify`": verifying.CASES,
    "`evaluate --task`": tasks.CASES,
    "`plan`": planning.CASES,
    "`report`": reporting.CASES,
    "`combine`": combining.CASES,
    "`export`": exporting.CASES,
}
PAGE = Path(__file__).parents[2] / "docs" / "bad_inputs.md"
_HEAD = """\
# Bad inputs, and what is said about each

Written by `python -m tests.bad_inputs.table`, which runs `train` (`generate` for adapters, others
where options are theirs) in a folder of sound files with one thing wrong: {count} inputs. Each ends
with exit code 2, having written nothing and read no weights (but for weights that hold NaN).
`tests/bad_inputs/test_bad_inputs.py` holds every line to this page.
"""


def printed() -> dict[str, dict[str, list[str]]]:
    """By area and name, the lines of every case, run anew."""
    lines: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as made:
        sound = build(Path(made) / "sound")
        for area, cases in AREAS.items():
            lines[area] = {
                case.name: run(case, sound, Path(made) / f"{area}-{number}").lines
                for number, case in enumerate(cases)
            }
    return lines


def page(lines: dict[str, dict[str, list[str]]]) -> str:
    """The page in Markdown."""
    count = sum(map(len, lines.values()))
    parts = [_HEAD.format(count=count)]
    for area, cases in lines.items():
        parts.append(f"## {area}\n")
        for name, said in cases.items():
            block = "\n".join(f"      error: {line}" for line in said)
            parts.append(f"- {name}\n\n{block}\n")
    return "\n".join(parts)


def committed() -> dict[str, dict[str, list[str]]]:
    """What `page` was made from, read back from the committed page."""
    found: dict[str, dict[str, list[str]]] = {}
    area = name = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            area = line[3:]
            found[area] = {}
        elif line.startswith("      error: "):
            found[area].setdefault(name, []).append(line.removeprefix("      error: "))
        elif line.startswith("- "):
            name = line[2:]
    return found


if __name__ == "__main__":
    sys.stdout.write(page(printed()))
