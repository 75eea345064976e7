from .decision import Decision as Decision
from .decision import Interval as Interval
from .decision import RankRow as RankRow
from .evidence import best_learning_rate as best_learning_rate
from .selection import select as select
