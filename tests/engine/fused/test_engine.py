import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from rankwise.engine.adapter_init import attach_adapter, saved_modules
from rankwise.engine.config import TrainingConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.fused.heads import FirstTokenAttention
from rankwise.engine.fused.model import packed_model, unsupported_reason
from rankwise.engine.fused.training_state import TrainingState
from rankwise.engine.reference import ReferenceEngine, score_adapter
from rankwise.engine.trial import FinishedTrial, Trial
from rankwise.models.base_model import BaseModel, load_base
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks import samples
from rankwise.tasks.base import Encoded
from rankwise.tasks.classification import encode
from rankwise.tasks.load import load_task
from tests.tiny_models import PACKABLE, cores, load_tiny

RECIPE = TrainingConfig(epochs=1, batch_size=8)  # 50 steps
# At rates where training is stable: where it is not, rounding alone grows to a part in a thousand within 50 steps.
TRIALS = [
    Trial(rank=4, seed=3, learning_rate=1e-3, lora_alpha=4),
    Trial(rank=2, seed=1, learning_rate=1e-3, lora_alpha=4, use_rslora=True),
    Trial(rank=3, seed=3, learning_rate=1e-4, lora_alpha=6),
]
Tiny = tuple[BaseModel, Encoded, Encoded]


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    name = getattr(request, "param", "bert")
    return load_tiny(name, tmp_path_factory.mktemp(name))


# Others have their kind among these: in the slow part.
EVERYDAY = ("bert", "roberta", "distilbert", "modernbert", "gpt2", "llama", "qwen2", "gemma2")
every_architecture = pytest.mark.parametrize(
    "tiny",
    [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in PACKABLE],
    indirect=True,
)


def figures(finished: FinishedTrial, what: str) -> list[float]:
    return [row[what] for row in finished.steps]


def assert_same_training(one: FinishedTrial, other: FinishedTrial) -> None:
    for what in ("step", "epoch", "learning_rate"):
        assert figures(one, what) == figures(other, what)
    assert figures(one, "train_loss") == pytest.approx(figures(other, "train_loss"), rel=1e-5)
    assert figures(one, "grad_norm") == pytest.approx(figures(other, "grad_norm"), rel=1e-4)
    assert list(one.evidence["example_id"]) == list(other.evidence["example_id"])
    assert list(one.evidence["loss"]) == pytest.approx(
        list(other.evidence["loss"]), rel=1e-5, abs=1e-6
    )
    assert one.adapter.keys() == other.adapter.keys()
    for key, value in one.adapter.items():
        assert value.shape == other.adapter[key].shape
    assert one.adapter_config == other.adapter_config
    assert one.trainable_params == other.trainable_params
    assert one.diverged == other.diverged


@every_architecture
def test_training_is_that_of_peft_and_the_trainer(tiny: Tiny) -> None:
    base, train, held_out = tiny
    assert unsupported_reason(base, train) is None
    expected = list(ReferenceEngine(base, train, held_out, RECIPE).train(TRIALS[:1]))
    alone = list(FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:2]))
    with cores(1):  # so that both are in one pass
        packed = list(FusedEngine(base, train, held_out, RECIPE, pack_size=2).train(TRIALS[:2]))
    assert len(alone[0].steps) == 50
    assert_same_training(alone[0], expected[0])
    for one, other in zip(packed, alone, strict=True):
        assert_same_training(one, other)


@every_architecture
def test_gradients_are_those_of_peft(tiny: Tiny) -> None:
    assert_gradients_of_peft(*tiny)


def test_gradients_are_those_of_peft_where_keys_are_no_target(tmp_path: Path) -> None:
    assert_gradients_of_peft(*load_tiny("bert", tmp_path, targets=["query", "value"]))


