"""A callback that makes any Trainer write the loss of each evaluation example, for rankwise."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from rankwise.errors import RequestError

EVIDENCE_FILE = "rankwise_evidence.jsonl"


class EvidenceCallback(transformers.TrainerCallback):
    """Writes the loss of each evaluation example when training ends.

    The file ``rankwise_evidence.jsonl`` goes to the trainer's ``output_dir``, where
    ``rankwise sweep --trainer`` finds it. It works with the Trainer of transformers and with TRL's
    trainers: the loss is that of the trainer for the example alone.

    Args:
        trainer: the trainer that gets the callback.

    Example:
        >>> trainer.add_callback(EvidenceCallback(trainer))  # doctest: +SKIP
    """

    def __init__(self, trainer: transformers.Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse a trainer whose examples could not be scored, before it trains."""
        check_trainer(self.trainer)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score all examples, and write the file."""
        losses = example_losses(self.trainer)
        rows = [json.dumps({"example_id": row, "loss": loss}) for row, loss in enumerate(losses)]
        directory = Path(args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / EVIDENCE_FILE).write_text("".join(f"{row}\n" for row in rows))


def check_trainer(trainer: transformers.Trainer) -> None:
    """Refuse a trainer whose evaluation examples cannot be scored one by one.

    Raises:
        RequestError: the trainer has no single evaluation data set, or uses several devices.
    """
    args: Any = trainer.args
    if not hasattr(trainer.eval_dataset, "__len__") or isinstance(trainer.eval_dataset, dict):
        raise RequestError("EvidenceCallback: the trainer needs one eval_dataset of known length")
    if args.world_size > 1 or args.n_gpu > 1:
        raise RequestError("EvidenceCallback: examples are scored by one process on one GPU")


def example_losses(trainer: transformers.Trainer) -> list[float]:
    """Return the loss of each example of a trainer's evaluation data, in their order.

    Raises:
        RequestError: the trainer has no single evaluation data set, or uses several devices.
    """
    check_trainer(trainer)
    args: Any = trainer.args
    size, args.per_device_eval_batch_size = args.per_device_eval_batch_size, 1
    model: Any = trainer.model
    was_training = model.training
    model.eval()
    try:
        losses = []
        for inputs in trainer.get_eval_dataloader():
            loss, *_ = trainer.prediction_step(model, inputs, prediction_loss_only=True)
            assert isinstance(loss, torch.Tensor)
            losses.append(float(loss))
        return losses
    finally:
        args.per_device_eval_batch_size = size
        model.train(was_training)
