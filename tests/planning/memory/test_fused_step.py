"""Planned against measured memory of real steps of the fused engine on a CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rankwise.engine.adapter_init import saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.loop import TrainingLoop, max_pass_tokens
from rankwise.engine.fused.model import packed_model
from rankwise.engine.fused.optimizer import step_all
from rankwise.engine.fused.out_of_memory import Limits
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.peak_memory import peak_live_bytes
from rankwise.engine.trial import Trial
from rankwise.errors import RequestError
from rankwise.models.base_model import BaseModel, compute_in_fp32
from rankwise.models.device import DTYPES
from rankwise.models.quantization import keep_as_loaded, loading_arguments, resident_tensors
from rankwise.models.targets import find_targets
from rankwise.planning.memory.devices import CPU, find_device
from rankwise.planning.memory.fused_step import FusedStep, PackShape
from rankwise.planning.memory.kernels import DeviceKernels
from rankwise.planning.prepare import prepare
from rankwise.tasks.base import Encoded, Objective
from rankwise.tasks.losses import ClassificationObjective, CompletionObjective
from tests.tiny_models import cores, request, write_config

EXAMPLES, LENGTH, RANK = 4, 80, 8
CPU_DEVICE = torch.device("cpu")
LM, CLASSES = CompletionObjective(), ClassificationObjective(("good", "bad"))


def shape(**changes: Any) -> PackShape:
    values = {"rank": RANK, "trials": 1, "in_pass": 1, "examples": EXAMPLES, "seq_len": LENGTH}
    return PackShape(**{**values, "checkpointing": False, **changes})


def step(config: Any, device: str, objective: Objective) -> FusedStep:
    prepared = prepare(config)
    kernels = DeviceKernels(CPU if device == "cpu" else find_device(device), "sdpa")
    return FusedStep(prepared.skeleton, prepared.config, kernels, objective)


def measured(
    base: BaseModel, pack: PackShape, tokens: int | None = None, dropout: float = 0.0
) -> int:
    """Return the peak of a real step of a pack, in passes of at most so many tokens."""
    examples = full_examples(base.objective)
    settings = TrainingConfig(batch_size=EXAMPLES, lora_dropout=dropout)
    states = [
        TrainingState(
            Trial(rank=pack.rank, seed=seed, learning_rate=1e-3, lora_alpha=16),
            base,
            saved_modules(base),
            settings,
            examples,
        )
        for seed in range(pack.trials)
    ]
    loop = TrainingLoop(base, examples, Limits(pack.trials, tokens))
    batches = [list(range(EXAMPLES))] * pack.trials
    with packed_model(base, dropout, checkpointing=pack.checkpointing) as packed:

        def step() -> None:
            packed.begin_step(states)
            losses = loop.forward_backward(packed, states, batches)
            packed.end_step()
            step_all(states, losses)

        held = [tensor for state in states for tensor in state.tensors()]
        return peak_live_bytes(step, [*resident_tensors(base.model), *held])


def real_base(planned: FusedStep, directory: Path) -> BaseModel:
    """Return the planned base with random weights, quantised by bitsandbytes if it is planned so.

    It is loaded in the types in which `rankwise.models.base_model.load_base` loads it.
    """
    config, objective = planned.config, planned.base.objective
    dtype = DTYPES[config.precision]
    kinds = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}
    kind = kinds[objective.task_type]
    settings = AutoConfig.from_pretrained(config.model, use_cache=False, **objective.settings)
    model = kind.from_config(settings, dtype=dtype)
    if config.quantization != "none":
        model.save_pretrained(directory / "weights")
        how = loading_arguments(config.quantization, planned.in_full, dtype)
        model = kind.from_pretrained(directory / "weights", dtype=dtype, **how)
        keep_as_loaded(model)
    model.requires_grad_(False).eval()  # without dropout, as it is loaded
    if dtype != torch.float32:
        compute_in_fp32([model.get_submodule(name) for name in planned.in_full])
    targets = find_targets(model, "all-linear", planned.in_full)
    name = config.model
    return BaseModel(model, None, name, objective, (), planned.in_full, targets, LENGTH)


def full_examples(objective: Objective) -> Encoded:
    """Return examples of full length, all of whose tokens are supervised that can be."""
    tokens = [[5 + place for place in range(LENGTH)]] * EXAMPLES
    ids = tuple(range(EXAMPLES))
    if objective is not LM:
        return Encoded(ids=ids, input_ids=tokens, labels=(0,) * EXAMPLES)
    supervised = [list(range(LENGTH - 1))] * EXAMPLES
    return Encoded(ids=ids, input_ids=tokens, labels=tuple(supervised), positions=supervised)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "objective"), [("llama", LM), ("qwen3", LM), ("gemma2", LM), ("llama", CLASSES)]
)
def test_a_step_on_a_cpu_takes_what_is_planned(
    name: str, objective: Objective, precision: str, checkpointing: bool, tmp_path: Path
) -> None:
    """Nothing is left out but a few scalars; the optimizer's clipping keeps some."""
    task = objective.task_type
    config = request(
        write_config(tmp_path, name), task_type=task, precision=precision, target_modules=None
    )
    planned = step(config, "cpu", objective)
    memory = planned.memory(shape(checkpointing=checkpointing))
    peak = measured(real_base(planned, tmp_path), shape(checkpointing=checkpointing))
    assert memory.peak_allocated == pytest.approx(peak, rel=0.001)
    assert memory.at_peak["activations"] > 0


