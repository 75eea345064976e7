"""Adapters before training: initial values from the seed, from data, or from the base's weights."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftModel
from transformers import set_seed

from rankwise.engine.config import BASE_CHANGING_INITS
from rankwise.engine.trial import Trial
from rankwise.errors import RankwiseError, RequestError, first_sentence, ran_out, some
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries, reinitialize
from rankwise.models.out_of_memory import is_out_of_memory

EVA_BATCH = 64  # examples in each step of EVA's incremental decomposition
RANK_SETTINGS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
MAX_EVA_STEPS = 500  # after so many, the data have fewer distinct directions than the rank


def saved_modules(base: BaseModel) -> dict[str, dict[str, torch.Tensor]]:
    """Return a copy of the weights of modules trained in full, by module."""
    modules = {name: base.model.get_submodule(name) for name in base.trained_in_full}
    return {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}


def attach_adapter(
    base: BaseModel,
    trial: Trial,
    saved: Mapping[str, Mapping[str, torch.Tensor]],
    use_dora: bool = False,
    init: str = "default",
    lora_dropout: float = 0.0,
    start: Adapter | None = None,
) -> PeftModel:
    """Attach an adapter to the base for training; ``unload()`` of the result detaches it.

    Args:
        base: base without adapters.
        trial: its seed sets the initial values of the head and the adapter.
        saved: weights from `saved_modules`, which replace those that an earlier trial left.
        use_dora: see `rankwise.engine.config.TrainingConfig`.
        init: see there too. EVA's values need data: `initialize_from_data` sets them afterwards.
        lora_dropout: see there too.
        start: adapter whose values, ranks and alphas replace those of the seed and of ``init``.

    Raises:
        RequestError: the adapter has other tensors than one of this base would have.
    """
    model = base.model
    for name, state in saved.items():
        model.get_submodule(name).load_state_dict(state)
    set_seed(trial.seed)
    for name in base.newly_initialized:
        reinitialize(model, model.get_submodule(name))
    config = peft.LoraConfig(
        task_type=base.objective.task_type,
        r=trial.rank,
        lora_alpha=trial.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions as well
        use_rslora=trial.use_rslora,
        lora_dropout=lora_dropout,
        use_dora=use_dora,
        init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]
        eva_config=peft.EvaConfig(rho=1.0)
        if init == "eva"
        else None,  # 1.0: layers keep their rank
        target_modules=list(base.targets),
        modules_to_save=list(base.trained_in_full) or None,
    )
    if start is None:
        return peft.get_peft_model(model, config)
    for name in RANK_SETTINGS:
        setattr(config, name, start.config.get(name, getattr(config, name)))
    config.init_lora_weights = True
    attached = peft.get_peft_model(model, config)
    if difference := adapter_state(attached).keys() ^ start.tensors.keys():
        attached.unload()
        raise RequestError(
            f"training cannot start from the adapter: it and a new adapter of {base.name!r} differ "
            f"in {some(sorted(difference))}"
        )
    peft.set_peft_model_state_dict(attached, dict(start.tensors))
    return attached


@contextmanager
def attaching(base: BaseModel) -> Iterator[None]:
    """Refuse a finished adapter that does not fit the base, in the ``with`` block that attaches it.

    Raises:
        RequestError: it does not fit.
    """
    try:
        yield
    except Exception as error:
        if ran_out(error) is not None or is_out_of_memory(error):
            raise
        reason = first_sentence(error)
        raise RequestError(
            f"the adapter cannot be attached to base {base.name!r}: {reason}"
        ) from error


def untrained_adapter(base: BaseModel) -> Adapter:
    """Return an adapter of rank 1 that changes nothing: B is zero, the head is the base's."""
    trial = Trial(rank=1, seed=0, learning_rate=1.0, lora_alpha=1.0, use_rslora=False)
    with quiet_libraries():
        model = attach_adapter(base, trial, saved_modules(base))
        try:
            state = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
            return Adapter(state, json_config(model))
        finally:
            model.unload()


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's parameters under PEFT's names."""
    # No embedding is trained; PEFT would ask the hub to find that out.
    return peft.get_peft_model_state_dict(model, save_embedding_layers=False)


def json_config(model: PeftModel) -> dict[str, Any]:
    """Return the adapter's config as PEFT writes it, for inference.

    The kind of initial values is left out: PEFT would draw them before it loads the trained ones.
    """
    config = model.active_peft_config.to_dict()
    config.update(inference_mode=True, init_lora_weights=True, eva_config=None)
    return {key: sorted(x) if isinstance(x, set) else x for key, x in config.items()}


@contextmanager
def base_restored(base: BaseModel, init: str) -> Iterator[None]:
    """Restore the base's weights bit for bit after the ``with`` block, if the init changes them.

    The copies take as much memory as the layers that get an adapter.

    Raises:
        RequestError: OLoRA on a ``Conv1D`` layer: PEFT would take its weight for the transpose.
    """
    layers: dict[str, Any] = {}
    if init in BASE_CHANGING_INITS:
        layers = {name: base.model.get_submodule(name) for name in base.targets}
    if init == "olora" and any(type(layer).__name__ == "Conv1D" for layer in layers.values()):
        raise RequestError("init 'olora' does not support GPT-2's Conv1D layers; take pissa")
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = weights[name]


def initialize_from_data(
    model: PeftModel,
    rank: int,
    batches: Sequence[Sequence[int]],
    collate: Callable[[Sequence[int]], Any],
) -> None:
    """Set A of every layer to the main directions of its inputs (EVA, Paischer et al. 2024, 3.2).

    Every layer keeps its rank. EVA's redistribution would give a trial another rank than its name.

    Args:
        model: model with an adapter whose ``init_lora_weights`` is ``"eva"``.
        rank: rank r of the adapter.
        batches: rows of training examples, at least r in each batch.
        collate: makes a padded batch from rows.

    Raises:
        RequestError: there are too few examples.
        RankwiseError: the decomposition does not converge.
    """
    if not batches:
        needed = max(EVA_BATCH, rank)
        raise RequestError(f"init 'eva' at rank {rank} needs at least {needed} training examples")

    def token_mask(batch: dict[str, torch.Tensor], _: Any) -> torch.Tensor:
        return batch["attention_mask"].bool()  # (n, L)

    def token_rows(inputs: Any, tokens: torch.Tensor, _: str) -> torch.Tensor:
        states = inputs[0] if isinstance(inputs, tuple) else inputs
        if states.ndim == 3:  # a pooler gets one row for each sequence instead
            states = states[tokens]
        return states.contiguous()  # (T, d_in)

    peft.initialize_lora_eva_weights(
        model,
        _LimitedBatches(batches, collate, rank),
        prepare_model_inputs_fn=token_mask,
        prepare_layer_inputs_fn=token_rows,
        show_progress_bar=False,
    )


@dataclass
class _LimitedBatches:
    """Batches that PEFT repeats until its decomposition converges, up to `MAX_EVA_STEPS`."""

    batches: Sequence[Sequence[int]]
    collate: Callable[[Sequence[int]], Any]
    rank: int
    steps: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.steps += 1
            if self.steps > MAX_EVA_STEPS:
                raise RankwiseError(
                    f"init 'eva' at rank {self.rank} has not converged after {MAX_EVA_STEPS} "
                    "batches; try a smaller rank, more training data or another init"
                )
            yield self.collate(batch)
