"""rankwise: which LoRA rank does this fine-tuning task need? Answered by measuring it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankwise._version import __version__

if TYPE_CHECKING:
    from rankwise.analysis import Analysis, analyze
    from rankwise.api import Sweep, sweep
    from rankwise.comparison import RankExperiment, run_rank_comparison
    from rankwise.config import SweepConfig
    from rankwise.decide import Decision, select
    from rankwise.errors import RankwiseError, RequestError
    from rankwise.forecast import DryRun, dry_run
    from rankwise.lora.params import estimate_lora_params
    from rankwise.memory.estimate import estimate_training_memory
    from rankwise.plan_config import PlanConfig
    from rankwise.planning import Plan, plan

__all__ = [
    "Analysis",
    "Decision",
    "DryRun",
    "Plan",
    "PlanConfig",
    "RankExperiment",
    "RankwiseError",
    "RequestError",
    "Sweep",
    "SweepConfig",
    "__version__",
    "analyze",
    "dry_run",
    "estimate_lora_params",
    "estimate_training_memory",
    "plan",
    "run_rank_comparison",
    "select",
    "sweep",
]

_HOMES = {
    "Analysis": "rankwise.analysis",
    "Decision": "rankwise.decide",
    "DryRun": "rankwise.forecast",
    "Plan": "rankwise.planning",
    "PlanConfig": "rankwise.plan_config",
    "RankExperiment": "rankwise.comparison",
    "RankwiseError": "rankwise.errors",
    "RequestError": "rankwise.errors",
    "Sweep": "rankwise.api",
    "SweepConfig": "rankwise.config",
    "analyze": "rankwise.analysis",
    "dry_run": "rankwise.forecast",
    "estimate_lora_params": "rankwise.lora.params",
    "estimate_training_memory": "rankwise.memory.estimate",
    "plan": "rankwise.planning",
    "run_rank_comparison": "rankwise.comparison",
    "select": "rankwise.decide",
    "sweep": "rankwise.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import rankwise`` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Name what can be used, though none of it is imported yet, so that completion and ``dir`` show it."""
    return sorted({*globals(), *__all__})
