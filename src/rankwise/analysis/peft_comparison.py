"""Results of PEFT's method comparison: one JSON file per experiment.

The layout is that of ``method_comparison/*/results/*.json`` in huggingface/peft, written by
``log_results`` in ``utils.py``. ``run_info`` holds ``train_config`` (``seed``,
``optimizer_kwargs.lr``) and ``peft_config`` (null for full fine-tuning). ``train_info`` holds
``status`` and ``metrics``, a list of rows with ``step``, ``train loss`` and ``valid accuracy`` (on
a few examples); the last row has ``test accuracy`` instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.source import (
    ResultsSource,
    comparable_settings,
    is_scalar,
    last_step,
    last_values,
    log_rows,
    train_loss_history,
)
from rankwise.decide.metrics import TEST, find_metrics, split_part


def is_comparison(content: Any) -> bool:
    """Return whether a JSON file's content is a result of PEFT's method comparison."""
    parts = ("run_info", "train_info")
    return isinstance(content, dict) and all(isinstance(content.get(part), dict) for part in parts)


def read_comparison(
    path: Path, content: Mapping[str, Any], metric: str | None = None
) -> ResultsSource | str:
    """Return a LoRA experiment's test metrics and training losses, or why it is left out."""
    peft = content["run_info"].get("peft_config")
    train = content["run_info"].get("train_config")
    train = train if isinstance(train, dict) else {}
    status = content["train_info"].get("status")
    if not isinstance(peft, dict):
        return "it has no peft_config (full fine-tuning)"
    if peft.get("peft_type") != "LORA":
        return f"its peft_type is {peft.get('peft_type')}, not LORA"
    if status != "success":
        return f"its status is {status}, not success"
    if not is_scalar(peft.get("r")):
        return "its peft_config has no r"
    rows = log_rows(content["train_info"].get("metrics"))
    tests = [row for row in rows if any(split_part(name)[0] in TEST for name in row)]
    if not tests:
        return "it has no test metric"

    optimizer = train.get("optimizer_kwargs")
    learning_rate = optimizer.get("lr") if isinstance(optimizer, dict) else None
    settings = {"rank": peft["r"], "seed": train.get("seed"), "learning_rate": learning_rate}
    identity = {name: value for name, value in settings.items() if is_scalar(value)}
    values = last_values(tests)
    metrics, _ = find_metrics(values, metric)
    measured = {name: values[written] for written, name in metrics.items()}
    return ResultsSource(
        origin=path.name,
        rows=pd.DataFrame([{**identity, "diverged": False, **measured}], index=[1]),
        metrics=metrics,
        train_loss=train_loss_history(rows, ("train loss",), identity),
        step=last_step(rows, metrics),
        is_run=True,
        settings=comparable_settings({**train, **peft}),
    )
