import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
)

from rankwise.engine.micro_batches import split_batch
from rankwise.tasks.base import IGNORED
from tests.tiny_models import TINY_GROUPED

LENGTHS = (3, 9, 4, 12, 5)


def padded(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    inputs = torch.randint(1, 20, mask.shape) * mask
    return {"input_ids": inputs, "attention_mask": mask.long(), "labels": labels}


def language_model() -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY_GROUPED, vocab_size=20))
    batch = padded(torch.empty(0))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    labels[3, :7] = IGNORED  # a prompt
    return model.double(), batch | {"labels": labels}


def classifier() -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=20, intermediate_size=8, num_labels=2, **sizes)  # type: ignore[call-arg]
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return model.double(), padded(torch.tensor([0, 1, 1, 0, 1]))


@pytest.mark.parametrize("make", [language_model, classifier])
@pytest.mark.parametrize("tokens", [1, 12, 20, 36, 1000])
def test_gradients_of_the_parts_add_up_to_the_batch_s(make: object, tokens: int) -> None:
    model, batch = make()  # type: ignore[operator]
    loss = model(**batch).loss
    expected = torch.autograd.grad(loss, model.parameters(), allow_unused=True)
    total = 0.0
    for part, share in split_batch(batch, tokens):
        one = model(**part).loss * share
        one.backward()
        total += one.item()
    # transformers computes the loss of a language model in fp32.
    bound = 1e-12 if loss.dtype == torch.float64 else 1e-6
    assert total == pytest.approx(loss.item(), rel=bound)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=100 * bound, atol=bound)


@pytest.mark.parametrize(
    ("tokens", "shapes"),
    [
        (None, [(5, 12)]),
        (1, [(1, 3), (1, 9), (1, 4), (1, 12), (1, 5)]),
        (18, [(2, 9), (1, 4), (1, 12), (1, 5)]),
        (36, [(3, 9), (2, 12)]),
    ],
)
def test_a_part_has_at_most_so_many_tokens_with_padding(
    tokens: int | None, shapes: list[tuple[int, int]]
) -> None:
    _, batch = classifier()
    parts = [part for part, _ in split_batch(batch, tokens)]
    assert [tuple(part["input_ids"].shape) for part in parts] == shapes
    assert torch.cat([part["labels"] for part in parts]).equal(batch["labels"])
