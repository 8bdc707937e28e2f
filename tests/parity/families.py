"""The families of LLaMA's architecture, each a tiny random model by the rules of its shape and with
the config.json of its release; and published models. What `export_matrix` goes over."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from llama.commands.export.command import export
from llama.model.config import ModelConfig
from llama.model.scaling import LinearScaling, Llama3Scaling
from llama.settings import ExportOptions
from llama.weights.names import from_huggingface
from llama.weights.open_model import BUNDLED, open_model
from tests.support.model_files import (
    TINY,
    huggingface_config,
    interleave,
    random_state,
    write_gguf,
    write_meta,
)
from tests.support.tokenizer_files import (
    smollm2_gguf,
    write_sentencepiece,
    write_tokenizer_json,
)


@dataclass(frozen=True)
class Inputs:
    """A model of a family in each format that can say it."""

    config: ModelConfig
    base: Any
    """transformers' model, in float32."""
    models: dict[str, Path | str]
    """By format, what `--model` takes."""
    tokenizer: Path | None = None
    """For those that have none with them."""


class Subject(Protocol):
    """What the matrix has rows of."""

    name: str
    degree: int
    """Ranks that its heads are spread over, and shards that it is cut into, beside one."""

    def write(self, folder: Path) -> Inputs:
        """Everything in `folder`, which is new."""
        ...


@dataclass(frozen=True)
class Family:
    """A family by its smallest likeness: the same shares of heads, widths and so on."""

    name: str
    like: str
    """The release whose rules these are."""
    config: ModelConfig
    published: Mapping[str, object] = field(default_factory=dict)
    """What that release's config.json says beside sizes, eps and positions."""
    kind: str = "llama"
    is_sentencepiece: bool = True
    """Whether its tokenizer is of LLaMA 1's kind, and not of Llama 3's."""
    says_meta: bool = True
    """Whether Meta's params.json has words for it."""
    degree: int = 2

    def document(self) -> dict[str, object]:
        """`config.json` as the release has it."""
        config = self.config
        architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[self.kind]
        return {
            "architectures": [architecture],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": config.dim,
            "initializer_range": 0.02,
            "intermediate_size": config.ffn_dim,
            "max_position_embeddings": config.max_seq_len,
            "model_type": self.kind,
            "num_attention_heads": config.n_heads,
            "num_hidden_layers": config.n_layers,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tied_embedding,
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": config.vocab_size,
            **self.published,
        }

    def write(self, folder: Path) -> Inputs:
        state = self.write_huggingface(folder / "hf")
        models: dict[str, Path | str] = {"hf": folder / "hf", "gguf": folder / "model.gguf"}
        write_gguf(folder / "model.gguf", self.config, state)
        if self.says_meta:
            models["meta"] = folder / "meta"
            write_meta(folder / "meta", self.config, state)
            self._write_tokenizer(folder / "meta")
        return Inputs(self.config, transformers_of(folder / "hf"), models, folder / "hf")

    def write_huggingface(self, folder: Path) -> dict[str, torch.Tensor]:
        """A folder whose weights transformers wrote, with the release's config.json. The weights,
        by native name."""
        from transformers import AutoConfig, AutoModelForCausalLM

        folder.mkdir(parents=True)
        document = json.dumps(self.document(), indent=2)
        (folder / "config.json").write_text(document)
        state = random_state(self.config)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                native = from_huggingface(name)
                assert native is not None, name
                parameter.copy_(state[native])
        model.save_pretrained(folder)
        (folder / "config.json").write_text(document)
        self._write_tokenizer(folder)
        return state

    def _write_tokenizer(self, folder: Path) -> None:
        if self.is_sentencepiece:
            write_sentencepiece(folder / "tokenizer.model", self.config.vocab_size)
        else:
            write_tokenizer_json(folder)