def assert_gradients_of_peft(base: BaseModel, train: Encoded, held_out: Encoded) -> None:
    """In float64, on a batch of very different lengths."""
    by_length = sorted(range(len(train)), key=train.lengths.__getitem__)
    batch = [
        by_length[0],
        by_length[-1],
        by_length[5],
        by_length[len(by_length) // 2],
        by_length[-2],
    ]
    base.model.double()
    try:
        saved = saved_modules(base)
        engine = FusedEngine(base, train, held_out, RECIPE)
        trainee = TrainingState(TRIALS[1], base, saved, RECIPE, train)
        trainee.flat.copy_(
            torch.randn(trainee.flat.shape, dtype=torch.float64) * 0.1
        )  # B is 0 in a fresh adapter
        state = trainee.adapter()
        with packed_model(base) as model:
            (loss,) = engine.forward_backward(model, [trainee], [batch])
        trainee.flat.copy_(trainee.flat.grad)  # so that the names are those of the adapter
        ours = trainee.adapter()

        model = attach_adapter(base, TRIALS[1], saved)
        set_peft_model_state_dict(model, state)
        expected = 0.0
        for row in batch:  # one at a time: Gemma 2 gives NaN for a padded batch in float64
            output = model(
                input_ids=torch.tensor([train.input_ids[row]]),
                labels=torch.tensor([train.labels[row]]),
            )
            (output.loss / len(batch)).backward()
            expected += output.loss.item() / len(batch)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.grad
        theirs = get_peft_model_state_dict(model)
        model.unload()
    finally:
        base.model.float()
    # transformers takes Gemma 2's softmax in float32 whatever the model is in; test_attention.py has it in float64.
    tolerance = 1e-5 if base.model.config.model_type == "gemma2" else 1e-10
    assert loss == pytest.approx(expected, rel=tolerance)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert float(theirs[key].abs().max()) > 1e-8, (
            key
        )  # a gradient of nothing would show nothing
        torch.testing.assert_close(value, theirs[key], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("tiny", ["bert", "llama", "gemma2"], indirect=True)
def test_company_and_padding_change_no_logit(tiny: Tiny) -> None:
    base, train, _ = tiny
    trainee, other_trainee = (
        TrainingState(trial, base, saved_modules(base), RECIPE, train) for trial in TRIALS[:2]
    )
    for seed, one in enumerate((trainee, other_trainee)):  # B is 0 in a fresh adapter
        torch.manual_seed(seed)
        one.flat.add_(torch.randn_like(one.flat) * 0.05)
    part = train.take(range(24))
    with torch.inference_mode(), packed_model(base) as model:
        (together,) = model.logits([trainee], [part])
        one_by_one = torch.cat(
            [model.logits([trainee], [part.take([row])])[0] for row in range(24)]
        )
        backwards = model.logits([trainee], [part.take(range(23, -1, -1))])[0].flip(0)
        with_others = model.logits([other_trainee, trainee], [train.take(range(30, 37)), part])[1]
    for other in (one_by_one, backwards, with_others):
        torch.testing.assert_close(other, together, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("tiny", ["bert", "roberta", "electra"], indirect=True)
def test_the_last_attention_is_asked_for_the_first_token_alone(tiny: Tiny) -> None:
    base = tiny[0]
    attention = base.model.base_model.encoder.layer[-1].attention
    with packed_model(base) as model:
        assert isinstance(attention.self, FirstTokenAttention)
        assert model.pools_early
    assert not isinstance(attention.self, FirstTokenAttention)


def test_a_trial_that_diverges_leaves_its_company_alone(tiny: Tiny) -> None:
    base, train, held_out = tiny
    wild = replace(TRIALS[0], learning_rate=1e30)
    packed = list(
        FusedEngine(base, train, held_out, RECIPE, pack_size=3).train([TRIALS[0], wild, TRIALS[1]])
    )
    alone = list(FusedEngine(base, train, held_out, RECIPE).train([TRIALS[0], wild, TRIALS[1]]))
    expected = next(iter(ReferenceEngine(base, train, held_out, RECIPE).train([wild])))
    assert [finished.diverged for finished in packed] == [False, True, False]
    assert len(packed[1].evidence) == 0
    assert len(packed[1].steps) == len(expected.steps) < 50
    for one, other in zip(packed[::2], alone[::2], strict=True):
        assert_same_training(one, other)


def test_a_trial_alone_depends_on_nothing_but_itself(tiny: Tiny) -> None:
    base, train, held_out = tiny
    first = next(iter(FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:1])))
    _, again = FusedEngine(base, train, held_out, RECIPE).train([TRIALS[1], TRIALS[0]])
    assert again.steps == first.steps
    assert again.evidence.equals(first.evidence)


def test_the_saved_adapter_gives_the_same_figures_in_peft(tiny: Tiny, tmp_path: Path) -> None:
    base, train, held_out = tiny
    finished = next(iter(FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:1])))
    save_file(finished.adapter, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(finished.adapter_config))
    scored = score_adapter(base, tmp_path, held_out)
    assert list(scored["loss"]) == pytest.approx(list(finished.evidence["loss"]), abs=1e-6)
    assert list(scored["score"]) == list(finished.evidence["score"])


