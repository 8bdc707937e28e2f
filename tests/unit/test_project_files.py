"""The files by which people join the project: hooks, forms, workflow, changelog."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama.commands.doctor.options import DoctorOptions
from llama.settings import TrainOptions
from llama.settings.options import parse
from tests.support.make import dry_run
from tests.support.model_files import ROOT

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
NEEDED = {
    "markdown": {"value"},
    "textarea": {"label", "description"},
    "dropdown": {"label", "description", "options"},
}
"""Kind of element of a form to the attributes that it has here, of which GitHub asks the first and
the options."""
KINDS_OF_CHANGE = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
"""Keep a Changelog 1.1.0, in its order."""


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_hooks_are_make_lint() -> None:
    """The same commands in the same order, as make itself expands them."""
    done = dry_run("--assume-old=install-test", "lint")
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # else another version than constraints.txt has would run
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == done.stdout.splitlines()
    for hook in hooks:
        assert hook["language"] == "system" and hook["pass_filenames"] is False, hook["id"]


def test_the_workflow_runs_what_a_change_must_pass() -> None:
    (job,) = loaded(ROOT / ".github/workflows/ci.yml")["jobs"].values()
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert os.access(ROOT / command, os.X_OK)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (oldest,) = re.findall(r'^requires-python = ">=(.*)"$', project, flags=re.MULTILINE)
    assert oldest in job["strategy"]["matrix"]["python"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_is_one_that_github_takes(form: Path) -> None:
    document = loaded(form)
    assert {"name", "description", "body"} <= document.keys()
    ids = [element["id"] for element in document["body"] if element["type"] != "markdown"]
    assert ids and len(ids) == len(set(ids))
    for element in document["body"]:
        assert NEEDED[element["type"]] <= element["attributes"].keys()
        assert all(element["attributes"].values())


def test_what_the_forms_ask_for_can_be_had() -> None:
    said = " ".join(" ".join(form.read_text(encoding="utf-8").split()) for form in FORMS)
    doctor = re.findall(r"`python launcher/doctor\.py ([^`]+)`", said)
    assert ["--json"] in [arguments.split() for arguments in doctor]
    for arguments in doctor:
        assert parse(DoctorOptions, arguments.split(), "doctor.py", "").json
    (steps,) = re.findall(r"`(--max_steps \d)`", said)
    parse(TrainOptions, ["--deepspeed", "ds_configs/lora.json", *steps.split()], "train.py", "")
    for name in re.findall(r"\b(launcher/\w+\.py|[A-Z]+\.md|ds_configs/)", said):
        assert (ROOT / name).exists(), name


def test_the_changelog_has_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert first == "[Unreleased]" and versions
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in versions)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.*)"$', project, flags=re.MULTILINE)
    assert versions[0].startswith(f"[{version}] ")
    for part in text.split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", part, flags=re.MULTILINE)
        assert kinds and kinds == [kind for kind in KINDS_OF_CHANGE if kind in kinds]
