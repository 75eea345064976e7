"""Results from PEFT's method comparison: one JSON file per experiment.

The layout is that of ``method_comparison/*/results/*.json`` in huggingface/peft, written by ``log_results`` in
``utils.py``: ``run_info`` with ``train_config`` (``seed``, ``optimizer_kwargs.lr``) and ``peft_config`` (null for full
fine-tuning), ``train_info`` with ``status`` and ``metrics``, a list of rows with ``step``, ``train loss`` and
``valid accuracy`` (on a few examples), the last with ``test accuracy`` instead.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from rankwise.analysis.source import (
    ResultsSource,
    history,
    is_scalar,
    known_settings,
    last_step,
    last_values,
)
from rankwise.decide.metrics import TEST, find_metrics, split_part


def is_comparison(content: dict[str, Any]) -> bool:
    """Whether a JSON object is a result of PEFT's method comparison."""
    return isinstance(content.get("run_info"), dict) and isinstance(content.get("train_info"), dict)


def read_comparison(
    path: Path, content: dict[str, Any], metric: str | None = None
) -> ResultsSource | str:
    """Return a LoRA experiment's test metrics and last train loss, or why it is left out.

    Args:
        path: of the file.
        content: what it holds.
        metric: a metric to look for beside those known by name.
    """
    peft = content["run_info"].get("peft_config")
    train = content["run_info"].get("train_config")
    train = train if isinstance(train, dict) else {}
    if not isinstance(peft, dict):
        return "it has no peft_config (full fine-tuning)"
    if peft.get("peft_type") != "LORA":
        return f"its peft_type is {peft.get('peft_type')}, not LORA"
    if content["train_info"].get("status") != "success":
        return f"its status is {content['train_info'].get('status')}, not success"
    if not is_scalar(peft.get("r")):
        return "its peft_config has no r"
    logged = content["train_info"].get("metrics")
    rows = [row for row in logged if isinstance(row, dict)] if isinstance(logged, list) else []
    final = [row for row in rows if any(split_part(name)[0] in TEST for name in row)]
    if not final:
        return "it has no test metric"
    optimizer = train.get("optimizer_kwargs")
    identity = {"rank": peft["r"], "seed": train.get("seed")}
    identity["learning_rate"] = optimizer.get("lr") if isinstance(optimizer, dict) else None
    identity = {name: value for name, value in identity.items() if is_scalar(value)}

    values = last_values(final)
    names, _ = find_metrics(values, metric)
    row = {
        **identity,
        "diverged": False,
        **{own: values[written] for written, own in names.items()},
    }
    return ResultsSource(
        origin=path.name,
        rows=pd.DataFrame([row], index=[1]),
        names=names,
        train_loss=history(rows, ("train loss",), identity),
        step=last_step(rows, names),
        is_run=True,
        settings=known_settings({**train, **peft}),
    )
