"""Directories as cloned, downloaded or saved, and parts of files."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.readers import Table, file_fingerprint, is_hub_id, read_table


def rows(count: int, start: int = 0) -> pd.DataFrame:
    numbers = range(start, start + count)
    return pd.DataFrame({"text": [f"text {n}" for n in numbers], "label": [n % 2 for n in numbers]})


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A data set's repository: two shards of one split, one of another."""
    data = tmp_path / "snapshot" / "data"
    data.mkdir(parents=True)
    rows(3).to_parquet(data / "train-00000-of-00002.parquet")
    rows(2, 3).to_parquet(data / "train-00001-of-00002.parquet")
    rows(1, 5).to_parquet(data / "test-00000-of-00001.parquet")
    (tmp_path / "snapshot" / "README.md").write_text("# Data\n")
    (tmp_path / "snapshot" / ".git").mkdir()
    return tmp_path / "snapshot"


def test_all_shards_of_a_split_are_read_and_named(
    snapshot: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = read_table(snapshot)
    assert table.texts("text") == list(rows(5)["text"])
    first, second = table.notes
    assert "split 'train' from 2 files: data/train-00000-of-00002.parquet, data/train" in first
    assert (
        f"not part of these data: test (name one after a colon, as in eval_data '{snapshot}:test')"
        in second
    )
    assert read_table(Path(f"{snapshot}:test")).texts("text") == ["text 5"]
    with pytest.raises(
        RequestError, match=r"no split 'tset' \(did you mean 'test'\?\); splits: train, test"
    ):
        read_table(Path(f"{snapshot}:tset"))
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_tells_splits_apart_and_ignores_hidden_files(snapshot: Path) -> None:
    whole, test = file_fingerprint(snapshot), file_fingerprint(Path(f"{snapshot}:test"))
    assert whole != test
    (snapshot / ".git" / "index").write_text("changed")
    assert (file_fingerprint(snapshot), file_fingerprint(Path(f"{snapshot}:test"))) == (whole, test)


def test_a_name_that_is_not_utf_8_is_part_of_the_fingerprint_and_no_failure(snapshot: Path) -> None:
    before = file_fingerprint(snapshot)
    (snapshot / os.fsdecode(b"caf\xe9.csv")).write_text("text,label\na,b\n")
    assert file_fingerprint(snapshot) != before
    assert len(read_table(Path(f"{snapshot}:test")))


def test_a_part_of_a_local_directory_is_no_hub_id(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(snapshot.parent)
    assert not is_hub_id(Path("snapshot/data:test"))
    assert is_hub_id(Path("owner/data:test"))


def test_configurations_of_a_card_are_asked_about_and_read(tmp_path: Path) -> None:
    for name, count in (("one", 2), ("two", 3)):
        (tmp_path / name).mkdir()
        rows(count).to_csv(tmp_path / name / "x.csv", index=False)
    card = "configs:\n- config_name: one\n  data_files: one/*.csv\n- config_name: two\n  data_files: two/*.csv\n"
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    with pytest.raises(
        RequestError, match=rf"configurations one, two; name one, as in '{tmp_path}:one'"
    ):
        read_table(tmp_path)
    assert len(read_table(Path(f"{tmp_path}:one"))) == 2
    assert len(read_table(Path(f"{tmp_path}:two:train"))) == 3


def test_class_names_of_a_card_are_used(tmp_path: Path) -> None:
    rows(4).to_csv(tmp_path / "train.csv", index=False)
    label = "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': bad\n          '1': good\n"
    text = "  - name: text\n    dtype: string\n"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features:\n{text}{label}---\n")
    assert read_table(tmp_path).labels("label") == ["bad", "good", "bad", "good"]


def test_splits_by_file_names_of_any_format_are_read(tmp_path: Path) -> None:
    lines = rows(2).to_json(orient="records", lines=True).encode()
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "valid.jsonl.gz").write_bytes(gzip.compress(lines * 2))
    assert len(read_table(tmp_path)) == 2
    assert len(read_table(Path(f"{tmp_path}:validation"))) == 4


def test_files_of_several_kinds_are_asked_about(tmp_path: Path) -> None:
    rows(2).to_csv(tmp_path / "a.csv", index=False)
    rows(2).to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    with pytest.raises(RequestError, match=r"several kinds, .*: .*a\.csv.*; name one file"):
        read_table(tmp_path)
    assert len(read_table(tmp_path / "a.csv")) == 2
    (tmp_path / "b.jsonl").rename(tmp_path / "train.jsonl")
    assert any("not read: a.csv" in note for note in read_table(tmp_path).notes)


def test_a_program_in_a_directory_is_not_run(tmp_path: Path) -> None:
    directory = tmp_path / "reviews"
    directory.mkdir()
    rows(2).to_csv(directory / "train.csv", index=False)
    (directory / "reviews.py").write_text("raise SystemExit('this was run')\n")
    with pytest.raises(RequestError, match=r"program, reviews\.py, which is not run; .* remove it"):
        read_table(directory)
    (directory / "reviews.py").unlink()
    assert len(read_table(directory)) == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.log", "x", "a directory without data files; allowed endings are"),
        (
            "data/train-00000-of-00001.parquet",
            "version https://git-lfs.github.com/spec/v1\n",
            "git lfs pull",
        ),
        ("train.csv", 'text,label\n"a,1\n', "train.csv': the record in line 2"),
        ("pictures/a.png", "x", "holds data for imagefolder; allowed are csv"),
    ],
)
def test_directories_without_usable_data_are_refused(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = tmp_path / "directory" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(RequestError, match=words) as caught:
        read_table(tmp_path / "directory")
    assert "\n" not in str(caught.value)


def test_splits_of_different_formats_are_read_one_at_a_time(tmp_path: Path) -> None:
    rows(2).to_csv(tmp_path / "train.csv", index=False)
    rows(2).to_json(tmp_path / "dev.jsonl", orient="records", lines=True)
    with pytest.raises(RequestError, match="its files can be, one at a time"):
        read_table(tmp_path)
    assert len(read_table(tmp_path / "dev.jsonl")) == 2


def test_a_path_with_signs_of_patterns_says_so(tmp_path: Path) -> None:
    (tmp_path / "data[1]").mkdir()
    rows(2).to_csv(tmp_path / "data[1]" / "train.csv", index=False)
    with pytest.raises(RequestError, match="rename"):
        read_table(tmp_path / "data[1]")
    (tmp_path / "data[1]").rename(tmp_path / "data 1")
    assert len(read_table(tmp_path / "data 1")) == 2


def test_splits_saved_together_are_read_by_name(tmp_path: Path) -> None:
    both = {
        "train": datasets.Dataset.from_pandas(rows(3)),
        "test": datasets.Dataset.from_pandas(rows(1)),
    }
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    table: Table = read_table(tmp_path / "saved")
    assert len(table) == 3
    assert any("not part of these data: test" in note for note in table.notes)
    assert (
        len(read_table(Path(f"{tmp_path}/saved:test")))
        == len(read_table(tmp_path / "saved" / "test"))
        == 1
    )


def test_a_part_of_a_file_that_has_none_is_refused(tmp_path: Path) -> None:
    for name in ("data.csv", "data.parquet"):
        path = tmp_path / name
        rows(2).to_csv(path, index=False) if name == "data.csv" else rows(2).to_parquet(path)
        with pytest.raises(RequestError, match=f"no such file, and '{name}' has no parts"):
            read_table(Path(f"{path}:test"))
    (tmp_path / "data.json").write_text(
        json.dumps({"test": [{"text": "a"}], "train": [{"text": "b"}]})
    )
    assert read_table(tmp_path / "data.json:test").texts("text") == ["a"]
