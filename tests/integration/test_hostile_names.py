"""Every output is read again: with hostile names for ordinary ones, only the names have changed.

The names are those that data and files bring: roles, columns, labels, paths, layers, models.
"""

import ast
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

import rankwise
from rankwise.decide import Decision
from rankwise.escaping import terminal
from rankwise.exports import export_files
from rankwise.exports.model_card import write_card
from rankwise.exports.recipe import Recipe
from rankwise.report.html import write_report
from rankwise.report.shrink_page import write_shrink_page
from rankwise.shrinking.output import write_result
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.chat_formats import DataLayout
from rankwise.trainers.command import parse_command
from rankwise.trainers.exports import chosen_files
from rankwise.trainers.sweep_file import sweep_file
from tests.exports.recipes import make_recipe
from tests.factories import REQUEST, finished, save_sweep, write_sealed
from tests.hostile_names import HOSTILE
from tests.shrinking.test_outcome import decision as shrunk
from tests.shrinking.test_outcome import result

SETTINGS = {**SweepConfig(ranks=(4, 8)).as_dict(), "max_length": 128, "precision": "fp32"}
SETTINGS["warmup_ratio"] = 0.3
Names = Callable[[str], str]  # from a plain name to the one that is written


def plain(name: str) -> str:
    return name


def hostile(bad: str) -> Names:
    """Return the plain names with a hostile one behind each; a path keeps to one directory."""
    return lambda name: name + bad


TOGETHER = ["".join(HOSTILE[start::4]) for start in range(4)]
NAMES = [
    *(pytest.param(bad, id=f"together{place}") for place, bad in enumerate(TOGETHER)),
    *(
        pytest.param(bad, id=str(place), marks=pytest.mark.slow)
        for place, bad in enumerate(HOSTILE)
    ),
]


def restored(value: Any, bad: str) -> Any:
    """Return a value with plain names again."""
    if isinstance(value, dict):
        return {restored(name, bad): restored(item, bad) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [restored(item, bad) for item in value]
    return value.replace(bad, "") if isinstance(value, str) else value


def layouts(named: Names) -> list[DataLayout]:
    """Return a layout of each format, with names of columns, keys and roles."""
    roles = {"user": (named("human"),), "assistant": (named("gpt"), named("bot"))}
    one_each = {"user": (named("human"),), "assistant": (named("gpt"),)}
    keys = ((named("from"), named("value")),)
    messages = {"messages": named("talk"), "system": named("sys"), "tools": named("tool")}
    return [
        DataLayout("messages", messages, keys, roles, rewritten=(named("words"),)),
        DataLayout("messages", messages, keys, one_each),
        DataLayout("chats", {"prompt": named("q"), "completion": named("a")}, keys, one_each),
        DataLayout("alpaca", {part: named(part) for part in ("instruction", "input", "output")}),
        DataLayout("prompt-completion", {"prompt": named("q"), "completion": named("a")}),
        DataLayout("text", {"text": named("body")}),
    ]


def recipes(named: Names) -> list[Recipe]:
    layers = (named("q_proj"), named("v_proj"))
    common: dict[str, Any] = {"name": named("/models/base"), "source": named("/data/a.jsonl")}
    made = []
    for place, layout in enumerate(layouts(named)):
        form = {"layout": layout, "chat_template": place % 2 == 0}
        made.append(make_recipe(**common, **form, target_modules=layers))
    # A hub's data set has its name alone, and an odd name is no hub's.
    return [*made, make_recipe(**common, task_type="SEQ_CLS", layout=None, modules_to_save=layers)]


def parsed(name: str, text: str) -> Any:
    """Return what an exported file says to its reader; comments do not count."""
    assert text.isprintable() or all(
        char.isprintable() or char in "\n\u00a0\u200d" for char in text
    )
    if name.endswith(".yaml"):
        return yaml.safe_load(text)
    if name.endswith(".json"):
        return json.loads(text)
    statements = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom):
            statements.append(ast.dump(node))
            continue
        assert isinstance(node, ast.Assign)
        call = node.value
        if isinstance(call, ast.Constant):
            statements.append([ast.dump(node.targets[0]), call.value])
            continue
        assert isinstance(call, ast.Call)
        arguments = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        statements.append([ast.dump(node.targets[0]), ast.dump(call.func), arguments])
    return statements


@pytest.fixture(scope="module")
def same_files() -> list[dict[str, Any]]:
    """What the exported files say with plain names."""
    exported = [export_files(recipe) for recipe in recipes(plain)]
    return [{name: parsed(name, text) for name, text in files.items()} for files in exported]


@pytest.mark.parametrize("bad", NAMES)
def test_exported_configs(bad: str, same_files: list[dict[str, Any]]) -> None:
    for recipe, same in zip(recipes(hostile(bad)), same_files, strict=True):
        files = export_files(recipe)
        assert files.keys() == same.keys()
        for name, text in files.items():
            assert restored(parsed(name, text), bad) == restored(same[name], ""), name


@pytest.fixture(scope="module")
def decided() -> Decision:
    """A decision with a caveat on a failed trial's path."""
    losses = {2: (0.30, 0.31, 0.29, 0.33), 4: (0.30, 0.32, 0.28, 0.33)}
    rows = [
        {"rank": rank, "seed": seed, "example_id": place, "loss": loss + 1e-4 * seed, "score": 0.9}
        for rank, each in losses.items()
        for seed in (0, 1)
        for place, loss in enumerate(40 * each)
    ]
    import pandas as pd

    decision = rankwise.select(pd.DataFrame(rows), margin=0.1)
    failed = "1 trial failed: r2: OSError: '/home/me/secret/data.csv' of /home/me/secret/log.txt"
    return replace(decision, caveats=(*decision.caveats, failed))


