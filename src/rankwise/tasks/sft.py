"""Supervised fine-tuning of a causal language model: dialogues, their tokens and supervision."""

import re
from typing import Any

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.chat_formats import DataLayout, Dialogue, plain_text_layout
from rankwise.tasks.config import DataConfig
from rankwise.tasks.losses import CompletionObjective
from rankwise.tasks.readers import Table
from rankwise.tasks.splits import limit_train, make_splits, number_examples

GENERATION = re.compile(r"\{%-?\s*generation\b")  # a template's own mark of assistant tokens

Span = tuple[int, int]
"""First character of a stretch of text, and the one after its last."""
SupervisedTokens = tuple[list[int], list[bool]]
"""Token ids of a dialogue, and whether each token is supervised."""


def load_sft(config: DataConfig, table: Table, layout: DataLayout | None) -> Task:
    """Check and split a table of dialogues, or of plain texts if it has no layout."""
    layout = layout or plain_text_layout(config, table)
    dialogues, read_layout = layout.read(table)
    splits = make_splits(
        config,
        _unlabelled(dialogues),
        lambda held_out: _unlabelled(layout.read(held_out)[0]),
        noun="dialogues",
    )
    kept = limit_train(splits, config.train_examples)
    notes = (layout.describe(table), *kept.notes)
    name = table.path.name
    return kept.task(name, CompletionObjective(), encode, notes=notes, layout=read_layout)


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise dialogues; tokens that hold any character of a completion are supervised.

    With a chat template, completions are all turns of the assistant, each up to and including the
    token that ends it. The template's own marks of these (``{% generation %}``) are used if it has
    them; otherwise a turn starts after the template's generation prompt. If a template writes
    earlier turns differently from the last, only the last is supervised. Plain completions end
    with the end-of-sequence token.

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


def marks_assistant_tokens(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template itself marks the assistant's tokens."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several templates by name; chats use the default
        template = template.get("default")
    return template is not None and GENERATION.search(template) is not None


def _unlabelled(dialogues: list[Dialogue]) -> Examples:
    return number_examples(dialogues, [None] * len(dialogues))


def _encode_dialogue(dialogue: Dialogue, tokenizer: Any, row: int) -> SupervisedTokens:
    if dialogue.turns and tokenizer.chat_template:
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
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in dialogue.turns]
    try:
        if marks_assistant_tokens(tokenizer):
            encoded = tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True
            )
            return list(encoded["input_ids"]), list(map(bool, encoded["assistant_masks"]))
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans = _assistant_spans(text, messages, tokenizer)
        return _encode_text(text, spans, tokenizer, add_special_tokens=False)
    except TemplateError as error:
        message = f"row {row + 1}: the model's chat template refuses its messages: {error}"
        raise RequestError(message) from None


def _assistant_spans(text: str, messages: list[dict[str, str]], tokenizer: Any) -> list[Span]:
    """Return the spans of the assistant's turns in a rendered dialogue, or of the last alone.

    A turn that opens the dialogue is left out: it answers nothing, and templates write no prompt
    before it.
    """

    def render(count: int, **options: Any) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, **options)

    roles = [message["role"] for message in messages]
    answers = [index for index, role in enumerate(roles) if role == "assistant" and index > 0]
    eos = tokenizer.eos_token
    spans: list[Span] = []
    for index in answers:
        before = render(index, add_generation_prompt=True)
        through = text if index == len(messages) - 1 else render(index + 1)
        if text.startswith(before) and text.startswith(through):
            turn = through[len(before) :]
            if eos and turn.rstrip().endswith(eos):  # templates write blanks after the end
                turn = turn.rstrip()
            spans.append((len(before), len(before) + len(turn)))
    if answers and not spans:
        raise RequestError("the model's chat template writes no answer right after its own prompt")
    return spans


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
