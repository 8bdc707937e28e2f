"""The processes of a run: how many there are, meeting them, and the device of this one."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from llama.errors import TrainingError
from llama.launch.parent import launcher_processes
from llama.launch.ranks import DEFAULT_PORT, port_of

MEETING = timedelta(minutes=10)
"""How long a rank waits for the others, at the start and in a collective: NCCL's own default."""


_ALONE = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def launched_world_size() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def meet_processes() -> torch.device:
    """Join the other processes of the run, or stand alone, and give this one's device. Raises
    `TrainingError` where they do not meet."""
    if launched_world_size() == 1:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
        for name, text in _ALONE.items():  # DeepSpeed asks for them, and uses none
            os.environ.setdefault(name, text)
    # An mpirun may have started the torchrun that started this: DeepSpeed wants both to agree.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)
    keep_freed_memory()
    device = _own_device()
    if not dist.is_initialized():
        _meet(device)
    return device


def stop_processes() -> None:
    """Leave the process groups, if this process is in any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(device: torch.device) -> None:
    # Named for the device, not as DeepSpeed would: its CPU default is a package of Intel's.
    device_id = device if device.type == "cuda" else None
    backend = "cpu:gloo,cuda:nccl" if device_id else "gloo"
    rank, ranks = int(os.environ["RANK"]), launched_world_size()
    try:
        store = _store(ranks)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=ranks,
            device_id=device_id,
            timeout=MEETING,
        )
    except RuntimeError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        advice = (
            "another run has this port; give another with --master_port, or as MASTER_PORT"
            if "EADDRINUSE" in str(error)
            else "every rank must be started, with the same address and port, and reach that host"
        )
        reason = str(error).splitlines()[0].rstrip(".")
        raise TrainingError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the others "
            f"at {place}: {reason}: {advice}"
        ) from error


def _store(ranks: int) -> Store:
    """Where the ranks find one another. One alone takes no port: another run may have it."""
    if ranks == 1:
        return dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    if port := _port_of_launcher(os.environ):
        os.environ["MASTER_PORT"] = str(port)
    # In a thread: one that waits for others inside torch hears no Ctrl-C.
    found: Future[Store] = Future()
    threading.Thread(target=_rendezvous, args=(found,), name="meeting", daemon=True).start()
    return PrefixStore(_name_of_run(), found.result())


def _rendezvous(found: Future[Store]) -> None:
    try:
        store, _, _ = next(rendezvous("env://", timeout=MEETING))
        found.set_result(store)
    except BaseException as error:
        found.set_exception(error)


def _name_of_run() -> str:
    """What keeps apart runs that come to one store. torchrun keeps its store when it starts the
    ranks anew: a start would find the addresses of ranks that have ended. deepspeed gives every run
    one port: where another run of this host has it, all ranks but the first would join that run in
    the moment before the first ends."""
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if os.environ.get("CROSS_SIZE") != "1":
        return start
    return "-".join([start, *(str(process.pid) for process in launcher_processes()[:1])])


def _port_of_launcher(environment: Mapping[str, str]) -> int | None:
    """A port of this launcher's own, in place of the one that deepspeed gives to every run: two
    runs of one host would both take it. Made of the number of the process that all ranks have
    above them. None where ranks are on other hosts too, or the user has given a port."""
    if environment.get("CROSS_SIZE") != "1" or environment["MASTER_PORT"] != str(DEFAULT_PORT):
        return None
    try:
        launchers = launcher_processes()
        typed = [word for launcher in launchers[1:] for word in launcher.cmdline()]
    except (psutil.Error, OSError):  # hidden from this user
        return None
    if len(launchers) < 2 or any(word.startswith("--master_port") for word in typed):
        return None
    return port_of(f"deepspeed {launchers[0].pid}")


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what comes next. By default every large tensor on the CPU
    is mapped anew and each of its pages faults again, which costs a tenth of a step and more.

    Threads keep arenas of their own (M_ARENA_MAX is left alone): those that share the work of one
    kernel allocate inside it, and would wait for one another at the lock of a common arena."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
