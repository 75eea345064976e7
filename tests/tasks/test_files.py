"""Data files of many kinds, under many names."""

import bz2
import gzip
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.files import plain_name, read_file
from tests.tasks.advice import follow

TABLE = pd.DataFrame(
    {"text": ["one, two", 'a "quoted" word', "None", "naïve\tcafé"], "label": [0, 1, 0, 1]}
)
CSV = TABLE.to_csv(index=False)
LINES = TABLE.to_json(orient="records", lines=True, force_ascii=False)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("data.csv.bz2", bz2.compress(CSV.encode())),
        ("data.jsonl.xz", lzma.compress(LINES.encode())),
        ("data.jsonl.zst", zstd(LINES.encode())),
        ("named-gz-but-is-none.csv.gz", CSV.encode()),
        ("bom.csv", CSV.encode("utf-8-sig")),
        ("bom.jsonl", LINES.encode("utf-8-sig")),
        ("wide.csv", CSV.encode("utf-16")),
        ("wide.jsonl", LINES.encode("utf-16-le")),
        ("windows.csv", CSV.replace("\n", "\r\n").encode()),
        ("windows.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("data.jsonlines", LINES.encode()),
        ("data.ndjson", LINES.encode()),
        ("data.txt", LINES.encode()),
        ("data", LINES.encode()),
        ("data[1].csv", CSV.encode()),
    ],
)
def test_the_content_tells_the_format(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows, _ = read_file(path)
    pd.testing.assert_frame_equal(rows, TABLE)


def write_arrow_stream(path: Path) -> None:
    table = pa.Table.from_pandas(TABLE)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data.parquet", TABLE.to_parquet),
        ("data[1].parquet", TABLE.to_parquet),
        ("no-ending", TABLE.to_parquet),
        ("indexed.parquet", TABLE.set_index(pd.Index([4, 5, 6, 7])).to_parquet),
        ("data.arrow", write_arrow_stream),
        ("data.feather", lambda path: pyarrow.feather.write_feather(TABLE, path)),
        ("packed.parquet.gz", lambda path: path.write_bytes(gzip.compress(TABLE.to_parquet()))),
    ],
)
def test_columnar_files_are_read_by_datasets(
    tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    rows, _ = read_file(tmp_path / name)
    pd.testing.assert_frame_equal(rows, TABLE)


def test_class_names_and_nested_values_of_parquet_are_plain_python(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "turns": datasets.List(
                {"role": datasets.Value("string"), "n": datasets.List(datasets.Value("int64"))}
            ),
        }
    )
    turns = [[{"role": "user", "n": [1, 2]}], [{"role": "user", "n": []}], []]
    data = {"label": [0, 1, -1], "turns": turns}
    datasets.Dataset.from_dict(data, features).to_parquet(tmp_path / "data.parquet")
    rows, _ = read_file(tmp_path / "data.parquet")
    assert list(rows["turns"]) == turns
    assert list(rows["label"][:2]) == ["bad", "good"] and pd.isna(rows["label"][2])


def test_a_changed_file_is_read_anew_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, scratch, data = tmp_path / "cache", tmp_path / "scratch", tmp_path / "data"
    scratch.mkdir()
    data.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    for count in (1, 2, 3):
        TABLE.head(count).to_parquet(data / "data.parquet")
        assert len(read_file(data / "data.parquet")[0]) == count
    assert list(data.iterdir()) == [data / "data.parquet"]
    assert not cache.exists() and not list(scratch.iterdir())


def test_reading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TABLE.to_parquet(tmp_path / "data.parquet")
    read_file(tmp_path / "data.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more PAR1")
    with pytest.raises(RequestError, match=r"bad\.parquet' cannot be read: Parquet"):
        read_file(tmp_path / "bad.parquet")
    assert capfd.readouterr() == ("", "")


