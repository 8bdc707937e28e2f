"""llama.cpp itself, from the package xllamacpp: its own server, on this machine's CPU.

python -m tests.support.llama_cpp MODEL.gguf [ADAPTER.gguf]    serves until its input ends

A process of its own: the server's threads end with it, and what it prints stays there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = "listening: "


@contextlib.contextmanager
def serving(model: Path, adapter: Path | None = None) -> Iterator[str]:
    """The address of a server of `model`, with the GGUF LoRA `adapter` if there is one."""
    from tests.support.tiny_runs import ROOT, of_one_thread  # torch, which the server needs not

    words = [str(path) for path in (model, adapter) if path is not None]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.llama_cpp", *words],
        cwd=ROOT,
        env=of_one_thread(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            if line.startswith(_MARK):
                break
        else:
            raise AssertionError(process.communicate()[1])
        yield line.removeprefix(_MARK).strip()
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate("", timeout=20)
        process.kill()


def completion(address: str, prompt: str | list[int], max_tokens: int) -> list[int]:
    """The likeliest tokens after `prompt`, a text or tokens. Not their text, which leaves out
    half a character."""
    asked = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "return_tokens": True}
    return _asked(f"{address}/completion", asked)["tokens"]


def tokens(address: str, text: str) -> list[int]:
    """The ids of a prompt: control tokens are recognised in it, and BOS put before it where the
    file says so."""
    asked = {"content": text, "add_special": True, "parse_special": True}
    return _asked(f"{address}/tokenize", asked)["tokens"]


def _asked(address: str, document: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        address, json.dumps(document).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _serve(model: str, adapter: str | None) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = adapter, 1.0
        params.lora_adapters = [lora]
    server = xllamacpp.Server(params)
    print(f"{_MARK}{server.listening_address}", flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's own end takes seconds


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
