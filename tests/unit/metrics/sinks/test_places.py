"""A place that fails, hangs or was never there ends no run."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llama.metrics.sinks import places as module
from llama.metrics.sinks.kinds import KINDS
from llama.metrics.sinks.places import Places
from llama.metrics.sinks.sink import Ids, Sink, Watched
from llama.settings.report_to import PLACES


class Recorder(Sink):
    """Fails where it is told to, or waits."""

    fails_at: str = ""
    goes_on: threading.Event
    told: list[tuple[Any, ...]]

    def __init__(self, run: Watched, config: Mapping[str, Any]) -> None:
        self._do("begin", config)

    def _do(self, what: str, *more: Any) -> None:
        if self.fails_at == f"{what} never ends":
            self.goes_on.wait()
        if self.fails_at == f"{what} exits":
            raise SystemExit(3)
        if self.fails_at == what:
            raise ConnectionError(f"no {what}\nand more")
        self.told.append((what, *more))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._do("scalars", step)

    def histogram(self, step: int, name: str, values: Any) -> None: ...

    def samples(self, step: int, samples: Any) -> None: ...

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        self._do("end", status)

    @property
    def how_to_look(self) -> str:
        return "look"


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails_at: str) -> tuple[Any, ...]:
    """What the place was told, what the user was, and how to look."""
    kind = type("Kind", (Recorder,), {"fails_at": fails_at, "told": []})
    kind.goes_on = threading.Event()
    monkeypatch.setitem(KINDS, "wandb", kind)
    monkeypatch.setattr(module, "PATIENCE", 0.2 if "never" in fails_at else 60)
    said: list[str] = []
    places = Places()
    places.open(("wandb", "none"), Watched(tmp_path), {"a": 1}, said.append)
    places.scalars(1, {})
    places.scalars(2, {})
    places.end("finished", {})
    how = places.how_to_look()
    kind.goes_on.set()
    return kind.told, said, how


def test_everything_arrives_in_order_before_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told, said, how = run(monkeypatch, tmp_path, "")
    assert told == [("begin", {"a": 1}), ("scalars", 1), ("scalars", 2), ("end", "finished")]
    assert (said, how) == ([], ["look"])


@pytest.mark.parametrize("at", ["begin", "scalars", "end"])
def test_a_place_that_fails_is_one_line(
    at: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, said, how = run(monkeypatch, tmp_path, at)
    line = f"--report_to wandb: ConnectionError: no {at}; the run goes on without it"
    assert (said, how) == ([line], [])
    _, said, how = run(monkeypatch, tmp_path, f"{at} exits")
    assert (said, how) == (["--report_to wandb: SystemExit: 3; the run goes on without it"], [])


@pytest.mark.parametrize("at", ["begin", "scalars", "end"])
def test_a_place_that_hangs_does_not_hold_the_run(
    at: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, said, how = run(monkeypatch, tmp_path, f"{at} never ends")
    assert how == []
    assert said == [
        "--report_to wandb: it takes too long to take what the run has told it; "
        "the run goes on without it"
    ]


def test_the_names_of_the_option_are_those_of_the_table() -> None:
    assert set(PLACES) == set(KINDS)


def test_ids_are_kept_with_the_run_and_a_spoilt_file_is_none(tmp_path: Path) -> None:
    ids = Ids(tmp_path)
    assert ids.get("wandb") is None
    ids.keep("wandb", "abc")
    ids.keep("mlflow", "def")
    assert Ids(tmp_path).get("wandb") == "abc" and Ids(tmp_path).get("mlflow") == "def"
    for spoilt in ("{", "[]", '{"wandb": 3}'):
        (tmp_path / "report_to.json").write_text(spoilt)
        assert Ids(tmp_path).get("wandb") is None
