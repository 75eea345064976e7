"""Supervised fine-tuning of a causal language model: dialogues to tokens, and which of them are to be told."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded, Examples, Task
from rankwise.tasks.chat_formats import Dialogue, find_shape, plain_text
from rankwise.tasks.config import DataConfig
from rankwise.tasks.losses import CompletionObjective
from rankwise.tasks.readers import read_table
from rankwise.tasks.splits import given_parts, limit_train, number_examples, split_parts

GENERATION = re.compile(
    r"\{%-?\s*generation\b"
)  # by which a chat template itself marks what the model says
Span = tuple[int, int]


def load_sft(config: DataConfig, table: pd.DataFrame, path: Path) -> Task:
    """Check and split a table of dialogues.

    Raises:
        RequestError: the data cannot serve; the message says what and where.
    """
    shape = find_shape(config, table) or plain_text(config, table, path)
    dialogues = shape.read(table, path)
    examples = number_examples(dialogues, [None] * len(dialogues))
    if config.eval_data is None:
        parts = split_parts(examples, [""] * len(examples), what="dialogues")
    else:
        others = shape.read(read_table(config.eval_data), config.eval_data)
        held_out = number_examples(others, [None] * len(others))
        parts = given_parts(
            examples, held_out, config.eval_data, config.allow_duplicates, "dialogues"
        )
    train, held_out, test, notes = parts
    said = f"{shape.name} from column {', '.join(map(repr, shape.columns.values()))} of {path.name}"
    task = Task(
        path.name,
        CompletionObjective(),
        encode,
        train,
        held_out,
        test,
        (said, *notes),
        shape.layout(table),
    )
    return limit_train(task, config.train_examples, [""] * len(train))


def encode(examples: Examples, tokenizer: Any, max_length: int) -> tuple[Encoded, int]:
    """Tokenise dialogues, and find the tokens that are to be told: those that hold any character of a completion.

    With a chat template, completions are what the assistant says, in all its turns, each up to and with the token that
    ends it. Where the template marks that itself (``{% generation %}``), it is taken at its word; elsewhere a turn
    starts behind the template's generation prompt. Where a template writes earlier turns otherwise than the last, the
    last alone is learnt. Plain completions end with the end-of-sequence token.

    Args:
        examples: whose inputs are `Dialogue`.
        tokenizer: a fast one, which says what characters a token is of.
        max_length: tokens kept.

    Returns:
        The examples that have a token to be told, and how many were cut.

    Raises:
        RequestError: the tokenizer has no chat template for messages, is not a fast one, or its template refuses an
            example.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RequestError(
            "the model's tokenizer has no fast form, which sft needs to find completions"
        )
    ids, input_ids, places, labels, cut = [], [], [], [], 0
    for example_id, dialogue in zip(examples.ids, examples.inputs, strict=True):
        tokens, told = _tokens(dialogue, tokenizer, example_id)
        cut += len(tokens) > max_length
        tokens = tokens[:max_length]
        own = [place for place in range(len(tokens) - 1) if told[place + 1]]
        if own:
            ids.append(example_id)
            input_ids.append(tokens)
            places.append(own)
            labels.append([tokens[place + 1] for place in own])
    return Encoded(tuple(ids), input_ids, tuple(labels), positions=places), cut


def marks_assistant_tokens(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template that itself marks what the assistant says."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # by name, of which chats take one
        template = template.get("default")
    return template is not None and GENERATION.search(template) is not None


def _tokens(dialogue: Dialogue, tokenizer: Any, row: int) -> tuple[list[int], list[bool]]:
    """Return a dialogue's tokens, and for each whether it is to be told."""
    if dialogue.turns and tokenizer.chat_template:
        return _chat_tokens(dialogue, tokenizer, row)
    if dialogue.prompt is None:
        raise RequestError(
            "the model's tokenizer has no chat template, without which messages are no text; give prompts and "
            "completions, or a model that was made to chat"
        )
    text = dialogue.prompt + dialogue.completion
    tokens, told = _told(text, [(len(dialogue.prompt), len(text))], tokenizer, True)
    if tokenizer.eos_token_id is not None:
        if tokens[-1] == tokenizer.eos_token_id:  # the tokenizer's own
            told[-1] = True
        else:
            tokens, told = [*tokens, tokenizer.eos_token_id], [*told, True]
    return tokens, told


def _chat_tokens(dialogue: Dialogue, tokenizer: Any, row: int) -> tuple[list[int], list[bool]]:
    from jinja2 import TemplateError

    messages = [{"role": role, "content": content} for role, content in dialogue.turns]
    try:
        if marks_assistant_tokens(tokenizer):
            marked = tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True
            )
            return list(marked["input_ids"]), [bool(told) for told in marked["assistant_masks"]]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        return _told(text, _assistant_spans(text, messages, tokenizer), tokenizer, False)
    except TemplateError as error:
        raise RequestError(
            f"row {row + 1}: the model's chat template refuses its messages: {error}"
        ) from None


def _assistant_spans(text: str, messages: list[dict[str, str]], tokenizer: Any) -> list[Span]:
    """Return where in a rendered dialogue the assistant's turns are, the last alone if the others cannot be found.

    A turn that opens the dialogue answers nothing, and templates have no prompt to put before it: it is left out.
    """
    spans: list[Span] = []
    answers = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index > 0
    ]
    last = max(answers, default=0)
    for index in answers:
        before = tokenizer.apply_chat_template(
            messages[:index], tokenize=False, add_generation_prompt=True
        )
        whole = (
            tokenizer.apply_chat_template(messages[: index + 1], tokenize=False)
            if index < last
            else text
        )
        if index == last < len(messages) - 1:  # someone speaks after the assistant
            whole = tokenizer.apply_chat_template(messages[: last + 1], tokenize=False)
        if text.startswith(before) and text.startswith(whole):
            spans.append(
                (len(before), len(before) + len(_to_end(whole[len(before) :], tokenizer.eos_token)))
            )
    if answers and not spans:
        raise RequestError(
            "the model's chat template does not write what the assistant says behind its own prompt"
        )
    return spans


def _to_end(said: str, eos: str | None) -> str:
    """Take off the blanks that a template writes behind a turn's end: no model has to say them."""
    stripped = said.rstrip()
    return stripped if eos and stripped.endswith(eos) else said


def _told(
    text: str, spans: list[Span], tokenizer: Any, special: bool
) -> tuple[list[int], list[bool]]:
    """Tokenise a text; a token is told if it holds any character of a span."""
    encoded = tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    told = [
        # Byte-level tokenizers leave blanks out of a token's characters, so that one of blanks alone has none. Blanks
        # at a completion's start that share a token with the prompt's last blank go with the prompt.
        any(end > first and (start < last or start == end <= last) for first, last in spans)
        for start, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), told
