"""A run over two hosts trains what two ranks on one do, by each launcher and in each direction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.multinode.hosts import Hosts, two_hosts
from tests.multinode.runs import Launcher, on_both, train_on_both
from tests.support.tiny_runs import (
    deepspeed_json,
    launched,
    read_lines,
    succeeded,
    write_json,
    write_model,
    write_rows,
)

Inputs = Callable[..., list[str | Path]]
SAME = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "supervised_tokens")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The arguments of every run here, but for its output folder."""
    folder = tmp_path_factory.mktemp("inputs")
    shared: list[str | Path] = [
        *("--model", write_model(folder / "model"), "--data", write_rows(folder / "rows.json", 11)),
        *("--eval_data", write_rows(folder / "held_out.json", 3), "--template", "chatml"),
        *("--seq_len", "64", "--pack", "false", "--lora.targets", "wq,wv,wo,w2"),
        *("--epochs", "2", "--json"),
    ]

    def of(tensor_parallel: int, ranks: int = 2) -> list[str | Path]:
        """Four rows to a step, over any number of copies of the model."""
        accumulation = 4 * tensor_parallel // ranks
        settings = write_json(folder / "deepspeed.json", deepspeed_json(1, accumulation))
        return [*shared, "--deepspeed", settings, "--tensor_parallel", str(tensor_parallel)]

    return of


@pytest.fixture(scope="module")
def on_one_host(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    made: dict[int, Path] = {}

    def make(tensor_parallel: int) -> Path:
        if tensor_parallel not in made:
            out = tmp_path_factory.mktemp("one") / "run"
            argv = [*inputs(tensor_parallel), "--output_dir", out]
            succeeded(launched("deepspeed", "train.py", *argv, ranks=2))
            made[tensor_parallel] = out
        return made[tensor_parallel]

    return make


def assert_same_run(one: Path, other: Path) -> None:
    """To the last digit: every number of every step, the evaluations, and the adapter."""
    lines, others = (read_lines(out / "metrics.jsonl") for out in (one, other))
    assert len(lines) == len(others) == 9  # an evaluation, and twice three steps and another one
    for line, its_other in zip(lines, others, strict=True):
        for key in (*SAME, "eval_loss"):
            assert line.get(key) == its_other.get(key), (line, its_other)
    a, b = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (one, other))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["data parallel", "tensor parallel"])
def test_two_hosts_train_what_two_ranks_on_one_do(
    launcher: Launcher,
    tensor_parallel: int,
    hosts: Hosts,
    inputs: Inputs,
    on_one_host: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    before = [host.sent() for host in hosts.hosts]
    done = train_on_both(hosts, launcher, *inputs(tensor_parallel), "--output_dir", out)
    summary = succeeded(done)
    assert summary["status"] == "finished" and summary["steps"] == 6
    assert_same_run(on_one_host(tensor_parallel), out)
    for host, was in zip(hosts.hosts, before, strict=True):
        assert host.sent() - was > 100_000, f"{host.name} took no part"


def test_hosts_that_hold_a_base_each_train_what_four_ranks_on_one_do(
    hosts: Hosts, inputs: Inputs, tmp_path: Path
) -> None:
    """Two ranks on each share it, of which the launcher tells; the four on one have it whole."""
    argv, whole, out = inputs(1, ranks=4), tmp_path / "whole", tmp_path / "run"
    succeeded(launched("torchrun", "train.py", *argv, "--output_dir", whole, ranks=4))
    shared = [*argv, "--output_dir", out, "--shard_base"]
    done, other = on_both(hosts, "launcher/train.py", *shared, each=2)
    assert succeeded(done)["steps"] == 6 and other.returncode == 0, other.stderr
    assert "data-parallel 4, ZeRO-1, base sharded over 2" in done.stderr
    assert_same_run(whole, out)


def test_no_shared_file_system_is_needed_to_write(
    inputs: Inputs, on_one_host: Callable[[int], Path], tmp_path: Path
) -> None:
    """The second host sees an output folder of its own: it writes nothing there, and the first
    writes everything."""
    own, settings = tmp_path / "own", tmp_path / "settings"
    own.mkdir()
    settings.mkdir()
    with two_hosts(settings, private=own) as hosts:
        argv = [*inputs(1), "--output_dir", own / "run"]
        succeeded(train_on_both(hosts, "deepspeed", *argv))
        assert hosts.hosts[1].run("find", own, "-type", "f") == ""
    assert_same_run(on_one_host(1), own / "run")
