"""transformers and PEFT kept quiet, and their errors kept short."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

IN_CONFIG_WORDS = {
    "Padding_idx must be within num_embeddings": "pad_token_id must be below vocab_size"
}
"""Messages of PyTorch whose cause is in a model's config, and what it is called there."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' reports, warnings and bars off the screen meanwhile; restore their settings after."""
    from transformers.utils import logging as reports

    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    reports.set_verbosity(logging.CRITICAL)
    reports.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        reports.set_verbosity(level)
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
        if bars:
            reports.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    """Return an error's first sentence as one line."""
    text = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
    return IN_CONFIG_WORDS.get(text, text)
