"""What kind of file it is, by its first bytes: known before any parser stumbles over it.

A file that is of a known other kind is answered with that kind and with what to do, wherever a file
of the user's is opened: `llama.files.inputs.file_problem` asks here for all of them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

HEAD = 4096
"""Bytes of a file's start that are looked at."""

SAFETENSORS = "a safetensors file"
TORCH = "a PyTorch file of pickled tensors"
PICKLE = "a pickle"
GGUF = "a GGUF file"
PARQUET = "a Parquet file"
JSON = "JSON text"
CSV = "CSV text"
TEXT = "plain text"
ERROR = "a server's error message in JSON"
TEXTS = (TEXT, JSON, CSV, ERROR)
"""Kinds that a reader of any text takes: what the text says is its own matter."""

Test = Callable[[bytes], bool]
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""What no text holds. Spaces and joiners of any script, and characters younger than this Python,
are as good as letters."""
_NAME = re.compile(r"\w")
_WORDS = 2
"""Of a name; what has more may be a part of a sentence."""
_LINE_END = re.compile(r"\r|\n")
_UNPACK = "unpack it first"
_AGAIN = "it was saved in the file's place; download the file again"
_ROWS = "it holds rows of data"
_UTF8 = "save it as UTF-8"
_MEDIA = "it was given by mistake"


@dataclass(frozen=True)
class Kind:
    """`name` completes `the file is ...`; `advice` says what to do with it."""

    name: str
    test: Test
    advice: str
    quoted: bool = False
    """Whether the message shows how the file begins: its text says what went wrong."""


def _magic(*beginnings: bytes, at: int = 0) -> Test:
    return lambda head: any(head.startswith(magic, at) for magic in beginnings)


def _pattern(pattern: bytes) -> Test:
    compiled = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:" + pattern + rb")", re.IGNORECASE)
    return lambda head: compiled.match(head) is not None


def _first_entry(pattern: bytes) -> Test:
    """A zip archive whose first entry goes by such a name."""

    def test(head: bytes) -> bool:
        length = int.from_bytes(head[26:28], "little")
        return head.startswith(b"PK\3\4") and bool(re.search(pattern, head[30 : 30 + length]))

    return test


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, at most the format's own 100 MB, then a JSON object of that length."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _is_zero(head: bytes) -> bool:
    return len(head) >= 64 and not any(head)


def _is_utf16(head: bytes) -> bool:
    """By its mark, or unmarked: every second byte is zero and those between are ASCII."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    sample = head[: len(head) // 2 * 2][:64]
    for text, zeros in ((sample[::2], sample[1::2]), (sample[1::2], sample[::2])):
        if len(text) >= 4 and not any(zeros) and _is_text(text):
            return True
    return False


