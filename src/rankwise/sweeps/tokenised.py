"""The examples of a sweep as token ids: made once, they identify the sweep and train its trials."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.request_record import max_length
from rankwise.tasks.base import Encoded, Examples, Task

if TYPE_CHECKING:
    from rankwise.models.base_model import BaseModel


@dataclass(frozen=True)
class TokenisedPart:
    """A part of the data as token ids.

    Attributes:
        examples: the part before.
        encoded: the examples that have something left to learn.
        shortened: how many of them were cut.
    """

    examples: Examples
    encoded: Encoded
    shortened: int


def kept_length(config: SweepConfig, task: Task, base: "BaseModel") -> int:
    """Return the number of tokens that are kept of an example."""
    return min(max_length(config, task), base.max_length)


def tokenise(config: SweepConfig, task: Task, base: "BaseModel") -> dict[str, TokenisedPart]:
    """Tokenise the held-out, test and training examples; a trainer of the user reads its own."""
    names = ("held_out", "test") if config.trainer is not None else ("train", "held_out", "test")
    return {name: tokenise_part(config, task, base, name) for name in names}


def tokenise_part(config: SweepConfig, task: Task, base: "BaseModel", name: str) -> TokenisedPart:
    """Tokenise one part of the data: ``train``, ``held_out`` or ``test``."""
    examples = getattr(task, name)
    length = kept_length(config, task, base)
    return TokenisedPart(examples, *base.encode(task, examples, length))


def tokens_digest(parts: Mapping[str, TokenisedPart]) -> str:
    """Return one digest of the token ids and labels of all parts."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(f"{name} {parts[name].encoded.digest()}\n".encode())
    return digest.hexdigest()
