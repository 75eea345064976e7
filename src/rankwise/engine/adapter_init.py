"""A trial's adapter and head as they are before training, drawn from its seed by PEFT and transformers themselves."""

from collections.abc import Mapping
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import set_seed

from rankwise.engine.trial import Trial
from rankwise.lora.adapter import Adapter
from rankwise.models.base_model import BaseModel
from rankwise.models.compat import quiet_libraries, reinitialize


def saved_modules(base: BaseModel) -> dict[str, dict[str, torch.Tensor]]:
    """Return a copy of the weights that putting on an adapter draws anew, by module."""
    return {
        name: {
            key: value.clone() for key, value in base.model.get_submodule(name).state_dict().items()
        }
        for name in base.trained_in_full
    }


def put_on_adapter(
    base: BaseModel,
    trial: Trial,
    saved: Mapping[str, Mapping[str, torch.Tensor]],
    use_dora: bool = False,
    init: str = "default",
) -> PeftModel:
    """Put a fresh adapter on the base; take it off with ``unload()``.

    Args:
        base: without adapters.
        trial: its seed sets the head's and the adapter's initial values.
        saved: from `saved_modules`: what an earlier trial left in the modules trained in full is undone.
        use_dora: see `rankwise.engine.config.TrainingConfig`.
        init: likewise. EVA's values need data and are set after this (`rankwise.engine.inits`).
    """
    model = base.model
    for name, state in saved.items():
        model.get_submodule(name).load_state_dict(state)
    set_seed(trial.seed)
    for name in base.newly_initialized:
        reinitialize(model, model.get_submodule(name))
    return get_peft_model(
        model,
        LoraConfig(
            task_type=base.objective.task_type,
            r=trial.rank,
            lora_alpha=trial.lora_alpha,  # type: ignore[arg-type]  # PEFT takes fractions as well
            use_rslora=trial.use_rslora,
            lora_dropout=0.0,
            use_dora=use_dora,
            init_lora_weights=True if init == "default" else init,  # type: ignore[arg-type]
            eva_config=EvaConfig(rho=1.0)
            if init == "eva"
            else None,  # which leaves every layer its rank
            target_modules=list(base.targets),
            modules_to_save=list(base.trained_in_full) or None,
        ),
    )


def untrained_adapter(base: BaseModel) -> Adapter:
    """Return an adapter of rank 1 that changes nothing: its B is zero, and modules trained in full are as they are."""
    trial = Trial(rank=1, seed=0, learning_rate=1.0, lora_alpha=1.0, use_rslora=False)
    with quiet_libraries():
        model = put_on_adapter(base, trial, saved_modules(base))
        try:
            state = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
            return Adapter(state, json_config(model))
        finally:
            model.unload()


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the adapter's parameters under PEFT's names.

    Embeddings stay out: none is trained, and asked to find out by itself PEFT would look the base up at the hub.
    """
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def json_config(model: PeftModel) -> dict[str, Any]:
    """Return the adapter's config as PEFT writes it, ready for use rather than for more training.

    How its values were drawn is no part of that: PEFT would draw them again before it loads the trained ones.
    """
    config = model.active_peft_config.to_dict()
    config.update(inference_mode=True, init_lora_weights=True, eva_config=None)
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