def transformers_of(folder: Path, **how: Any) -> Any:
    """transformers' model of a folder, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()


def exported(out: Path, format_: Any, model: Path | str, **more: Any) -> Path:
    """What `export` writes, in float32 unless it is to `quantize`; not what it says of it."""
    if "quantize" not in more:
        more["dtype"] = "float32"
    options = ExportOptions(model=str(model), format=format_, output_dir=out, **more)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert export(options) == 0
    return out


class SmolLM2:
    """The bundled model: a quantised file, which `export` makes the other formats of."""

    name = "SmolLM2-135M-Instruct"
    degree = 3
    """It has 9 heads over 3 of keys and values."""

    def write(self, folder: Path) -> Inputs:
        path = smollm2_gguf()
        models: dict[str, Path | str] = {"gguf": BUNDLED}
        models |= {form: exported(folder / form, form, BUNDLED) for form in ("hf", "meta")}
        base = transformers_of(path.parent, gguf_file=path.name)
        return Inputs(open_model(BUNDLED).config, base, models)


class Stories260k:
    """A trained model in Meta's layout, of which `export` makes the other formats."""

    name = "stories260k"
    degree = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, folder: Path) -> Inputs:
        models: dict[str, Path | str] = {"meta": self._folder}
        models |= {form: exported(folder / form, form, self._folder) for form in ("hf", "gguf")}
        config = open_model(str(self._folder)).config
        return Inputs(config, self._transformers(config), models)

    def _transformers(self, config: ModelConfig) -> Any:
        """Of the file's own tensors, by torch alone."""
        from transformers import LlamaForCausalLM

        state = torch.load(self._folder / "consolidated.00.pth", weights_only=True)
        model = LlamaForCausalLM(huggingface_config(config)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                native = from_huggingface(name)
                assert native is not None, name
                tensor = state[native]
                if ".wq." in native or ".wk." in native:
                    place = interleave(torch.arange(len(tensor)), config.head_dim)
                    tensor = tensor[place.argsort()]
                parameter.copy_(tensor)
        return model


LLAMA1 = replace(TINY, n_kv_heads=8, vocab_size=512, norm_eps=1e-6, max_seq_len=2048)
LLAMA2 = replace(LLAMA1, norm_eps=1e-5, max_seq_len=4096)
LLAMA3 = replace(
    *(LLAMA2,), n_kv_heads=2, ffn_dim=224, vocab_size=264, rope_theta=5e5, max_seq_len=8192
)
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 8192)
FAMILIES = (
    Family(
        *("LLaMA 1", "LLaMA 7B", LLAMA1),
        {"pad_token_id": 0, "max_sequence_length": 2048},
    ),
    Family(
        *("LLaMA 2", "Llama 2 7B", LLAMA2),
        {"num_key_value_heads": 8, "pretraining_tp": 1, "rope_scaling": None},
    ),
    Family(
        *("Llama 3", "Llama 3 8B", LLAMA3),
        {"num_key_value_heads": 2, "rope_theta": 5e5, "rope_scaling": None, "mlp_bias": False},
        is_sentencepiece=False,
    ),
    Family(
        *("Llama 3.1", "Llama 3.1 8B"),
        replace(LLAMA3, rope_scaling=SCALING, max_seq_len=131072),
        {
            "num_key_value_heads": 2,
            "rope_theta": 5e5,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        is_sentencepiece=False,
    ),
    Family(
        *("Llama 3.2", "Llama 3.2 1B"),
        replace(
            LLAMA3,
            ffn_dim=256,
            rope_scaling=replace(SCALING, factor=32.0),
            max_seq_len=131072,
            tied_embedding=True,
        ),
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_theta": 5e5,
            "rope_scaling": {
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        is_sentencepiece=False,
    ),
    Family(
        *("SmolLM2", "SmolLM2 135M"),
        replace(
            *(LLAMA2,),
            **{"dim": 96, "n_heads": 12, "n_kv_heads": 4, "ffn_dim": 256, "vocab_size": 264},
            **{"rope_theta": 1e5, "max_seq_len": 8192, "tied_embedding": True},
        ),
        {
            "num_key_value_heads": 4,
            "rope_theta": 100000,
            "rope_interleaved": False,
            "is_llama_config": True,
        },
        is_sentencepiece=False,
    ),
    Family(
        *("TinyLlama", "TinyLlama 1.1B"),
        replace(LLAMA2, dim=128, n_heads=16, n_kv_heads=2, ffn_dim=352, max_seq_len=2048),
        {"num_key_value_heads": 2, "attention_bias": False, "rope_theta": 10000.0},
    ),
    Family(
        *("Code Llama", "CodeLlama 7B"),
        replace(LLAMA2, vocab_size=528, rope_theta=1e6, max_seq_len=16384),
        {"num_key_value_heads": 8, "rope_theta": 1000000, "rope_scaling": None},
    ),
    Family(
        *("Vicuna", "Vicuna 7B v1.5 16k"),
        replace(LLAMA2, rope_scaling=LinearScaling(4.0)),
        {
            "num_key_value_heads": 8,
            "max_sequence_length": 16384,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
        },
        says_meta=False,
    ),
    Family(
        *("Mistral", "Mistral 7B v0.3"),
        replace(LLAMA2, n_kv_heads=2, ffn_dim=224, rope_theta=1e6, max_seq_len=32768),
        {
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "attention_dropout": 0.0,
        },
        kind="mistral",
    ),
    Family(
        *("Mistral, heads of their own width", "Mistral Nemo 12B"),
        replace(
            *(LLAMA2,),
            **{"dim": 160, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 448, "vocab_size": 264},
            **{"rope_theta": 1e6, "max_seq_len": 131072},
        ),
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "attention_dropout": 0.0,
        },
        kind="mistral",
        is_sentencepiece=False,
        says_meta=False,
    ),
)


def published() -> list[Subject]:
    """Real models: the bundled one, and stories260k where LLAMA_TEST_ASSETS holds it."""
    folder = Path(os.environ.get("LLAMA_TEST_ASSETS", "")) / "stories260k"
    stories: list[Subject] = [Stories260k(folder)] if folder.is_dir() else []
    return [SmolLM2(), *stories]
