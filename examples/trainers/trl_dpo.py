"""A user's own script: preference tuning by TRL (DPO), with a LoRA adapter.

rankwise sweeps it as it is, and scores the chosen answers (docs/trainers.md):

    rankwise sweep --model MODEL --data pairs.jsonl
        --prompt-column prompt --completion-column chosen
        --trainer "python examples/trainers/trl_dpo.py MODEL {train_data} {out} --rank {rank}
        --lora-alpha {lora_alpha} --learning-rate {learning_rate} --seed {seed}"
"""

import argparse

from datasets import load_dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer


def main() -> None:
    """Train an adapter and save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", help="JSON lines with prompt, chosen and rejected")
    parser.add_argument("out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lora-alpha", type=float, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trainer = DPOTrainer(
        model=args.model,
        args=DPOConfig(
            output_dir=args.out,
            learning_rate=args.learning_rate,
            num_train_epochs=1,
            per_device_train_batch_size=8,
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
