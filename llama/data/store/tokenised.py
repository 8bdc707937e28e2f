"""Data files made into examples: read, checked and tokenised part by part, and kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.data.columns import Renamer
from llama.data.examples import REFUSED, refusals
from llama.data.flat import DTYPES, Examples, flat_of, repeats
from llama.data.rows import read_rows
from llama.data.source import Source
from llama.data.store.cache import cached, default_folder, in_memory
from llama.data.store.entry import Entry, Sink
from llama.data.store.keys import key_of
from llama.data.store.making import Made, Making, make_first, parts
from llama.data.store.pool import cpus, make_in
from llama.data.stream import UnsoundError
from llama.data.tally import Tally
from llama.errors import UserError, raise_if
from llama.files.inputs import sha256_of
from llama.files.shards import data_files
from llama.tokenizer.jinja_sandbox import day_written

SMALL = 4 << 20
"""Bytes of files that are made anew at each start, in this process and in memory: it takes no
longer than to start others, and there is nothing to tell of it."""


@dataclass(frozen=True)
class Tokenised:
    """The examples of all rows of a data set, in the order of the rows."""

    source: Source
    sha256: tuple[str, ...]
    """Of each file."""
    tally: Tally
    entry: Entry
    cache: tuple[Path, str] | None
    """Folder and key, if it is kept."""

    @property
    def examples(self) -> Examples:
        return Examples(flat_of(self.entry.arrays, self.tally.largest_id, held=self.entry.held))


def tokenise(
    paths: Sequence[Path], making: Making, cache: Path | None = None, first: int | None = None
) -> Tokenised:
    """Every row of the files and folders at `paths`, or the `first` ones; kept in `cache`, by
    default in `default_folder()`. Raises UserError with all that is wrong with the rows."""
    try:
        files = tuple(file for path in paths for file in data_files(path))
        before = list(map(_stamp, files))
        hashes = tuple(map(sha256_of, files))
        job = _Job(paths, files, making, first)
        kept = None
        if first is None and sum(size for size, *_ in before) >= SMALL:
            day = day_written(making.template.jinja(making.tokenizer))
            key = key_of(files=hashes, making=vars(making), day=day)
            kept = (cache or default_folder(), key)
            entry = cached(*kept, DTYPES, job.fill, asked=str([*map(str, paths)]))
        else:
            entry = in_memory(DTYPES, job.fill)
    except OSError:
        read_rows(paths, making.columns)  # Names the file and why it cannot be read.
        raise
    changed = [file for file, was in zip(files, before, strict=True) if _stamp(file) != was]
    raise_if(
        [f"{file}: changed while it was read; start again once it is whole" for file in changed]
    )
    facts = entry.facts
    source = Source(files, tuple(facts["starts"]))
    return Tokenised(source, hashes, Tally.from_json(facts["tally"]), entry, kept)


def _stamp(file: Path) -> tuple[int, int, int]:
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True)
class _Job:
    paths: Sequence[Path]
    files: tuple[Path, ...]
    making: Making
    first: int | None

    def fill(self, sink: Sink, alone: bool) -> dict[str, Any]:
        """Put every example into `sink`; gives the tally and where each file's numbers start."""
        starts: list[int] = []
        tally = Tally()
        refused: list[tuple[int, str]] = []
        renamer = Renamer(self.making.columns)
        try:
            forms: dict[int, str] = {}
            for made, file in self._made(starts, alone):
                if made.form != forms.setdefault(file, made.form or ""):
                    raise UnsoundError(f"{self.files[file]}: rows of several forms")
                refused += made.refused
                if len(refused) > REFUSED:
                    read_rows(self.paths, self.making.columns)  # A file's own go first.
                    break
                renamer.merge(made.renamer)
                tally.merge(made.tally)
                sink.add(made.arrays)
        except (UnsoundError, UserError) as error:
            read_rows(self.paths, self.making.columns)
            raise AssertionError("read whole, the files have nothing wrong in them") from error
        source = Source(self.files, tuple(starts))
        if len(refused) <= REFUSED:  # all rows were looked at
            raise_if(renamer.problems(source.name))
        raise_if(refusals(source, refused[: REFUSED + 1]))
        tally.duplicates = repeats(sink.so_far("contents").reshape(-1, 2))
        return {"starts": starts, "tally": tally.as_json()}

    def _made(self, starts: list[int], alone: bool) -> Iterator[tuple[Made, int]]:
        """Every part made, with the index of its file."""
        owners: list[int] = []

        def noted() -> Iterator[Any]:
            for part in parts(self.files, starts):
                owners.append(len(starts) - 1)
                yield part

        count = cpus(alone)
        large = sum(os.path.getsize(file) for file in self.files) >= SMALL
        if self.first is None and large and count > 1:
            every = make_in(noted(), self.making, count)
        else:
            every = make_first(noted(), self.making, self.first)
        for index, made in enumerate(every):
            yield made, owners[index]
