"""A user's own training script: a LoRA adapter by PEFT and the Trainer, on chats in JSON lines.

rankwise sweeps it as it is (docs/trainers.md):

    rankwise sweep --model MODEL --data chats.jsonl
        --trainer "python examples/trainers/peft_trainer.py --model MODEL --data {train_data}
        --rank {rank} --lora-alpha {lora_alpha} --learning-rate {learning_rate} --seed {seed}
        --out {out}"
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)


def encode(row: dict[str, Any], tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """Return the tokens of a chat, and labels for those of its answers."""
    messages = row["messages"]
    ids: list[int] = []
    labels: list[int] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        as_text = partial(tokenizer.apply_chat_template, tokenize=False)
        question = as_text(messages[:place], add_generation_prompt=True)
        texts = [question, as_text(messages[: place + 1])]
        before, ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        labels += [-100] * (len(before) - len(labels)) + ids[len(before) :]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def main() -> None:
    """Train an adapter and save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lora-alpha", type=float, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(args.model),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=args.rank,
            lora_alpha=args.lora_alpha,
            target_modules="all-linear",
        ),
    )
    data = load_dataset("json", data_files=args.data, split="train")
    encoded = data.map(
        lambda row: encode(row, tokenizer, args.max_length), remove_columns=data.column_names
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.out),
            learning_rate=args.learning_rate,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            seed=args.seed,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=encoded,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    main()
