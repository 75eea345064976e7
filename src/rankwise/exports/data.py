"""What training tools have to be told of a sweep's data, and what they cannot be told and has to be changed first."""

from rankwise.exports.recipe import TrainingSetup
from rankwise.tasks.chat_formats import DataLayout


def layout_of(setup: TrainingSetup) -> DataLayout:
    """Return how the data of a causal LM are held."""
    assert setup.layout is not None
    return setup.layout


def quoted(layout: DataLayout) -> str:
    """List the columns, as in "'instruction', 'input' and 'output'"."""
    *others, last = map(repr, layout.columns.values())
    return f"{', '.join(others)} and {last}" if others else last


def save_messages(layout: DataLayout, tool: str, column: str) -> str:
    """Say how messages have to be saved that a tool does not read as they are, so that ``column`` holds them."""
    return (
        f"{tool} does not read the messages of column {quoted(layout)} as they are. Save them first, in JSON lines or "
        f"Parquet, as a column {column!r} of lists whose messages have the keys role and content and roles such as "
        "user, assistant and system."
    )


def save_chats(layout: DataLayout, tool: str) -> str:
    """Say how Alpaca's instructions have to be saved for a tool that makes no chats of them."""
    more = layout.columns.get("input")
    asked = f"{layout.columns['instruction']!r}" + (
        f" and, after a blank line, {more!r} if it has any," if more else ""
    )
    return (
        f"rankwise trained the columns {quoted(layout)} as chats of the tokenizer's chat template, which {tool} writes "
        f"of messages alone. Save each row first as a list in a column 'messages': the user's message of {asked} and "
        f"the assistant's of {layout.columns['output']!r}."
    )


def unknown_template(setup: TrainingSetup) -> list[str]:
    """Say what an earlier sweep did not keep, where it decides how the data were written."""
    if setup.chat_template is not None or layout_of(setup).data_format != "alpaca":
        return []
    return [
        "This sweep did not keep whether the tokenizer has a chat template. If it has one, rankwise trained these "
        "instructions as chats, not with the prompt that is meant here."
    ]
