"""Made-up examples whose lengths are spread as those of a published instruction set."""

import math

import numpy as np

from benchmarks.on_gpu.models import WORDS
from rankwise.tasks.base import Encoded

# The card of MaziyarPanahi/Llama-Nemotron-Post-Training-Dataset-v1-ShareGPT on huggingface.co
# gives these numbers for NVIDIA's instruction set: tokens of an example, and the share of all
# tokens that are the assistant's (12.83 of 15.97 billion).
SOURCE = "Llama-Nemotron Post-Training Dataset v1"
SHORTEST, MEDIAN, MEAN, LONGEST = 14, 393.0, 528.1, 18_718
COMPLETION_SHARE = 12.83 / 15.97
FREQUENT = 50  # completions are made of few words, so that there is something to learn


def draw_lengths(count: int, most: int, seed: int = 0) -> list[int]:
    """Draw numbers of tokens from the log-normal distribution with the published median and mean.

    Args:
        count: number of examples.
        most: length at which examples are cut.
        seed: of the draw.
    """
    spread = math.sqrt(2 * math.log(MEAN / MEDIAN))
    drawn = np.random.default_rng(seed).lognormal(math.log(MEDIAN), spread, count)
    return [int(length) for length in drawn.clip(SHORTEST, min(most, LONGEST))]


def make_examples(lengths: list[int], seed: int = 0) -> Encoded:
    """Return examples of given lengths; the last part of each is the completion, and learnt."""
    chooser = np.random.default_rng(seed)
    input_ids, labels, positions = [], [], []
    for length in lengths:
        prompt = max(1, round(length * (1 - COMPLETION_SHARE)))
        tokens = [*chooser.integers(3, WORDS, prompt), *chooser.integers(3, FREQUENT, length)]
        ids = [int(token) for token in tokens[:length]]
        before = list(range(prompt - 1, length - 1))
        input_ids.append(ids)
        positions.append(before)
        labels.append([ids[place + 1] for place in before])
    return Encoded(tuple(range(len(lengths))), input_ids, tuple(labels), positions=positions)


def as_text(examples: Encoded) -> list[dict[str, str]]:
    """Return the examples as prompts and completions in the words of the made-up tokenizer."""
    rows = []
    for tokens, places in zip(examples.input_ids, examples.positions or (), strict=True):
        words = [f"w{token - 3}" for token in tokens]
        start = places[0] + 1
        rows.append(
            {"prompt": " ".join(words[:start]), "completion": " ".join(["", *words[start:]])}
        )
    return rows


def padded_tokens(lengths: list[int], batch_size: int) -> int:
    """Return the tokens of batches in the given order, each padded to its longest example."""
    starts = range(0, len(lengths), batch_size)
    batches = [lengths[start : start + batch_size] for start in starts]
    return sum(len(batch) * max(batch) for batch in batches)
