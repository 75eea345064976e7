import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import RequestError
from rankwise.planning import machine_fit
from rankwise.planning.config import PlanConfig
from rankwise.planning.machine_fit import MOST_AT_ONCE, Fit, how_many_fit
from rankwise.planning.memory.devices import CPU, find_device
from rankwise.planning.memory.setup import training_model
from rankwise.planning.pack_fit import FusedRequest
from rankwise.planning.planner import Planner
from rankwise.planning.prepare import prepare
from rankwise.sweeps.config import SweepConfig
from rankwise.tasks.losses import ClassificationObjective, CompletionObjective
from tests.tiny_models import request, write_config


def planner(config: PlanConfig, accumulates: bool = False) -> Planner:
    skeleton = prepare(config).skeleton
    return Planner(skeleton, config, find_device(config.device), accumulates=accumulates)


def _training(tmp_path: Path, **settings: Any) -> PlanConfig:
    model = write_config(tmp_path, "bert", num_hidden_layers=2)
    return request(model, ranks=(4, 64), seq_len=200, task_type="SEQ_CLS", **settings)


def test_sweep_that_fits_is_accepted_without_reading_texts(tmp_path: Path) -> None:
    def never() -> int:
        raise AssertionError("texts need not be read")

    fit = how_many_fit(_training(tmp_path), never, machine=(CPU, 1 << 40))
    assert (fit.at_once, fit.length) == (1, 200)


def test_sweep_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    config = _training(tmp_path)
    one = planner(config)
    between = (one.memory(4).needed + one.memory(64).needed) // 2
    with pytest.raises(RequestError, match=r"rank 64 needs .* 4 x 200 tokens.*ranks up to 4 fit"):
        how_many_fit(config, lambda: 1000, machine=(CPU, between))
    with pytest.raises(RequestError, match="no rank fits"):
        how_many_fit(config, lambda: 200, machine=(CPU, 1000))
    # Short texts need less than the length at which they would be cut.
    assert how_many_fit(config, lambda: 8, machine=(CPU, between)).at_once == 1


def test_each_rank_needs_what_its_plan_says(tmp_path: Path) -> None:
    config = _training(tmp_path)
    fit = how_many_fit(config, lambda: 1000, machine=(CPU, 1 << 40))
    assert fit.needed == {rank: planner(config).memory(rank).needed for rank in config.ranks}
    assert (fit.length, fit.room) == (200, 1 << 40)


def test_the_reference_engine_needs_less_for_parts_of_a_batch(tmp_path: Path) -> None:
    config = _training(tmp_path)
    room = planner(config, accumulates=True).memory(64, batch_size=2).needed

    def fit(tokens: int | None) -> Fit:
        return how_many_fit(config, lambda: 200, None, (CPU, room), None, tokens)

    assert fit(2 * 200 + 199).needed[64] == room
    with pytest.raises(RequestError, match="4 x 200 tokens, and cpu has"):
        fit(None)


