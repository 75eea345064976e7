"""Private behaviour of transformers' loading; `rankwise.models.compat` has the rules."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def conversion_errors_named() -> Iterator[None]:
    """Raise what stopped the conversion of a weight, as transformers logged it.

    transformers catches all errors of the steps that convert or quantise weights, logs them after
    loading as a table, and raises a ``RuntimeError`` that names none of them
    (``log_state_dict_report``, checked on 5.23). The logger passes nothing on here.

    Raises:
        RuntimeError: a weight could not be converted; the message has the table.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    messages: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    level = logger.level
    logger.addFilter(keep)
    logger.setLevel(logging.WARNING)
    try:
        yield
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise RuntimeError("\n".join(messages)) from None
    finally:
        logger.removeFilter(keep)
        logger.setLevel(level)
