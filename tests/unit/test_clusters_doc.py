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
BATCH = (ROOT / "docs/clusters/slurm.sh").read_text()
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "docs/clusters/kubernetes.yaml").read_text())
)
CONTAINER: dict[str, Any] = MANIFESTS[1]["spec"]["template"]["spec"]["containers"][0]
SCRIPTS = [*SHELL, BATCH, CONTAINER["args"][0]]
VARIABLES = dict(re.findall(r"^(\w+)=\$\{\1:-(.*?)\}", BATCH, flags=re.MULTILINE))
"""What the batch script is about, as it is written there."""


def launched() -> list[tuple[str, list[str]]]:
    """Each script of `launcher/` that a recipe starts, and its arguments."""
    found = []
    for script in SCRIPTS:
        for line in re.sub(r"\\\n", " ", script).splitlines():
            if line.lstrip().startswith("#"):
                continue
            command = re.sub(r"\$(\w+)", lambda name: VARIABLES.get(name[1], name[0]), line)
            command = command.partition("  #")[0].replace("'", " ")
            for part in re.split(r"&&|\|", command):
                if match := re.search(r"launcher/(\w+)\.py(.*)", part):
                    found.append((match[1], shlex.split(match[2])))
    return found


def test_there_are_recipes_of_every_kind() -> None:
    names = [name for name, _ in launched()]
    assert names.count("train") >= 3 and names.count("doctor") >= 5


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
    container = CONTAINER
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master_addr {name}-0.{pod['subdomain']} " in container["args"][0]
    assert f"--nnodes {job['spec']['completions']} " in container["args"][0]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc_per_node {gpus} " in container["args"][0].replace("\n", " ")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", [BATCH, CONTAINER["args"][0]], ids=["slurm", "kubernetes"])
def test_what_goes_on_by_itself_has_a_folder(script: str) -> None:
    """Without --output_dir each start would be a new run."""
    (command,) = re.findall(r"launcher/train\.py[^;]*?--output_dir (\S+)", script)
    assert command in ('"$RUN"', "/shared/run-1")


def test_the_pages_agree_on_restarts() -> None:
    """How a run goes on by itself is said in docs/faults.md for one host and in docs/clusters.md
    for several; others name these two. A command that starts ranks again has a fixed folder, and
    as many starts everywhere."""
    said: list[str] = []
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines() if "max_restarts" in line]
        assert not lines or page.name == "faults.md", page
        said += lines
    said.append(" ".join(CONTAINER["args"][0].split()))
    assert len(said) > 1
    for command in said:
        assert "--max_restarts 3 " in command and "--output_dir " in command
    for page in ("checkpoints", "faults", "scaling"):
        assert "clusters.md#going-on-by-itself" in (ROOT / f"docs/{page}.md").read_text(), page


def test_the_numbers_of_the_page_are_those_of_the_files() -> None:
    numbers = dict(re.findall(r"^(STARTS|REQUEUES)=(\d+)", BATCH, flags=re.MULTILINE))
    assert f"the loop in [slurm.sh](clusters/slurm.sh): {numbers['STARTS']} starts" in TEXT
    assert f"`scontrol requeue` there: {numbers['REQUEUES']} times" in TEXT
    assert f"`backoffLimit: {MANIFESTS[1]['spec']['backoffLimit']}`" in TEXT
    (seconds,) = re.findall(r"--signal=TERM@(\d+)", BATCH)
    assert f"{seconds} seconds before the" in TEXT
