"""Which base, tokenizer and template an adapter is used with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama.assembly import adapter as assembly
from llama.assembly.adapter import Opened, open_for_use
from llama.errors import UserError, raise_if
from llama.methods.about import TEMPLATE, TRAINING
from llama.settings import AdapterOptions, GenerateOptions, check_generate
from llama.tokenizer.base import Message
from llama.tokenizer.identity import tokenizer_hash
from llama.tokenizer.load import load_tokenizer
from llama.weights.open_model import BUNDLED, BUNDLED_FROM, open_model
from tests.bad_inputs.setting import write_adapter
from tests.support.model_files import write_huggingface
from tests.support.origin import ORIGIN, about
from tests.support.tiny_runs import CONFIG, write_model
from tests.support.tokenizer_files import write_tokenizer_json

PROMPT: list[Message] = [{"role": "user", "content": "he"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, its base, another model of the same shapes and another tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    model = write_model(folder / "model")
    write_huggingface(folder / "other", CONFIG, seed=1)
    write_tokenizer_json(folder / "other")
    write_tokenizer_json(folder / "ends", eos_token="<|im_end|>")
    adapter = folder / "run" / "adapter"
    write_adapter(adapter)
    origin = replace(
        ORIGIN,
        base={
            "name": "model",
            "path": str(model),
            "hub": None,
            "sampled_sha256": open_model(str(model)).reader.sampled_hash(),
        },
        tokenizer={"sha256": tokenizer_hash(load_tokenizer(model))},
    )
    for name, content in replace(about(8), origin=origin).files().items():
        (adapter / name).write_bytes(content)
    return folder


def opened(made: Path, adapter: str = "run", **options: Any) -> Opened:
    return open_for_use(AdapterOptions(adapter=made / adapter, **options))


def refusal(made: Path, adapter: str = "run", **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        opened(made, adapter, **options)
    (problem,) = raised.value.problems
    return problem


@pytest.mark.parametrize("given", ["run", "run/adapter"])
def test_it_brings_its_base_and_its_template(given: str, made: Path) -> None:
    found = opened(made, given)
    assert found.source.name == str(made / "model") and found.adapter == made / "run" / "adapter"
    template = found.template(None)
    assert template.name == ORIGIN.template
    assert found.tokenizer.decode(template.prompt(PROMPT, found.tokenizer)) == "he"
    assert found.template("chatml").name == "chatml"


def test_a_base_that_went_elsewhere_is_the_same(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "model", tmp_path / "moved")
    assert opened(made, model=str(tmp_path / "moved")).source.name == str(tmp_path / "moved")


def test_another_base_is_refused_with_both_names(made: Path) -> None:
    line = refusal(made, model=str(made / "other"))
    assert f"was trained on model, and {made / 'other'} is another model" in line
    assert line.endswith("give --model model; --force uses it all the same")


def test_force_makes_a_note_of_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = opened(made, model=str(made / "other"), force=True)
    assert found.source.name == str(made / "other")
    said = capsys.readouterr().err
    assert "is another model" in said and said.endswith(": used all the same\n")


def test_another_tokenizer_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(made, tokenizer=made / "ends")
    assert "was trained with another tokenizer than this one" in line
    assert opened(made, tokenizer=made / "ends", force=True).tokenizer.eos_id == 3
    assert capsys.readouterr().err.count("all the same") == 1


def copied(made: Path, folder: Path) -> Path:
    shutil.copytree(made / "run" / "adapter", folder / "run" / "adapter")
    return folder


def test_a_base_that_is_gone_is_named(made: Path, tmp_path: Path) -> None:
    file = copied(made, tmp_path) / "run" / "adapter" / TRAINING
    file.write_text(file.read_text().replace(str(made / "model"), "/nowhere/model"))
    line = refusal(tmp_path)
    assert line.endswith(": its base is model: it is not to be found here: give --model")
    assert opened(tmp_path, model=str(made / "model")).recorded is not None


def test_a_base_that_was_changed_is_refused(made: Path, tmp_path: Path) -> None:
    file = copied(made, tmp_path) / "run" / "adapter" / TRAINING
    file.write_text(file.read_text().replace(str(made / "model"), str(made / "other")))
    assert "has been changed since" in refusal(tmp_path)


def test_a_plain_folder_of_peft_s_is_taken_with_a_note(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base by the name that it gives, if that is something; no hash is compared."""
    write_adapter(tmp_path / "plain")  # its base is called `m`, which is nothing
    assert "its base is m: it is not to be found here: give --model" in refusal(tmp_path, "plain")
    capsys.readouterr()
    found = opened(tmp_path, "plain", model=str(made / "other"))
    said = capsys.readouterr().err
    assert found.recorded is None and said.count("\n") == 1 and f"holds no {TRAINING}" in said
    config = tmp_path / "plain" / "adapter_config.json"
    text = config.read_text()
    config.write_text(text.replace('"m"', f'"{made / "model"}"'))
    assert opened(tmp_path, "plain").source.name == str(made / "model")
    config.write_text(text.replace('"m"', "null"))
    assert "does not say what its base is" in refusal(tmp_path, "plain")


def test_the_bundled_model_is_known_by_its_name_on_the_hub(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which other programs know it by; where that cannot be had, by its copy that is here."""
    write_adapter(tmp_path / "plain")
    config = tmp_path / "plain" / "adapter_config.json"
    config.write_text(config.read_text().replace('"m"', f'"{BUNDLED_FROM}"'))

    def found(model: str, device: Any = None) -> Any:
        if model == BUNDLED_FROM:
            raise UserError("no network")
        assert model == BUNDLED
        return open_model(str(made / "model"))

    monkeypatch.setattr(assembly, "open_model", found)
    assert opened(tmp_path, "plain").source.name == str(made / "model")
    assert f"no network: {BUNDLED}, a quantised copy of it, is used" in capsys.readouterr().err


def test_without_its_template_it_is_refused(made: Path, tmp_path: Path) -> None:
    (copied(made, tmp_path) / "run" / "adapter" / TEMPLATE).unlink()
    found = opened(tmp_path)
    with pytest.raises(UserError, match=f"{TEMPLATE}: does not exist"):
        found.template(None)


def test_runs_without_an_adapter_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")

    def problem() -> str:
        options = GenerateOptions(adapter=tmp_path, prompt=["a"])
        with pytest.raises(UserError) as raised:
            raise_if(check_generate(options, 1))
        (line,) = raised.value.problems
        return line

    assert f"give one of its {tmp_path}/checkpoints/step-N" in problem()
    (tmp_path / "model").mkdir()
    assert f"give --model {tmp_path}/model" in problem()


def test_force_alone_does_nothing() -> None:
    lines = check_generate(GenerateOptions(prompt=["a"], force=True), 1)
    assert lines == ["--force: has no effect without --adapter"]
