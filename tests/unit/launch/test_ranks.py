"""Whose rank a process is, from environments as the launchers leave them."""

from __future__ import annotations

import os

import pytest

from llama.launch.ranks import read

TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NAME": "interactive",
}
"""The last task of `srun -N 2 -n 4` within `salloc`."""

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-a-1@1",
    "PMIX_RANK": "1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "1",
    "MV2_COMM_WORLD_SIZE": "2",
    "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
}


def without(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: text for name, text in environment.items() if name not in names}


def test_a_task_of_srun_on_two_hosts() -> None:
    told = read(TASK)
    assert not told.problems
    port = told.changes["MASTER_PORT"]
    assert told.changes == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": port,
    }
    assert 20000 <= int(port) < 32000
    assert read({**TASK, "SLURM_PROCID": "0"}).changes["MASTER_PORT"] == port
    assert read({**TASK, "SLURM_STEP_ID": "1"}).changes["MASTER_PORT"] != port


@pytest.mark.parametrize("environment", [OPEN_MPI, MPICH, MVAPICH])
def test_a_process_of_mpirun_on_one_host(environment: dict[str, str]) -> None:
    told = read(environment)
    assert not told.problems
    assert told.changes.pop("MASTER_PORT")
    assert told.changes == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }


def test_what_was_adopted_is_not_judged_again() -> None:
    for environment in (TASK, OPEN_MPI, MPICH, MVAPICH):
        once = environment | read(environment).changes
        again = read(once)
        assert not again.changes and not again.problems


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu[003,7-9],login1", "gpu003"),
        ("a1,b2", "a1"),
        ("r[1-2]-ib,b", "r1-ib"),
        ("rack-1.site,b", "rack-1.site"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert read({**TASK, "SLURM_STEP_NODELIST": hosts}).changes["MASTER_ADDR"] == first


def test_what_the_user_set_stays() -> None:
    theirs = {"MASTER_ADDR": "other", "MASTER_PORT": "5", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
    told = read(TASK | theirs)
    assert not told.problems
    assert told.changes == {"RANK": "3", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},  # the shell of salloc
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "3", "SLURM_TASK_PID": "1"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"},
        {**TASK, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "PMIX_RANK": "0"},
        {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "1", "RANK": "0"},
        TORCHRUN,
        TORCHRUN | without(TASK, "SLURM_PROCID") | {"SLURM_STEP_NUM_TASKS": "2"},
        TORCHRUN | TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},  # torchrun a node
        TORCHRUN | OPEN_MPI,
        TORCHRUN | {"OMPI_COMM_WORLD_RANK": "1"},
    ],
)
def test_what_is_left_as_it_is(environment: dict[str, str]) -> None:
    told = read(environment)
    assert not told.changes and not told.problems


def test_the_store_of_an_earlier_torchrun_is_not_waited_for() -> None:
    told = read({**TASK, "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert told.changes["TORCHELASTIC_USE_AGENT_STORE"] == "False"


def test_a_task_of_an_older_slurm() -> None:
    told = read(
        {
            **{"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"},
            **{"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "SLURM_NODELIST": "a7"},
        }
    )
    assert (told.changes["WORLD_SIZE"], told.changes["MASTER_ADDR"]) == ("2", "127.0.0.1")


def test_an_srun_in_the_shell_of_another() -> None:
    """It leaves SLURM_PTY_PORT and the job's name as they are."""
    shell = {**TASK, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "3", "SLURM_JOB_NAME": "bash"}
    assert read({**shell, "SLURM_TASK_PID": str(os.getpid())}).changes["RANK"] == "0"


def test_mpirun_that_starts_its_processes_by_srun() -> None:
    """One task a host is MPI's own, whose processes are others."""
    told = read(TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"} | OPEN_MPI)
    assert (told.changes["RANK"], told.changes["WORLD_SIZE"]) == ("1", "2")
    told = read(TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"} | MPICH)
    assert (told.changes["RANK"], told.changes["WORLD_SIZE"]) == ("1", "2")
    told = read(TASK | {"PMI_RANK": "3", "PMI_SIZE": "4"})  # of srun --mpi=pmi2 itself
    assert not told.problems and told.changes["MASTER_ADDR"] == "gpu07"


def test_a_pod_of_an_indexed_job() -> None:
    told = read({"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    assert told.changes == {"RANK": "1", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (TASK | {"WORLD_SIZE": "16"}, "WORLD_SIZE: 16, but SLURM_STEP_NUM_TASKS of srun is 4"),
        (TASK | {"RANK": "0"}, "RANK: 0, but SLURM_PROCID of srun is 3"),
        (TASK | {"RANK": "0", "WORLD_SIZE": "1"}, "WORLD_SIZE: 1, but srun started 4 processes"),
        (TASK | {"RANK": "0", "WORLD_SIZE": "4"}, "RANK: 0, but SLURM_PROCID is 3"),
        (TASK | TORCHRUN | {"WORLD_SIZE": "2", "RANK": "0"}, "srun started 4 processes"),
        (without(TASK, "SLURM_LOCALID"), "SLURM_LOCALID: not set, though SLURM_STEP_NUM_TASKS"),
        ({"SLURM_PROCID": "1"}, "found SLURM_PROCID 1, SLURM_STEP_NUM_TASKS not set"),
        (TASK | {"SLURM_PROCID": "4"}, "found SLURM_PROCID 4, SLURM_STEP_NUM_TASKS 4"),
        (TASK | {"SLURM_PROCID": "x"}, "found SLURM_PROCID x"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "MASTER_ADDR: not set, and mpirun does"),
        (without(MPICH, "PMI_SIZE"), "found PMI_RANK 1, PMI_SIZE not set"),
        (without(MPICH, "MPI_LOCALNRANKS"), "MASTER_ADDR: not set, and mpirun does not say"),
        ({"PMIX_RANK": "0"}, "PMIX_RANK: 0, and nothing says of how many"),
        ({"JOB_COMPLETION_INDEX": "0"}, "WORLD_SIZE: not set, though JOB_COMPLETION_INDEX is 0"),
    ],
)
def test_what_is_refused(environment: dict[str, str], says: str) -> None:
    told = read(environment)
    assert len(told.problems) == 1 and not told.changes
    assert says in told.problems[0]
