"""Tiny random models and small made-up data, built on the spot."""

import gc
import os
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

# Tiny models gain nothing from a second thread, and lose much if the core is shared.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a hub

# The libraries make a million objects that live to the end; looking through them takes time.
gc.set_threshold(10_000, 10, 10)

GOOD = ["good", "great", "fine", "lovely", "superb", "charming"]
BAD = ["bad", "awful", "poor", "dull", "dreadful", "clumsy"]
PLAIN = [
    "the",
    "a",
    "film",
    "story",
    "actor",
    "scene",
    "was",
    "is",
    "very",
    "with",
    "and",
    "plot",
    "long",
    "short",
]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PLAIN, *GOOD, *BAD]


def pytest_collection_finish() -> None:
    """Leave what was imported for the tests out of later collections of cycles."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


def make_reviews(count: int, seed: int = 0) -> pd.DataFrame:
    """Return made-up reviews, one class in alternate rows, with a few words that tell the class."""
    chooser = random.Random(seed)
    rows = []
    for row in range(count):
        words = [chooser.choice(PLAIN) for _ in range(chooser.randint(3, 12))]
        words.insert(chooser.randint(0, len(words)), chooser.choice(BAD if row % 2 == 0 else GOOD))
        rows.append({"text": " ".join(words), "label": row % 2})
    return pd.DataFrame(rows)


def save_tokenizer(directory: Path) -> int:
    """Save a word-level tokenizer of the made-up vocabulary; return its size."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(directory)
    return len(WORDS)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers and width 16, without a head, on disk."""
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("tiny-bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=save_tokenizer(directory),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model: Any = BertModel(config)
    words = {**dict.fromkeys(GOOD, 1.0), **dict.fromkeys(BAD, -1.0)}
    with torch.no_grad():
        # What tells the class reaches the head, so that a few steps of training learn something.
        sides = torch.tensor([1.0, -1.0]).repeat(8)  # (width,)
        for word, side in words.items():
            model.embeddings.word_embeddings.weight[WORDS.index(word)] = side * sides
        dense = [model.pooler.dense]
        for layer in model.encoder.layer:
            dense += [layer.attention.self.value, layer.attention.output.dense]
        for linear in dense:
            linear.weight.copy_(torch.eye(16))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def swept(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep: ranks 2, 4 and 8, two rates, two seeds."""
    from rankwise import sweep

    directory = tmp_path_factory.mktemp("swept")
    data, out = directory / "reviews.csv", directory / "out"
    make_reviews(400).to_csv(data, index=False)
    sweep(
        model=str(tiny_model),
        data=data,
        ranks=(2, 4, 8),
        learning_rate=(5e-3, 1e-2),
        margin=0.5,
        out=out,
    )
    return out


@pytest.fixture(scope="session")
def provisional(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a sweep whose margin is too small for its evidence: ranks 2, 4 and 8."""
    from rankwise import sweep

    directory = tmp_path_factory.mktemp("provisional")
    make_reviews(400).to_csv(directory / "reviews.csv", index=False)
    sweep(**provisional_request(tiny_model, directory / "out"))
    return directory / "out"


def provisional_request(model: Path, out: Path) -> dict[str, Any]:
    """Return the request of the sweep `provisional`."""
    data = out.parent / "reviews.csv"
    settings = {"ranks": (2, 4, 8), "learning_rate": 1e-2, "margin": 0.002}
    return {"model": str(model), "data": data, "out": out, **settings}


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A CSV of 120 made-up reviews, columns text and label."""
    path = tmp_path / "reviews.csv"
    make_reviews(120).to_csv(path, index=False)
    return path