def _is_text(head: bytes) -> bool:
    """UTF-8 (whose last character the head may cut) without control characters."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text.strip()) and not _CONTROL.search(text)


def _is_json(head: bytes) -> bool:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    jinja = start.startswith((b"{{", b"{%", b"{#"))
    return start.startswith((b"{", b"[")) and not jinja and b"\0" not in head


def csv_mark(text: str, usual: str = ",") -> str:
    """What parts the names in the first line of `text`, which is CSV: the mark of which there are
    most, `usual` before others."""
    return max(usual + ",;\t", key=_LINE_END.split(text, 1)[0].count)


def _is_csv(head: bytes) -> bool:
    """A first line of names parted by one separator, and a line after it; of as many values, where
    a name is as long as a part of a sentence. The first name may be empty: so pandas and R write
    the column of row numbers."""
    if not _is_text(head):
        return False
    line, *rest = _LINE_END.split(head.decode("utf-8-sig", "ignore"), 1)
    try:
        found = next(csv.reader([line], delimiter=csv_mark(line), strict=True), [])
    except csv.Error:
        return False
    if not (rest and len(found) > 1 and all(map(_NAME.search, found[1:]))):
        return False
    if max(len(name.split()) for name in found) <= _WORDS:
        return not found[-1].endswith((".", "!"))
    second = rest[0].splitlines()[:1]
    return second != [] and len(next(csv.reader(second, delimiter=csv_mark(line)))) == len(found)


KINDS = (
    Kind(
        "a Git LFS pointer",
        _pattern(rb"version https://(git-lfs|hawser)\.github\.com/spec/"),
        "fetch the file itself: git lfs install, then git lfs pull, in its folder",
    ),
    Kind(
        "a git-annex pointer",
        _magic(b"/annex/objects/"),
        "fetch the file itself: git annex get, in its folder",
    ),
    Kind(SAFETENSORS, _is_safetensors, "it holds weights"),
    Kind(GGUF, _magic(b"GGUF"), "it holds a model of llama.cpp's"),
    Kind(
        "a GGML file, older than GGUF",
        _magic(b"lmgg", b"fmgg", b"tjgg", b"algg"),
        "convert it with llama.cpp",
    ),
    Kind(TORCH, _first_entry(rb"(^|/)data\.pkl$"), "save_pretrained() makes safetensors of it"),
    Kind(
        TORCH,  # as torch wrote it before 1.6: its magic number, pickled
        _magic(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        "save_pretrained() makes safetensors of it",
    ),
    Kind(PICKLE, _pattern(rb"\x80[\x02-\x05][\x28-\x95]"), "pickles are not read"),
    Kind("an Office document", _first_entry(rb"^\[Content_Types\]|^(xl|word)/"), "export it"),
    Kind("an Office document", _magic(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "export it"),
    Kind("a NumPy archive", _first_entry(rb"\.npy$"), "it holds arrays"),
    Kind("a zip archive", _magic(b"PK\3\4", b"PK\5\6", b"PK\7\x08"), f"{_UNPACK} (unzip)"),
    Kind("gzip-compressed", _magic(b"\x1f\x8b"), f"{_UNPACK} (gunzip)"),
    Kind("zstd-compressed", _magic(b"\x28\xb5\x2f\xfd"), f"{_UNPACK} (unzstd)"),
    Kind("xz-compressed", _magic(b"\xfd7zXZ\0"), f"{_UNPACK} (unxz)"),
    Kind("bzip2-compressed", _pattern(rb"BZh[1-9]1AY&SY"), f"{_UNPACK} (bunzip2)"),
    Kind("lz4-compressed", _magic(b"\x04\x22\x4d\x18"), f"{_UNPACK} (unlz4)"),
    Kind("a 7-Zip archive", _magic(b"7z\xbc\xaf\x27\x1c"), _UNPACK),
    Kind("a RAR archive", _magic(b"Rar!\x1a\x07"), _UNPACK),
    Kind("a tar archive", _magic(b"ustar", at=257), f"{_UNPACK} (tar -xf)"),
    Kind(PARQUET, _magic(b"PAR1"), _ROWS),
    Kind("an Arrow file", _magic(b"ARROW1"), f"{_ROWS}; save them as Parquet or JSONL"),
    Kind(
        "an Arrow stream",
        lambda head: head.startswith(b"\xff" * 4) and head[7:8] == b"\0" and len(head) > 8,
        f"{_ROWS}; save them as Parquet or JSONL",
    ),
    Kind("a Feather file", _magic(b"FEA1"), f"{_ROWS}; save them as Parquet or JSONL"),
    Kind("an ORC file", _magic(b"ORC"), f"{_ROWS}; save them as Parquet or JSONL"),
    Kind("an Avro file", _magic(b"Obj\1"), f"{_ROWS}; save them as Parquet or JSONL"),
    Kind("a NumPy array", _magic(b"\x93NUMPY"), "it holds an array"),
    Kind("an HDF5 file", _magic(b"\x89HDF\r\n\x1a\n"), "it holds arrays"),
    Kind("an SQLite database", _magic(b"SQLite format 3\0"), "export its rows as JSONL"),
    Kind("a PDF", _magic(b"%PDF-"), _MEDIA),
    Kind("an image", _magic(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8"), _MEDIA),
    Kind("UTF-32 text, not UTF-8", _magic(b"\xff\xfe\0\0", b"\0\0\xfe\xff"), _UTF8),
    Kind("UTF-16 text, not UTF-8", _is_utf16, _UTF8),
    Kind("all zero at its start", _is_zero, "its download did not end; download it again"),
    Kind("an HTML page", _pattern(rb"<!doctype\s+html|<html|<head"), _AGAIN, quoted=True),
    Kind("an XML document", _pattern(rb"<\?xml|<error>"), _AGAIN, quoted=True),
    Kind(ERROR, _pattern(rb'\{\s*"error(_?type|s|_?code)?"\s*:'), _AGAIN, quoted=True),
    Kind(JSON, _is_json, "the file itself is wanted", quoted=True),
    Kind(CSV, _is_csv, f"{_ROWS}; save them as JSONL", quoted=True),
    Kind(TEXT, _is_text, "the file itself is wanted", quoted=True),
)
"""In the order in which they are asked: the first that fits is what the file is."""


def kind_of(head: bytes) -> str | None:
    """What a file that begins with `head` (`HEAD` bytes, or all of it) is: the name of one of
    `KINDS`, or None where its bytes tell nothing."""
    found = _kind(head)
    return found and found.name


def other_kind(head: bytes, wanted: Collection[str]) -> str | None:
    """`is gzip-compressed: unpack it first (gunzip)`, where `head` is of a known kind that is not
    among the `wanted` ones; else None: then it is for the parser to say what is wrong."""
    found = _kind(head)
    if found is None or found.name in wanted:
        return None
    shown = f" that begins {_beginning(head)}" if found.quoted else ""
    return f"is {found.name}{shown}: {found.advice}"


def _kind(head: bytes) -> Kind | None:
    return next((kind for kind in KINDS if kind.test(head)), None)


def _beginning(head: bytes) -> str:
    """The title of a page, or the first line, short."""
    title = re.search(rb"<title>\s*([^<]+)", head, re.IGNORECASE)
    text = (title[1] if title else head).decode("utf-8", "replace").lstrip("\ufeff").strip()
    line = text.partition("\n")[0].strip()
    return repr(line if len(line) <= 60 else line[:57] + "...")
