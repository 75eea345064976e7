"""Failures of a sweep's trials: one is recorded, two alike end the sweep."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from rankwise.errors import RankwiseError
from rankwise.escaping import LONGEST_MESSAGE

SHORTEST_REASON, START = 50, 40  # characters of a reason, and of its start if it is cut


class Failures:
    """Failures of different trials so far.

    Args:
        earlier: how trials failed that an earlier run of the sweep recorded, by their names.
        take_back: takes a recorded trial out of the sweep, so that it will run again.
        note: receives a sentence about each failure.
    """

    def __init__(
        self,
        earlier: Mapping[str, str],
        take_back: Callable[[str], None],
        note: Callable[[str], None],
    ) -> None:
        self.known = dict(earlier)
        self.take_back = take_back
        self.note = note

    def add(self, name: str, failure: str) -> list[str]:
        """Count a failure, and return the names of other trials that failed alike."""
        others = [
            other
            for other, known in self.known.items()
            if other != name and _kind(known) == _kind(failure)
        ]
        self.known[name] = failure
        if not others:
            self.note(f"{name} failed, and counts as diverged: {failure}")
        return others

    def stop(self, others: list[str], name: str, kept: Path) -> RankwiseError:
        """Return the error that ends the sweep; none of the trials stays recorded.

        Args:
            others: names of trials that failed alike.
            name: name of the last one.
            kept: what it left: its log, or its directory.
        """
        for other in others:
            self.take_back(other)
        start = f"trials {others[0]} and {name} failed alike, so the sweep stops: "
        end, remedy = f"; see {kept}", "; once that is mended, the same command runs both again"
        # A longer message would lose directories of the path, which is there to be opened.
        room = LONGEST_MESSAGE - len(start) - len(end)
        if room < SHORTEST_REASON + len(remedy):
            remedy = ""
        room = max(SHORTEST_REASON, room - len(remedy))
        reason = self.known[name]
        if len(reason) > room:
            # How the trial ended is at the start, and what to do about it at the end.
            reason = f"{reason[:START]} ... {reason[START + len(' ... ') - room :]}"
        return RankwiseError(start + reason + end + remedy)


STOPPED = re.compile(
    r"it took longer than trial_timeout|its (command|process) (was killed by \w+|ended with exit "
    r"code (137|143)\b)"
)
"""How failures begin that have their whole reason there: the last line of the log is no part."""


def _kind(failure: str) -> str:
    """Return a failure without numbers and paths, which differ between trials that fail alike."""
    stopped = STOPPED.match(failure)
    if stopped:
        return stopped[0]
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", re.sub(r"\S*/\S*", "/", failure))
