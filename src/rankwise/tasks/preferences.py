"""Preference data: recognised, and refused with what can be learnt from them all the same."""

from rankwise.errors import RequestError
from rankwise.tasks.chat_formats import (
    COMPLETION_NAMES,
    MESSAGES_NAMES,
    PROMPT_NAMES,
    first_cell,
    looks_like_messages,
)
from rankwise.tasks.config import DataConfig
from rankwise.tasks.messages import BadMessages, holds_messages, read_conversation
from rankwise.tasks.readers import LABEL_NAMES, TEXT_NAMES, Table

PAIR_NAMES = {
    "chosen": "rejected",
    "chosen_response": "rejected_response",
    "response_chosen": "response_rejected",
    "preferred_output": "non_preferred_output",  # OpenAI
    "preferred": "rejected",
}
"""Columns of the better answer and of the worse one."""

QUESTION_NAMES = (*PROMPT_NAMES, "instruction", "input", *MESSAGES_NAMES)
TRAINER = "or use the data with a DPO trainer of your own, such as TRL's"


def refuse_preference_data(config: DataConfig, table: Table) -> None:
    """Refuse pairs of better and worse answers unless the user named the columns to learn from.

    Raises:
        RequestError: the data are preference data; the message says what to name.
    """
    named = [name for name, value in vars(config).items() if name.endswith("_column") and value]
    if named or config.task not in ("auto", "sft"):
        return
    for better, worse in PAIR_NAMES.items():
        chosen, rejected = table.find_column([better]), table.find_column([worse])
        if chosen is not None and rejected is not None:
            if not _has_whole_dialogues(table):
                raise _pairs_refusal(table, chosen, rejected)
            return
    _refuse_rated_answers(table)


def _has_whole_dialogues(table: Table) -> bool:
    """Whether a column holds dialogues that end with an answer, which can be learnt as they are."""
    column = table.find_column(MESSAGES_NAMES)
    if column is None:
        return False
    try:
        messages = read_conversation(first_cell(table, column)).messages
    except BadMessages:
        return False
    return messages[-1]["role"] == "assistant"


def _pairs_refusal(table: Table, chosen: str, rejected: str) -> RequestError:
    place = f"{str(table.path)!r} holds preference data (columns {chosen!r} and {rejected!r})"
    return RequestError(
        f"{place}: to learn from the chosen answers, name {_advice(table, chosen)}; {TRAINER}"
    )


def _advice(table: Table, chosen: str) -> str:
    """Return the options that read the chosen answers."""
    answer = first_cell(table, chosen)
    prompt = table.find_column(QUESTION_NAMES)
    if looks_like_messages(answer) and (prompt is None or _opens_with_a_question(answer)):
        return f"--messages-column {chosen}"
    if prompt is None:
        return f"--text-column {chosen} --task sft"
    is_found = table.find_column(PROMPT_NAMES) is not None
    return (
        f"--completion-column {chosen}"
        if is_found
        else (f"--prompt-column {prompt} --completion-column {chosen}")
    )


def _opens_with_a_question(answer: object) -> bool:
    """Whether chosen messages hold the whole dialogue, as in TRL's implicit prompts."""
    return holds_messages(answer) and read_conversation(answer).messages[0]["role"] != "assistant"


def _refuse_rated_answers(table: Table) -> None:
    """Refuse answers that are labelled true or false, as TRL's KTO reads them."""
    prompt, completion = table.find_column(PROMPT_NAMES), table.find_column(COMPLETION_NAMES)
    label = table.find_column(LABEL_NAMES)
    if prompt is None or completion is None or label is None:
        return
    if table.find_column(TEXT_NAMES) is not None:
        return  # texts with labels
    if not {str(value).lower() for value in table.rows[label]} <= {"true", "false"}:
        return
    raise RequestError(
        f"{str(table.path)!r} holds unpaired preference data (answers in {completion!r}, labelled "
        f"true or false in {label!r}): to learn the good answers, keep the rows labelled true "
        f"and name --completion-column {completion}; or use a KTO trainer of your own"
    )
