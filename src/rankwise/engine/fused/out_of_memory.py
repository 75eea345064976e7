"""What to do when a device has too little memory: train fewer trials at once, then fewer tokens."""

from dataclasses import dataclass

import torch

from rankwise.models.out_of_memory import OutOfMemory, too_little_memory

CHANGES = (
    "lower --max-length or the largest rank, or add --gradient-checkpointing on or "
    "--quantization nf4"
)


@dataclass
class Limits:
    """How many trials and tokens go through the base at once, as large as memory has allowed.

    Attributes:
        pack_size: trials that train together.
        micro_batch_tokens: tokens in a pass; None is any number.
    """

    pack_size: int
    micro_batch_tokens: int | None

    def keep_to(self, tokens: int | None) -> None:
        """Take micro-batches no longer than those that memory allowed another process."""
        if tokens is not None:
            self.micro_batch_tokens = min(tokens, self.micro_batch_tokens or tokens)

    def lower(
        self, error: OutOfMemory, trials: int, longest: int, largest: int, device: torch.device
    ) -> str:
        """Halve the pack, or the micro-batch of a trial that trains alone; return a note on it.

        Args:
            error: what happened.
            trials: number of trials that trained together.
            longest: tokens of the longest example, which are the least that a pass needs.
            largest: tokens of the largest batch.
            device: where it happened.

        Raises:
            RankwiseError: neither can be halved.
        """
        if trials > 1:
            self.pack_size = (trials + 1) // 2
            return (
                f"out of memory with {trials} trials at once; they go on "
                f"{self.pack_size} at a time, and so do later ones"
            )
        tokens = min(error.tokens or largest, self.micro_batch_tokens or largest)
        if tokens <= longest:
            raise too_little_memory(
                error, device, f"one trial with one example of {longest} tokens", CHANGES
            )
        self.micro_batch_tokens = max(longest, tokens // 2)
        return (
            f"out of memory with one trial and {tokens} tokens in a pass; its batches, and later "
            f"ones, go on in micro-batches of at most {self.micro_batch_tokens} tokens"
        )