def skeleton(markdown: str) -> tuple[list[str], list[str]]:
    """Return the kinds of all tokens of a Markdown text, and its texts."""
    kinds, texts = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        kinds += [token.type, *(child.type for child in token.children or [])]
        texts += [child.content for child in token.children or []] or [token.content]
    # An escaped sign is a token of its own beside the text.
    kept = [kind for kind in kinds if kind not in ("text", "text_special")]
    return kept, texts


@pytest.mark.parametrize("bad", NAMES)
def test_the_model_card(bad: str, decided: Decision, tmp_path: Path) -> None:
    cards = []
    for named in (plain, hostile(bad)):
        task = replace(REQUEST.task, name=named("reviews.csv"), label_names=[named("good"), "bad"])
        paths = replace(REQUEST.paths, model="/models/base")
        recipe = make_recipe(
            task_type="SEQ_CLS",
            layout=None,
            name=named("/models/base"),
            target_modules=(named("q"),),
        )
        noted = replace(decided, caveats=(*decided.caveats, f"Seed of {named('x')}"))
        (tmp_path / "card").mkdir(exist_ok=True)
        write_card(tmp_path / "card", noted, recipe, replace(REQUEST, task=task, paths=paths))
        cards.append(ModelCard.load(tmp_path / "card/README.md", ignore_metadata_errors=False))
    clean, changed = cards
    assert restored(changed.data.to_dict(), bad) == clean.data.to_dict()
    (kinds, texts), (same_kinds, same_texts) = skeleton(changed.text), skeleton(clean.text)
    assert kinds == same_kinds
    whole = "".join(texts).replace(" ", "")
    assert whole.count(terminal(bad).replace(" ", "")) >= 3
    for text in ("/home", "secret", "/models"):
        assert text not in changed.content and text not in clean.content
    assert "data.csv" in clean.text and "log.txt" in clean.text
    assert len(same_texts) > 50


class Reader(HTMLParser):
    """The tags of a page with their attributes, and its text outside of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, attrs))

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        is_script = bool(self.tags) and self.tags[-1][0] == "script"
        (self.scripts if is_script else self.texts).append(data)


def assert_same_page(changed: str, clean: str, bad: str) -> None:
    library = get_plotlyjs()  # 4 MB that say nothing of names
    page, same = Reader(changed.replace(library, "")), Reader(clean.replace(library, ""))
    assert page.tags == same.tags
    shown = terminal(bad, keep="\n")
    assert "".join(page.texts).replace(shown, "") == "".join(same.texts).replace(shown, "")
    assert len(page.scripts) == len(same.scripts)
    assert shown in "".join(page.texts)


@pytest.mark.parametrize("bad", NAMES)
def test_the_report(bad: str, decided: Decision, tmp_path: Path) -> None:
    pages = []
    for number, named in enumerate((plain, hostile(bad))):
        task = replace(REQUEST.task, name=named("reviews.csv"), examples=named("2 classes"))
        settings = {**SETTINGS, "text_column": named("text")}
        out = tmp_path / str(number)
        save_sweep(out, [finished()], replace(REQUEST, task=task, settings=settings))
        noted = replace(decided, caveats=(named("A caveat"),))
        write_sealed(out / "decision.json", noted.as_dict())
        pages.append(write_report(out).read_text(encoding="utf-8"))
    assert_same_page(pages[1], pages[0], bad)


@pytest.mark.parametrize("bad", NAMES)
def test_what_shrink_writes(bad: str, tmp_path: Path) -> None:
    pages = []
    for number, named in enumerate((plain, hostile(bad))):
        one = shrunk(named("/adapters/one"))
        whole = replace(result(one), data=named("held-out.csv"), base=named("/models/base"))
        write_shrink_page(whole.as_dict(), tmp_path / f"{number}.html")
        pages.append((tmp_path / f"{number}.html").read_text(encoding="utf-8"))
        assert write_result(whole, [[]], tmp_path / f"out-{number}").directory is not None
    assert_same_page(pages[1], pages[0], bad)


@pytest.mark.parametrize("bad", NAMES)
def test_the_files_of_a_user_s_trainer(bad: str, tmp_path: Path) -> None:
    """What rankwise writes beside the user's own words, which a shell or YAML reads again."""
    name = bad.replace("/", "").replace("\x00", "").replace("\ud800", "")
    config = tmp_path / f"my{name}.yml"
    settings = {"base_model": f"org/model{bad}", "lora_r": 8, "lora_alpha": 16, "adapter": "lora"}
    data = tmp_path / f"a{name}.jsonl"
    data.write_text("{}\n")
    config.write_text(yaml.safe_dump({**settings, "datasets": [{"path": str(data)}]}))
    written = yaml.safe_load(sweep_file("axolotl", config))
    assert (written["trainer"], written["trainer-config"]) == ("axolotl", str(config))
    assert (written["model"], written["data"]) == (f"org/model{bad}", str(data))
    assert written.keys() == {
        "trainer", "trainer-config", "model", "data", "ranks", "seeds", "lora-alpha",
        "learning-rate", "margin", "out",
    }  # fmt: skip
    command = parse_command("sh train.sh {train_data} {rank} {out}")
    from tests.trainers.stubs import trial

    text = chosen_files(command, trial(4), tmp_path / f"a{name}")["command.txt"]
    assert shlex.split(text) == ["sh", "train.sh", str(tmp_path / f"a{name}"), "4", "adapter"]
