import logging

import pytest

from rankwise.models.compat_loading import conversion_errors_named

LOGGER = logging.getLogger("transformers.modeling_utils")
GENERAL = "We encountered some issues during automatic conversion of the weights."


def test_the_logged_reason_is_raised_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    level = LOGGER.level
    with pytest.raises(RuntimeError, match=r"q_proj.*7 of 8"), conversion_errors_named():
        LOGGER.warning("q_proj | CONVERSION: 7 of 8")
        raise RuntimeError(GENERAL)
    assert capsys.readouterr().err == ""
    assert (LOGGER.level, LOGGER.filters) == (level, [])


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^other$"), conversion_errors_named():
        LOGGER.warning("a report")
        raise RuntimeError("other")
