"""The ways to train, by the name that `--method` takes."""

from __future__ import annotations

from llama.methods.full import FullMethod
from llama.methods.lora import LoRAMethod
from llama.methods.method import Method
from llama.settings import BenchmarkOptions, TrainOptions, VerifyOptions
from llama.weights.open_model import ModelSource

KINDS: dict[str, type[Method]] = {"lora": LoRAMethod, "full": FullMethod}


def method_of(
    options: TrainOptions | BenchmarkOptions | VerifyOptions, source: ModelSource
) -> Method:
    """The way that `options` ask for, on the model of `source`."""
    init_adapter = options.init_adapter if isinstance(options, TrainOptions) else None
    return KINDS[options.method](options.lora, source, init_adapter)


def most_parameters(source: ModelSource, options: TrainOptions) -> int:
    """That any run on this model trains, in whatever way."""
    return max(kind(options.lora, source).most_parameters() for kind in KINDS.values())
