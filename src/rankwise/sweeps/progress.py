"""What a caller is told while a sweep runs."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rankwise.engine.trial import FinishedTrial


class Progress(Protocol):
    """Who is told how a sweep goes on."""

    def note(self, text: str) -> None:
        """Say something once."""

    def plan(self, complete: int, expected: int) -> None:
        """Take note of how many trials are complete and how many there will be."""

    def work(self, share: float) -> None:
        """Take note of a finished share of the current trial."""

    def trial(self, finished: "FinishedTrial") -> None:
        """Take note of a finished trial."""


class Silent:
    """Tells nobody."""

    def note(self, text: str) -> None:
        """Drop it."""

    def plan(self, complete: int, expected: int) -> None:
        """Drop it."""

    def work(self, share: float) -> None:
        """Drop it."""

    def trial(self, finished: "FinishedTrial") -> None:
        """Drop it."""
