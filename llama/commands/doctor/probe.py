"""What one host is, as a JSON object on a marked line:
`python -m llama.commands.doctor.probe REQUEST`.

Only Python's own library is imported at the top: a host without torch must be able to say so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from llama.files.hub_rows import hub_name
from llama.files.json_text import json_text
from llama.files.shards import data_files, sha256_of_files
from llama.files.weighted import without_weights
from llama.launch.packages import COMPUTING

MARK = "llama-doctor: "
"""Begins each line that is meant for doctor."""


def say(record: dict[str, Any]) -> None:
    """One write, so that lines of several processes do not mix."""
    sys.stdout.write(f"{MARK}{json_text(record)}\n")
    sys.stdout.flush()


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """`request` holds `port`, `output_dir`, the paths `data`, and `master_addr` and `model`, which
    are None where they were not given."""
    found: dict[str, Any] = {
        "boot": boot_id(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in COMPUTING},
        "code": code_hash(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _available_memory(),
        "address": (address := request["master_addr"] or _first_address()),
        "address_is_here": address is not None and _is_here(address),
        "name_means": _attempt(lambda: socket.gethostbyname(socket.gethostname())),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "gloo_interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "port": _port_problem(request["port"]),
        "disk": _disk(Path(request["output_dir"])),
        **_devices(),
    }
    paths = without_weights([Path(path) for path in request["data"]])
    of_hub = [path for path in paths if hub_name(path) is not None]
    for what, own in (("data", [p for p in paths if p not in of_hub]), ("hub data", of_hub)):
        if own:
            found[what] = _attempt(lambda own=own: _data(own))
    if request["model"] is not None:
        found["model"] = _attempt(lambda: _model(request["model"]))
    return found | {"clock": time.time()}  # last: it is compared with the time of arrival


def boot_id() -> str:
    """The same in every container of a running machine, and of no other machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def code_hash() -> str:
    """SHA-256 over the package's source, shortened."""
    root = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _attempt(get: Callable[[], Any]) -> Any:
    """What `get` gives, or `{"error": why}`: a probe reports what is broken and goes on."""
    try:
        return get()
    except Exception as error:
        return {"error": str(error).partition("\n")[0] or type(error).__name__}


def _available_memory() -> int | None:
    """Bytes of main memory that a new process could take."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _first_address() -> str | None:
    """What DeepSpeed takes for the first host's address: the first word of `hostname -I`."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=5)
        return next(iter(done.stdout.split()), None)
    return None


def _is_here(address: str) -> bool:
    """Whether a socket of this host can have the address."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as server:
            server.bind(where)
    except OSError:
        return False
    return True


def _port_problem(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
            server.listen()
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
    return None


def _disk(folder: Path) -> dict[str, Any]:
    """Of the nearest folder that is there: nothing is made."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    return {"folder": str(place), "free": free, "writable": os.access(place, os.W_OK | os.X_OK)}


def _devices() -> dict[str, Any]:
    """CUDA devices with name, free and total bytes."""
    try:
        import torch

        devices = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            devices.append({"name": name, "free": free, "total": total})
        return {"devices": devices, "devices_error": None}
    except Exception as error:  # a driver's or a library's, of any kind
        return {"devices": [], "devices_error": str(error).partition("\n")[0]}


def _data(paths: Sequence[Path]) -> dict[str, Any]:
    files = [file for path in paths for file in data_files(path)]
    size = sum(file.stat().st_size for file in files)
    return {"sha256": sha256_of_files(files), "bytes": size}


def _model(name: str) -> dict[str, Any]:
    """Its headers are checked and its files hashed; no weights load."""
    from llama.weights.open_model import open_model

    source = open_model(name)
    size = sum(path.stat().st_size for path in source.files)
    half = 2 * source.config.parameter_count()
    return {"sha256": source.reader.fingerprint(), "bytes": size, "half_bytes": half}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    signal.alarm(asked["limit"])  # nothing is left behind where ssh is cut off
    os.environ["HF_HUB_OFFLINE"] = "1"  # a check downloads nothing
    say(probe(asked))
