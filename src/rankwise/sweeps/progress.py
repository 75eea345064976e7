"""The interface through which a sweep reports its progress."""

from collections.abc import Sequence
from typing import Protocol

from rankwise.engine.trial import FinishedTrial


class Progress(Protocol):
    """A receiver of a sweep's progress, for example a bar on the terminal."""

    def note(self, text: str) -> None:
        """Receive a sentence about the sweep."""

    def plan(self, complete: int, expected: int) -> None:
        """Receive the number of complete trials and the number expected in the whole sweep."""

    def work(self, share: float) -> None:
        """Receive the share of a trial that has been done since the last call.

        It is negative where a trainer's trial turns out to be less far than it seemed.
        """

    def log(self, trial: str, lines: Sequence[str]) -> None:
        """Receive the last lines that a trial printed; none once it has ended."""

    def trial(self, finished: FinishedTrial) -> None:
        """Receive a finished trial."""


class Silent:
    """A receiver that ignores everything."""

    def note(self, text: str) -> None:
        """Ignore the sentence."""

    def plan(self, complete: int, expected: int) -> None:
        """Ignore the numbers."""

    def work(self, share: float) -> None:
        """Ignore the share."""

    def log(self, trial: str, lines: Sequence[str]) -> None:
        """Ignore the lines."""

    def trial(self, finished: FinishedTrial) -> None:
        """Ignore the trial."""
