"""Instruction data in many layouts, and the tokens that rankwise trains on for each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.exports.recipe import Recipe
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.chat_formats import read_data_layout
from rankwise.tasks.load import load_task
from tests.exports.recipes import PLAIN, make_recipe
from tests.exports.tools import comment_of
from tests.tasks.test_sft import MARKED, byte_level_tokenizer

COUNT = 10


def _talk(n: int, role: str, content: str, user: str, assistant: str) -> list[dict[str, str]]:
    """Return a dialogue of two questions."""
    said = [
        (user, f"Say {n}."),
        (assistant, f"Yes {n}"),
        (user, "Why?"),
        (assistant, f"Because {n}"),
    ]
    return [{role: who, content: what} for who, what in said]


# For each file: a function from a row's number to the row, and the settings of the sweep. Columns
# with "not this" must not be read.
FILES: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any]]] = {
    "messages beside a prompt": (
        lambda n: {
            "prompt": "not this",
            "messages": _talk(n, "role", "content", "user", "assistant"),
        },
        {},
    ),
    "messages in a named column": (
        lambda n: {"talk": _talk(n, "role", "content", "user", "assistant")},
        {"messages_column": "talk"},
    ),
    "sharegpt": (lambda n: {"conversations": _talk(n, "from", "value", "human", "gpt")}, {}),
    "sharegpt, roles of chats": (
        lambda n: {"conversations": _talk(n, "from", "value", "user", "assistant")},
        {},
    ),
    "sharegpt, another name": (
        lambda n: {"conversations": _talk(n, "from", "value", "human", "bot")},
        {},
    ),
    "sharegpt, several names": (
        lambda n: {
            "conversations": _talk(n, "from", "value", "human", "gpt" if n % 2 else "chatgpt")
        },
        {},
    ),
    "two pairs of keys": (
        lambda n: {
            "messages": _talk(
                n, *(("role", "content") if n % 2 else ("from", "value")), "user", "assistant"
            )
        },
        {},
    ),
    "messages as text": (
        lambda n: {"messages": json.dumps(_talk(n, "role", "content", "user", "assistant"))},
        {},
    ),
    "messages with a system message and tools": (
        lambda n: {
            "messages": _talk(n, "role", "content", "user", "assistant"),
            "system": "Be brief.",
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        {},
    ),
    "messages with weights": (
        lambda n: {
            "messages": [
                {**message, "weight": n % 2}
                for message in _talk(n, "role", "content", "user", "assistant")
            ]
        },
        {},
    ),
    "prompts and completions of messages": (
        lambda n: {
            "prompt": _talk(n, "role", "content", "user", "assistant")[:1],
            "completion": _talk(n, "role", "content", "user", "assistant")[1:2],
        },
        {},
    ),
    "questions": (
        lambda n: {"topic": "not this", "question": f"Say {n}: ", "answer": f"Yes {n}"},
        {},
    ),
    "named prompts": (
        lambda n: {"ask": f"Say {n}: ", "say": f"Yes {n}"},
        {"prompt_column": "ask", "completion_column": "say"},
    ),
    "prompts": (lambda n: {"prompt": f"Say {n}: ", "completion": f"Yes {n}"}, {}),
    "alpaca": (
        lambda n: {
            "topic": "not this",
            "instruction": "Say.",
            "input": f"it {n}" * (n % 2),
            "output": f"Yes {n}",
        },
        {},
    ),
    "alpaca without inputs": (lambda n: {"instruction": f"Say {n}.", "response": f"Yes {n}"}, {}),
    "texts": (lambda n: {"prompt": "not this", "content": f"Say it {n}"}, {"task": "sft"}),
}

CHATS = {
    name
    for name, (make, _) in FILES.items()
    if {"messages", "conversations", "talk"} & set(make(0))
    or isinstance(make(0).get("prompt"), list)
}
# Each file with a chat template, and without one where its examples are text without one.
CASES = [
    (name, template)
    for name in FILES
    for template in (True, False)
    if template or name not in CHATS
]


def swept_file(
    name: str, directory: Path, *, template: bool
) -> tuple[Recipe, list[dict[str, Any]]]:
    """Return the recipe that a sweep of a file leaves, and the examples that rankwise trains on.

    Args:
        name: Key of FILES.
        directory: Directory for the file.
        template: Whether the tokenizer has a chat template.

    Returns:
        The recipe, and for each training example its ``row``, ``input_ids`` and ``labels``.
    """
    make, settings = FILES[name]
    path, tokenizer = directory / "data.jsonl", tokenizer_for(template)
    pd.DataFrame([make(n) for n in range(COUNT)]).to_json(path, orient="records", lines=True)
    task = load_task(SweepConfig(data=path, **settings))
    assert task.layout is not None
    record = json.loads(json.dumps(task.layout.as_dict()))
    recipe = make_recipe(
        source=str(path),
        layout=read_data_layout(record),
        chat_template=template,
        answers_marked=template,
    )
    encoded, _ = task.encoder(task.train, tokenizer, PLAIN["max_length"])
    rows = []
    for row, tokens, places in zip(encoded.ids, encoded.input_ids, encoded.positions, strict=True):
        supervised = {place + 1 for place in places}
        labels = [token if place in supervised else -100 for place, token in enumerate(tokens)]
        rows.append({"row": row, "input_ids": tokens, "labels": labels})
    return recipe, rows


def tokenizer_for(template: bool) -> Any:
    """Return a tokenizer with a chat template that marks the assistant's words, or with none."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = MARKED if template else None
    return tokenizer


def needs_changes(text: str) -> bool:
    """Return whether a file's comment says that the data must be changed for its tool."""
    return re.search(r"\b(?:[Ss]ave|rename) (?!the file|both)", comment_of(text)) is not None
