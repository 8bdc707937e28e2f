"""DeepSpeed JSONs as they lie in other projects: taken, with what "auto" became said, or refused by
key for what they would do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama.errors import UserError
from llama.settings.deepspeed_json import auto, batch_sizes, check, keys, load, resolve
from tests.support.recipes import REFUSED, TRAINED
from tests.unit.settings.deepspeed_json.test_check import FOLDER

AUTO = "auto"
BATCH, MICRO, STEPS = keys.BATCH
SMALL = {MICRO: 1, "gradient_clipping": 1.0, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


def loaded(folder: Path, document: dict[str, Any], *overrides: str) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(json.dumps(document))
    return load(path, list(overrides))


def resolved(config: dict[str, Any], **changes: Any):
    fixed = {"data_parallel": 2, "total_steps": 100, "width": 4096, "fp16_supported": True}
    return resolve(config, **(fixed | changes))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for name, value in node.items():
        yield from leaves(value, f"{prefix}.{name}" if prefix else name)


@pytest.mark.parametrize("has", ["fp16 bf16", "fp16", "bf16", ""])
@pytest.mark.parametrize("name", TRAINED)
def test_it_is_made_definite(name: str, has: str, tmp_path: Path) -> None:
    """On a device that has these types; a type that is asked for outright is a demand."""
    from deepspeed.runtime.config import DeepSpeedConfig

    document = TRAINED[name]
    config = loaded(tmp_path, document)
    assert check(config, "F", 1) == []
    supported = {f"{kind}_supported": kind in has.split() for kind in ("fp16", "bf16")}
    wanted = [kind for kind in ("fp16", "bf16") if (document.get(kind) or {}).get("enabled")]
    demanded = [kind for kind in wanted if document[kind]["enabled"] is True]
    if (demanded == ["bf16"] and "bf16" not in has) or (demanded and not has):
        with pytest.raises(UserError, match="bf16 is not supported on this device"):
            resolved(config, data_parallel=1, **supported)
        return
    found = resolved(config, data_parallel=1, **supported)
    values = dict(leaves(found.engine))
    assert AUTO not in values.values() and None not in values.values()
    said = "\n".join(found.notes)
    for path, value in leaves(document):
        assert value != AUTO or path not in auto.VALUES or path in said, path
    DeepSpeedConfig(found.engine)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_key(name: str, tmp_path: Path) -> None:
    document, lines = REFUSED[name]
    problems = check(loaded(tmp_path, document), "F", 2)
    assert len(problems) == len(lines), problems
    for line in lines:
        assert any(problem.startswith(f"F: {line}") for problem in problems), (line, problems)


def test_auto_is_one_table_of_known_keys_and_none_is_left_out() -> None:
    """The values that follow from nothing are those of ds_configs/."""
    assert set(auto.VALUES) <= set(keys.names())
    of_ours: dict[str, Any] = {}
    for file in ("lora_zero3.json", "lora.json"):
        of_ours |= dict(leaves(json.loads((FOLDER / file).read_text())))
    facts = auto.Facts((1, 1, 1), "fp32", 1, 1, "lora", {})
    for path in (
        "gradient_clipping",
        "optimizer.params.betas",
        "optimizer.params.eps",
        "optimizer.params.weight_decay",
        "zero_optimization.stage",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.stage3_prefetch_bucket_size",
        "zero_optimization.stage3_param_persistence_threshold",
    ):
        assert auto.VALUES[path](facts) == of_ours[path], path
    assert (auto.MICRO_BATCH, auto.ACCUMULATION) == (of_ours[MICRO], of_ours[STEPS])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ((AUTO, AUTO, AUTO), (1, 2)),
        ((AUTO, None, None), (1, 1)),
        ((None, AUTO, None), (1, 1)),
        ((AUTO, 4, AUTO), (4, 2)),
        ((AUTO, None, 3), (1, 3)),
        ((24, AUTO, AUTO), (1, 12)),
        ((24, AUTO, 3), (4, 3)),
        ((24, 4, AUTO), (4, 3)),
        ((24, None, AUTO), (12, 1)),
    ],
)
def test_batch_sizes_left_to_us(
    written: tuple[Any, Any, Any], expected: tuple[int, int], tmp_path: Path
) -> None:
    """On two ranks. What is written stands; what is "auto" follows, or is that of ds_configs/."""
    sizes = dict(zip(keys.BATCH, written, strict=True))
    config = loaded(tmp_path, {**SMALL, **sizes})
    assert check(config, "F", 2) == []
    assert batch_sizes(config, 2) == expected
    rows = 2 * expected[0] * expected[1]
    assert [resolved(config).engine[key] for key in keys.BATCH] == [rows, *expected]


@pytest.mark.parametrize(
    ("fp16", "bf16", "stage", "has", "expected"),
    [
        (AUTO, AUTO, 1, "fp16 bf16", "bf16"),
        (AUTO, AUTO, 1, "fp16", "fp16"),
        (AUTO, None, 1, "fp16 bf16", "fp16"),
        (AUTO, None, 1, "bf16", "bf16"),
        (None, AUTO, 1, "fp16", "fp16"),
        (AUTO, True, 1, "fp16 bf16", "bf16"),
        (True, AUTO, 1, "fp16 bf16", "fp16"),
        (AUTO, AUTO, 1, "", "fp32"),
        (AUTO, AUTO, 0, "fp16 bf16", "fp32"),
        (False, AUTO, 2, "fp16 bf16", "bf16"),
    ],
)
def test_a_precision_left_to_us(
    fp16: Any, bf16: Any, stage: int, has: str, expected: str, tmp_path: Path
) -> None:
    document = {
        **SMALL,
        "fp16": None if fp16 is None else {"enabled": fp16, "loss_scale": 0},
        "bf16": None if bf16 is None else {"enabled": bf16},
        "zero_optimization": {"stage": stage},
    }
    config = loaded(tmp_path, document)
    assert check(config, "F", 2) == []
    supported = {f"{name}_supported": name in has.split() for name in ("fp16", "bf16")}
    found = resolved(config, **supported)
    assert found.precision == expected
    on = [name for name in ("fp16", "bf16") if found.engine.get(name, {}).get("enabled")]
    assert on == ([] if expected == "fp32" else [expected])
    assert any(f"running in {expected}" in note for note in found.notes) or True in (fp16, bf16)


def test_what_is_null_or_off_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    config = loaded(tmp_path, TRAINED["everything written out, and off"])
    assert config.pop("aio") and config.pop("timers")
    zero = config["zero_optimization"]
    assert zero.pop("load_from_fp32_weights") and zero["offload_optimizer"] == {"device": "none"}
    assert config == {
        **SMALL,
        STEPS: 2,
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}},
    }


def test_what_is_written_and_not_used_is_said(tmp_path: Path) -> None:
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    document = {**SMALL, "amp": {"enabled": AUTO}, "aio": {}, "zero_optimization": zero}
    found = resolved(loaded(tmp_path, document))
    where = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
    assert f"{where} has no effect: checkpoints are the trainer's own, and whole" in found.notes
    assert 'amp.enabled "auto" is false: no longer in DeepSpeed; write fp16 or bf16' in found.notes
    assert "aio has no effect: it is of nvme alone" in found.notes
    assert "amp" not in found.engine and where.split(".")[1] not in str(found.engine)


@pytest.mark.parametrize("section", ["optimizer", "scheduler", "zero_optimization", "bf16"])
def test_an_override_of_a_section_that_is_null_is_kept(section: str, tmp_path: Path) -> None:
    name = {"optimizer": "params.lr", "zero_optimization": "stage", "bf16": "enabled"}
    key = f"{section}.{name.get(section, 'type')}"
    config = loaded(tmp_path, {section: None}, f"{key}=1")
    assert list(leaves(config)) == [(key, 1)]


def test_one_cycle_that_moves_the_betas_takes_them_from_auto(tmp_path: Path) -> None:
    params = {"cycle_min_lr": 1e-4, "cycle_first_step_size": AUTO}
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "betas": AUTO}}
    cycle = {"type": "OneCycle", "params": params}
    config = loaded(tmp_path, {**SMALL, "optimizer": optimizer, "scheduler": cycle})
    assert check(config, "F", 1) == []
    assert "betas" not in resolved(config).engine["optimizer"]["params"]
