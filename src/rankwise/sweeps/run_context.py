"""An open sweep: its request, data, base model and locked directory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rankwise.errors import RequestError
from rankwise.store.directory import SweepStore
from rankwise.store.records import UNTRAINED_FILE, read_chance_loss
from rankwise.sweeps.config import SweepConfig
from rankwise.sweeps.extension import Extension
from rankwise.sweeps.memory_fit import choice, in_force
from rankwise.sweeps.progress import Progress
from rankwise.sweeps.tokenised import TokenisedPart, kept_length, tokenise_part
from rankwise.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from rankwise.decide.evidence import ChanceLoss
    from rankwise.models.base_model import BaseModel
    from rankwise.planning.machine_fit import Fit
    from rankwise.sweeps.engines import TruncatingEngine
    from rankwise.trainers.function import TrainFunction


@dataclass(frozen=True)
class Run:
    """An open sweep; its directory is locked until the end of the ``with`` block.

    Attributes:
        base: the frozen base; None if the user's trainer measures by itself.
        task: the data, split into training, held-out and test examples.
        fit: memory of a trial of each rank, and how many trials fit at once.
        tokenised: the parts of the data that were tokenised to identify the sweep.
        train: the user's function that trains, if it is one.
        in_child: whether each call of it has a process of its own.
        extension: seeds to add to some ranks of a finished sweep, if the request is for these.
    """

    config: SweepConfig
    task: Task
    base: "BaseModel | None"
    store: SweepStore
    progress: Progress
    fit: "Fit"
    extension: Extension | None = None
    train: "TrainFunction | None" = None
    in_child: bool = False
    tokenised: Mapping[str, TokenisedPart] = field(default_factory=dict)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self.store.__exit__(*error)

    @property
    def in_force(self) -> SweepConfig:
        """The request with the values that the memory plan chose for ``auto``."""
        return in_force(self.config, self.fit)

    @property
    def choice(self) -> dict[str, Any]:
        """How trials train by now: what the memory plan chose, lowered if memory ran out."""
        return {**choice(self.config, self.fit), **self.engine.limits}

    @cached_property
    def engine(self) -> "TruncatingEngine":
        """The engine that trains, truncates and scores; creating it tokenises the examples."""
        from rankwise.sweeps.engines import TruncatingEngine, choose_engine

        return TruncatingEngine(choose_engine(self), self.store.adapter_directory)

    @cached_property
    def chance_loss(self) -> "ChanceLoss | None":
        """The held-out loss of a model that has learned nothing.

        The task knows it, or the untrained base is scored once, unless its head is random.
        """
        if self.task.chance_loss is not None or self.base is None:
            return self.task.chance_loss
        if self.base.newly_initialized:
            return None
        stored = read_chance_loss(self.store.directory)
        if stored is not None:
            return stored
        from rankwise.engine.adapter_init import untrained_adapter

        (scored,) = self.engine.score([untrained_adapter(self.base)])
        columns = {name: scored[name].tolist() for name in ("example_id", "loss")}
        self.store.write_json(UNTRAINED_FILE, columns)
        return read_chance_loss(self.store.directory)

    @property
    def trial_settings(self) -> dict[str, Any]:
        """Settings that a trial's ``config.json`` has besides those of the trial itself."""
        config = self.config
        settings: dict[str, Any] = {"lora_alpha_policy": config.lora_alpha}
        if config.trainer is None:
            settings |= {"epochs": config.epochs, "batch_size": config.batch_size}
        return settings

    @property
    def loaded_base(self) -> "BaseModel":
        """The base, where there is one."""
        assert self.base is not None
        return self.base

    @property
    def max_length(self) -> int:
        """Number of tokens that are kept of an example."""
        return kept_length(self.config, self.task, self.loaded_base)

    def encode(self, part: str) -> Encoded:
        """Return the tokenised examples of a part of the data: ``train``, ``held_out``, ``test``.

        Raises:
            RequestError: no training or held-out example has a token left to learn.
        """
        length = self.max_length
        examples, name = getattr(self.task, part), part.replace("_", "-")
        made = self.tokenised.get(part)
        if made is None or made.examples is not examples:
            made = tokenise_part(self.config, self.task, self.loaded_base, part)
        encoded, shortened = made.encoded, made.shortened
        lost = len(examples) - len(encoded)
        note, texts = self.progress.note, f"of {len(examples)} {name} texts"
        if shortened:
            note(f"{shortened} {texts} were cut at {length} tokens")
        if lost:
            note(f"{lost} {texts} are left out: nothing to learn within {length} tokens")
        if len(examples) and not len(encoded) and part != "test":
            raise RequestError(
                f"max_length {length} leaves nothing to learn of any {name} text; give a larger one"
            )
        return encoded
