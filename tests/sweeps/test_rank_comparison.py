import math
from pathlib import Path

import pytest

from rankwise import RankExperiment, RequestError, run_rank_comparison, sweep


def test_every_rank_is_trained_as_in_a_sweep(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    settings = {
        "model": str(tiny_model),
        "data": reviews,
        "learning_rate": (5e-3, 2e-2),
        "seeds": 2,
    }
    results = run_rank_comparison([2, 4], **settings)
    assert [type(one) for one in results] == [RankExperiment] * 2
    assert [(one.rank, one.alpha, one.seeds) for one in results] == [(2, 2, 2), (4, 4, 2)]
    # The same trials in a sweep give the same figures.
    table = sweep(ranks=[2, 4], out=tmp_path / "out", **settings).decision.table
    for one, row in zip(results, table, strict=True):
        assert one.accuracy == pytest.approx(row.score_mean)
        assert one.loss == pytest.approx(row.loss_mean)
        assert one.learning_rate == row.learning_rate
        assert one.trainable_params == row.trainable_params
        assert one.training_time_seconds > 0
    # twelve linear layers of A and B each for a rank, and the head's 16 x 2 + 2
    first, second = results
    assert 2 * (first.trainable_params - 34) == second.trainable_params - 34


def test_one_rank_alone_is_allowed_and_nothing_is_kept(
    tiny_model: Path, reviews: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.iterdir())
    (one,) = run_rank_comparison(
        [2], model=str(tiny_model), data=reviews, learning_rate=5e-3, seeds=1
    )
    assert 0 <= one.accuracy <= 1
    assert set(tmp_path.iterdir()) == before


def test_a_rank_that_diverges_has_no_figures(tiny_model: Path, reviews: Path) -> None:
    (one,) = run_rank_comparison(
        [2],
        model=str(tiny_model),
        data=reviews,
        learning_rate=5e-3,
        seeds=1,
        lora_alpha="fixed:3e38",
    )
    assert math.isnan(one.accuracy)
    assert math.isnan(one.learning_rate)


def test_bad_requests(reviews: Path) -> None:
    with pytest.raises(RequestError, match="rank 0"):
        run_rank_comparison([0, 4], data=reviews)
    with pytest.raises(RequestError, match="did you mean 'seeds'"):
        run_rank_comparison([4], seed=1)  # type: ignore[call-arg]
