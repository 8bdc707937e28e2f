"""The proof that what was written is what was to be written."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from llama.assembly.streamed import streamed_logits
from llama.commands.export.job import Job, Layers, State
from llama.errors import TrainingError
from llama.files.gguf_header import read_metadata
from llama.model.config import ModelConfig
from llama.model.rope import attention_factor, inverse_frequencies
from llama.notes import note
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.identity import PROBE_TEXT
from llama.tokenizer.load import load_tokenizer
from llama.tokenizer.sidecar import eos_ids_of
from llama.weights.fields import read_json_object
from llama.weights.gguf import GGUFReader
from llama.weights.huggingface import HuggingFaceReader
from llama.weights.open_model import ModelSource
from llama.weights.reader import WeightReader
from llama.weights.tokenizer_beside import GENERATION

PROBE_TOKENS = 48
"""Tokens whose logits are compared: ids spread over the vocabulary, one after another."""
LIMITS = {torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.25, "q8_0": 0.25}
"""By what weights are rounded to, how much logits may differ of what they spread by, each the root
of the mean square. 8 bits of each weight (bfloat16, and Q8_0's blocks) move them by some
hundredths of it, rows in a wrong order by all of it. A single logit may move further: where two
tokens are attended to nearly alike, rounding decides."""


@dataclass(frozen=True)
class Proof:
    """What came of reading back."""

    apart: float
    """The largest difference of a logit."""
    largest: float
    """The largest logit."""
    share: float
    """What they differ by over what they spread by, each the root of the mean square."""


def prove(job: Job, exported: ModelSource, rounded_to: torch.dtype | str) -> Proof:
    """Compare a model that was written, read back, with what it was made of. Raises TrainingError
    where it is another, or its tokenizer is."""
    where, path = f"--format {job.format}", exported.tokenizer_path
    if path is not None:
        rows = exported.config.vocab_size
        size = job.opened.tokenizer.vocab_size
        if isinstance(exported.reader, GGUFReader):
            _require_token_for_each_row(where, path, rows)
            size = min(size, rows)
        found = load_tokenizer(path)
        _require_same_tokens(where, found, job.opened.tokenizer, size)
        _require_same_ends(where, _ends(exported, found), job.opened.tokenizer, rows)
    _require_same_positions(where, exported.config, job.opened.source.config)
    return compare(job, exported.reader, {}, {}, LIMITS[rounded_to])


def _require_token_for_each_row(where: str, file: Path, rows: int) -> None:
    """llama.cpp refuses a file that has more tokens, or fewer, than its embedding has rows."""
    count = len(read_metadata(file)["tokenizer.ggml.tokens"])
    if count != rows:
        raise TrainingError(
            f"{where}: read back, it has {count} tokens for an embedding of {rows} rows: nothing "
            "was kept"
        )


def _require_same_tokens(where: str, found: Tokenizer, expected: Tokenizer, size: int) -> None:
    """The first `size` tokens. Of the unknown token alone the text may be another: each program
    shows it in its own way."""
    others = sum(found.decode([id_]) != expected.decode([id_]) for id_ in range(size))
    once = " ".join(PROBE_TEXT.split())
    if others > 1 or found.encode(once) != expected.encode(once):
        raise TrainingError(
            f"{where}: the tokenizer, read back, gives other tokens than before: nothing was kept"
        )
    if found.encode(PROBE_TEXT) != expected.encode(PROBE_TEXT):
        note(
            f"{where}: several spaces in a row, which the model's own tokenizer takes for one, are "
            "other tokens there: the format has no words for that"
        )


def _ends(exported: ModelSource, found: Tokenizer) -> Collection[int]:
    """The ids that end an answer for the programs that read what was written."""
    reader = exported.reader
    if isinstance(reader, HuggingFaceReader):
        return eos_ids_of(read_json_object(reader.files[0].with_name(GENERATION)))
    return found.stop_ids


def _require_same_ends(where: str, found: Collection[int], expected: Tokenizer, rows: int) -> None:
    missing = {id_ for id_ in expected.stop_ids if id_ < rows} - set(found)
    if missing:
        raise TrainingError(
            f"{where}: an answer ends, read back, with {sorted(found)}, and no more with "
            f"{sorted(missing)}: nothing was kept"
        )


def _require_same_positions(where: str, found: ModelConfig, expected: ModelConfig) -> None:
    """What a short text does not show: how positions far apart are told from one another."""
    frequencies = inverse_frequencies(found), inverse_frequencies(expected)
    factors = attention_factor(found), attention_factor(expected)
    if not torch.allclose(*frequencies, rtol=1e-5, atol=0) or not math.isclose(
        *factors, rel_tol=1e-6
    ):
        raise TrainingError(
            f"{where}: the rotary embedding, read back, is another: nothing was kept"
        )
    if found.max_seq_len != expected.max_seq_len:
        raise TrainingError(
            f"{where}: read back, it is of {found.max_seq_len} positions, and not of "
            f"{expected.max_seq_len}: nothing was kept"
        )


def compare(job: Job, reader: WeightReader, layers: Layers, state: State, limit: float) -> Proof:
    """The logits of `reader` with the adapter `layers` and `state`, against those of the job's
    model with its adapter beside it. Raises TrainingError where they differ by more than
    the share `limit`."""
    config = job.opened.source.config
    spread_out = torch.linspace(0, config.vocab_size - 1, PROBE_TOKENS).long().tolist()
    # not in their order, since neighbours are alike in some vocabularies
    ids = [spread_out[i * 7 % PROBE_TOKENS] for i in range(PROBE_TOKENS)]
    expected = streamed_logits(job.opened.source.reader, ids, job.layers, job.state)
    found = streamed_logits(reader, ids, layers, state)
    apart, spread = found - expected, expected - expected.mean(dim=1, keepdim=True)
    share = float(apart.norm() / spread.norm())
    proof = Proof(float(apart.abs().max()), float(expected.abs().max()), share)
    if not proof.share <= limit:
        raise TrainingError(
            f"--format {job.format}: what was written, read back, gives other logits than "
            f"the model with its adapter: they differ by {proof.share:.2g} of what they spread by "
            f"(one by {proof.apart:.3g}), where rounding explains {limit:.2g}: nothing was kept"
        )
    return proof
