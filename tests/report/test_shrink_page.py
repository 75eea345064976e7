"""The page of truncations."""

from pathlib import Path

from rankwise.report.shrink_page import loss_figure, write_shrink_page
from rankwise.report.style import GREEN
from tests.shrinking.test_outcome import decision, result


def test_the_page_is_whole_and_marks_the_chosen_rank(tmp_path: Path) -> None:
    document = result(decision("one", 4), decision("two", None)).as_dict()
    write_shrink_page(document, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="chosen"') == 1
    assert "Rank 4 holds for all adapters" in text
    assert "--max-lora-rank 8" in text
    assert 'src="http' not in text


def test_the_figure_has_bounds_and_the_margin() -> None:
    document = result().as_dict()
    figure = loss_figure(document["table"], document)
    (points,) = figure.data
    assert list(points.x) == [16, 8, 4, 2]
    assert points.marker.color[2] == GREEN
    assert points.error_y.array[1] > 0
    assert figure.layout.shapes[0].y0 == document["margin"]
