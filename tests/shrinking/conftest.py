"""A tiny language model, an adapter of it, and held-out dialogues."""

from pathlib import Path

import pytest

from tests.shrinking.adapters import save_adapter, save_dialogues, save_lm


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``base``, ``adapter`` (rank 8) and ``held-out.jsonl``."""
    directory = tmp_path_factory.mktemp("lm")
    save_adapter(save_lm(directory), directory / "adapter")
    save_dialogues(directory)
    return directory
