"""SIGKILL of ranks: at random moments of a run, and at chosen places of a step and of a save.

Whatever is killed where, the ranks that are left end by themselves, and the run, started again,
ends as if nothing had happened: the same adapter bit for bit, every step once, with its loss.
"""

from __future__ import annotations

import signal
import time

from tests.faults import spoil
from tests.faults.forked import Run, Spoil
from tests.faults.setting import ONE, PLAIN, SHARDED, TWO, Case, Setting, Shape, last_step

BOUND = 30.0
"""Seconds in which the ranks that are left must have ended."""
MEETING = 10.0
"""Seconds to meet in, for ranks of which one may be killed before: without a launcher to end them,
those that are left wait for it, in gloo up to five times."""
KILLED = 128 + signal.SIGKILL


def random_kills(case: Case) -> list[int]:
    """A run killed, and gone on with, up to eight times. A third of the runs has two ranks, of
    which one is killed; every fourth has its first kill in the middle of a save. Gives the steps
    lost by each kill."""
    shape = case.draw.choice([ONE, ONE, PLAIN, PLAIN, TWO, SHARDED])
    times = case.draw.choice([1, 2, 3, 5, 8])
    lost: list[int] = []
    if case.draw.random() < 0.25:
        save = case.draw.randint(1, shape.steps)
        place = (save, case.draw.randint(1, operations_of_saves(case.setting)[save - 1]))
        lost.append(killed_at(case, shape, spoil.in_save(*place, spoil.kill)))
    while len(lost) < times and _killed_once(case, shape):
        lost.append(case.lost())
    case.finish(shape)
    return lost


def killed_at(case: Case, shape: Shape, what: Spoil) -> int:
    """A run that is spoilt so that a rank kills itself; gives the steps lost."""
    with case.start(shape, spoil=what) as run:
        statuses = all_end(run)
        assert KILLED in statuses and 0 not in statuses, f"{statuses}\n{run.said}"
    return case.lost()


def operations_of_saves(
    setting: Setting, shape: Shape = ONE, rank: int = 0, owners: spoil.Owners = spoil.SAVES
) -> list[int]:
    """How many file operations each save of a run has on that rank; or of `owners` each call."""
    counted = setting.folder / f"operations-{shape.name}-{rank}"
    if not counted.exists():
        out = counted.with_name(f"counting-{shape.name}-{rank}")
        what = spoil.count_file_operations(counted, rank, owners)
        with setting.start(shape, out, spoil=what) as run:
            assert run.wait(120) == [0] * shape.ranks, run.said
    return [int(line) for line in counted.read_text().split()]


def _killed_once(case: Case, shape: Shape) -> bool:
    """Whether the run was still going when the moment came."""
    left = 1 - last_step(case.out) / shape.steps
    moment = case.draw.uniform(0, case.setting.seconds(shape) * (1 + left) / 2)
    with case.start(shape, spoil=spoil.short_meeting(MEETING)) as run:
        time.sleep(max(0.0, run.started + moment - time.monotonic()))
        victim = case.draw.choice(run.ranks)
        victim.send(signal.SIGKILL)
        statuses = all_end(run, BOUND + 6 * MEETING)
        if victim.status == KILLED:
            return True
        assert statuses == [0] * shape.ranks, f"{statuses}\n{run.said}"
        return False


def all_end(run: Run, bound: float = BOUND) -> list[int | None]:
    """The statuses of all ranks, none of which may outlive the others for long."""
    run.until(lambda: any(rank.poll() is not None for rank in run.ranks), 180)
    statuses = run.wait(bound)
    if None in statuses:
        for rank in run.ranks:
            rank.send(signal.SIGUSR1)
        time.sleep(1)
    assert None not in statuses, f"a rank lives on after {bound:.0f} s: {statuses}\n{run.said}"
    return statuses
