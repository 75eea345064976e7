"""Supervised tokens of dialogues, with chat templates and without."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as TrimmedOffsets
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rankwise.errors import RequestError
from rankwise.tasks.base import Encoded
from rankwise.tasks.chats import marks_assistant_tokens
from rankwise.tasks.config import DataConfig
from rankwise.tasks.dialogues import Dialogue
from rankwise.tasks.load import load_task
from rankwise.tasks.sft import encode
from rankwise.tasks.splits import number_examples
from tests.factories import chat
from tests.tasks.test_chat_formats import MESSAGES

CHATML = (
    "{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


# Writes the last turn otherwise than those before it, as Qwen3 does.
FORGETFUL = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '(so)\n' }}{% endif %}"
    "{{ m['content'] + '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
TURNS = (
    ("user", "Say  it."),
    ("assistant", "Yes:\n    indeed\n"),
    ("user", "Why?"),
    ("assistant", "Because ünter 🙂!"),
)
TEXTS = [
    "Say it. Why? Because indeed, yes: under the table",
    "def f(x):\n    return x",
    "assistant user system",
]


def byte_level_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer, like those of GPT-2, Llama 3 and SmolLM.

    Its offsets leave blanks out.
    """
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    bpe.train_from_iterator(
        TEXTS, BpeTrainer(special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    )
    bpe.post_processor = TrimmedOffsets(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture
def tokenizer() -> Any:
    return byte_level_tokenizer()


def encode_one(dialogue: Dialogue, tokenizer: Any, max_length: int = 200) -> Encoded:
    return encode(number_examples([dialogue], [None]), tokenizer, max_length)[0]


def supervised(encoded: Encoded, tokenizer: Any) -> list[str]:
    """Return the segments of supervised tokens, decoded."""
    segments: list[list[int]] = []
    last = -2
    for place, token in zip(encoded.positions[0], encoded.labels[0], strict=True):
        assert encoded.input_ids[0][place + 1] == token
        if place != last + 1:
            segments.append([])
        segments[-1].append(token)
        last = place
    return [tokenizer.decode(segment) for segment in segments]


def test_assistant_turns_are_supervised_including_their_end_token(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    encoded = encode_one(chat(TURNS), tokenizer)
    assert supervised(encoded, tokenizer) == [
        "Yes:\n    indeed\n<|end|>",
        "Because ünter 🙂!<|end|>",
    ]
    whole = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in TURNS], return_dict=True
    )
    assert encoded.input_ids[0] == whole["input_ids"]


def test_supervised_tokens_match_a_template_with_generation_marks(tokenizer: Any) -> None:
    """The mask of transformers' ``return_assistant_tokens_mask``, and the one found without it."""
    tokenizer.chat_template = CHATML
    found = encode_one(chat(TURNS), tokenizer)
    tokenizer.chat_template = MARKED
    assert encode_one(chat(TURNS), tokenizer) == found


def test_generation_marks_are_looked_for_in_the_default_template(tokenizer: Any) -> None:
    for template, marked in (
        (None, False),
        (CHATML, False),
        (MARKED, True),
        ({"default": MARKED, "tool_use": CHATML}, True),
        ({"tool_use": MARKED}, False),
    ):
        tokenizer.chat_template = template
        assert marks_assistant_tokens(tokenizer) is marked


def test_a_template_that_rewrites_earlier_turns_supervises_the_last_only(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL
    assert supervised(encode_one(chat(TURNS), tokenizer), tokenizer) == [
        "(so)\nBecause ünter 🙂!<|end|>"
    ]


def test_a_question_after_the_last_answer_is_not_supervised(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert supervised(encode_one(chat(TURNS[:3]), tokenizer), tokenizer) == [
        "Yes:\n    indeed\n<|end|>"
    ]


def test_an_assistant_turn_that_opens_the_dialogue_is_not_supervised(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    greeting = ("assistant", "Hello!")
    assert supervised(encode_one(chat((greeting, *TURNS)), tokenizer), tokenizer) == supervised(
        encode_one(chat(TURNS), tokenizer), tokenizer
    )
    assert len(encode_one(chat((greeting, TURNS[0])), tokenizer)) == 0  # nothing to learn


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_completions_are_supervised_to_their_end(tokenizer: Any, blank: str) -> None:
    dialogue = Dialogue(prompt=f"def f(x):{blank}", completion="    return x")
    encoded = encode_one(dialogue, tokenizer)
    (segment,) = supervised(encoded, tokenizer)
    assert (
        tokenizer.decode(encoded.input_ids[0]) == f"{dialogue.prompt}{dialogue.completion}<|end|>"
    )
    # Blanks on either side of where the completion starts may be one token.
    assert segment.lstrip() == "return x<|end|>"
    if not blank:
        assert segment.startswith("    ")


def test_plain_text_is_supervised_from_the_second_token(tokenizer: Any) -> None:
    encoded = encode_one(Dialogue(prompt="", completion=TEXTS[0]), tokenizer)
    assert encoded.labels[0] == encoded.input_ids[0][1:]
    assert encoded.input_ids[0] == [*tokenizer(TEXTS[0])["input_ids"], tokenizer.eos_token_id]


def test_an_end_token_that_the_tokenizer_writes_is_not_doubled(tiny_model: Path) -> None:
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(tiny_model)  # [CLS] ... [SEP]
    tokenizer.eos_token = "[SEP]"
    encoded = encode_one(Dialogue(prompt="the film", completion=" was good"), tokenizer)
    assert supervised(encoded, tokenizer) == ["was good [SEP]"]
    assert encoded.input_ids[0].count(tokenizer.eos_token_id) == 1


def test_long_dialogues_are_truncated_and_dropped_without_supervised_tokens(
    tokenizer: Any,
) -> None:
    long = Dialogue(prompt="x" * 50, completion="y" * 50)
    short = Dialogue(prompt="x", completion="y" * 50)
    examples = number_examples([long, short, Dialogue(prompt="x", completion="y")], [None] * 3)
    encoded, cut = encode(examples, tokenizer, 20)
    assert cut == 2
    assert encoded.ids == (1, 2)
    assert [len(labels) for labels in encoded.labels] == [19, 2]


ALPACA = {
    "instruction": ["Add."] * 9 + ["Greet."],
    "input": ["1, 2"] * 9 + [""],
    "output": [str(n) for n in range(10)],
}


def test_instructions_become_a_chat_or_an_alpaca_prompt(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    pd.DataFrame(ALPACA).to_json(path, orient="records", lines=True)
    task = load_task(DataConfig(data=path))
    first, last = (
        next(
            d
            for part in (task.train, task.held_out, task.test)
            for d in part.inputs
            if d.completion == answer
        )
        for answer in ("0", "9")
    )
    plain = tokenizer.decode(encode_one(first, tokenizer).input_ids[0])
    assert plain.startswith("Below is an instruction that describes a task, paired with an input")
    assert plain.endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n0<|end|>")
    assert "### Input" not in tokenizer.decode(encode_one(last, tokenizer).input_ids[0])
    tokenizer.chat_template = CHATML
    encoded = encode_one(first, tokenizer)
    assert tokenizer.decode(encoded.input_ids[0]).startswith(
        "<|start|>user\nAdd.\n\n1, 2<|end|>\n<|start|>assistant\n0"
    )
    assert supervised(encoded, tokenizer) == ["0<|end|>"]


def test_held_out_dialogues_that_are_also_trained_on_are_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "data.jsonl", tmp_path / "held.jsonl"
    pd.DataFrame({"messages": MESSAGES}).to_json(path, orient="records", lines=True)
    pd.DataFrame({"messages": MESSAGES[:2]}).to_json(other, orient="records", lines=True)
    with pytest.raises(RequestError, match="2 of its 2 dialogues are in the training data too"):
        load_task(DataConfig(data=path, eval_data=other))


def test_messages_without_a_chat_template_or_refused_by_it_are_refused(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        encode_one(chat(TURNS), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match=r"row 1: .*roles must alternate"):
        encode_one(chat(TURNS), tokenizer)
