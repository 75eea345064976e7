"""A user's own script: supervised fine-tuning by TRL, with a LoRA adapter, on chats.

rankwise sweeps it as it is (docs/trainers.md):

    rankwise sweep --model MODEL --data chats.jsonl --trainer "python examples/trainers/trl_sft.py
        MODEL {train_data} {out} --rank {rank} --lora-alpha {lora_alpha}
        --learning-rate {learning_rate} --seed {seed}"
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Train an adapter and save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lora-alpha", type=float, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trainer = SFTTrainer(
        model=args.model,
        args=SFTConfig(
            output_dir=args.out,
            learning_rate=args.learning_rate,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            max_length=1024,
            bf16=False,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=args.data, split="train"),
        peft_config=LoraConfig(
            r=args.rank, lora_alpha=args.lora_alpha, target_modules="all-linear"
        ),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
