"""From settings to a help page and to values."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from rankwise.cli import COMMANDS
from rankwise.cli.options import Command, parse
from rankwise.errors import RequestError
from rankwise.settings import Count, FilePath, Flag, Option, Settings, Several


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    place: Annotated[FilePath, Option("A place.", metavar="PLACE", positional=True)]
    ranks: Annotated[tuple[Count, ...], Several, Option("Ranks.", "search", "R,R,...")] = (4, 8)
    kind: Annotated[Literal["small", "large"], Option("Kind, 100 % of it.", "search")] = "small"
    hours: Annotated[Count | None, Option("Hours.", "search", unset="no end")] = None
    strict: Annotated[Flag | None, Option("Be strict.", "output", negative="--lenient")] = None
    aliased: Annotated[Count, Option("A count.", "search", aliases=("other_name",))] = 1
    hidden: Count = 1


COMMAND = Command("Describes the command.", ("example here --ranks 2",), (Example,), print)


def page(capsys: pytest.CaptureFixture[str], monkeypatch: Any, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        parse(COMMAND, "example", ["--help"])
    return capsys.readouterr().out


def test_only_given_values_are_returned_and_named_as_the_settings() -> None:
    assert parse(COMMAND, "example", ["here"]) == [{"place": "here"}]
    assert parse(COMMAND, "example", ["--ranks", "2,4", "here", "--other-name", "3"]) == [
        {"place": "here", "ranks": "2,4", "aliased": "3"}
    ]


def test_a_flag_can_be_set_to_true_and_to_false_but_not_to_both() -> None:
    assert parse(COMMAND, "example", ["here", "--strict"])[0]["strict"] is True
    assert parse(COMMAND, "example", ["here", "--lenient"])[0]["strict"] is False
    with pytest.raises(RequestError, match="not allowed with"):
        parse(COMMAND, "example", ["here", "--lenient", "--strict"])


def test_the_page_shows_groups_choices_defaults_and_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    text = page(capsys, monkeypatch, 80)
    for words in (
        "usage: rankwise example PLACE [OPTIONS]",
        "Describes the command.",
        "\nsearch:\n",
        "\noutput:\n",
        "--kind {small,large}",
        "Kind, 100 % of it. (default: small)",
        "Ranks. (default: 4,8)",
        "Hours. (default: no end)",
        "  rankwise example here --ranks 2",
    ):
        assert words in text
    assert "--hidden" not in text and "--other-name" not in text


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_pages_fit_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from rankwise.cli import main

    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text, _, examples = capsys.readouterr().out.partition("examples:")
    assert max(map(len, text.splitlines())) <= columns
    assert len(examples.strip().splitlines()) >= 2
    assert " X" not in text.split("(")[0]


def test_a_wrong_option_names_the_nearest_one() -> None:
    with pytest.raises(RequestError, match=r"'--rank' \(did you mean '--ranks'\?\)"):
        parse(COMMAND, "example", ["here", "--rank=4"])
    with pytest.raises(RequestError, match=r"required: PLACE; see 'rankwise example --help'"):
        parse(COMMAND, "example", [])
