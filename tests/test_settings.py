"""One declaration, checked the same way for text and for Python values."""

import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import pytest

import rankwise
from rankwise.cli.analyze import AnalyzeRequest
from rankwise.errors import RequestError
from rankwise.planning.config import PlanConfig, PlanSettings
from rankwise.settings import (
    GROUPS,
    Count,
    FilePath,
    Flag,
    Option,
    Positive,
    Settings,
    Several,
    Share,
    Text,
    choices,
    hints,
    items,
    named,
    options,
    plain_type,
    requested_config,
)
from rankwise.sweeps.config import SweepConfig, SweepSettings


@dataclass(frozen=True, kw_only=True)
class Example(Settings):
    counts: Annotated[tuple[Count, ...], Several, Option("Counts.", aliases=("numbers",))] = (1,)
    share: Annotated[Share, Option("A share.")] = 0.5
    size: Annotated[Positive | None, Option("A size.")] = None
    text: Annotated[Text | None, Option("A text.")] = None
    path: Annotated[FilePath, Option("A path.")] = Path("here")
    flag: Annotated[Flag, Option("A flag.")] = False
    kind: Annotated[Literal["Small", "Large"], Option("A kind.")] = "Small"
    internal: Count = 1


def refusal(**values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        Example(**values)
    assert caught.value.setting in values
    return str(caught.value)


def test_text_and_values_give_the_same_request() -> None:
    given: dict[str, Any] = {
        "counts": "2,1",
        "share": "0.25",
        "size": "3",
        "path": "a",
        "kind": "LARGE",
    }
    assert Example(**given) == Example(
        counts=(2, 1), share=0.25, size=3.0, path=Path("a"), kind="Large"
    )


@pytest.mark.parametrize("value", [8, 8.0, "8", "8.0", np.int64(8), np.float32(8), [8], {8}])
def test_a_whole_number_may_come_in_any_type(value: Any) -> None:
    (count,) = Example(counts=value).counts
    assert count == 8 and type(count) is int


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": "1,0"}, "count 0: allowed is a whole number, at least 1"),
        ({"counts": [1.5]}, "count 1.5: allowed is a whole number, at least 1"),
        ({"counts": True}, "count True: allowed is a whole number, at least 1"),
        ({"share": 1}, "share 1: allowed is a number above 0 and below 1"),
        ({"share": "nan"}, "share 'nan': allowed is a number above 0 and below 1"),
        ({"size": 0}, "size 0: allowed is a number above 0"),
        ({"text": " "}, "text ' ': allowed is a text that is not blank"),
        ({"text": 7}, "text 7: allowed is a text that is not blank; write 7 in quotes"),
        ({"path": ""}, "path '': allowed is the path of a file or directory, as a text"),
        ({"flag": "yes"}, "flag 'yes': allowed is true or false"),
        ({"kind": "Lrge"}, "kind 'Lrge': allowed are Small and Large (did you mean 'Large'?)"),
        ({"internal": 0}, "internal 0: allowed is a whole number, at least 1"),
    ],
)
def test_a_refusal_names_value_and_allowed_values(values: dict[str, Any], message: str) -> None:
    assert refusal(**values) == message


def test_a_field_without_an_option_is_no_setting() -> None:
    assert "internal" not in options(Example)
    assert "internal" not in Example().as_dict()
    with pytest.raises(RequestError, match="'internal' is not a setting of a test"):
        named(Example, {"internal": 1}, "a test")


def test_a_request_is_written_as_json_values() -> None:
    assert Example(counts=[1, 2]).as_dict() == {  # type: ignore[arg-type]
        "counts": [1, 2], "share": 0.5, "size": None, "text": None, "path": "here",
        "flag": False, "kind": "Small",
    }  # fmt: skip


def test_names_may_have_hyphens_and_aliases_but_not_twice() -> None:
    assert named(Example, {"numbers": 1}, "a test") == {"counts": 1}
    with pytest.raises(RequestError, match="'counts' and 'numbers' are the same setting"):
        named(Example, {"counts": 1, "numbers": 1}, "a test")
    with pytest.raises(RequestError, match=r"'shares' is not .* \(did you mean 'share'\?\)"):
        named(Example, {"shares": 1}, "a test")


def test_a_request_comes_whole_or_by_its_fields() -> None:
    whole = Example(share=0.25)
    assert requested_config(Example, whole, {}, "a test") is whole
    assert requested_config(Example, None, {"share": 0.25}, "a test") == whole
    with pytest.raises(RequestError, match="either a config or its fields"):
        requested_config(Example, whole, {"share": 0.25}, "a test")
    other: Any = "model"
    with pytest.raises(RequestError, match="config 'model': allowed is a Example"):
        requested_config(Example, other, {}, "a test")


def test_annotations_tell_type_and_choices() -> None:
    kinds = {name: plain_type(hint) for name, hint in hints(Example).items()}
    assert kinds["counts"] is tuple and kinds["size"] is float and kinds["flag"] is bool
    assert choices(hints(Example)["kind"]) == ("Small", "Large")
    assert choices(hints(Example)["size"]) == ()


def test_items_split_text_and_list_collections() -> None:
    assert items(" 4, 8,") == ["4", "8"]
    assert items({8, 4}) == [4, 8]
    assert items(np.array(4)) == [np.array(4)]
    assert items({4: 8}) == [{4: 8}]


@pytest.mark.parametrize(
    ("config", "arguments"), [(SweepConfig, SweepSettings), (PlanConfig, PlanSettings)]
)
def test_typed_keyword_arguments_are_the_settings(config: Any, arguments: Any) -> None:
    names = set(options(config)) - ({"model"} if config is PlanConfig else set())
    assert set(get_type_hints(arguments)) == names


def test_the_options_of_analyze_are_the_arguments_of_the_call() -> None:
    parameters = inspect.signature(rankwise.analyze).parameters
    assert set(parameters) == {item.name for item in fields(AnalyzeRequest)} - {"json"}
    defaults = {item.name: item.default for item in fields(AnalyzeRequest)}
    assert all(parameters[name].default == defaults[name] for name in set(parameters) - {"paths"})


@pytest.mark.parametrize("config", [SweepConfig, PlanConfig, AnalyzeRequest])
def test_every_setting_has_a_sentence_and_a_group(config: Any) -> None:
    for name, option in options(config).items():
        assert option.help[0].isupper() or option.help.startswith("lora_alpha"), name
        assert option.help.endswith("."), name
        assert option.group in GROUPS, name


def test_a_wrong_argument_of_a_call_names_the_nearest_one() -> None:
    wrong: dict[str, Any] = {"rank": [4, 8]}
    for call in (rankwise.sweep, rankwise.dry_run, rankwise.plan):
        with pytest.raises(RequestError, match="did you mean 'ranks'"):
            call(**wrong)
