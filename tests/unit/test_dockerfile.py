"""The Dockerfile, as far as it can be judged without building it."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from typing import Any

import yaml

from tests.support.model_files import ROOT

TEXT = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
STEPS = [
    (line.split()[0], line.split(maxsplit=1)[1])
    for line in TEXT.splitlines()
    if line and not line.startswith("#")
]
PYTHON_OF_UBUNTU = {"22.04": "3.10", "24.04": "3.12"}
"""packages.ubuntu.com/jammy/python3, packages.ubuntu.com/noble/python3"""


def arguments(kind: str) -> list[str]:
    return [words for step, words in STEPS if step == kind]


def commands() -> list[str]:
    return [part.strip() for words in arguments("RUN") for part in words.split("&&")]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [re.match(r"([\w.-]+)==(\S+)", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


def test_what_is_copied_is_there_and_is_sent() -> None:
    sources = [source for words in arguments("COPY") for source in words.split()[:-1]]
    assert {"llama", "launcher", "ds_configs", "constraints.txt"} <= set(sources)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    for source in sources:
        assert (ROOT / source).exists(), source
        matching = [rule for rule in rules if fnmatch(source, rule.removeprefix("!"))]
        assert matching and matching[-1].startswith("!"), source  # the last that fits counts
    sent = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert sorted(sent) == sorted(sources)


def test_the_wheel_is_built_of_what_is_copied() -> None:
    """pyproject.toml names files beside the code; the last step installs that again."""
    project = (ROOT / "pyproject.toml").read_text()
    (readme,) = re.findall(r'^readme = "(.*)"$', project, flags=re.MULTILINE)
    assert readme in " ".join(arguments("COPY"))
    assert (ROOT / "llama/ds_configs").resolve() == ROOT / "ds_configs"


def test_every_version_is_a_pinned_one() -> None:
    installs = [command for command in commands() if command.startswith("pip install")]
    assert len(installs) >= 4
    for command in installs:
        options, names = [], []
        for word in command.split()[2:]:
            (options if word.startswith("--") else names).append(word)
        assert "--constraint" in options and names.pop(0) == "constraints.txt"
        assert all(name == "." or name in pinned() for name in names), command
    assert "==" not in TEXT  # nothing is said twice


def test_its_python_is_one_that_changes_are_tested_with() -> None:
    (base,) = arguments("FROM")
    (ubuntu,) = re.findall(r"^nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu(\d+\.\d+)$", base)
    workflow: Any = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert PYTHON_OF_UBUNTU[ubuntu] in job["strategy"]["matrix"]["python"]


def test_it_runs_as_nobody_of_importance() -> None:
    kinds = [kind for kind, _ in STEPS]
    assert arguments("USER") == ["llama"] and "RUN" not in kinds[kinds.index("USER") :]
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["llama-lora"]


def test_the_pods_of_the_cluster_are_of_it() -> None:
    """Where the code lies in it, and whose the shared files are to be."""
    _, job = yaml.safe_load_all((ROOT / "docs/clusters/kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["workingDir"] in arguments("WORKDIR")
    assert f"--uid {pod['securityContext']['fsGroup']} " in TEXT