@pytest.mark.parametrize("name", ["bert", "distilbert"])  # the second has a large trained head
def test_classifiers_and_their_heads_are_planned(name: str, tmp_path: Path) -> None:
    config = request(write_config(tmp_path, name), task_type="SEQ_CLS", target_modules=None)
    planned = step(config, "cpu", CLASSES)
    peak = measured(real_base(planned, tmp_path), shape())
    assert planned.memory(shape()).peak_allocated == pytest.approx(peak, rel=0.001)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_masks_of_dropout_are_planned(name: str, tmp_path: Path) -> None:
    """Each layer has an input of its own, and a mask and the kept entries at a time."""
    settings = {"task_type": "SEQ_CLS", "target_modules": None}
    config = request(write_config(tmp_path, name), lora_dropout=0.1, **settings)
    planned = step(config, "cpu", CLASSES)
    base = real_base(planned, tmp_path)
    for checkpointing in (False, True):
        pack = shape(checkpointing=checkpointing)
        peak = measured(base, pack, dropout=0.1)
        assert planned.memory(pack).peak_allocated == pytest.approx(peak, rel=0.001)
        assert peak > measured(base, pack)


@pytest.mark.parametrize("quantization", ["none", "nf4-dq"])
def test_packs_and_micro_batches_take_what_is_planned(quantization: str, tmp_path: Path) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    model = write_config(tmp_path, "llama", num_hidden_layers=4)
    planned = step(request(model, quantization=quantization, target_modules=None), "cpu", LM)
    base = real_base(planned, tmp_path)
    tokens = EXAMPLES * LENGTH  # of a batch
    assert 3 * tokens <= max_pass_tokens(CPU_DEVICE)  # so that 3 trials share a pass
    kinds = [(1, EXAMPLES, True), (3, EXAMPLES, False), (3, EXAMPLES, True), (1, 1, False)]
    with cores(1):
        for trials, examples, checkpointing in kinds:
            pack = shape(
                trials=trials, in_pass=trials, examples=examples, checkpointing=checkpointing
            )
            peak = measured(base, pack, None if examples == EXAMPLES else LENGTH)
            # The indices of the step's other passes lie ready: at most 3 for each head, and 4.
            others = EXAMPLES // examples - 1
            indices = others * LENGTH * 8 * (4 + 3 * (4 + 2))
            rest = peak - planned.memory(pack).peak_allocated
            assert -0.001 * peak < rest < 0.001 * peak + indices, pack


def test_trials_of_a_pack_share_the_base(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), target_modules=None, device="H100")
    planned = step(config, "H100", LM)
    one, four = planned.memory(shape()), planned.memory(shape(trials=4))
    assert one.weights == four.weights
    assert four.optimizer == 4 * one.optimizer
    together = planned.memory(shape(trials=4, in_pass=4))
    scratch = find_device("H100").workspace_bytes  # of cuBLAS, the same for any pass
    assert together.activations - scratch > 3 * (four.activations - scratch)


def test_smaller_passes_and_checkpointing_take_less(tmp_path: Path) -> None:
    config = request(
        write_config(tmp_path, "llama"), target_modules=None, device="H100", precision="bf16"
    )
    planned = step(config, "H100", LM)
    whole = planned.memory(shape()).peak_allocated
    assert planned.memory(shape(examples=1)).peak_allocated < whole
    assert planned.memory(shape(checkpointing=True)).peak_allocated < whole


@pytest.mark.parametrize("device", ["H100", "T4"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_bases_are_planned_on_a_gpu(
    device: str, quantization: str, tmp_path: Path
) -> None:
    settings = {"quantization": quantization, "precision": "fp16", "target_modules": None}
    model = write_config(tmp_path, "llama")
    quantised = step(request(model, **settings), device, LM).memory(shape(checkpointing=True))
    plain = step(request(model, **{**settings, "quantization": "none"}), device, LM)
    assert quantised.weights < plain.memory(shape(checkpointing=True)).weights


def test_what_the_engine_does_not_take_is_refused(tmp_path: Path) -> None:
    config = request(write_config(tmp_path, "llama"), modules_to_save="embed_tokens")
    with pytest.raises(RequestError, match="embed_tokens is trained in full and lies outside"):
        step(config, "cpu", LM)
    t5 = step(request(write_config(tmp_path, "t5")), "cpu", LM)
    with pytest.raises(RequestError, match="has no plan"):
        t5.memory(shape())