def test_a_shorter_length_is_planned_with_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def counted(*arguments: Any) -> Any:
        built.append(arguments)
        return training_model(*arguments)

    monkeypatch.setattr("rankwise.planning.planner.training_model", counted)
    training = replace(_training(tmp_path), ranks=(4,))
    whole = planner(training).memory(4).needed
    shorter = replace(training, seq_len=training.seq_len // 2)
    expected = planner(shorter).memory(4).needed
    assert expected < whole
    built.clear()
    fit = how_many_fit(training, lambda: shorter.seq_len, machine=(CPU, whole - 1))
    assert (fit.needed, fit.length, len(built)) == ({4: expected}, shorter.seq_len, 1)


def test_what_the_fused_engine_does_not_take_trains_one_by_one(tmp_path: Path) -> None:
    t5 = request(write_config(tmp_path, "t5"), ranks=(4,), task_type="SEQ_2_SEQ_LM")
    asked = FusedRequest(CompletionObjective())
    fit = how_many_fit(t5, lambda: 32, 1 << 39, (CPU, 1 << 40), asked)
    assert (fit.at_once, list(fit.needed)) == (1, [4])
    bert = request(write_config(tmp_path / "bert", "bert"), ranks=(4,), task_type="SEQ_CLS")
    asked = FusedRequest(ClassificationObjective(("good", "bad")))
    taken = how_many_fit(bert, lambda: 32, 1 << 39, (CPU, 1 << 40), asked)
    assert taken.at_once == MOST_AT_ONCE


def test_no_advice_to_quantise_what_is_quantised(tmp_path: Path) -> None:
    config = _training(tmp_path, quantization="nf4")
    with pytest.raises(
        RequestError, match=r"no rank fits; try a smaller max_length or batch_size$"
    ):
        how_many_fit(config, lambda: 200, machine=(CPU, 1000))


def test_an_earlier_choice_is_kept_unless_memory_is_too_short_for_it() -> None:
    slow = {"gradient_checkpointing": "on", "micro_batch_tokens": None, "pack_size": 3}
    fast = {"gradient_checkpointing": "off", "micro_batch_tokens": None, "pack_size": 8}
    ample = Fit(at_once=6)
    assert ample.kept(slow) == Fit(at_once=3, gradient_checkpointing=True)
    assert ample.kept(fast) == ample
    assert ample.kept({**fast, "pack_size": 2}) == Fit(at_once=2)
    short = Fit(at_once=2, micro_batch_tokens=2048)
    assert short.kept(fast) == short
    assert short.kept({**fast, "micro_batch_tokens": 1024}).micro_batch_tokens == 1024


@pytest.mark.parametrize("max_memory", [None, "1GB"])
def test_sweep_notes_that_its_memory_could_not_be_planned(
    max_memory: str | None,
    tiny_model: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    class Notes(Silent):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def note(self, text: str) -> None:
            self.texts.append(text)

    def fail(*_: Any, **__: Any) -> None:
        raise RequestError("this model's forward pass depends on values. No more of that")

    config = SweepConfig(
        model=str(tiny_model), data=reviews, ranks=(4,), out=tmp_path / "out", max_memory=max_memory
    )
    for planned in (True, False):
        if not planned:
            monkeypatch.setattr(machine_fit, "prepare", fail)
        with open_run(replace(config, out=tmp_path / str(planned)), notes := Notes()) as run:
            found = [text for text in notes.texts if text.startswith("memory is not checked")]
            assert bool(run.fit.needed) == planned
        assert len(found) == (not planned)
    assert found[0].endswith(
        ", and one trial trains at a time: this model's forward pass depends on values"
    )
    assert ("max_memory is ignored" in found[0]) == (max_memory is not None)


def test_the_machine_is_the_gpu_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be the current one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: ((1 + gpu.index) * 2**30, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (8 + gpu.index, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: f"GPU {gpu.index}")
    device, free = machine_fit.this_machine("cuda:1")
    assert (device.name, device.capability, free) == ("GPU 1", 90, 2 * 2**30)
    device, free = machine_fit.this_machine()
    assert (device.name, device.capability, free) == ("GPU 0", 80, 2**30)
    assert machine_fit.this_machine("cpu")[0] is CPU


def test_sweep_that_does_not_fit_is_refused_before_training(
    tmp_path: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwise.sweeps.progress import Silent
    from rankwise.sweeps.run import open_run

    directory = Path(write_config(tmp_path / "model", "bert"))
    (directory / "model.safetensors").write_bytes(b"")  # is not read
    words = sorted(
        {
            word
            for line in reviews.read_text().splitlines()
            for word in line.replace(",", " ").split()
        }
    )
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (directory / "vocab.txt").write_text("\n".join(tokens))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    monkeypatch.setattr(machine_fit, "this_machine", lambda *_: (CPU, 2_000_000))
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"has [\d.]+ MiB free"):
        open_run(SweepConfig(model=str(directory), data=reviews, ranks=(4, 8), out=out), Silent())
    assert not out.exists()
