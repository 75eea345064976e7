"""Examples as the model will see them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import CompletionObjective
from rankwise.tasks.preview import show_examples
from rankwise.tasks.sft import encode
from rankwise.tasks.splits import Splits, number_examples
from tests.factories import chat
from tests.tasks.test_sft import CHATML, TURNS, byte_level_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    made = byte_level_tokenizer()
    made.chat_template = CHATML
    return made


def test_learnt_tokens_are_marked_in_the_text_of_the_tokens(tokenizer: Any) -> None:
    examples = number_examples([chat(TURNS[:1]), chat(TURNS), chat(TURNS[:2])], [None] * 3)
    task = Splits(examples, examples, examples).task("x", CompletionObjective(), encode)
    (shown,) = show_examples(task, tokenizer, 100, 1)
    encoded, _ = encode(examples.take([1]), tokenizer, 100)
    assert shown.row == 2  # the first has no answer
    assert "".join(piece.text for piece in shown.pieces) == tokenizer.decode(encoded.input_ids[0])
    assert (shown.tokens, shown.learnt_tokens) == (encoded.lengths[0], len(encoded.labels[0]))
    assert str(shown).splitlines()[1:] == [
        "<|start|>user",
        "Say  it.<|end|>",
        "<|start|>assistant",
        "«Yes:",
        "    indeed",
        "<|end|>»",
        "<|start|>user",
        "Why?<|end|>",
        "<|start|>assistant",
        "«Because ünter 🙂!<|end|>»",
    ]
    (cut, _) = show_examples(task, tokenizer, 20, 2)
    assert cut.tokens == 20
    assert len(show_examples(task, tokenizer, 100, 9)) == 2


def test_labels_are_shown_by_name(tiny_model: Path, reviews: Path) -> None:
    task = load_task(DataConfig(data=reviews))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (shown,) = show_examples(task, tokenizer, 50, 1)
    names: Any = task.objective.settings["id2label"]
    assert shown.label == names[task.train.labels[0]]
    assert shown.heading.endswith(f"label {shown.label}")
    assert tokenizer.tokenize(task.train.inputs[0])[0] in str(shown)
    assert not any(piece.learnt for piece in shown.pieces)
