"""A DeepSpeed that this program has not been read against is refused before a run starts."""

from __future__ import annotations

from importlib import metadata

import pytest
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from llama.engine import start_processes
from llama.engine.known import KNOWN, RELEASES, require_known
from llama.errors import UserError
from tests.support.model_files import ROOT

SPECIFIED = f'"deepspeed{RELEASES}"'


def refusal() -> str:
    """Of the start of a run, before it has met another process."""
    with pytest.raises(UserError) as refused:
        start_processes()
    (line,) = refused.value.problems
    return line


def test_the_one_that_is_installed_is_known() -> None:
    require_known()


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, name, _ in KNOWN])
def test_one_in_which_a_method_is_gone(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    line = refusal()
    assert line.startswith(f"deepspeed {metadata.version('deepspeed')} is not one that this")
    assert f"{owner.__name__}.{name}(" in line and "is not there" in line and SPECIFIED in line


def test_one_in_which_a_method_takes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(self: object, gradients: object, params: object, stream: object) -> None: ...

    monkeypatch.setattr(DeepSpeedZeroOptimizer, "get_grad_norm_direct", changed)
    line = refusal()
    assert "get_grad_norm_direct(self, gradients, params, norm_type) is (self, gradients," in line
    assert "params, stream) there" in line and SPECIFIED in line


def test_an_installation_keeps_to_the_same_releases() -> None:
    assert SPECIFIED in (ROOT / "pyproject.toml").read_text()
