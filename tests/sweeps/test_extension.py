"""More seeds for some ranks of a finished sweep."""

from pathlib import Path
from typing import Any

import pytest

import rankwise
from rankwise.errors import RequestError
from tests.conftest import make_reviews


def swept(tiny_model: Path, reviews: Path, out: Path, **changes: Any) -> rankwise.SweepResult:
    settings: dict[str, Any] = {
        "model": tiny_model,
        "data": reviews,
        "out": out,
        "ranks": (2, 4, 8),
        "seeds": 2,
        "epochs": 1,
        "learning_rate": "1e-3",
        "max_length": 32,
    }
    return rankwise.sweep(**{**settings, **changes})


def test_some_ranks_get_more_seeds_and_the_sweep_keeps_its_request(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    first = swept(tiny_model, reviews, tmp_path / "out")
    extended = swept(tiny_model, reviews, tmp_path / "out", ranks=(4, 8), seeds=3, extend=True)
    seeds = extended.evidence.groupby("rank")["seed"].nunique()
    assert seeds.to_dict() == {2: 2, 4: 3, 8: 3}
    assert [row.seeds for row in extended.decision.table] == [2, 3, 3]
    before = extended.evidence[extended.evidence["seed"] < 2].reset_index(drop=True)
    assert before.equals(first.evidence)
    # The command that made the sweep still resumes it, and decides from all trials.
    assert swept(tiny_model, reviews, tmp_path / "out").decision == extended.decision
    one = swept(tiny_model, reviews, tmp_path / "out", ranks=(8,), seeds=4, extend=True)
    assert one.evidence.groupby("rank")["seed"].nunique().to_dict() == {2: 2, 4: 3, 8: 4}
    planned = rankwise.dry_run(
        model=tiny_model,
        data=reviews,
        out=tmp_path / "out",
        ranks=(2, 4),
        seeds=5,
        epochs=1,
        learning_rate="1e-3",
        max_length=32,
        extend=True,
    )
    assert planned.expected - planned.complete == 5  # three of rank 2, two of rank 4


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data and the directory of a finished sweep."""
    data = tmp_path_factory.mktemp("finished") / "reviews.csv"
    make_reviews(120).to_csv(data, index=False)
    swept(tiny_model, data, data.parent / "out")
    return data, data.parent / "out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": (4, 16), "seeds": 3}, "ranks 16 are not in the sweep .*; it has 2, 4, 8"),
        ({"ranks": (4,), "seeds": 2}, "seeds 2 adds none: the sweep .* has 2"),
        ({"ranks": (4,), "seeds": 3, "epochs": 2}, "epochs is 2, was 1"),
    ],
)
def test_an_extension_that_does_not_fit_the_sweep_is_refused(
    tiny_model: Path, finished: tuple[Path, Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        swept(tiny_model, *finished, **changes, extend=True)


def test_the_ranks_of_once_are_extended_together_only(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    swept(tiny_model, reviews, tmp_path / "out", strategy="once")
    with pytest.raises(RequestError, match="leave out --ranks"):
        swept(
            tiny_model,
            reviews,
            tmp_path / "out",
            strategy="once",
            ranks=(4,),
            seeds=3,
            extend=True,
        )
