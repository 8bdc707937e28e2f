"""The rows of the fault matrix: what is injected, how often, and what is promised."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tests.faults import in_rank, launchers, spoil
from tests.faults.kills import random_kills
from tests.faults.setting import Case, Setting

Inject = Callable[[Case], int | list[int]]

RESUMES = "started again, it ends equal"


@dataclass(frozen=True)
class Row:
    """`inject` does it once, or more often, and gives the steps lost each time."""

    fault: str
    times: int
    promise: str
    inject: Inject
    certain: bool = True
    """Whether each time injects once; a random moment may come after a run's end."""


def rows(setting: Setting, kills: int) -> list[Row]:
    return [
        Row("SIGKILL of a rank at a random moment", kills, RESUMES, random_kills, False),
        *_in_a_step(),
        *_in_a_save(setting),
        *_not_finite(),
        *_asked_to_stop(),
        *_launchers_gone(),
    ]


def _in_a_step() -> list[Row]:
    points: dict[spoil.Point, str] = {
        "forward": "in forward",
        "backward": "in backward",
        "all-reduce": "while the other is in an all-reduce",
        "accumulation": "between micro-batches",
    }
    both = "the other ends; "
    return [
        *[
            Row(
                f"SIGKILL of one rank of two {where}",
                5,
                both + RESUMES,
                partial(in_rank.killed_in_a_step, point=point),
            )
            for point, where in points.items()
        ],
        Row(
            "SIGKILL of one rank of two that share the base",
            6,
            both + RESUMES,
            in_rank.killed_over_a_shared_base,
        ),
        Row("one rank of two hangs", 4, "it names rank and step, both end; equal", in_rank.hung),
        Row("an adapter tensor drifts on one rank", 4, "not saved, named; equal", in_rank.drifted),
        Row("port in use", 2, "exit 1, says so", in_rank.port_in_use),
        Row("a rank that never comes", 2, "exit 1, says so", in_rank.late_rank),
    ]


def _in_a_save(setting: Setting) -> list[Row]:
    every = [
        Row(
            "SIGKILL at every file operation of a save",
            in_rank.operations(setting),
            RESUMES,
            in_rank.killed_in_a_save,
        )
    ]
    every.append(
        Row(
            "SIGKILL of one rank of two at every file operation of a save by both",
            sum(in_rank.operations_of_all(setting)),
            f"the other ends; {RESUMES}",
            in_rank.killed_in_a_save_of_all,
        )
    )
    every.append(
        Row(
            "SIGKILL at every file operation of keeping the best",
            in_rank.operations_of_keeping(setting),
            RESUMES,
            in_rank.killed_in_keeping,
        )
    )
    stops = "exit 1 on every rank, named; earlier checkpoint whole; equal"
    failing = {
        "OSError (EIO) in a save, on one rank of two": spoil.fail_device,
        "disk full (ENOSPC) in a save, on one rank of two": spoil.fill_disk,
    }
    every += [
        Row(fault, 8, stops, partial(in_rank.failing_save, then=then))
        for fault, then in failing.items()
    ]
    every.append(Row("file size limit (RLIMIT_FSIZE)", 8, stops, in_rank.file_size_limit))
    if os.geteuid() == 0:
        every.append(Row("disk full (a tmpfs that fills)", 8, stops, in_rank.small_file_system))
    return every


def _not_finite() -> list[Row]:
    stages = (0, 1, 2, 3)
    return [
        *[
            Row(
                f"NaN in one rank's loss, once, ZeRO-{stage}",
                2,
                "all ranks skip that step",
                partial(in_rank.nan_once, zero_stage=stage),
            )
            for stage in stages
        ],
        *[
            Row(
                f"NaN in one rank's loss, always, ZeRO-{stage}",
                1,
                "exit 1 after 10 skips, tensor named",
                partial(in_rank.nan_for_ever, zero_stage=stage),
            )
            for stage in stages
        ],
    ]


def _asked_to_stop() -> list[Row]:
    """What a launcher itself exits with is its own doing: torchrun 1 whatever its ranks say,
    deepspeed what a rank did, unless it is the one that got the signal. At the terminal its two
    processes get it at once, and the outer one ends by it or by the inner one's status."""
    term, interrupt = signal.SIGTERM, signal.SIGINT
    cases: list[tuple[str, launchers.Launcher, launchers.To, int, list[int]]] = [
        ("SIGTERM, no launcher", "python", "launcher", term, [143]),
        ("SIGINT, no launcher", "python", "launcher", interrupt, [130]),
        ("SIGTERM to a rank of torchrun", "torchrun", "rank", term, [1]),
        ("SIGTERM to torchrun", "torchrun", "launcher", term, [1]),
        ("SIGINT at the terminal of torchrun", "torchrun", "group", interrupt, [1]),
        ("SIGTERM to all of torchrun", "torchrun", "group", term, [1]),
        ("SIGTERM to a rank of deepspeed", "deepspeed", "rank", term, [143]),
        ("SIGTERM to deepspeed", "deepspeed", "launcher", term, [143]),
        ("SIGTERM to deepspeed's launch.py", "deepspeed", "inner", term, [1]),
        ("SIGINT at the terminal of deepspeed", "deepspeed", "group", interrupt, [130, 1]),
        ("SIGTERM to all of deepspeed", "deepspeed", "group", term, [143]),
    ]
    return [
        *[
            Row(
                fault,
                1,
                f"one save, exit {_either(statuses)}; equal",
                partial(
                    launchers.stopped, launcher=launcher, to=to, number=number, statuses=statuses
                ),
            )
            for fault, launcher, to, number, statuses in cases
        ],
        Row("a second SIGTERM", 3, "exit 143 at once; equal", in_rank.two_signals),
    ]


def _either(statuses: list[int]) -> str:
    return " or ".join(map(str, statuses))


def _launchers_gone() -> list[Row]:
    saved = "its ranks save and end within 30 s; equal"
    others = "the others end; equal"
    # deepspeed looks at its ranks once a second, and gives the status of whichever it sees first:
    # of the one that was killed, or of one that ended because of it.
    cases: list[tuple[str, launchers.Launcher, launchers.To, list[int], str]] = [
        ("SIGKILL of torchrun", "torchrun", "launcher", [137], saved),
        ("SIGKILL of deepspeed", "deepspeed", "launcher", [137], saved),
        ("SIGKILL of deepspeed's launch.py", "deepspeed", "inner", [0], saved),
        ("SIGKILL of a rank of torchrun", "torchrun", "rank", [1], others),
        ("SIGKILL of a rank of deepspeed", "deepspeed", "rank", [247, 1], others),
    ]
    launched: tuple[launchers.Launcher, ...] = ("torchrun", "deepspeed")
    return [
        *[
            Row(
                fault,
                1,
                f"{promise} (launcher's exit: {_either(statuses)})",
                partial(launchers.killed, launcher=launcher, to=to, statuses=statuses),
            )
            for fault, launcher, to, statuses, promise in cases
        ],
        *[
            Row(
                f"SIGSTOP of a rank of {launcher}",
                1,
                "the job ends; equal",
                partial(launchers.frozen, launcher=launcher),
            )
            for launcher in launched
        ],
        Row("torchrun --max_restarts, a rank killed", 3, "ends equal", launchers.restarted),
        Row("the loop for deepspeed, one killed", 2, "ends equal", launchers.loop),
    ]
