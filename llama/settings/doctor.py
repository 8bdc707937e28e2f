"""The settings of `doctor`; the docstring under a field is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Settings of `doctor`."""

    hostfile: Path | None = None
    """The hostfile that deepspeed will be given, asked over ssh; none means this machine."""
    model: str | None = None
    """A model, named as in train, whose files must be the same on every host."""
    data: list[Path] = field(default_factory=list)
    """Files or folders of shards, as in train, that must be the same on every host."""
    output_dir: Path = Path("runs")
    """Folder that the run will write, on the first host."""
    master_addr: str | None = None
    """Address of the first host; none means the first that hostname -I gives there, as in
    deepspeed."""
    master_port: int = 29500
    """Port on which the ranks meet, as in deepspeed."""
    ssh_port: int | None = None
    """Port of ssh, as in deepspeed; none means ssh's own."""
    ranks: int | None = None
    """Processes of the all-reduce on this machine; none means one for each GPU, or 2 without."""
    size_mb: int = 64
    """Size of the all-reduce, in MiB."""
    timeout: int = 120
    """Seconds that a host may take to answer, and the all-reduce to end; hashing a large model
    takes longer."""
    json: bool = False
    """Whether the last line of standard output is the result as one JSON object."""
