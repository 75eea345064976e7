"""Arrays by seed and example, whatever the order of the rows."""

import numpy as np
import pandas as pd
import pytest

from rankwise.decide.grid import Grid, ids_ascend, rows_where


def evidence(seeds: tuple[int, ...] = (3, 1, 2), examples: int = 5) -> pd.DataFrame:
    random = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([seeds, range(10, 10 + examples)])
    frame = pd.DataFrame({"loss": random.normal(size=len(index))}, index=index).reset_index()
    return frame.set_axis(["seed", "example_id", "loss"], axis=1).assign(rank=4, learning_rate=0.1)


@pytest.mark.parametrize("order", ["as it is", "by seed", "shuffled", "text ids", "backwards"])
def test_a_grid_is_the_pivot_of_its_rows(order: str) -> None:
    rows = evidence()
    if order == "by seed":
        rows = rows.sort_values(["seed", "example_id"])
    elif order == "shuffled":
        rows = rows.sample(frac=1, random_state=1)
    elif order == "text ids":
        rows = rows.assign(example_id=rows["example_id"].astype(str))
    elif order == "backwards":
        rows = rows.iloc[::-1]
    grid, pivot = Grid(rows), rows.pivot(index="seed", columns="example_id", values="loss")
    assert grid.seeds == tuple(pivot.index)
    assert grid.examples.tolist() == pivot.columns.tolist()
    np.testing.assert_array_equal(grid.array("loss"), pivot.to_numpy())


def test_an_example_that_a_seed_lacks_is_nan() -> None:
    rows = evidence((1, 2)).drop(index=[7])
    pivot = rows.pivot(index="seed", columns="example_id", values="loss")
    np.testing.assert_array_equal(Grid(rows).array("loss"), pivot.to_numpy())
    assert np.isnan(Grid(rows).array("loss")).sum() == 1


def test_ordered_rows_are_not_copied() -> None:
    rows = evidence((1, 2))
    assert np.shares_memory(Grid(rows).array("loss"), rows["loss"].to_numpy())
    part = rows_where(rows, rows["seed"].eq(2))
    assert np.shares_memory(part["loss"].to_numpy(), rows["loss"].to_numpy())
    odd = rows["example_id"] % 2 == 1
    pd.testing.assert_frame_equal(rows_where(rows, odd), rows[odd])
    pd.testing.assert_frame_equal(rows_where(rows, odd & ~odd), rows[odd & ~odd])


def test_rows_without_repetition_are_known_by_their_order() -> None:
    rows = evidence()
    assert ids_ascend(rows)
    for bad in (
        pd.concat([rows, rows.iloc[-1:]]),  # the last row twice
        pd.concat([rows, rows.iloc[:5]]),  # the first trial again
        rows.iloc[::-1],  # not known by its order
        rows.iloc[:0],
    ):
        assert not ids_ascend(bad)
