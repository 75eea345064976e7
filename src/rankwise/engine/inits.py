"""Initial values of an adapter that the seed alone does not give: those that need data, those that change the base."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, initialize_lora_eva_weights

from rankwise.engine.config import BASE_CHANGING_INITS
from rankwise.errors import RankwiseError, RequestError
from rankwise.models.base_model import BaseModel

EVA_BATCH = 64  # examples in each step of the incremental decomposition
MOST_STEPS = (
    500  # of it, after which a rank has too many directions that the data does not tell apart
)


@contextmanager
def base_kept(base: BaseModel, init: str) -> Iterator[None]:
    """Give a base its weights back at the end of the ``with`` block, to the last bit, where an init changes them.

    The copies take as much memory as the layers that get an adapter.

    Raises:
        RequestError: PEFT's OLoRA would take the weight of a GPT-2 style layer for its transpose.
    """
    layers: dict[str, Any] = {}
    if init in BASE_CHANGING_INITS:
        layers = {name: base.model.get_submodule(name) for name in base.targets}
    if init == "olora" and any(type(layer).__name__ == "Conv1D" for layer in layers.values()):
        raise RequestError(
            "init 'olora' does not know GPT-2's Conv1D layers; take pissa, or default"
        )
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = weights[name]


def draw_from_data(
    model: PeftModel,
    rank: int,
    batches: Sequence[Sequence[int]],
    collate: Callable[[Sequence[int]], Any],
) -> None:
    """Set A of every layer to the main directions of the layer's inputs (EVA, Paischer et al. 2024, section 3.2).

    Every layer keeps its rank: EVA's redistribution would give a trial another rank than it is named for.

    Args:
        model: with an adapter whose ``init_lora_weights`` is ``"eva"``.
        rank: r.
        batches: rows of training examples, each batch of at least r.
        collate: makes a padded batch of rows.

    Raises:
        RequestError: there are too few examples.
        RankwiseError: the decomposition does not settle.
    """
    if not batches:
        raise RequestError(
            f"init 'eva' at rank {rank} needs at least {max(EVA_BATCH, rank)} training examples"
        )

    def mask(batch: dict[str, torch.Tensor], _: Any) -> torch.Tensor:
        return batch["attention_mask"].bool()  # (n, L)

    def pick(inputs: Any, tokens: torch.Tensor, _: str) -> torch.Tensor:
        states = inputs[0] if isinstance(inputs, tuple) else inputs
        rows = (
            states[tokens] if states.ndim == 3 else states
        )  # a pooler sees one row for each sequence
        return rows.contiguous()  # (T, d_in)

    initialize_lora_eva_weights(
        model,
        _Batches(batches, collate, rank),
        prepare_model_inputs_fn=mask,
        prepare_layer_inputs_fn=pick,
        show_progress_bar=False,
    )


class _Batches:
    """Batches that PEFT goes round and round until its decomposition has settled, but not for ever."""

    def __init__(
        self, batches: Sequence[Sequence[int]], collate: Callable[[Sequence[int]], Any], rank: int
    ) -> None:
        self.batches = batches
        self.collate = collate
        self.rank = rank
        self.given = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.given += 1
            if self.given > MOST_STEPS:
                raise RankwiseError(
                    f"init 'eva' at rank {self.rank}: the directions of the layers' inputs have not settled after "
                    f"{MOST_STEPS} batches; try a smaller rank, more training data or another init"
                )
            yield self.collate(batch)
