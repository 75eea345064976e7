"""Training setups to export: what a sweep of a causal LM may end with."""

from dataclasses import replace

from rankwise.exports.recipe import TrainingSetup
from rankwise.tasks.chat_formats import DataLayout

FIELDS = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output"),
    "text": ("text",),
}


def usual(data_format: str) -> DataLayout:
    """Return the layout of data under the usual column names."""
    return DataLayout(data_format, {name: name for name in FIELDS[data_format]})


PLAIN = TrainingSetup(
    task_type="CAUSAL_LM",
    base_model="org/model",
    trust_remote_code=False,
    rank=8,
    keep_rank=None,
    lora_alpha=16,
    use_rslora=False,
    use_dora=False,
    init="default",
    loraplus_ratio=1.0,
    quantization="none",
    target_modules="all-linear",
    conv1d=(),
    modules_to_save=(),
    learning_rate=5e-05,
    epochs=2,
    batch_size=4,
    steps=100,
    warmup_steps=30,
    warmup_share=0.3,
    max_grad_norm=1.0,
    max_length=256,
    seed=1,
    data="/data/train.jsonl",
    train_examples=200,
    held_out_examples=0,
    test_examples=0,
    limited=False,
    layout=usual("messages"),
    chat_template=True,
    answers_marked=True,
)
SETUPS = {
    "plain": PLAIN,
    "rslora": replace(
        PLAIN,
        use_rslora=True,
        target_modules=("q_proj", "v_proj"),
        layout=usual("alpaca"),
        chat_template=False,
    ),
    "dora": replace(
        PLAIN, use_dora=True, layout=usual("prompt-completion"), data="/data/train.parquet"
    ),
    "nf4": replace(PLAIN, quantization="nf4", layout=usual("text"), keep_rank=4),
    "nf4-dq": replace(PLAIN, quantization="nf4-dq", init="pissa"),
    "int8": replace(PLAIN, trust_remote_code=True, quantization="int8", loraplus_ratio=16.0),
    "classification": replace(
        PLAIN, task_type="SEQ_CLS", layout=None, modules_to_save=("classifier",)
    ),
}
