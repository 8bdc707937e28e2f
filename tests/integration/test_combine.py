"""Several adapters as one: PEFT's numbers, and a folder that knows its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama.adapters import peft_format
from llama.adapters.match import expected_shapes
from llama.adapters.peft_format import AdapterConfig
from llama.assembly.model import find_tokenizer
from llama.commands.combine import combine
from llama.commands.generate import generate
from llama.methods.about import About, Origin
from llama.settings import CombineOptions, GenerateOptions, LoRAOptions
from llama.settings.options import run_command
from llama.tokenizer.built_in_templates import CHATML
from llama.tokenizer.identity import tokenizer_hash
from llama.weights.open_model import open_model
from tests.parity.test_adapter import LENGTH, our_logits, their_logits
from tests.support.closeness import SMALL_MODEL, assert_close, sums_of
from tests.support.tiny_runs import CONFIG, write_model

pytestmark = pytest.mark.numeric
ONE = LoRAOptions(4, 8.0, 0.0, ("wq", "w2"))
OF_THE_ROOT = LoRAOptions(4, 6.0, 0.0, ("wq", "wv"), scale="alpha/sqrt(r)")
NARROW = LoRAOptions(2, 6.0, 0.0, ("wq",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("combine") / "base")


def adapter(folder: Path, base: Path, options: LoRAOptions, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_shapes(CONFIG, options)
    state = {n: 0.1 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    peft_format.save(folder, state, AdapterConfig(options, str(base)))
    return folder


def combined(out: Path, *argv: Any) -> tuple[int, Path]:
    arguments = [*map(str, argv), "--output_dir", str(out)]
    return run_command(combine, CombineOptions, "combine.py", "", arguments), out


def by_peft(base: Path, how: str, given: dict[Path, float], out: Path) -> Path:
    """Scale 1 is said of what it makes only where the first adapter is not of the root's scale."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    first, *others = given
    model = PeftModel.from_pretrained(model, first, adapter_name=first.name)
    for other in others:
        model.load_adapter(other, adapter_name=other.name)
    names = [folder.name for folder in given]
    model.add_weighted_adapter(names, [*given.values()], "sum", combination_type=how)
    model.save_pretrained(out, selected_adapters=["sum"])
    return out / "sum"


@pytest.mark.parametrize(
    ("how", "other"),
    [("cat", OF_THE_ROOT), ("cat", NARROW), ("linear", OF_THE_ROOT)],
    ids=["cat", "cat, of two ranks", "linear"],
)
def test_the_tensors_are_peft_s(how: str, other: LoRAOptions, base: Path, tmp_path: Path) -> None:
    a, b = adapter(tmp_path / "a", base, ONE, 1), adapter(tmp_path / "b", base, other, 2)
    status, out = combined(tmp_path / "out", f"{a}:0.7", f"{b}:-0.4", "--how", how)
    assert status == 0
    theirs = by_peft(base, how, {a: 0.7, b: -0.4}, tmp_path / "theirs")
    found, expected = (load_file(f / "adapter_model.safetensors") for f in (out, theirs))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, sums_of(4), name)
    tokens = torch.randint(0, 261, (LENGTH,), generator=torch.Generator().manual_seed(0))
    logits = [f(base, out, tokens) for f in (our_logits, their_logits)]
    assert_close(logits[0], logits[1], SMALL_MODEL)
    assert_close(logits[0], their_logits(base, theirs, tokens), SMALL_MODEL)


def test_cat_is_the_sum(base: Path, tmp_path: Path) -> None:
    """What one adapter adds, taken away again with another's half."""
    a, b = adapter(tmp_path / "a", base, ONE, 1), adapter(tmp_path / "b", base, NARROW, 2)
    _, both = combined(tmp_path / "both", a, b)
    _, again = combined(tmp_path / "again", f"{both}", f"{a}:-1")
    tokens = torch.arange(LENGTH)
    expected = our_logits(base, b, tokens)
    # Each product is taken twice, once to be taken away.
    assert_close(our_logits(base, again, tokens), expected, 2 * SMALL_MODEL)


