"""Faults inside a rank: where in a step or a save it is killed, hangs, or has no disk left.

Every case gives the steps lost by what it injected, and raises `AssertionError` where the outcome
is not the promised one. After each the run, started again, ends as if nothing had happened.
"""

from __future__ import annotations

import re
import signal
import subprocess

from tests.faults import spoil
from tests.faults.forked import Run
from tests.faults.kills import BOUND, all_end, killed_at, operations_of_saves
from tests.faults.setting import (
    BASE,
    EVALUATED,
    ONE,
    SHARDED,
    TWO,
    WHOLE,
    Case,
    Setting,
    Shape,
    saved_steps,
)
from tests.support.tiny_runs import read_lines

SAVE = 3
"""The first save that also removes an old checkpoint."""

KEPT = 4
"""The first time that what was the best is also removed: two checkpoints and the run itself know
of three."""

WRITES = 12
"""Writes and syncs of a save before its checkpoint appears: of five files and two folders."""


def killed_in_a_step(case: Case, point: spoil.Point) -> int:
    """One of two ranks, data parallel or sharing the model."""
    shape = case.draw.choice([TWO, SHARDED])
    step, victim = case.draw.randint(1, shape.steps), case.draw.randrange(2)
    lost = killed_at(case, shape, spoil.in_step(step, point, spoil.kill, victim))
    case.finish(shape)
    return lost


def killed_over_a_shared_base(case: Case) -> int:
    """Before it takes part in a gathering, or within a pass; the other waits for its share."""
    points: tuple[spoil.Point, ...] = ("gathering", "forward", "backward")
    step, victim = case.draw.randint(1, BASE.steps), case.draw.randrange(2)
    what = spoil.in_step(step, points[case.number % len(points)], spoil.kill, victim)
    lost = killed_at(case, BASE, what)
    case.finish(BASE)
    return lost


def killed_in_a_save(case: Case) -> int:
    operation = case.number % operations(case.setting) + 1
    lost = killed_at(case, ONE, spoil.in_save(SAVE, operation, spoil.kill))
    case.finish(ONE)
    return lost


def operations(setting: Setting) -> int:
    return operations_of_saves(setting)[SAVE - 1]


def killed_in_a_save_of_all(case: Case) -> int:
    """Where both ranks write: each operation of one, then each of the other."""
    places = [
        (rank, operation)
        for rank, most in enumerate(operations_of_all(case.setting))
        for operation in range(1, most + 1)
    ]
    victim, operation = places[case.number % len(places)]
    lost = killed_at(case, WHOLE, spoil.in_save(SAVE, operation, spoil.kill, victim=victim))
    case.finish(WHOLE)
    return lost


def operations_of_all(setting: Setting) -> list[int]:
    """Of each rank in that save."""
    return [operations_of_saves(setting, WHOLE, rank)[SAVE - 1] for rank in range(WHOLE.ranks)]


def killed_in_keeping(case: Case) -> int:
    operation = case.number % operations_of_keeping(case.setting) + 1
    what = spoil.in_save(KEPT, operation, spoil.kill, owners=spoil.KEEPING)
    lost = killed_at(case, EVALUATED, what)
    case.finish(EVALUATED)
    return lost


def operations_of_keeping(setting: Setting) -> int:
    return operations_of_saves(setting, EVALUATED, owners=spoil.KEEPING)[KEPT - 1]


def failing_save(case: Case, then: spoil.Then) -> int:
    """A write to the disk fails on the rank that saves, and on no other."""
    save, operation = case.draw.randint(2, TWO.steps), case.draw.randint(1, WRITES)
    what = spoil.in_save(save, operation, then, ("write", "fsync"))
    return _stops(case, TWO, what, save - 1)


def file_size_limit(case: Case) -> int:
    save = case.draw.randint(2, TWO.steps)
    return _stops(case, TWO, spoil.small_files(save, case.draw.randint(1, 15_000)), save - 1)


def _stops(case: Case, shape: Shape, what: spoil.Spoil, saved: int) -> int:
    """Every rank says what failed and exits with 1; `saved` steps are whole."""
    with case.start(shape, spoil=what) as run:
        statuses = all_end(run)
        assert statuses == [1] * shape.ranks, f"{statuses}\n{run.said}"
        for rank in run.ranks:
            named = re.search("error: .*(could not be saved|cannot be written)", rank.said)
            assert named, run.said
            assert rank.said.splitlines()[-1].startswith("error: "), run.said
    assert max(saved_steps(case.out)) == saved, saved_steps(case.out)
    lost = case.lost()
    case.finish(shape)
    return lost


