"""Data files: what is in them, whatever they are called, and their rows."""

import bz2
import gzip
import json
import lzma
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError, reading
from rankwise.tasks.csv_text import find_separator, pandas_arguments, read_csv_text
from rankwise.tasks.hf_datasets import read_with_builder
from rankwise.tasks.json_records import read_json_text

SEPARATOR_OF_ENDING = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
JSON_ENDINGS = (".json", ".jsonl", ".ndjson", ".jsonlines")
COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
BINARY_ENDINGS = (".parquet", ".arrow")
TEXT_ENDINGS = (".txt", ".text")
FORMATS = (".csv", ".tsv", *JSON_ENDINGS, *BINARY_ENDINGS, ".txt")
"""Endings of the formats that are read, for messages."""

Opener = Callable[[Path], Any]


def _open_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


# First bytes of a file, and how to read what it holds.
COMPRESSIONS: dict[bytes, tuple[str, Opener]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
}
BUILDERS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
CONVERT_EXCEL = "pandas.read_excel({name!r}).to_csv({csv!r}, index=False) (needs openpyxl)"
CONVERT_PICKLE = "pandas.read_pickle({name!r}).to_parquet({parquet!r})"
CONVERT_ORC = "pandas.read_orc({name!r}).to_parquet({parquet!r})"
OTHER_KINDS = {
    b"\xd0\xcf\x11\xe0": (
        "an Excel workbook",
        f"save it as CSV, as with {CONVERT_EXCEL}",
    ),
    b"\x80": (
        "a pickle, which can run any program when it is opened, so it is not read",
        f"if you trust it, save it as Parquet with {CONVERT_PICKLE}",
    ),
    b"version https://git-lfs": (
        "a git-lfs pointer: git has not downloaded the data",
        "run: git lfs pull",
    ),
    b"<!doctype html": ("a web page", "download the file itself (the page's raw or download link)"),
    b"<html": ("a web page", "download the file itself (the page's raw or download link)"),
    b"SQLite format 3": (
        "an SQLite database",
        "save a table as CSV, as with pandas.read_sql and DataFrame.to_csv",
    ),
    b"\x89HDF": ("an HDF5 file", "save it as Parquet"),
    b"\x93NUMPY": ("a numpy array", "save texts and labels as a table, such as CSV"),
    b"ORC": ("an ORC file", f"save it as Parquet with {CONVERT_ORC}"),
    b"Obj\x01": ("an Avro file", "save it as Parquet"),
    b"%PDF": ("a PDF document", "save its texts as a table, such as CSV"),
    b"Rar!": ("a rar archive", "unpack it"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
}
"""What other files start with, in lower case for texts, what they are, and what to do."""


def read_file(path: Path, key: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a data file, and notes on how they were read.

    The content tells the format, so that JSON lines may have any name. The ending decides only
    between texts: ``.csv`` and ``.tsv`` are tables, ``.txt`` is a table or else a row for each
    line.

    Args:
        path: a file, which may be compressed.
        key: key of a JSON object that holds the records; None to find it.

    Raises:
        RequestError: the file is empty, of another kind, or malformed.
    """
    place = f"data {str(path)!r}"
    failure = f"{place} cannot be read"
    with reading(failure), tempfile.TemporaryDirectory(prefix="rankwise-") as directory:
        plain = _uncompressed(path, Path(directory))
        head = _head(plain)
        if not head:
            raise RequestError(f"{place} is empty")
        refuse_other_kind(plain, path)
        builder = next((BUILDERS[mark] for mark in BUILDERS if head.startswith(mark)), None)
        if builder is not None:
            if key is not None:
                raise _no_part(path, key)
            return read_with_builder(builder, [plain]), []
        return _read_text(plain.read_bytes(), path, key)


def plain_name(path: Path) -> Path:
    """Return the name of a file without the ending of its compression."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED_ENDINGS else path


def _no_part(path: Path, key: str) -> RequestError:
    return RequestError(f"data '{path}:{key}': no such file, and {path.name!r} has no parts")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _uncompressed(path: Path, directory: Path) -> Path:
    """Return the file itself, or a copy in a directory if it is compressed."""
    head = _head(path)
    for mark, (name, opener) in COMPRESSIONS.items():
        if not head.startswith(mark):
            continue
        copy = directory / "data"
        failure = f"data {str(path)!r} is a damaged {name} file; download it again"
        with reading(failure), opener(path) as packed, copy.open("wb") as target:
            shutil.copyfileobj(packed, target)
        return copy
    return path


def refuse_other_kind(file: Path, origin: Path | None = None) -> None:
    """Refuse a file of a kind that is not read, and say what it is and what to do.

    Args:
        file: the file to look into.
        origin: the file that the user has, if ``file`` is its unpacked copy.
    """
    head, path = _head(file), origin or file
    kind = next((OTHER_KINDS[mark] for mark in OTHER_KINDS if _starts(head, mark)), None)
    if head[257:262] == b"ustar":
        kind = ("a tar archive", "unpack it")
    if head.startswith(b"PK") and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        kind = ("a zip archive", "unpack it")
        if "xl/workbook.xml" in names or "content.xml" in names:
            kind = OTHER_KINDS[b"\xd0\xcf\x11\xe0"]
    if kind is None:
        return
    what, remedy = kind
    stem = plain_name(path).stem
    remedy = remedy.format(name=path.name, csv=f"{stem}.csv", parquet=f"{stem}.parquet")
    raise RequestError(f"data {str(path)!r} is {what}; {remedy}")


def _starts(head: bytes, mark: bytes) -> bool:
    # A pickle starts with its protocol, 2 to 5; 0x80 alone may be a letter of another encoding.
    if mark == b"\x80":
        return head[:1] == mark and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return head.startswith(mark) or (mark[:1] == b"<" and head.lstrip().lower().startswith(mark))


def _read_text(content: bytes, path: Path, key: str | None) -> tuple[pd.DataFrame, list[str]]:
    place = f"data {str(path)!r}"
    text, notes = _decode(content, path)
    del content  # which the text takes the place of in memory
    if not text or text.isspace():
        raise RequestError(f"{place} is empty")
    ending = plain_name(path).suffix.lower()
    if _is_json(text, ending):
        rows, more = read_json_text(text, path, key)
        return rows, notes + more
    if key is not None:
        raise _no_part(path, key)
    expected = SEPARATOR_OF_ENDING.get(ending)
    if expected is None and (ending in TEXT_ENDINGS or not ending):
        expected = find_separator(text, "\t")
        expected = expected if expected == "\t" else None  # commas occur in any text
    if expected is not None:
        rows, more = read_csv_text(text, place, expected)
        return rows, notes + more
    if ending in TEXT_ENDINGS:
        lines = [line for line in text.splitlines() if line.strip()]
        blank = len(text.splitlines()) - len(lines)
        left_out = f"; blank lines left out: {blank}" if blank else ""
        return pd.DataFrame({"text": lines}), [*notes, f"a row for each line{left_out}"]
    if ending in BINARY_ENDINGS:
        raise RequestError(f"{place} is text, and no {ending[1:]} file; name it for what it holds")
    if ending == ".py":
        raise RequestError(f"{place} is a Python program, which is not run; name a data file")
    raise RequestError(
        f"{place}: its ending tells no format; allowed endings are {', '.join(FORMATS)}, and "
        f"{', '.join(COMPRESSED_ENDINGS)} after them"
    )


def _is_json(text: str, ending: str) -> bool:
    start = text.lstrip()[:1]
    if ending in JSON_ENDINGS or (start in ("{", "[") and ending not in SEPARATOR_OF_ENDING):
        return True
    try:
        return isinstance(json.loads(text.lstrip().split("\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _decode(content: bytes, path: Path) -> tuple[str, list[str]]:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark."""
    place = f"data {str(path)!r}"
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise RequestError(f"{place}: damaged {encoding} at byte {error.start}") from None
        raise RequestError(f"{place}: {_name_encoding(content, error.start, path)}") from None
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        new = f"new-{path.name}"
        raise RequestError(
            f"{place}: line {line} holds a null byte, so the file is damaged or no text; remove "
            f"null bytes with pathlib.Path({new!r}).write_bytes("
            f"pathlib.Path({path.name!r}).read_bytes().replace(b'\\0', b''))"
        )
    return text, [] if encoding.startswith("utf-8") else [f"encoding {encoding}"]


def _name_encoding(content: bytes, position: int, path: Path) -> str:
    """Return why a text is not UTF-8, how it reads in cp1252, and how to save it as UTF-8."""
    line = content.count(b"\n", 0, position) + 1
    first = content.rfind(b"\n", 0, position) + 1
    nearby = content[max(first, position - 20) : position + 20].split(b"\n")[0].strip()
    encoding = "cp1252"
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        encoding = "latin-1"  # reads any bytes
    shown = nearby.decode(encoding)
    name, new = plain_name(path).name, f"new-{plain_name(path).name}"
    remedy = (
        f"pathlib.Path({new!r}).write_text(pathlib.Path({name!r}).read_text(encoding="
        f"{encoding!r}), encoding='utf-8')"
    )
    expected = SEPARATOR_OF_ENDING.get(plain_name(path).suffix.lower())
    if expected is not None:
        how = pandas_arguments(content.decode(encoding), expected)
        out = "" if expected == "," else f", sep={expected!r}"
        remedy = (
            f"pandas.read_csv({path.name!r}, encoding={encoding!r}{how}, keep_default_na=False)"
            f".to_csv({new!r}, index=False{out})"
        )
    elif name != path.name:
        remedy = f"unpack it, then {remedy}"
    return (
        f"not UTF-8 (line {line}); in {encoding} it reads {shown!r}; if that is right, save it "
        f"as UTF-8: {remedy}"
    )
