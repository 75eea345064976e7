from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from rankwise.models.auto import AUTO_CLASSES, first_position, position_tables, trained_heads

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 10,
}


def make_classifier(model_type: str, **sizes: Any) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **sizes})
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("name", AUTO_CLASSES.values())
def test_every_task_type_names_a_transformers_class(name: str) -> None:
    assert hasattr(getattr(transformers, name), "from_pretrained")


@pytest.mark.parametrize(
    ("model_type", "heads"),
    [("bert", {"classifier"}), ("distilbert", {"pre_classifier", "classifier"})],
)
def test_trained_heads_are_the_modules_that_peft_trains_in_full(
    model_type: str, heads: set[str]
) -> None:
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}
    model = make_classifier(model_type, **(sizes if model_type == "distilbert" else {}))
    names = {name for name, _ in model.named_children() if name.endswith(trained_heads("SEQ_CLS"))}
    target = "q_lin" if model_type == "distilbert" else "query"
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=[target]))
    in_full = {
        name.split(".")[2]
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad and "modules_to_save" in name
    }
    assert names == in_full == heads
    assert trained_heads("CAUSAL_LM") == ()


def test_first_position_is_the_one_that_roberta_gives_the_first_token() -> None:
    model = make_classifier("roberta", pad_token_id=1)
    (table,) = position_tables(model)
    given: list[torch.Tensor] = []
    table.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert given[0].flatten().tolist() == [2, 3, 4]
    assert first_position(table) == 2


def test_positions_start_at_zero_without_a_padding_index() -> None:
    (table,) = position_tables(make_classifier("bert"))
    assert table.num_embeddings == 10
    assert first_position(table) == 0
    assert first_position(nn.Embedding(4, 2, padding_idx=0)) == 1
