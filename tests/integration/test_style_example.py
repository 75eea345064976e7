import pytest
from examples.style_sweep import dialogues, telegram


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("a masterpiece four years in the making .", "MASTERPIECE FOUR YEARS IN MAKING STOP"),
        ("effective but too-tepid biopic", "EFFECTIVE BUT TOO-TEPID BIOPIC STOP"),
        (". . . really , it's funny -- very !", "REALLY STOP FUNNY STOP VERY STOP"),
        ("the film 's a bore", "FILM'S BORE STOP"),
    ],
)
def test_a_telegram_has_capitals_stops_and_no_small_words(sentence: str, expected: str) -> None:
    assert telegram(sentence) == expected


def test_dialogues_are_different_sentences_with_their_telegrams() -> None:
    table = dialogues(50)
    asked = [messages[1]["content"] for messages in table["messages"]]
    assert len(set(asked)) == 50
    assert all(
        messages[2]["content"] == telegram(messages[1]["content"]) for messages in table["messages"]
    )
