"""What training tools have to be told of a sweep's data, and what they cannot be told and has to be changed first."""

from rankwise.exports.setup import TrainingSetup
from rankwise.tasks.layout import Layout


def layout_of(setup: TrainingSetup) -> Layout:
    """Return how the data of a causal LM are held."""
    assert setup.layout is not None
    return setup.layout


def quoted(layout: Layout) -> str:
    """List the columns, as in "'instruction', 'input' and 'output'"."""
    *others, last = map(repr, layout.columns.values())
    return f"{', '.join(others)} and {last}" if others else last


def save_messages(layout: Layout, tool: str, column: str) -> str:
    """Say how messages have to be saved that a tool does not read as they are, so that ``column`` holds them."""
    return (
        f"{tool} does not read the messages of column {quoted(layout)} as they are. Save them first, in JSON lines or "
        f"Parquet, as a column {column!r} of lists whose messages have the keys role and content and roles such as "
        "user, assistant and system."
    )
