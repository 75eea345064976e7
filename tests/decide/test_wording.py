"""Words and numbers in sentences about a decision."""

from rankwise.decide.wording import (
    Wording,
    counted,
    counted_range,
    listed,
    percent,
    without_exponent,
)


def test_the_unit_of_a_loss_leaves_out_what_it_is_a_mean_of() -> None:
    assert Wording("nats per example", "guessing").unit == "nats"
    assert Wording("of the labels' variance", "the mean").unit == "of the labels' variance"
    assert Wording("negative accuracy per trial").unit == "of accuracy"
    assert Wording("eval_loss per trial").unit == "of eval_loss"


def test_bounds_have_three_digits_and_no_exponent() -> None:
    values = (0.018349, 0.00012345, 1e-6, 12.34, 0.5)
    assert [without_exponent(value) for value in values] == [
        "0.0183",
        "0.000123",
        "0.0001",
        "12.3",
        "0.5",
    ]


def test_confidences_are_in_percent() -> None:
    assert [percent(share) for share in (0.95, 0.995, 0.07)] == ["95 %", "99.5 %", "7 %"]


def test_numbers_of_things_are_singular_plural_or_a_range() -> None:
    assert counted(1, "seed") == "1 seed"
    assert counted(4000, "example") == "4,000 examples"
    assert counted_range((3, 3), "seed") == "3 seeds"
    assert counted_range((5, 2, 3), "seed") == "2 to 5 seeds"


def test_lists_end_with_and() -> None:
    assert [listed(items) for items in ([4], [4, 8], [4, 8, 16])] == ["4", "4 and 8", "4, 8 and 16"]
