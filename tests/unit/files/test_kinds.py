"""Kinds of file by their first bytes: as each kind's own writer writes it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest
import safetensors.torch
import torch

from llama.files.kinds import HEAD, KINDS, TEXTS, kind_of, other_kind

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a1" * 32 + b"\nsize 13\n"
TABLE = pa.table({"prompt": ["one", "three"], "completion": ["two", "four"]})
LINES = b'{"prompt": "one", "completion": "two"}\n'
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in to continue</title></head></html>"


def _buffer(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _zip(name: str) -> bytes:
    return _buffer(lambda b: zipfile.ZipFile(b, "w").writestr(name, "x"))


def _tar(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))


def _stream(buffer: io.BytesIO) -> None:
    with pa.ipc.new_stream(buffer, TABLE.schema) as writer:
        writer.write_table(TABLE)


def _gguf(folder: Path) -> bytes:
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return (folder / "x.gguf").read_bytes()


def _database(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "x.db")
    connection.execute("create table rows (text)")
    connection.commit()
    connection.close()
    return (folder / "x.db").read_bytes()


WRITERS: dict[str, Callable[[Path], bytes]] = {
    "a Git LFS pointer": lambda _: POINTER,
    "a git-annex pointer": lambda _: b"/annex/objects/SHA256E-s13--a1.bin\n",
    "a safetensors file": lambda _: safetensors.torch.save({"a": torch.zeros(3)}),
    "a GGUF file": _gguf,
    "a PyTorch file of pickled tensors": lambda _: _buffer(lambda b: torch.save({"a": 1}, b)),
    "a pickle": lambda _: pickle.dumps({"a": 1}, protocol=4),
    "an Office document": lambda _: _zip("[Content_Types].xml"),
    "a NumPy archive": lambda _: _buffer(lambda b: np.savez(b, a=np.zeros(3))),
    "a zip archive": lambda _: _zip("rows.jsonl"),
    "gzip-compressed": lambda _: gzip.compress(LINES),
    "xz-compressed": lambda _: lzma.compress(LINES),
    "bzip2-compressed": lambda _: bz2.compress(LINES),
    "zstd-compressed": lambda _: pa.compress(LINES, "zstd", asbytes=True),
    "a tar archive": lambda _: _buffer(_tar),
    "a Parquet file": lambda _: _buffer(lambda b: pyarrow.parquet.write_table(TABLE, b)),
    "an Arrow file": lambda _: _buffer(lambda b: pyarrow.feather.write_feather(TABLE, b)),
    "an Arrow stream": lambda _: _buffer(_stream),
    "a Feather file": lambda _: _buffer(
        lambda b: pyarrow.feather.write_feather(TABLE, b, version=1)
    ),
    "an ORC file": lambda _: _buffer(lambda b: pyarrow.orc.write_table(TABLE, b)),
    "a NumPy array": lambda _: _buffer(lambda b: np.save(b, np.zeros(3))),
    "an SQLite database": _database,
    "UTF-32 text, not UTF-8": lambda _: LINES.decode().encode("utf-32"),
    "UTF-16 text, not UTF-8": lambda _: LINES.decode().encode("utf-16"),
    "all zero at its start": lambda _: bytes(1000),
    "an HTML page": lambda _: PAGE,
    "an XML document": lambda _: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "a server's error message in JSON": lambda _: b'{"error": "Repository not found"}',
    "JSON text": lambda _: LINES,
    "CSV text": lambda _: b"prompt,completion\none,two\n",
    "plain text": lambda _: b"Entry not found",
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_is_known_as_its_own_writer_writes_it(name: str, tmp_path: Path) -> None:
    head = WRITERS[name](tmp_path)[:HEAD]
    assert kind_of(head) == name
    assert other_kind(head, (name,)) is None
    told = other_kind(head, ())
    assert told is not None and told.startswith(f"is {name}") and "\n" not in told


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (LINES.decode().encode("utf-16-le"), "UTF-16 text, not UTF-8"),
        (LINES.decode().encode("utf-16-be"), "UTF-16 text, not UTF-8"),
        (b"\xef\xbb\xbf" + LINES, "JSON text"),
        (b"\xef\xbb\xbf" + POINTER, "a Git LFS pointer"),
        (b"\n  [1, 2]", "JSON text"),
        (b'"a name";other\n1;2\n', "CSV text"),
        (b"a\tb\r\n1\t2\r\n", "CSV text"),
        (b"a,b\r1,2\r", "CSV text"),
        (b",instruction,output\n0,a,b\n", "CSV text"),
        (b'"","instruction"\n"1","a"\n', "CSV text"),
        ("\u8d28\u95ee,\u7b54\u3048\na,b\n".encode(), "CSV text"),
        (b"question (en),rating 1/5?,note: long\n1,2,3\n", "CSV text"),
        (
            "a,b\nSay\u00a0hi\u200b\u3000\u2028,\U0001f468\u200d\U0001f469 \ufeff\n".encode(),
            "CSV text",
        ),
        ("a,b\n\U0001fae0,\u0378\n".encode(), "CSV text"),
        (b"Dear all, please read on.\nThese are no rows.\n", "plain text"),
        (b"one\ntwo\n", "plain text"),
        (b"Hello, who are you\nsecond one\n", "plain text"),
        (b"Call me Ishmael, he said\n\nAnd so it began.\n", "plain text"),
        (b"a,how sure are you of it\n1,2\n", "CSV text"),
        (b"a,b\n\x1b,2\n", None),
        (b"  <html lang='en'>", "an HTML page"),
        (_zip("archive/data.pkl"), "a PyTorch file of pickled tensors"),
        (_buffer(lambda b: zipfile.ZipFile(b, "w").close()), "a zip archive"),
        (b"{{ bos_token }}{% for m in messages %}", "plain text"),
        (b"IQ== 0\nIg== 1\n", "plain text"),
        ("äöü".encode(), "plain text"),
        (("ä" * HEAD).encode()[: HEAD - 1], "plain text"),
        (b"", None),
        (b"\0" * 8, None),
        (bytes(range(256)), None),
        ("äöü".encode("latin-1"), None),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\2", None),
    ],
)
def test_kinds_at_their_borders(head: bytes, name: str | None) -> None:
    assert kind_of(head) == name


@pytest.mark.parametrize("end", ["rating (1-5)", "courage!", '"', ""])
def test_a_first_line_of_many_commas_is_judged_at_once(end: str) -> None:
    """Each further comma once doubled the time: of 400 this would not end."""
    kind_of((",".join(["a long name of words"] * 400) + f",{end}\nx\n").encode()[:HEAD])
    kind_of((",".join(["a name of words"] * 200) + f",{end}\nx\n").encode())


def test_torch_s_older_form_is_torch_s() -> None:
    head = _buffer(lambda b: torch.save({"a": 1}, b, _use_new_zipfile_serialization=False))
    assert kind_of(head) == "a PyTorch file of pickled tensors"


def test_what_was_saved_in_its_place_is_shown() -> None:
    assert "'Sign in to continue'" in (other_kind(PAGE, TEXTS) or "")
    assert "'Entry not found'" in (other_kind(b"Entry not found", ()) or "")
    long = other_kind(json.dumps({"error": "x" * 1000}).encode(), ())
    assert long is not None and len(long) < 200


def test_every_row_of_the_table_that_a_package_here_can_write_is_tried() -> None:
    unwritten = {
        "a GGML file, older than GGUF",
        "lz4-compressed",
        "a 7-Zip archive",
        "a RAR archive",
        "an Avro file",
        "an HDF5 file",
        "a PDF",
        "an image",
    }
    assert {kind.name for kind in KINDS} == unwritten | set(WRITERS)
