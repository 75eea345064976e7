"""The terminal's table of truncations."""

import io

from rich.console import Console

from rankwise.report.shrink_table import print_shrunk
from tests.shrinking.test_outcome import decision, result


def printed(*decisions: object) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_shrunk(result(*decisions).as_dict(), console)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_shows_answer_rows_and_cost() -> None:
    text = printed()
    for words in ("Rank 4 of 16 is enough", "16 (itself)", "no update", "holds", "costs more"):
        assert words in text
    assert "1,000 forward passes, 20 % of those that scoring all 5 models" in text


def test_several_adapters_end_in_the_rank_for_all() -> None:
    text = printed(decision("one", 4), decision("two", 8))
    assert "Adapter: one" in text and "Adapter: two" in text
    assert "Smallest rank that holds for all adapters: 8." in text
