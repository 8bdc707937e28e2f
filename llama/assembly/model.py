"""A model with or without an adapter, ready to answer; shared by train, generate and evaluate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama.adapters import peft_format
from llama.adapters.attach import adapters, attach_each, set_values
from llama.adapters.match import layer_options, misfits
from llama.adapters.peft_config import read_description
from llama.assembly.limits import check_tokenizer
from llama.base.kinds import KINDS, lacking
from llama.errors import UserError, raise_if
from llama.fused.captured_decoding import capture_decoding
from llama.kernels.products import cpu_has_bf16
from llama.model.config import ModelConfig
from llama.model.kept import Checkpointing
from llama.model.transformer import Transformer
from llama.parallel.mesh import SINGLE, TensorParallel
from llama.settings import LoRAOptions
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from llama.weights.load import Placement, load_weights
from llama.weights.open_model import ModelSource


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(precision: str) -> torch.dtype:
    """`half` is bf16 where the device has it, else fp16 on a GPU; a CPU without bf16 answers faster
    from float32 weights than from half ones widened for every token."""
    if precision == "float32" or not (torch.cuda.is_available() or cpu_has_bf16()):
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def find_tokenizer(source: ModelSource, asked: Path | None) -> Tokenizer:
    """The tokenizer asked for, or the one beside the model; checked against the embedding, and
    against the one beside the model where another is asked for."""
    path = tokenizer_path(source, asked)
    tokenizer = load_tokenizer(path)
    check_tokenizer(path, tokenizer, source.config, source.name)
    if asked and source.tokenizer_path and _is_anothers(tokenizer, source.tokenizer_path):
        raise UserError(
            f"--tokenizer {asked}: its ids stand for other text than those of the tokenizer beside "
            f"the model ({source.tokenizer_path}): it belongs to another model"
        )
    return tokenizer


def tokenizer_path(source: ModelSource, asked: Path | None) -> Path:
    """Where `find_tokenizer` finds it. Raises UserError where there is none."""
    path = asked or source.tokenizer_path
    if path is None:
        raise UserError(
            f"--model {source.name}: no tokenizer was found beside it: give --tokenizer"
        )
    return path


def _is_anothers(tokenizer: Tokenizer, beside: Path) -> bool:
    """Whether most ids of a sample mean something else beside the model. Its tokenizer may be one
    that is not read here, which can be why another is given."""
    try:
        own = load_tokenizer(beside)
    except UserError:
        return False
    count = min(own.vocab_size, tokenizer.vocab_size)
    sample = range(0, count, max(1, count // 256))
    other = sum(own.decode([i]).strip() != tokenizer.decode([i]).strip() for i in sample)
    return 2 * other > len(sample)


def build_model(
    source: ModelSource,
    dtype: torch.dtype,
    device: torch.device,
    tp: TensorParallel = SINGLE,
    checkpointing: Checkpointing = "none",
    placement: Placement | None = None,
    base: str = "half",
) -> Transformer:
    """The model with its weights, held as `base` says, nothing trainable. It is built without
    memory and filled slice by slice, so that no rank holds what it does not keep. UserError where
    the device has no products of `base`, or a weight is damaged."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        raise_if(lacking(base, name, torch.cuda.get_device_capability(device)))
    with torch.device("meta"):
        model = Transformer(source.config, tp, checkpointing)
    model.requires_grad_(False)
    load_weights(model, source.reader, dtype, device, tp.rank, tp.size, placement, KINDS[base])
    return model


def ready_model(
    source: ModelSource,
    adapter: Path | None,
    precision: str,
    tp: TensorParallel = SINGLE,
    base: str = "half",
) -> Transformer:
    """The model on the default device, or this rank's part of it, with its adapter if there is one,
    not to be trained."""
    model = build_model(source, default_dtype(precision), default_device(), tp, base=base)
    if adapter is not None:
        load_adapter(model, adapter)
    capture_decoding(model)
    return model.eval()


def load_adapter(model: Transformer, folder: Path) -> None:
    """Attach the adapter of a PEFT folder, to be used and not trained: nothing of it is dropped,
    whatever mode the model is in. UserError where it is another model's, or incomplete."""
    layers, state = read_adapter(folder, model.config)
    attach_each(model, {name: replace(options, dropout=0.0) for name, options in layers.items()})
    for _, adapter in adapters(model):
        adapter.to(model.tok_embeddings.weight.dtype)
    set_values(model, state)


def check_adapter(folder: Path, config: ModelConfig) -> dict[str, LoRAOptions]:
    """The options of each layer that the adapter in `folder` has. Raises `UserError` for one that
    does not fit, before any weights load."""
    return read_adapter(folder, config)[0]


def read_adapter(
    folder: Path, config: ModelConfig
) -> tuple[dict[str, LoRAOptions], dict[str, Tensor]]:
    """The options of each layer that the folder adapts, and all tensors, float32, by native name.
    Raises `UserError` for an adapter that does not fit a model of these sizes."""
    description, state = read_description(folder), peft_format.load_state(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    raise_if(misfits(description, shapes, config))
    return layer_options(description, shapes), state
