"""The choice of the engine that trains a sweep's trials."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankwise.engine.trial import Engine
    from rankwise.sweeps.run_context import Run


def choose_engine(run: "Run") -> "Engine":
    """Return the engine that the request names.

    The reference engine replaces a fused engine that cannot train the base model; a note says so.
    """
    from rankwise.engine.fused.engine import FusedEngine, lower_precision
    from rankwise.engine.fused.model import unsupported_reason
    from rankwise.engine.reference import ReferenceEngine

    config, progress = run.config, run.progress
    train, held_out = run.encode("train"), run.encode("held_out")
    obstacle = unsupported_reason(run.base, train) if config.engine == "fused" else None
    if config.engine == "reference" or obstacle is not None:
        if obstacle is not None:
            progress.note(f"the reference engine trains instead of the fused one: {obstacle}")
        return ReferenceEngine(run.base, train, held_out, config, progress.work)
    if run.fit.at_once > 1:
        progress.note(f"up to {run.fit.at_once} trials train at once")
    limits = (run.fit.at_once, lower_precision(run.base))
    return FusedEngine(run.base, train, held_out, config, progress.work, *limits)
