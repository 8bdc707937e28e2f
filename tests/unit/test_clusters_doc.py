"""The recipes of docs/clusters.md: options that exist, shell and YAML that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from llama.commands.doctor.options import DoctorOptions
from llama.settings import TrainOptions
from llama.settings.options import parse
from tests.support.model_files import ROOT

TEXT = (ROOT / "docs/clusters.md").read_text()
SHELL = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
MANIFESTS: list[dict[str, Any]] = [
    document
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    for document in yaml.safe_load_all(block)
]
SCRIPTS = [
    *SHELL,
    *(m["spec"]["template"]["spec"]["containers"][0]["args"][0] for m in MANIFESTS[1:]),
]


def launched() -> list[tuple[str, list[str]]]:
    """Each script of `launcher/` that a recipe starts, and its arguments."""
    found = []
    for script in SCRIPTS:
        for line in re.sub(r"\\\n", " ", script).splitlines():
            command = line.partition("  #")[0].replace("'", " ")
            for part in re.split(r"&&|\|", command):
                if match := re.search(r"launcher/(\w+)\.py(.*)", part):
                    found.append((match[1], shlex.split(match[2])))
    return found


def test_there_are_recipes_of_every_kind() -> None:
    names = [name for name, _ in launched()]
    assert names.count("train") >= 4 and names.count("doctor") >= 5


@pytest.mark.parametrize(("name", "arguments"), launched())
def test_the_options_exist(name: str, arguments: list[str]) -> None:
    cls: Any = {"train": TrainOptions, "doctor": DoctorOptions}[name]
    options = parse(cls, arguments, f"{name}.py", "")
    if name == "train":
        assert (ROOT / options.deepspeed).is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_the_shell_parses(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_pods_find_the_first_by_the_services_name() -> None:
    service, job = MANIFESTS
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    container = pod["containers"][0]
    assert f"--master_addr {name}-0.{pod['subdomain']} " in container["args"][0]
    assert f"--nnodes {job['spec']['completions']} " in container["args"][0]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc_per_node {gpus} " in container["args"][0].replace("\n", " ")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
