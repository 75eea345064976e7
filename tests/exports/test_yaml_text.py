import json
import shutil
from pathlib import Path

import yaml

from rankwise.escaping import comment
from rankwise.exports import export_files
from rankwise.exports.recipe import read_recipe
from rankwise.exports.yaml_text import missing_settings, quoted_columns, yaml_file
from rankwise.tasks.chat_formats import DataLayout
from tests.exports.recipes import RECIPES, as_causal_lm, make_recipe, usual_layout
from tests.exports.tools import comment_of
from tests.factories import write_sealed


def test_files_note_examples_that_the_sweep_did_not_train_on(swept: Path, tmp_path: Path) -> None:
    """There is no note if the held-out examples came from another file and nothing was left out."""
    parts = {"train_examples": 50, "held_out_examples": 120, "test_examples": 60}
    copy = tmp_path / "copy"
    shutil.copytree(swept, copy)
    trial = json.loads((swept / "decision.json").read_text())["test"]["trial"]
    sweep = json.loads((swept / "sweep.json").read_text())

    def notes(limit: int | None, eval_data: str | None) -> list[str]:
        written = {
            **sweep,
            "task": {**sweep["task"], **parts, "data_layout": usual_layout("messages").as_dict()},
            "settings": {**sweep["settings"], "train_examples": limit},
            "paths": {**sweep["paths"], "eval_data": eval_data},
        }
        write_sealed(copy / "sweep.json", written)
        files = export_files(as_causal_lm(read_recipe(copy, trial)))
        files.pop("dataset_info.json")
        return [comment_of(text) for text in files.values()]

    for limit in (None, 50):
        for text in notes(limit, None):
            assert "The sweep trained on 50 examples of these data." in text
            assert "120 compared the ranks and 60 tested the recommended adapter." in text
            assert "set the warm-up to the same share of those steps, 30 %." in text
            assert "Do not evaluate on examples it trained on." in text
    for text in notes(50, "other.csv"):
        assert "The sweep trained on 50 examples, its limit; the data may hold more." in text
        assert "same share of those steps, 30 %." in text
    for limit in (None, 80):
        assert not any("The sweep trained on" in text for text in notes(limit, "other.csv"))


def test_an_adapter_to_truncate_is_trained_at_its_full_rank() -> None:
    files = export_files(RECIPES["nf4"])  # trained at 8, kept at 4
    assert yaml.safe_load(files["axolotl.yaml"])["lora_r"] == 8
    assert "rankwise resize ADAPTER OUT --rank 4" in comment_of(files["axolotl.yaml"])


def test_each_config_says_which_learning_rate_another_rank_needs() -> None:
    """Adapters that start from the base's own values follow no known law."""
    law = "change the learning rate to 5e-05 * sqrt(16 / lora_alpha)"
    for init, stated in (("default", True), ("pissa", False)):
        files = export_files(make_recipe(init=init))
        files.pop("dataset_info.json")
        assert [law in comment_of(text) for text in files.values()] == 4 * [stated]


def test_yaml_has_the_notes_on_top_and_keeps_the_order_of_sections() -> None:
    text = yaml_file(["First.", "word " * 40], [{"b": 1, "a": "é"}, {}, {"c": [2]}])
    assert yaml.safe_load(text) == {"b": 1, "a": "é", "c": [2]}
    assert text.startswith("# First.\n# word")
    assert text.endswith("\nb: 1\na: é\n\nc:\n- 2\n")
    assert max(map(len, text.splitlines())) <= 100


def test_a_comment_never_breaks_a_word_at_a_hyphen() -> None:
    assert "end-of-sequence" in comment(["word " * 17 + "and the end-of-sequence token"])


def test_missing_settings_are_listed_together() -> None:
    recipe = make_recipe(init="eva", loraplus_ratio=16.0, lora_alpha=0.5)
    text = missing_settings(recipe, "A tool", inits=("default",), loraplus=False)
    assert text is not None
    assert comment_of(text) == (
        "A tool has no setting for LoRA+ and the initialisation eva and a lora_alpha that is not a "
        "whole number (0.5), which this training uses: see peft_config.py."
    )
    assert missing_settings(make_recipe(), "A tool", inits=("default",), loraplus=False) is None


def test_columns_are_quoted_in_a_list() -> None:
    assert quoted_columns(usual_layout("alpaca")) == "'instruction', 'input' and 'output'"
    assert quoted_columns(DataLayout("text", {"text": "body"})) == "'body'"
