"""Dropout of an adapter's input, as PEFT applies it, from a random stream of each trial's own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class DropoutStream:
    """What a trial's masks in one pass depend on, besides the layer.

    A pack changes none of it, so a trial has the same masks alone. A layer that runs again in the
    backward pass, for gradient checkpointing or for its own gradient, draws the same mask again.
    Trials of one seed share their masks, whatever their ranks.
    """

    seed: int
    step: int
    micro_batch: int = 0
    chunk: int = 0  # of the tokens that a language model's head gets

    def layer_seed(self, layer: str) -> int:
        """Return the seed of a layer's mask, 63 bits of a hash."""
        key = f"{self.seed} {self.step} {self.micro_batch} {self.chunk} {layer}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Dropout:
    """Dropout of one layer's input in one pass."""

    rate: float
    layer: str
    streams: Sequence[DropoutStream]  # one for each of the K trials
    bounds: Sequence[int]  # first row of each trial, then the number of rows, (K + 1,)

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """Draw which entries of the input rows, (T, d), are kept.

        It is drawn again for the backward pass: to keep it would take half the input's memory.
        """
        mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
        if mask.is_meta:  # a plan of memory has no numbers
            return mask
        generator = torch.Generator(rows.device)
        for stream, (start, stop) in zip(self.streams, pairwise(self.bounds), strict=True):
            generator.manual_seed(stream.layer_seed(self.layer))
            mask[start:stop].bernoulli_(1 - self.rate, generator=generator)
        return mask

    def apply(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return kept entries divided by the share that is kept, and zeros."""
        return rows.mul(mask).mul_(1 / (1 - self.rate))
