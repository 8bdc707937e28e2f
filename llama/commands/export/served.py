"""Whether a server answers with an adapter, or with its base alone.

What a server writes, taking the likeliest token each time, is read by the model it should be and by
the base: each token's logit is compared with the largest in its place. A server of the same model
falls short of it by rounding alone, whatever its precision and even after a tie was decided
otherwise, since each place is judged by what was written before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from llama.assembly.adapter import open_for_use
from llama.assembly.streamed import shortfalls
from llama.commands.export.job import Job
from llama.commands.export.server import Answer, NoSuchRequestError, Server
from llama.commands.prompts import prompts_of_file
from llama.data.rows import bundled, read_rows
from llama.data.types import IGNORE
from llama.errors import UserError
from llama.files.json_text import json_text
from llama.files.run_folder import SAMPLES
from llama.methods.about import TEMPLATE
from llama.notes import note
from llama.pages.sample import Sample
from llama.settings import ExportOptions
from llama.tokenizer.base import Message
from llama.tokenizer.chat import joined_content

PROMPTS = 8
"""Asked where no file says which."""
MAX_NEW_TOKENS = 48
NEAR = 0.05
"""How far a token's logit may be below the largest where it is as good as that: rounding to 16
bits, and to blocks of 8, moves logits by hundredths."""
SAME = 0.9
"""The share of such tokens from which on the text is the model's own."""

_SHOWN = 8
"""Models that a line names."""

Which = Literal["adapter", "base", "alike", "neither"]


@dataclass(frozen=True)
class Reading:
    """What came of one way to ask."""

    way: str
    tokens: int
    base: float
    """The share of tokens that are as likely as the likeliest, by the base."""
    adapter: float
    """By the base with its adapter."""

    @property
    def which(self) -> Which:
        """Whose text it is."""
        if max(self.base, self.adapter) < SAME:
            return "neither"
        if self.base >= SAME and self.adapter >= SAME:
            missed = 1 - self.base, 1 - self.adapter
            if max(missed) < 2 * min(missed) + 2 / self.tokens:
                return "alike"
        return "adapter" if self.adapter > self.base else "base"


def check_server(options: ExportOptions) -> int:
    """Ask the server, say which model answers, and give 0 where it is the adapter. Raises
    `UserError`."""
    assert options.check_server is not None
    place, prompts = _prompts(options)
    server = Server(options.check_server)
    model = _model(server.models(), options)
    job = Job.of(options, open_for_use(options))
    note(f"asking {model} at {server.url}: {len(prompts)} prompts of {place}")
    asked = _Asked(job, prompts)
    readings = [
        reading
        for reading in (
            asked.read(
                "chat/completions", lambda text, _: server.chat(model, text, MAX_NEW_TOKENS)
            ),
            asked.read("completions", lambda _, ids: server.complete(model, ids, MAX_NEW_TOKENS)),
        )
        if reading is not None
    ]
    if not readings:
        raise UserError(f"--check_server: {server.url}: takes neither chats nor tokens")
    return _tell(options, model, readings)


