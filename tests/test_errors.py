from rankwise.errors import RankwiseError, RequestError, nearest, shown, some


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
