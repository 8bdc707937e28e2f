"""What every test runs under, and what a run says at its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from llama.notes import LOG
from llama.tokenizer.base import Tokenizer
from llama.tokenizer.load import load_tokenizer
from tests.support.model_files import ROOT
from tests.support.skips import closing_line, outside
from tests.support.tokenizer_files import write_sentencepiece

# Processes that a test starts run this checkout, wherever the installed package points.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
# Servers of the tests are on this machine, whatever proxy stands between it and others.
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
# transformers' tiktoken keeps files by their path alone, and tests' paths come again.
os.environ["TIKTOKEN_CACHE_DIR"] = ""
# A shell lets what it starts in the background ignore Ctrl-C, and tests send it to their processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Models here are tiny: with several threads, products spend their time waiting for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _held_to_older_instructions() -> Iterator[None]:
    """`make test-isa` holds torch to older instructions by ATEN_CPU_CAPABILITY, of which torch's
    list of what the CPU can do takes no notice. A CPU that has no more has no bf16 arithmetic."""
    if "ATEN_CPU_CAPABILITY" not in os.environ:
        yield
        return
    can = {name: has and "bf16" not in name for name, has in torch.cpu.get_capabilities().items()}
    with mock.patch("torch.cpu.get_capabilities", lambda: can):
        yield


@pytest.fixture(autouse=True)
def _a_log_of_its_own() -> Iterator[None]:
    """A process has one run's log, and tests make many runs in one process."""
    yield
    LOG.__init__()


@pytest.fixture(scope="session", params=["made here", "published"])
def llama2_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.model of LLaMA 1 and 2, and one of its kind that is trained here."""
    if request.param == "published":
        return outside("llama_tokenizer.model")
    return write_sentencepiece(tmp_path_factory.mktemp("llama2") / "tokenizer.model")


@pytest.fixture(scope="session")
def llama2(llama2_model: Path) -> Tokenizer:
    return load_tokenizer(llama2_model)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("skipped", [])
    if line := closing_line(report.longrepr[2] for report in reports):
        terminalreporter.write_line(line)
