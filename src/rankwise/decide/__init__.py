"""From evidence to a decision."""

from rankwise.decide.decision import Decision, Interval, RankRow
from rankwise.decide.evidence import best_learning_rate
from rankwise.decide.select import select

__all__ = ["Decision", "Interval", "RankRow", "best_learning_rate", "select"]