def test_the_base_is_left_as_it_was(tiny: Tiny) -> None:
    base, train, held_out = tiny
    before = {
        name: value.clone()
        for name, value in base.model.state_dict().items()
        if "classifier" not in name
    }
    layers = {name: type(module) for name, module in base.model.named_modules()}
    attention = base.model.config._attn_implementation
    list(FusedEngine(base, train, held_out, RECIPE, pack_size=2).train(TRIALS[:2]))
    assert base.model.config._attn_implementation == attention
    assert {name: type(module) for name, module in base.model.named_modules()} == layers
    after = base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_times_and_memory_tell_solo_from_shared(tiny: Tiny) -> None:
    base, train, held_out = tiny
    shares: list[float] = []
    engine = FusedEngine(base, train, held_out, RECIPE, on_work=shares.append, pack_size=3)
    packed = list(engine.train(TRIALS))
    assert sum(shares) == pytest.approx(3.0)
    assert {finished.pack_size for finished in packed} == {3}
    assert len({finished.pack_seconds for finished in packed}) == 1
    assert all(0 < finished.train_seconds < 3 * packed[0].pack_seconds for finished in packed)
    alone = list(FusedEngine(base, train, held_out, RECIPE).train(TRIALS))
    for one, other in zip(packed, alone, strict=True):
        assert one.peak_memory_bytes == other.peak_memory_bytes  # what a trial needs by itself
        assert other.pack_seconds == other.train_seconds
    # Rank 4 has 1 row more of A and of B than rank 3: parameter, gradient and two states of 4 bytes in each entry,
    # and a column more of x A^T in the layers that have been passed.
    extra = sum(d_in + d_out for d_in, d_out in base.targets.values())
    tokens = sum(sorted(train.lengths)[-RECIPE.batch_size :])
    grown = alone[0].peak_memory_bytes - alone[2].peak_memory_bytes
    assert 16 * extra <= grown <= 16 * extra + 4 * tokens * len(base.targets)


def test_bf16_products_come_close_to_fp32(tiny: Tiny) -> None:
    base, train, held_out = tiny
    exact = next(iter(FusedEngine(base, train, held_out, RECIPE).train(TRIALS[:1])))
    rough = next(
        iter(FusedEngine(base, train, held_out, RECIPE, autocast=torch.bfloat16).train(TRIALS[:1]))
    )
    assert figures(rough, "train_loss") != figures(exact, "train_loss")
    assert figures(rough, "train_loss") == pytest.approx(figures(exact, "train_loss"), rel=0.05)
    assert all(value.dtype == torch.float32 for value in rough.adapter.values())


@pytest.mark.parametrize("tiny", ["bert", "llama"], indirect=True)
def test_bf16_products_leave_logits_in_fp32(tiny: Tiny) -> None:
    base, _, held_out = tiny
    head = base.model.score if hasattr(base.model, "score") else base.model.classifier
    assert_logits_in_fp32(base, held_out, head)


def assert_logits_in_fp32(base: BaseModel, held_out: Encoded, head: torch.nn.Linear) -> None:
    """Against the head's own product in float64, of what it was given under autocast."""
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.inference_mode(), packed_model(base, torch.bfloat16) as model:
            bare: Any = SimpleNamespace(factors={}, head={})
            (logits,) = model.logits([bare], [held_out])
    finally:
        hook.remove()
    bias = None if head.bias is None else head.bias.double()
    expected = torch.nn.functional.linear(seen[0].double(), head.weight.double(), bias)
    torch.testing.assert_close(logits.double(), expected.view(logits.shape), rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(
    ("name", "reason"), [("deberta-v2", "pooler"), ("mpnet", "MPNetForSequenceClassification")]
)
def test_a_base_that_cannot_run_packed_is_recognised(
    name: str, reason: str, tmp_path: Path
) -> None:
    base, train, _ = load_tiny(name, tmp_path)
    said = unsupported_reason(base, train)
    assert said is not None
    assert reason in said
    assert "\n" not in said


@pytest.mark.slow
def test_minilm_trains_as_with_peft_and_the_trainer() -> None:
    task = load_task(SweepConfig())
    base = load_base(str(samples.minilm_directory()), task.objective, ["all-linear"], [8])
    train, held_out = (encode(part, base.tokenizer, 128)[0] for part in (task.train, task.held_out))
    train = Encoded(train.ids[:832], train.input_ids[:832], train.labels[:832])
    held_out = Encoded(held_out.ids[:64], held_out.input_ids[:64], held_out.labels[:64])
    recipe = TrainingConfig(epochs=1, batch_size=16)  # 52 steps
    trials = [
        Trial(rank=8, seed=0, learning_rate=1e-3, lora_alpha=8),
        Trial(rank=2, seed=1, learning_rate=5e-4, lora_alpha=4),
    ]
    expected = list(ReferenceEngine(base, train, held_out, recipe).train(trials))
    alone: list[Any] = list(FusedEngine(base, train, held_out, recipe).train(trials))
    packed = list(FusedEngine(base, train, held_out, recipe, pack_size=2).train(trials))
    for one, other, third in zip(alone, expected, packed, strict=True):
        assert_same_training(one, other)
        assert_same_training(third, other)
