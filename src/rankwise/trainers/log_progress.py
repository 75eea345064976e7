"""The share of a trial that its own log shows: a progress bar, or lines such as ``step 3/40``."""

import re

# A bar of tqdm without a name, as the Trainer of transformers and all that build on it draw it.
BAR = r"(?:^|[\r\n])[ \t]*\d{1,3}%\|[^|\r\n]*\|[ \t]*(\d+)/(\d+)\b"
STEP = r"\b(?:step|iteration|iter)s?\b[\s\"']*[:=]?[ \t\[]*(\d+)[ \t]*(?:/|of)[ \t]*(\d+)\b"
PROGRESS = re.compile(f"{BAR}|{STEP}", re.IGNORECASE)


class LogProgress:
    """Follows how far a trial says that it is.

    Bars with names, such as those of loading and tokenising, do not count. Of the others the one
    with the largest end counts, which is that of training. One bar inside another is that of an
    evaluation, however long it is.
    """

    def __init__(self) -> None:
        self._end = 1
        self._is_inside_bar = False

    def share(self, text: str) -> float | None:
        """Return the share of its steps that a trial has done.

        Args:
            text: the end of its log.

        Returns:
            The share; None where the log does not tell it.
        """
        share = None
        for match in PROGRESS.finditer(text):
            done, end = (int(number) for number in match.groups() if number is not None)
            if end == self._end > 1 or (end > self._end and not self._is_inside_bar):
                self._end, share = end, min(done / end, 1.0)
                is_bar = match[1] is not None
                self._is_inside_bar = is_bar and done < end
        return share