class _Asked:
    """Prompts, and the model that the answers are held against."""

    def __init__(self, job: Job, prompts: Sequence[str]) -> None:
        self._job = job
        self._template = job.opened.template(job.options.template)
        self._prompts = prompts

    def read(self, way: str, ask: Callable[[str, list[int]], Answer]) -> Reading | None:
        """What answers, given a prompt's text and its ids; None, with a note, where the server does
        not take such requests."""
        texts: list[list[int]] = []
        counts: list[int] = []
        for prompt in self._prompts:
            turns: list[Message] = [{"role": "user", "content": prompt}]
            try:
                answer = ask(prompt, self._template.prompt(turns, self._job.opened.tokenizer))
            except NoSuchRequestError as error:
                note(str(error))
                return None
            if answer.text.strip():
                ids, count = self._as_ids(turns, answer)
                texts.append(ids)
                counts.append(count)
        if not sum(counts):
            return Reading(way, 0, 0.0, 0.0)
        base, adapter = (
            self._share(texts, counts, *beside)
            for beside in (({}, {}), (self._job.layers, self._job.state))
        )
        return Reading(way, sum(counts), base, adapter)

    def _as_ids(self, turns: list[Message], answer: Answer) -> tuple[list[int], int]:
        """The conversation with that answer, and how many of its last tokens were written. Of one
        that was cut off the last may be a part of another."""
        tokenizer = self._job.opened.tokenizer
        whole: list[Message] = [*turns, {"role": "assistant", "content": answer.text.strip()}]
        ids, labels = self._template.render(whole, tokenizer)
        written = [at for at, label in enumerate(labels) if label != IGNORE]
        ends = [at for at in written if ids[at] in tokenizer.stop_ids]
        end = ends[0] + 1 if ends else len(ids)
        if not answer.ended:
            end -= 2 if ends else 1
        return ids[:end], sum(at < end for at in written)

    def _share(self, texts: list[list[int]], counts: list[int], *beside: Any) -> float:
        """Of the written tokens that which is as likely as the likeliest, by the base with what is
        `beside` it."""
        short = shortfalls(self._job.opened.source.reader, texts, *beside)
        last = [of_text[-count:] for of_text, count in zip(short, counts, strict=True) if count]
        return float((torch.cat(last) <= NEAR).float().mean())


def _prompts(options: ExportOptions) -> tuple[str, list[str]]:
    """Where the prompts are from, and they: the file's, the run's, or bundled ones."""
    if options.prompt_file is not None:
        found = prompts_of_file(options.prompt_file)
        return str(options.prompt_file), [prompt.text for prompt in found]
    assert options.adapter is not None
    for folder in (options.adapter, options.adapter.absolute().parent):
        if (path := folder / SAMPLES).is_file():
            found = prompts_of_file(path, known=[field.name for field in fields(Sample)])
            return str(path), [prompt.text for prompt in found]
    rows = read_rows([bundled("heldout_40")]).rows[:PROMPTS]
    return "the bundled held-out rows", [joined_content(row.messages[0]) for row in rows]


def _model(names: list[str], options: ExportOptions) -> str:
    """The one of the server's models that is asked."""
    if options.server_model in names:
        return options.server_model
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    if options.server_model is not None:
        raise UserError(f"--server_model: {options.server_model} is not served; there are {listed}")
    if len(names) > 1:
        raise UserError(f"--server_model: required, the server has several models: {listed}")
    return names[0]


def _tell(options: ExportOptions, model: str, readings: list[Reading]) -> int:
    which: list[Which] = [reading.which for reading in readings]
    verdict = _verdict(which)
    if options.json:
        document = {
            "server": options.check_server,
            "model": model,
            "answers": which[0],
            "ways": [asdict(reading) | {"which": reading.which} for reading in readings],
            "verdict": verdict,
        }
        print(json_text(document))
    else:
        print(f"{'asked by':24} {'tokens':>6}  {'base':>6}  {'adapter':>7}   answers")
        for reading in readings:
            print(
                f"/v1/{reading.way:20} {reading.tokens:6}  {reading.base:6.1%}  "
                f"{reading.adapter:7.1%}   {reading.which}"
            )
        print(f"base, adapter: of the tokens that {model} wrote, how many each would have written")
        print(verdict)
    return 0 if which[0] == "adapter" else 1


def _verdict(which: list[Which]) -> str:
    """In words, of what answers chats and, where it takes them, tokens."""
    first, last = which[0], which[-1]
    if first != "adapter" and last == "adapter":
        return (
            "The adapter is there, but conversations are laid out otherwise than it was trained "
            f"with: give the server the adapter's own {TEMPLATE}"
        )
    return {
        "adapter": "The adapter answers.",
        "base": "The base answers, without the adapter: load it, or ask for it by its name",
        "alike": (
            "The base and the adapter would write the same here: give other prompts, which the "
            "adapter answers in its own way, with --prompt_file"
        ),
        "neither": (
            "Neither the adapter nor its base writes this: it is another adapter or model, or its "
            "tokens are not the likeliest ones"
        ),
    }[first]
