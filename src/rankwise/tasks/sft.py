"""Supervised fine-tuning of a causal language model: dialogues, their tokens and supervision."""

from typing import Any

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.chat_formats import DataLayout, plain_text_layout
from rankwise.tasks.chats import Chat, Span
from rankwise.tasks.config import DataConfig
from rankwise.tasks.dialogues import Dialogue, read_dialogues
from rankwise.tasks.losses import CompletionObjective
from rankwise.tasks.readers import Table
from rankwise.tasks.splits import limit_train, make_splits
from rankwise.tasks.template_check import template_notes

SupervisedTokens = tuple[list[int], list[bool]]
"""Token ids of a dialogue, and whether each token is supervised."""


def load_sft(config: DataConfig, table: Table, layout: DataLayout | None) -> Task:
    """Check and split a table of dialogues, or of plain texts if it has no layout."""
    layout = layout or plain_text_layout(config, table)
    reading = read_dialogues(layout, table)
    notes = [layout.describe(table), *reading.notes]

    def read_held_out(table: Table) -> Examples:
        held_out = read_dialogues(layout, table)
        notes.extend(f"eval_data: {note}" for note in held_out.notes)
        return _unlabelled(held_out.dialogues)

    splits = make_splits(config, _unlabelled(reading.dialogues), read_held_out, noun="dialogues")
    kept = limit_train(splits, config.train_examples)
    return kept.task(
        table.path.name,
        CompletionObjective(),
        encode,
        notes=(*notes, *kept.notes),
        layout=reading.layout,
        checker=template_notes,
    )


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise dialogues; tokens that hold any character of a completion are supervised.

    With a chat template, completions are the learnt messages, by default all turns of the
    assistant, each up to and including the token that ends it. The template's own marks of these
    (``{% generation %}``) are used if it has them; otherwise a turn starts after the template's
    generation prompt. If a template writes earlier turns differently from the last, only the last
    is supervised. Plain completions end with the end-of-sequence token.

    Returns:
        The examples that still have a supervised token, and how many examples were truncated.

    Raises:
        RequestError: the tokenizer is not a fast one, it has no chat template for messages, or
            its template refuses an example.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError("the model's tokenizer has no fast form, which sft needs")
    ids, input_ids, labels, positions, truncated = [], [], [], [], 0
    for example_id, dialogue in zip(examples.ids, examples.inputs, strict=True):
        whole, is_supervised = _encode_dialogue(dialogue, tokenizer, example_id)
        truncated += len(whole) > max_length
        tokens = whole[:max_length]
        before = [place for place in range(len(tokens) - 1) if is_supervised[place + 1]]
        if before:
            ids.append(example_id)
            input_ids.append(tokens)
            labels.append([tokens[place + 1] for place in before])
            positions.append(before)
    return Encoded(tuple(ids), input_ids, tuple(labels), positions=positions), truncated


def _unlabelled(dialogues: list[Dialogue | None]) -> Examples:
    rows = [row for row, dialogue in enumerate(dialogues) if dialogue is not None]
    return Examples(tuple(rows), tuple(dialogues[row] for row in rows), (None,) * len(rows))


def _encode_dialogue(dialogue: Dialogue, tokenizer: Any, row: int) -> SupervisedTokens:
    if dialogue.messages and tokenizer.chat_template:
        return _encode_chat(dialogue, tokenizer, row)
    if dialogue.prompt is None:
        raise RequestError(
            "the model's tokenizer has no chat template, which messages need; "
            "give prompts and completions, or a chat model"
        )
    text = dialogue.prompt + dialogue.completion
    completion = (len(dialogue.prompt), len(text))
    tokens, is_supervised = _encode_text(text, [completion], tokenizer, add_special_tokens=True)
    end = tokenizer.eos_token_id
    if end is None:
        return tokens, is_supervised
    if tokens[-1] == end:  # some tokenizers write it themselves
        return tokens, [*is_supervised[:-1], True]
    return [*tokens, end], [*is_supervised, True]


def _encode_chat(dialogue: Dialogue, tokenizer: Any, row: int) -> SupervisedTokens:
    chat = Chat(dialogue, tokenizer, row)
    marked = chat.masked_tokens()
    if marked is not None:
        return marked
    return _encode_text(chat.text, chat.spans(), tokenizer, add_special_tokens=False)


def _encode_text(
    text: str, spans: list[Span], tokenizer: Any, add_special_tokens: bool
) -> SupervisedTokens:
    """Tokenise a text; a token with any character in a span is supervised.

    Byte-level tokenizers leave blanks out of a token's characters, so a token of blanks has none.
    Blanks at a completion's start that share a token with the prompt's last blank belong to the
    prompt.
    """
    options = {"return_offsets_mapping": True, "truncation": False, "verbose": False}
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, **options)
    is_supervised = [
        any(end > first and (start < last or start == end <= last) for first, last in spans)
        for start, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), is_supervised