def small_file_system(case: Case) -> int:
    """A tmpfs that fills up, at one write or another; given more room the run goes on. It has room
    for the tensors of three checkpoints and the adapter, 70 KiB, or the run would not be begun."""
    case.out.mkdir()
    size = case.draw.randint(72, 130)
    _command("mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(case.out))
    try:
        with case.start(TWO) as run:
            statuses = all_end(run)
            assert statuses == [1, 1], f"{size} KiB: {statuses}\n{run.said}"
            assert "No space left on device" in run.said, run.said
        lost = case.lost()
        _command("mount", "-o", "remount,size=64m", str(case.out))
        case.finish(TWO)
        return lost
    finally:
        _command("umount", str(case.out))


def hung(case: Case) -> int:
    """A rank that hangs says where, and every rank ends."""
    shape = case.draw.choice([TWO, SHARDED])
    step, victim = case.draw.randint(2, shape.steps), case.draw.randrange(2)
    point: spoil.Point = case.draw.choice(["forward", "all-reduce"])
    what = spoil.in_step(step, point, spoil.hang, victim)
    with case.start(shape, "--hang_timeout", "3", spoil=what) as run:
        statuses = all_end(run)
        assert statuses == [1, 1], f"{statuses}\n{run.said}"
    stacks = (case.out / f"hang-rank-{victim}.txt").read_text()
    assert f"rank {victim} has done nothing for" in stacks, stacks
    assert f"after step {step - 1}, in hang (" in stacks and "in train" in stacks, stacks
    lost = case.lost()
    case.finish(shape)
    return lost


def two_signals(case: Case) -> int:
    """The second stops at once, though the step will never end."""
    what = spoil.in_step(case.draw.randint(2, ONE.steps), "forward", spoil.hang)
    with case.start(ONE, spoil=what) as run:
        assert run.until(lambda: spoil.HANGS in run.said, 60), run.said
        run.ranks[0].send(signal.SIGTERM)
        assert run.until(lambda: "a second one stops at once" in run.said, 10), run.said
        assert run.wait(1.5) == [None], run.said  # beyond the second in which two are one
        run.ranks[0].send(signal.SIGTERM)
        assert run.wait(5) == [143], run.said
    lost = case.lost()
    case.finish(ONE)
    return lost


def nan_once(case: Case, zero_stage: int) -> int:
    """NaN in the loss of one rank: all skip that step, and training goes on."""
    shape = Shape(ranks=2, zero_stage=zero_stage)
    step, victim = case.draw.randint(1, shape.steps), case.draw.randrange(2)
    with case.start(shape, spoil=spoil.not_a_number(step, step, victim)) as run:
        statuses = run.wait(120)
        assert statuses == [0, 0], f"{statuses}\n{run.said}"
    skipped = [
        line["step"] for line in read_lines(case.out / "metrics.jsonl") if line.get("skipped")
    ]
    assert skipped == [step], skipped
    return 0


def nan_for_ever(case: Case, zero_stage: int) -> int:
    shape = Shape(ranks=2, zero_stage=zero_stage, epochs=5)
    victim = case.draw.randrange(2)
    with case.start(shape, spoil=spoil.not_a_number(2, 99, victim)) as run:
        statuses = all_end(run)
        assert statuses == [1, 1], f"{statuses}\n{run.said}"
        assert f"(rank {victim}); 10 steps in a row were skipped" in run.said, run.said
    return 0


def drifted(case: Case) -> int:
    """A tensor that two ranks should hold alike: data parallel, or one of the shared model."""
    shape = case.draw.choice([TWO, SHARDED])
    step = case.draw.randint(2, shape.steps)
    with case.start(shape, spoil=spoil.drifted(step, case.draw.randrange(2))) as run:
        statuses = all_end(run)
        assert statuses == [1, 1], f"{statuses}\n{run.said}"
        assert "error: not saved: " in run.said, run.said
        assert "differs between ranks 0 and 1" in run.said, run.said
    assert max(saved_steps(case.out)) < step, saved_steps(case.out)
    lost = case.lost()
    case.finish(shape)
    return lost


def port_in_use(case: Case) -> int:
    with spoil.taken_port() as port:
        with Run(*case.command(TWO), 1, of=2, port=port) as run:
            assert all_end(run) == [1], run.said
        assert "another run has this port; give another with --master_port" in run.said, run.said
    assert not case.out.exists()
    return 0


def late_rank(case: Case) -> int:
    """A rank that never comes."""
    what = spoil.short_meeting(3)
    with Run(*case.command(TWO), 1, what, of=2) as run:
        assert all_end(run) == [1], run.said
        assert "rank 0 of 2 did not meet the others at 127.0.0.1:" in run.said, run.said
    assert not case.out.exists()
    return 0


def _command(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=BOUND)
