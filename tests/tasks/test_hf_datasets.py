"""Data sets on disk: written by datasets itself, read as files are."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.ipc
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.readers import file_fingerprint, is_hub_id, read_table


def reviews(count: int = 40) -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    texts = [f"review number {number}" for number in range(count)]
    return datasets.Dataset.from_dict(
        {"text": texts, "label": [number % 2 for number in range(count)]}, features
    )


def test_a_saved_split_keeps_its_class_names(tmp_path: Path) -> None:
    reviews().save_to_disk(tmp_path / "saved")
    task = load_task(DataConfig(data=tmp_path / "saved"))
    assert task.objective.label_names == ("bad", "good")
    assert len(task.train) + len(task.held_out) + len(task.test) == 40


def test_dialogues_are_read_from_a_saved_split(tmp_path: Path) -> None:
    turns = [
        [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        ]
        for number in range(30)
    ]
    datasets.Dataset.from_dict({"messages": turns}).save_to_disk(tmp_path / "saved")
    layout = load_task(DataConfig(data=tmp_path / "saved")).layout
    assert layout is not None and layout.data_format == "messages"


def test_a_directory_of_several_splits_asks_for_one_without_train(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"dev": reviews(), "test": reviews(10)})
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(
        RequestError, match=r"holds the splits dev, test; give one, as in .*both:dev"
    ):
        read_table(tmp_path / "both")
    assert len(read_table(tmp_path / "both:test")) == 10
    # What is not read may be damaged.
    (dev,) = (tmp_path / "both" / "dev").glob("*.arrow")
    dev.write_bytes(b"ARROW1")
    (tmp_path / "both" / "test" / "cache-1.arrow").write_bytes(b"ARROW1")
    assert len(read_table(tmp_path / "both:test")) == 10
    with pytest.raises(RequestError, match="is one split, and has no split 'x'"):
        read_table(tmp_path / "both" / "test:x")


def test_datasets_is_as_loud_as_before_a_reading(tmp_path: Path) -> None:
    reviews().save_to_disk(tmp_path / "saved")
    level = datasets.logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    read_table(tmp_path / "saved")
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == (
        level,
        bars,
    )


def test_the_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    reviews().save_to_disk(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    first = file_fingerprint(tmp_path / "moved")
    reviews(42).save_to_disk(tmp_path / "other")
    assert first != file_fingerprint(tmp_path / "other")
    assert first == file_fingerprint(tmp_path / "moved")


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ("owner/reviews", ("owner/reviews", None, "train")),
        ("owner/reviews:test", ("owner/reviews", None, "test")),
        ("owner/all-sets:re.views:test", ("owner/all-sets", "re.views", "test")),
    ],
)
def test_a_hub_id_is_loaded_by_datasets(
    data: str, asked: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        calls.append((name, config, split))
        return reviews()

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_task(DataConfig(data=Path(data)))
    assert set(calls) == {asked}
    assert task.objective.label_names == ("bad", "good")
    first = file_fingerprint(Path(data))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: reviews(42))
    assert file_fingerprint(Path(data)) != first


def test_an_unreachable_hub_fails_with_one_line() -> None:
    with pytest.raises(
        RequestError, match="data 'owner/reviews:test': no such file, and no data set of a hub"
    ) as raised:
        read_table(Path("owner/reviews:test"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["reviews", "a/b/c", "owner/reviews.csv", "owner/reviews:a:b:c", "../reviews", "/tmp/x"]
)
def test_a_name_that_is_no_hub_id_is_a_missing_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: pytest.fail("asked for a data set")
    )
    with pytest.raises(RequestError, match=r"no such file|allowed endings"):
        read_table(Path(name))
    assert not is_hub_id(Path(name))  # which fingerprints and exports ask


@pytest.mark.parametrize("kind", ["file", "saved"])
def test_columns_whose_offsets_point_nowhere_are_refused(tmp_path: Path, kind: str) -> None:
    texts = datasets.Dataset.from_dict({"text": ["hello", "there"], "label": ["a", "b"]})
    path = tmp_path / "data.arrow"
    if kind == "saved":
        texts.save_to_disk(str(tmp_path))
        (path,) = tmp_path.glob("*.arrow")
    else:
        with pyarrow.OSFile(str(path), "wb") as sink:
            table = pyarrow.table({"text": ["hello", "there"], "label": ["a", "b"]})
            with pyarrow.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    good, bad = (np.array([0, 5, end], np.int32).tobytes() for end in (10, 1 << 30))
    assert good in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(good, bad))
    with pytest.raises(RequestError, match=r"\.arrow' cannot be read: .*offset"):
        read_table(path if kind == "file" else tmp_path)
