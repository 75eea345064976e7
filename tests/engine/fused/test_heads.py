from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rankwise.engine.fused.heads import FirstTokenAttention, find_head
from rankwise.engine.fused.model import packed_model
from tests.engine.parity import Tiny
from tests.tiny_models import PACKABLE, load_tiny, save_tiny_lm


@pytest.mark.parametrize("tiny", ["bert", "roberta", "electra"], indirect=True)
def test_the_last_attention_computes_only_the_first_token(tiny: Tiny) -> None:
    base = tiny[0]
    attention = base.model.base_model.encoder.layer[-1].attention
    with packed_model(base) as model:
        assert isinstance(attention.self, FirstTokenAttention)
        assert model.pools_early
    assert not isinstance(attention.self, FirstTokenAttention)


@pytest.mark.parametrize("name", PACKABLE)
def test_the_head_found_computes_the_logits_of_the_model(name: str, tmp_path: Path) -> None:
    base, train, _ = load_tiny(name, tmp_path)
    head = find_head(base.model)
    assert head is not None
    tokens = torch.tensor([train.input_ids[0]])
    base.model.eval()
    with torch.inference_mode():
        hidden = base.model.base_model(input_ids=tokens).last_hidden_state[0]
        pooled = hidden[:1] if head.pooling == "first" else hidden[-1:]
        modules = {part: base.model.get_submodule(part) for part in head.names}
        expected = base.model(input_ids=tokens).logits
        torch.testing.assert_close(head.logits(modules, pooled), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere"])
def test_a_language_model_head_computes_the_logits_of_every_token(
    name: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny_lm(name, tmp_path)).eval()
    head = find_head(model)
    assert head is not None
    assert head.pooling == "supervised"
    tokens = torch.tensor([[2, 7, 5, 9, 3]])
    with torch.inference_mode():
        hidden = model.model(input_ids=tokens).last_hidden_state[0]
        modules = {part: model.get_submodule(part) for part in head.names}
        expected = model(input_ids=tokens).logits[0]
        torch.testing.assert_close(head.logits(modules, hidden), expected)


def test_a_model_without_a_known_head_has_none() -> None:
    assert find_head(torch.nn.Linear(2, 2)) is None
