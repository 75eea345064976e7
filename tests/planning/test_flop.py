"""The work of training, against PyTorch's own count and the numbers of published configs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.on_gpu.models import SIZES, flop_of, save_config
from torch.utils.flop_counter import FlopCounterMode

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.models.base_model import BaseModel, load_base
from rankwise.planning.flop import training_work
from rankwise.planning.prepare import prepare
from rankwise.tasks.losses import ClassificationObjective, CompletionObjective
from tests.engine.parity import TRIALS
from tests.tiny_models import request, save_tiny, save_tiny_lm

COUNT, LENGTH = 4, 24


def load(name: str, directory: Path, depth: int) -> BaseModel:
    directory.mkdir()
    save = save_tiny if name == "bert" else save_tiny_lm
    objective = ClassificationObjective(("a", "b")) if name == "bert" else CompletionObjective()
    model = str(save(name, directory, num_hidden_layers=depth))
    return load_base(model, objective, ["all-linear"], [4])


def counted(base: BaseModel) -> int:
    """Return the FLOP of PEFT's forward and backward pass, as PyTorch counts them.

    PyTorch counts no products in place, as the fused engine has them.
    """
    model = attach_adapter(base, TRIALS[0], saved_modules(base))
    base.model.set_attn_implementation("eager")
    ids = torch.full((COUNT, LENGTH), 5)
    labels = ids if base.objective.task_type == "CAUSAL_LM" else torch.zeros(COUNT, dtype=int)  # type: ignore[call-overload]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels).loss.backward()
    model.unload()
    return counter.get_total_flops()


def planned(base: BaseModel, causal: bool) -> float:
    """Return the work by count; PyTorch multiplies the whole square of a causal model."""
    task = base.objective.task_type
    work = training_work(base.model, task)
    assert work.causal is causal
    adapter = TRIALS[0].rank * sum(map(sum, base.targets.values()))
    supervised = COUNT * LENGTH if task == "CAUSAL_LM" else 0
    return replace(work, causal=False).flop([LENGTH] * COUNT, supervised, adapter)


@pytest.mark.parametrize(("name", "causal"), [("llama", True), ("qwen3", True), ("bert", False)])
def test_a_block_takes_what_pytorch_counts(tmp_path: Path, name: str, causal: bool) -> None:
    """The first block's layers have no gradient of their input; the others have."""
    bases = [load(name, tmp_path / str(depth), depth) for depth in (3, 4)]
    fewer, more = (counted(base) for base in bases)
    assert more - fewer == planned(bases[1], causal) - planned(bases[0], causal) > 0


@pytest.mark.parametrize("name", ["8B", "MoE"])
def test_published_sizes_take_what_their_numbers_say(tmp_path: Path, name: str) -> None:
    """The count of the GPU benchmark, which knows Llama and OLMoE by the numbers of their configs.

    A plan counts on the shortened model. OLMoE's router is no linear layer, and is left out.
    """
    save_config(SIZES[name], tmp_path)
    skeleton = prepare(request(str(tmp_path), seq_len=512)).skeleton
    work = training_work(skeleton.meta.model, "CAUSAL_LM", skeleton.repeats)
    expected = flop_of(SIZES[name], [512, 100], 300, 10**7)
    assert work.flop([512, 100], 300, 10**7) == pytest.approx(sum(expected.values()), rel=2e-3)
