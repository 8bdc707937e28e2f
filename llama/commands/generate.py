"""`launcher/generate.py`: answer prompts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from llama.assembly.adapter import Opened, open_for_use
from llama.assembly.limits import check_prompts, degree_problems
from llama.assembly.model import ready_model
from llama.commands.prompts import Prompt, prompt_ids, read_prompts
from llama.errors import TrainingError, UserError, raise_if
from llama.files.json_text import json_text
from llama.launch.launchers import check_launch
from llama.launch.processes import launched_world_size, meet_processes, stop_processes
from llama.launch.streams import lost_output
from llama.model.decoding import Agreed, Sampling, Written, decode, decode_together
from llama.model.transformer import Transformer
from llama.notes import is_first_rank, note
from llama.parallel.agreement import on_every
from llama.parallel.mesh import TensorParallel, create_mesh
from llama.settings import GenerateOptions, check_generate
from llama.tokenizer.growing import Counted, pieces

TOLD_EVERY = 10.0
"""Seconds between lines on how far a file of answers has come."""


@dataclass(frozen=True)
class Job:
    """What is to be answered, checked, and by which model."""

    options: GenerateOptions
    opened: Opened
    prompts: list[Prompt]
    ids: list[list[int]]

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.options.temperature, self.options.top_p, self.options.seed)


def generate(options: GenerateOptions) -> int:
    """Answer every prompt: one as it is written, several together. Under a launcher the ranks share
    the model, and the first one says what they write. Raises `UserError` before any weights
    load."""
    check_launch()
    raise_if(check_generate(options, launched_world_size()))
    meet_processes()
    try:
        mesh = create_mesh(options.tensor_parallel)
        job = on_every(mesh, lambda: _prepared(options))
        return _answer_all(job, mesh.tensor_parallel, mesh.of_main)
    finally:
        stop_processes()


def _prepared(options: GenerateOptions) -> Job:
    prompts = read_prompts(options)
    opened = open_for_use(options)
    config, tokenizer = opened.source.config, opened.tokenizer
    raise_if(degree_problems(options.tensor_parallel, config))
    ids = prompt_ids(prompts, options, opened)
    named = {
        prompt.place or (f"--prompt {i}" if len(prompts) > 1 else "--prompt"): prompt_ids
        for i, (prompt, prompt_ids) in enumerate(zip(prompts, ids, strict=True), start=1)
    }
    check_prompts(named, options.max_new_tokens, config, tokenizer)
    return Job(options, opened, prompts, ids)


def _answer_all(job: Job, tp: TensorParallel, agreed: Agreed) -> int:
    options = job.options
    model = ready_model(
        job.opened.source, job.opened.adapter, options.precision, tp, base=options.base
    )
    plain = not options.json and options.output is None
    if plain and (options.stream or (options.stream is None and len(job.prompts) == 1)):
        _stream(job, model, agreed)
    else:
        _write_together(job, model, agreed)
    return 0


def _stream(job: Job, model: Transformer, agreed: Agreed) -> None:
    """Each answer as it is written, one after another."""
    started, tokens = time.perf_counter(), 0
    for prompt, ids in zip(job.prompts, job.ids, strict=True):
        if len(job.prompts) > 1:
            _show(f"{_quoted(prompt.text)}\n")
        tokenizer, most = job.opened.tokenizer, job.options.max_new_tokens
        written = Counted(decode(model, ids, most, tokenizer.stop_ids, job.sampling, agreed))
        for piece in pieces(written, tokenizer):
            _show(piece)
            if agreed([int(lost_output() is not None)])[0]:
                return  # nobody reads on
        _show("\n")
        tokens += written.number
    _tell_rate(tokens, time.perf_counter() - started)


def _write_together(job: Job, model: Transformer, agreed: Agreed) -> None:
    """All answers, decoded together; each goes out once those before it have. What is done when
    this is stopped goes out all the same, behind the others."""
    options = job.options
    started = last_told = time.perf_counter()
    answers = Answers(job, _sink(options))
    try:
        for done in decode_together(
            model,
            job.ids,
            options.max_new_tokens,
            job.opened.tokenizer.stop_ids,
            job.sampling,
            options.batch,
            agreed,
        ):
            answers.add(done)
            now = time.perf_counter()
            if now - last_told > TOLD_EVERY:
                note(f"{answers.count:,} of {len(job.prompts):,} prompts are answered")
                last_told = now
            if agreed([int(lost_output() is not None)])[0]:
                break  # nobody reads on
    finally:
        answers.close()
    seconds = time.perf_counter() - started
    if options.json:
        _show(f"{json_text(answers.document(seconds))}\n")
    else:
        _tell_rate(answers.tokens, seconds)


@dataclass
class Answers:
    """Answers as they are done, handed on in the order of their prompts."""

    job: Job
    sink: Callable[[dict[str, Any]], object]
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Those that were handed on."""
    count: int = 0
    tokens: int = 0
    _waiting: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, done: Written) -> None:
        self._waiting[done.index] = {
            "row": done.index + 1,
            "prompt": self.job.prompts[done.index].text,
            "text": self.job.opened.tokenizer.decode(done.tokens),
            "tokens": len(done.tokens),
            "finish_reason": "stop" if done.stopped else "length",
        }
        self.count += 1
        self.tokens += len(done.tokens)
        while len(self.rows) in self._waiting:
            self._hand_on(len(self.rows))

    def close(self) -> None:
        """Hand on what is done and waits for one that will not be."""
        for index in sorted(self._waiting):
            self._hand_on(index)

    def document(self, seconds: float) -> dict[str, Any]:
        """All of it, with the seconds that it took."""
        took = {"seconds": round(seconds, 3)}
        if len(self.job.prompts) == 1 and self.rows:
            return {key: value for key, value in self.rows[0].items() if key != "row"} | took
        return {"answers": self.rows, "tokens": self.tokens} | took

    def _hand_on(self, index: int) -> None:
        row = self._waiting.pop(index)
        self.rows.append(row)
        self.sink(row)


def _sink(options: GenerateOptions) -> Callable[[dict[str, Any]], object]:
    """Where each answer goes."""
    if options.output is not None and is_first_rank():
        file = _opened(options)
        return lambda row: _append(file, row)
    if options.output is not None or options.json:
        return lambda row: None
    return lambda row: _show(f"{_quoted(row['prompt'])}\n{row['text']}\n\n")


def _opened(options: GenerateOptions) -> TextIO:
    assert options.output is not None
    try:
        return options.output.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {options.output}: {error.strerror}") from None


def _append(file: TextIO, row: dict[str, Any]) -> None:
    """At once, so that nothing that was answered is lost."""
    try:
        file.write(json_text(row, ensure_ascii=False) + "\n")
        file.flush()
    except OSError as error:
        raise TrainingError(f"--output: {file.name}: {error.strerror}") from None


def _show(text: str) -> None:
    """On standard output, by the first rank."""
    if is_first_rank():
        print(text, end="", flush=True)


def _quoted(text: str) -> str:
    return "> " + text.replace("\n", "\n> ")


def _tell_rate(tokens: int, seconds: float) -> None:
    note(f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} per second)")


if __name__ == "__main__":  # deepspeed --module llama.commands.generate
    from llama.commands.start import program

    program("generate", "llama-lora generate")
