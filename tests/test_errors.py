import json

import pytest

from rankwise.errors import (
    RankwiseError,
    RequestError,
    first_sentence,
    nearest,
    reading,
    shown,
    some,
)


def test_exit_codes_and_the_setting_at_fault() -> None:
    error = RequestError("ranks 0: ...", setting="ranks")
    assert isinstance(error, RankwiseError) and isinstance(error, ValueError)
    assert (RankwiseError.exit_code, error.exit_code) == (1, 2)
    assert (str(error), error.setting) == ("ranks 0: ...", "ranks")
    assert RequestError("").setting is None


def test_the_nearest_word_is_offered_only_where_one_is_near() -> None:
    assert nearest("rnaks", ["ranks", "seeds"]) == " (did you mean 'ranks'?)"
    assert nearest("xyz", ["ranks", "seeds"]) == ""


def test_values_and_lists_stay_short_enough_for_one_line() -> None:
    assert shown("a" * 200) == f"'{'a' * 79}..."
    assert shown(10**5000) == "int too long to show"
    assert some(range(3)) == "0, 1, 2"
    assert some(range(7)) == "0, 1, 2, 3, 4 and 2 more"


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("It failed. Try\nagain."), "x cannot be read: It failed"),
        (KeyError("r"), "x cannot be read: KeyError: 'r'"),
        (OSError(13, "Permission denied", "x"), "x cannot be read: Permission denied"),
        (RecursionError(), "x cannot be read: RecursionError"),
        (Panic("index out of bounds"), "x cannot be read: index out of bounds"),
        (TypeError("y" * 1000), f"x cannot be read: {'y' * 160}..."),
    ],
)
def test_a_reader_s_net_makes_one_line_of_whatever_is_raised(
    error: BaseException, line: str
) -> None:
    with pytest.raises(RequestError) as caught, reading("x cannot be read"):
        raise error
    assert str(caught.value) == line
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RankwiseError("known"), KeyboardInterrupt(), SystemExit(2)])
def test_a_reader_s_net_lets_pass_what_is_a_line_already_or_no_failure(
    error: BaseException,
) -> None:
    with pytest.raises(type(error)) as caught, reading("x cannot be read"):
        raise error
    assert caught.value is error


def test_the_words_of_a_config_stand_for_pytorch_s() -> None:
    message = "Padding_idx must be within num_embeddings"
    assert first_sentence(AssertionError(message)) == "pad_token_id must be below vocab_size"
    try:
        json.loads("[1,")
    except ValueError as error:
        assert first_sentence(error).startswith("Expecting value: line 1")
