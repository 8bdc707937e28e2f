"""The questions of a task: found right before any weights load, then asked, shared over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from tqdm import tqdm

from llama.assembly.limits import room_for_answer
from llama.assembly.use import As
from llama.commands.evaluate.respondent import Writer
from llama.data.records import Problems
from llama.errors import UserError
from llama.model.config import ModelConfig
from llama.parallel.agreement import on_every
from llama.parallel.mesh import Mesh
from llama.tasks.rows import TaskFile
from llama.tasks.task import Judged, Question, Respondent

AT_ONCE = 4
"""Batches of questions between two moves of the bar."""


def check_questions(
    task: TaskFile, writer: Writer, config: ModelConfig, max_new_tokens: int
) -> None:
    """Raise UserError with each question that the template cannot write, or the model has no room
    for with its answer."""
    problems = Problems(task.path)
    for question in task.questions:
        place = f"{task.unit} {question.row}"
        try:
            length, room = _longest(task, question, writer, config, max_new_tokens)
        except UserError as error:
            problems.add_kind(place, error.problems[0])
            continue
        if room < 0:
            problems.add_kind(
                place,
                f"with its answer it has {length:,} tokens, and the model {length + room:,} "
                "positions (max_position_embeddings): shorten it, or --max_new_tokens",
            )
    problems.raise_any()


def _longest(
    task: TaskFile, question: Question, writer: Writer, config: ModelConfig, max_new_tokens: int
) -> tuple[int, int]:
    """Tokens of a question with its longest answer, and positions that are left then."""
    choices = task.kind.choices(question)
    all_ids = [writer.answered(question.messages, text).input_ids for text in choices]
    new = 0 if choices else max_new_tokens
    all_ids = all_ids or [writer.prompt(question.messages)]
    rooms = [room_for_answer(ids, config, writer.tokenizer) - new for ids in all_ids]
    return max(map(len, all_ids)) + new, min(rooms)


def ask(
    task: TaskFile,
    respondent: Respondent,
    mesh: Mesh,
    batch: int,
    as_: As,
    name: str,
) -> list[Judged]:
    """What comes of every question, in their order, on every rank, all of which must call it. Each
    group of ranks that shares a model asks its part of them, within `as_`."""
    rank, size = mesh.data_parallel_rank, mesh.data_parallel_size
    mine = range(rank, len(task.questions), size)

    def work() -> dict[int, Judged]:
        with as_():
            found = _asked(task, respondent, [task.questions[i] for i in mine], batch, name, mesh)
        return dict(zip(mine, found, strict=True))

    found = on_every(mesh, work)
    if mesh.world_size > 1:
        told: list[dict[int, Judged]] = [{} for _ in range(mesh.world_size)]
        dist.all_gather_object(told, found if mesh.tensor_parallel.rank == 0 else {})
        found = {index: judged for part in told for index, judged in part.items()}
    return [found[index] for index in range(len(task.questions))]


def _asked(
    task: TaskFile,
    respondent: Respondent,
    questions: Sequence[Question],
    batch: int,
    name: str,
    mesh: Mesh,
) -> list[Judged]:
    judged: list[Judged] = []
    quiet = None if mesh.is_main else True  # None: a bar on a terminal, and nothing elsewhere
    with tqdm(total=len(questions), unit="row", desc=name, disable=quiet, leave=False) as bar:
        for start in range(0, len(questions), AT_ONCE * batch):
            some = questions[start : start + AT_ONCE * batch]
            judged += task.kind.judge(some, respondent)
            bar.update(len(some))
    return judged