def test_adapters_of_some_layers_make_one_that_peft_and_we_read(
    base: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """One of every block's wq and one of a single block's w2, as PEFT's `layers_to_transform` says
    it: the sum names its modules one by one, and PEFT misses no tensor."""
    a, b = adapter(tmp_path / "a", base, NARROW, 1), adapter(tmp_path / "b", base, ONE, 2)
    tensors = load_file(b / "adapter_model.safetensors")
    kept = {n: t for n, t in tensors.items() if ".layers.1." in n and "down_proj" in n}
    save_file(kept, b / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((b / "adapter_config.json").read_text())
    config |= {"target_modules": ["down_proj"], "layers_to_transform": [1]}
    (b / "adapter_config.json").write_text(json.dumps(config))
    for given in ([a, b], [b, f"{b}:0.5"]):
        status, out = combined(tmp_path / f"of-{given[0].name}", *given)
        assert status == 0
        tokens = torch.arange(LENGTH)
        assert_close(our_logits(base, out, tokens), their_logits(base, out, tokens), SMALL_MODEL)
        modules = json.loads((out / "adapter_config.json").read_text())["target_modules"]
        assert "model.layers.1.mlp.down_proj" in modules and "down_proj" not in modules
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]


def told(folder: Path, base: Path, set_name: str, template: str = "chatml") -> None:
    """The folder of `adapter`, as a run leaves it."""
    source = open_model(str(base))
    tokenizer = find_tokenizer(source, None)
    of_set = {"option": "data", "names": [set_name], "more_names": 0, "hub": [], "sha256": "0" * 64}
    counts = dict.fromkeys(("rows", "examples", "tokens", "supervised_tokens"), 3)
    origin = Origin(
        method="lora",
        base={
            "name": str(base),
            "path": str(base),
            "hub": None,
            "sampled_sha256": source.reader.sampled_hash(),
        },
        tokenizer={"sha256": tokenizer_hash(tokenizer)},
        template=template,
        jinja=CHATML,
        seq_len=64,
        data=[of_set | counts],
        settings={"steps": 7},
        versions={},
    )
    for name, content in About(origin, 7, 3.0, 2.0, [2.5]).files().items():
        (folder / name).write_bytes(content)


def test_it_knows_its_base_and_what_it_is_made_of(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = adapter(tmp_path / "a", base, ONE, 1), adapter(tmp_path / "b", base, NARROW, 2)
    told(a, base, "one.json")
    told(b, base, "two.json", template="alpaca")
    status, out = combined(tmp_path / "out", a, f"{b}:0.5", "--json")
    assert status == 0
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["of"] == [f"{a}:1", f"{b}:0.5"]
    assert "the templates alpaca, chatml: the first's is kept" in said.err
    document = json.loads((out / "training.json").read_text())
    assert [of_set["names"] for of_set in document["data"]] == [["one.json"], ["two.json"]]
    assert document["settings"]["combined"] == [f"{a}:1", f"{b}:0.5"]
    assert document["losses"]["eval_loss"] is None, "nobody has asked it yet"
    card = (out / "README.md").read_text()
    assert "made of others" in card and "`two.json`" in card
    arguments = ["--adapter", str(out), "--prompt", "he", "--max_new_tokens", "2"]
    assert run_command(generate, GenerateOptions, "generate.py", "", arguments) == 0


def test_another_base_is_refused_and_forced(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "other")
    (path,) = other.glob("*.safetensors")
    save_file({n: 1.5 * t for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    a, b = adapter(tmp_path / "a", base, ONE, 1), adapter(tmp_path / "b", other, ONE, 2)
    status, out = combined(tmp_path / "out", a, b)
    assert status == 2 and not out.exists()
    assert "give adapters of one base, or --force" in capsys.readouterr().err
    status, out = combined(tmp_path / "out", a, b, "--force", "true")
    assert status == 0 and "combined all the same" in capsys.readouterr().err
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