def make_archive(path: Path, kind: str) -> None:
    member = path.parent / "member.csv"
    member.write_text(CSV)
    if kind == "tar":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(member, "member.csv")
    else:
        name = "xl/workbook.xml" if kind == "excel" else "member.csv"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(member, name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.csv", b"", "is empty"),
        ("empty.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("blank.jsonl", b"\n \n", "is empty"),
        ("cut.csv.gz", gzip.compress(CSV.encode() * 99, mtime=0)[:-9], "is a damaged gzip file; download it again: "),
        ("cut.csv.xz", lzma.compress(CSV.encode() * 99)[:-9], "is a damaged xz file; download it again: "),
        ("data.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer.*git lfs pull"),
        ("data.csv", b"\n<!DOCTYPE html>\n<html>", "a web page; download the file itself"),
        ("data.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel workbook; .*read_excel"),
        ("data.db", b"SQLite format 3\0", "an SQLite database"),
        ("data.parquet", b"no such thing", "is text, and no parquet file"),
        ("readme.md", b"# Data\n", "allowed endings are .csv"),
        ("script.py", b"import os\n", "a Python program, which is not run"),
        ("data.xlsx", "excel", "Excel workbook; .*read_excel"),
        ("data.zip", "zip", "a zip archive; unpack it"),
        ("data.tar.gz", "tar", "a tar archive; unpack it"),
    ],
)  # fmt: skip
def test_other_files_are_named_for_what_they_are(
    tmp_path: Path, name: str, content: bytes | str, words: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        make_archive(path, content)
    with pytest.raises(RequestError, match=words) as caught:
        read_file(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_pickle_is_not_opened_and_the_advice_saves_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(TABLE))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("opened a pickle"))
    with pytest.raises(RequestError, match="a pickle, which can run any program") as caught:
        read_file(path)
    monkeypatch.undo()
    pd.testing.assert_frame_equal(
        read_file(follow(str(caught.value), tmp_path, monkeypatch))[0], TABLE
    )


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "semicolons.csv", "data.jsonl", "data.txt", "packed.csv.gz"])  # fmt: skip
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_other_encodings_are_named_and_the_advice_gives_a_file_that_is_read(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"text": ["plain", "café, “NA”", "NA"], "rate": [0.5, 1.5, 2.5]})
    if encoding == "latin-1":  # has a character that cp1252 lacks
        table.loc[1, "text"] = "caf\x8dé, NA"
    sep, decimal = {"data.tsv": ("\t", "."), "semicolons.csv": (";", ",")}.get(name, (",", "."))
    text = table.to_csv(index=False, sep=sep, decimal=decimal)
    if name in ("data.jsonl", "data.txt"):
        text = table.to_json(orient="records", lines=True, force_ascii=False)
    content = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(
        RequestError, match=rf"not UTF-8 \(line \d\); in {encoding} it reads .*caf"
    ) as caught:
        read_file(tmp_path / name)
    saved = follow(str(caught.value), tmp_path, monkeypatch)
    assert saved.name == f"new-{plain_name(Path(name))}"
    pd.testing.assert_frame_equal(read_file(saved)[0], table)


def test_a_null_byte_is_named_with_its_line_and_the_advice_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.csv").write_bytes(b"text,label\na,1\nb\0c,2\n")
    with pytest.raises(RequestError, match="line 3 holds a null byte") as caught:
        read_file(tmp_path / "data.csv")
    rows, _ = read_file(follow(str(caught.value), tmp_path, monkeypatch))
    assert list(rows["text"]) == ["a", "bc"]


def test_a_text_file_is_a_table_with_tabs_or_else_a_row_for_each_line(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("text\tlabel\none, two\t1\n")
    assert list(read_file(path)[0].columns) == ["text", "label"]
    path.write_text("First line, here.\n\nAnother line, there.\n")
    rows, notes = read_file(path)
    assert list(rows["text"]) == list(
        datasets.Dataset.from_text(str(path), cache_dir=tmp_path / "c")["text"][::2]
    )
    assert notes == ["a row for each line; blank lines left out: 1"]
