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
from rankwise.tasks.chat_formats import DataLayout, Dialogue
from rankwise.tasks.config import DataConfig
from rankwise.tasks.load import load_task
from rankwise.tasks.losses import ClassificationObjective
from rankwise.tasks.sft import encode, marks_assistant_tokens
from rankwise.tasks.splits import number_examples

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
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
    """Return a byte-level BPE tokenizer, whose offsets leave blanks out, as those of GPT-2, Llama 3 and SmolLM do."""
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


def told(encoded: Encoded, tokenizer: Any) -> list[str]:
    """Return the stretches of tokens to be told, decoded."""
    stretches: list[list[int]] = []
    last = -2
    for place, token in zip(encoded.positions[0], encoded.labels[0], strict=True):
        assert encoded.input_ids[0][place + 1] == token
        if place != last + 1:
            stretches.append([])
        stretches[-1].append(token)
        last = place
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_the_assistants_turns_are_told_with_the_token_that_ends_them(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    encoded = encode_one(Dialogue(TURNS), tokenizer)
    assert told(encoded, tokenizer) == ["Yes:\n    indeed\n<|end|>", "Because ünter 🙂!<|end|>"]
    whole = tokenizer.apply_chat_template(
        [{"role": r, "content": c} for r, c in TURNS], return_dict=True
    )
    assert encoded.input_ids[0] == whole["input_ids"]


def test_what_is_told_is_what_a_template_itself_marks(tokenizer: Any) -> None:
    """The mask of transformers' ``return_assistant_tokens_mask``, and the one found without it."""
    tokenizer.chat_template = CHATML
    found = encode_one(Dialogue(TURNS), tokenizer)
    tokenizer.chat_template = MARKED
    assert encode_one(Dialogue(TURNS), tokenizer) == found


def test_marks_are_found_in_the_template_that_chats_take(tokenizer: Any) -> None:
    for template, marked in (
        (None, False),
        (CHATML, False),
        (MARKED, True),
        ({"default": MARKED, "tool_use": CHATML}, True),
        ({"tool_use": MARKED}, False),
    ):
        tokenizer.chat_template = template
        assert marks_assistant_tokens(tokenizer) is marked


def test_a_template_that_rewrites_earlier_turns_leaves_the_last(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL
    assert told(encode_one(Dialogue(TURNS), tokenizer), tokenizer) == [
        "(so)\nBecause ünter 🙂!<|end|>"
    ]


def test_a_question_after_the_last_answer_is_not_told(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert told(encode_one(Dialogue(TURNS[:3]), tokenizer), tokenizer) == [
        "Yes:\n    indeed\n<|end|>"
    ]


def test_a_turn_that_opens_the_dialogue_answers_nothing(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    greeting = ("assistant", "Hello!")
    assert told(encode_one(Dialogue((greeting, *TURNS)), tokenizer), tokenizer) == told(
        encode_one(Dialogue(TURNS), tokenizer), tokenizer
    )
    assert len(encode_one(Dialogue((greeting, TURNS[0])), tokenizer)) == 0  # nothing to learn


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_completions_are_told_to_their_end(tokenizer: Any, blank: str) -> None:
    dialogue = Dialogue(prompt=f"def f(x):{blank}", completion="    return x")
    encoded = encode_one(dialogue, tokenizer)
    (stretch,) = told(encoded, tokenizer)
    assert (
        tokenizer.decode(encoded.input_ids[0]) == f"{dialogue.prompt}{dialogue.completion}<|end|>"
    )
    # Blanks on either side of where the completion starts may be one token.
    assert stretch.lstrip() == "return x<|end|>"
    if not blank:
        assert stretch.startswith("    ")


def test_of_plain_text_every_token_but_the_first_is_told(tokenizer: Any) -> None:
    encoded = encode_one(Dialogue(prompt="", completion=TEXTS[0]), tokenizer)
    assert encoded.labels[0] == encoded.input_ids[0][1:]
    assert encoded.input_ids[0] == [*tokenizer(TEXTS[0])["input_ids"], tokenizer.eos_token_id]


def test_an_end_that_the_tokenizer_writes_is_not_written_twice(tiny_model: Path) -> None:
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(tiny_model)  # [CLS] ... [SEP]
    tokenizer.eos_token = "[SEP]"
    encoded = encode_one(Dialogue(prompt="the film", completion=" was good"), tokenizer)
    assert told(encoded, tokenizer) == ["was good [SEP]"]
    assert encoded.input_ids[0].count(tokenizer.eos_token_id) == 1


def test_long_dialogues_are_cut_and_those_without_an_answer_left_are_left_out(
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


def test_instructions_become_a_chat_where_there_is_a_template_and_alpacas_prompt_elsewhere(
    tokenizer: Any, tmp_path: Path
) -> None:
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
    chat = encode_one(first, tokenizer)
    assert tokenizer.decode(chat.input_ids[0]).startswith(
        "<|start|>user\nAdd.\n\n1, 2<|end|>\n<|start|>assistant\n0"
    )
    assert told(chat, tokenizer) == ["0<|end|>"]


MESSAGES = [
    [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
    for n in range(10)
]
SHAREGPT = [
    [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}] for n in range(10)
]


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
@pytest.mark.parametrize(
    ("column", "messages"), [("messages", MESSAGES), ("conversations", SHAREGPT)]
)
def test_messages_are_read_from_any_file(
    tmp_path: Path, ending: str, column: str, messages: list[Any]
) -> None:
    path, table = tmp_path / f"data{ending}", pd.DataFrame({column: messages})
    if ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif ending == ".parquet":
        table.to_parquet(path)
    else:
        pd.DataFrame({column: pd.Series(messages).map(pd.io.json.ujson_dumps)}).to_csv(
            path, index=False
        )
    task = load_task(DataConfig(data=path))
    assert (len(task.train), len(task.held_out), len(task.test)) == (7, 2, 1)
    for row, dialogue in zip(task.train.ids, task.train.inputs, strict=True):
        assert dialogue.turns == (("user", f"q{row}"), ("assistant", f"a{row}"))
    assert task.notes == (f"messages from column {column!r} of data{ending}",)


def test_columns_tell_the_task_and_flags_overrule_them(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    table = pd.DataFrame(
        {"text": [f"t{n}" for n in range(20)], "label": [0, 1] * 10, "q": "x", "answer": "y"}
    )
    table.to_csv(path, index=False)
    assert load_task(DataConfig(data=path)).objective.task_type == "SEQ_CLS"
    pairs = load_task(DataConfig(data=path, prompt_column="text"))
    assert pairs.objective.task_type == "CAUSAL_LM"
    assert pairs.train.inputs[0] == Dialogue(prompt="t0", completion="y")
    plain = load_task(
        DataConfig(data=path, task="sft", text_column="q", allow_duplicates=True, eval_data=path)
    )
    assert plain.train.inputs[0] == Dialogue(prompt="", completion="x")


def test_a_column_of_texts_that_is_named_comes_before_dialogues(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.csv"
    columns = {
        name: [f"{name} {n}" for n in range(20)] for name in ("instruction", "output", "text")
    }
    pd.DataFrame(columns).to_csv(path, index=False)
    task = load_task(DataConfig(data=path, task="sft", text_column="text"))
    assert task.train.inputs[0] == Dialogue(prompt="", completion="text 0")
    with pytest.raises(RequestError, match="text_column 'txt' is not in"):
        load_task(DataConfig(data=path, task="sft", text_column="txt"))
    with pytest.raises(RequestError, match="text_column 'text' and prompt_column 'instruction'"):
        load_task(
            DataConfig(data=path, task="sft", text_column="text", prompt_column="instruction")
        )
    with pytest.raises(RequestError, match="messages_column 'text' and completion_column 'output'"):
        load_task(DataConfig(data=path, messages_column="text", completion_column="output"))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("sft", "text_pair_column"),
        ("sft", "label_column"),
        ("classification", "messages_column"),
        ("regression", "completion_column"),
    ],
)
def test_columns_that_a_task_does_not_read_are_refused(
    task: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.csv"
    columns = {name: [f"{name} {n}" for n in range(20)] for name in ("text", "more")}
    pd.DataFrame({**columns, "label": [0.5, 1.5] * 10}).to_csv(path, index=False)
    with pytest.raises(RequestError, match=f"{name} 'more' is not read for task {task}"):
        load_task(DataConfig(data=path, task=task, text_column="text", **{name: "more"}))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (
            [*MESSAGES[:3], [{"role": "user", "content": "q"}]],
            r"no messages in 1 of 4 rows \(row 4\)",
        ),
        ([*MESSAGES[:3], "hello"], r"\(row 4\).*'role': 'assistant'"),
        ([*MESSAGES[:3], [{"role": "assistant", "content": 3}]], r"\(row 4\)"),
        ([*MESSAGES[:3], None], r"\(row 4\)"),
    ],
)
def test_messages_that_are_none_name_their_rows(
    tmp_path: Path, messages: list[Any], words: str
) -> None:
    path = tmp_path / "data.jsonl"
    pd.DataFrame({"messages": messages}).to_json(path, orient="records", lines=True)
    with pytest.raises(RequestError, match=words):
        load_task(DataConfig(data=path))


def test_dialogues_that_are_trained_on_are_refused_as_held_out(tmp_path: Path) -> None:
    path, other = tmp_path / "data.jsonl", tmp_path / "held.jsonl"
    pd.DataFrame({"messages": MESSAGES}).to_json(path, orient="records", lines=True)
    pd.DataFrame({"messages": MESSAGES[:2]}).to_json(other, orient="records", lines=True)
    with pytest.raises(RequestError, match="2 of its 2 dialogues are in the training data too"):
        load_task(DataConfig(data=path, eval_data=other))


def test_messages_without_a_template_and_templates_that_refuse(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="no chat template"):
        encode_one(Dialogue(TURNS), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match=r"row 1: .*roles must alternate"):
        encode_one(Dialogue(TURNS), tokenizer)


@pytest.mark.parametrize(
    ("rows", "settings", "layout"),
    [
        (
            [{"conversations": turns} for turns in SHAREGPT],
            {},
            DataLayout(
                "messages",
                {"messages": "conversations"},
                (("from", "value"),),
                {"user": ("human",), "assistant": ("gpt",)},
            ),
        ),
        (
            [{"Talk": str(turns).replace("'", '"')} for turns in (*MESSAGES[:5], *SHAREGPT[5:])],
            {"messages_column": "Talk"},
            DataLayout(
                "messages",
                {"messages": "Talk"},
                (("role", "content"), ("from", "value")),
                {"user": ("user", "human"), "assistant": ("assistant", "gpt")},
                as_text=True,
            ),
        ),
        (
            [{"Instruction": f"q{n}", "response": f"a{n}"} for n in range(10)],
            {},
            DataLayout("alpaca", {"instruction": "Instruction", "output": "response"}),
        ),
        (
            [{"question": f"q{n}", "say": f"a{n}"} for n in range(10)],
            {"completion_column": "say"},
            DataLayout("prompt-completion", {"prompt": "question", "completion": "say"}),
        ),
        (
            [{"content": f"t{n}"} for n in range(10)],
            {"task": "sft"},
            DataLayout("text", {"text": "content"}),
        ),
    ],
)
def test_the_names_that_a_file_has_are_kept(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], layout: DataLayout
) -> None:
    path = tmp_path / "data.jsonl"
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    assert load_task(DataConfig(data=path, **settings)).layout == layout


@pytest.mark.parametrize("label", ["category", "score", "rating", "sentiment"])
def test_instruction_data_with_labels_are_instruction_data(label: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    turns = [{"role": role, "content": content} for role, content in TURNS]
    labels = (
        [row % 2 + 0.5 for row in range(20)]
        if label == "rating"
        else [str(row % 2) for row in range(20)]
    )
    for columns in (
        {"messages": [[*turns, {"role": "assistant", "content": f"{row}"}] for row in range(20)]},
        {
            "instruction": [f"say {row}" for row in range(20)],
            "input": [""] * 20,
            "output": ["yes"] * 20,
        },
    ):
        pd.DataFrame({**columns, label: labels}).to_json(path, orient="records", lines=True)
        assert load_task(DataConfig(data=path)).layout.data_format == (
            "messages" if "messages" in columns else "alpaca"
        )


def test_labels_that_are_named_or_beside_plain_texts_are_classes(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    texts = [f"say {row}" for row in range(20)]
    alpaca = pd.DataFrame(
        {"instruction": texts, "output": ["yes"] * 20, "category": ["a", "b"] * 10}
    )
    alpaca.to_csv(path, index=False)
    for named in (
        {"text_column": "instruction"},
        {"text_column": "instruction", "label_column": "category"},
    ):
        assert load_task(DataConfig(data=path, **named)).objective == ClassificationObjective(
            ("a", "b")
        )
    for name in ("conversation", "dialogue"):
        pd.DataFrame({"text": texts, name: range(20), "label": ["a", "b"] * 10}).to_csv(
            path, index=False
        )
        assert load_task(DataConfig(data=path)).objective == ClassificationObjective(("a", "b"))
    rated = pd.DataFrame(
        {"question": texts, "answer": ["yes"] * 20, "text": texts, "rating": ["a", "b"] * 10}
    )
    rated.to_csv(path, index=False)
    assert load_task(DataConfig(data=path)).objective == ClassificationObjective(("a", "b"))
