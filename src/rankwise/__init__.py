"""rankwise: which LoRA rank does this fine-tuning task need? Answered by measuring it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankwise._version import __version__

if TYPE_CHECKING:
    from rankwise.analysis.analysis import Analysis, analyze
    from rankwise.decide import Decision, select
    from rankwise.errors import RankwiseError, RequestError
    from rankwise.planning.config import PlanConfig
    from rankwise.planning.estimates import estimate_training_memory
    from rankwise.planning.params_estimate import estimate_lora_params
    from rankwise.planning.plan import Plan, plan
    from rankwise.sweeps.config import SweepConfig
    from rankwise.sweeps.dry_run import DryRun, dry_run
    from rankwise.sweeps.finish import SweepResult
    from rankwise.sweeps.rank_comparison import RankExperiment, run_rank_comparison
    from rankwise.sweeps.run import sweep

__all__ = [
    "Analysis",
    "Decision",
    "DryRun",
    "Plan",
    "PlanConfig",
    "RankExperiment",
    "RankwiseError",
    "RequestError",
    "SweepConfig",
    "SweepResult",
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
    "Analysis": "rankwise.analysis.analysis",
    "Decision": "rankwise.decide",
    "DryRun": "rankwise.sweeps.dry_run",
    "Plan": "rankwise.planning.plan",
    "PlanConfig": "rankwise.planning.config",
    "RankExperiment": "rankwise.sweeps.rank_comparison",
    "RankwiseError": "rankwise.errors",
    "RequestError": "rankwise.errors",
    "SweepResult": "rankwise.sweeps.finish",
    "SweepConfig": "rankwise.sweeps.config",
    "analyze": "rankwise.analysis.analysis",
    "dry_run": "rankwise.sweeps.dry_run",
    "estimate_lora_params": "rankwise.planning.params_estimate",
    "estimate_training_memory": "rankwise.planning.estimates",
    "plan": "rankwise.planning.plan",
    "run_rank_comparison": "rankwise.sweeps.rank_comparison",
    "select": "rankwise.decide",
    "sweep": "rankwise.sweeps.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import rankwise`` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Name what can be used, though none of it is imported yet, so that completion and ``dir`` show it."""
    return sorted({*globals(), *__all__})
