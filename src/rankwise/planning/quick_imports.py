"""The big libraries imported without the parts that planning does not use: more than half of their time.

For a process that plans and ends, and for no other: to PEFT and transformers the parts left out here are not installed.
"""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

HIDDEN = ("bitsandbytes", "scipy", "sklearn")
"""bitsandbytes compiles kernels when it is imported; transformers takes scipy for object detection and sklearn for
assisted generation."""

DYNAMO = "torch._dynamo"
DYNAMO_CONFIG = "torch._dynamo.config"
MASKS = "torch._dynamo._trace_wrapped_higher_order_op"
MODELS = "transformers.models"
SHAPES = "torch.fx.experimental.symbolic_shapes"
SYMBOLS = "sympy"
FUNCTIONS = "torch.utils._sympy.functions"
WAITING = (DYNAMO, DYNAMO_CONFIG, MASKS, SHAPES, SYMBOLS, FUNCTIONS, MODELS)

OF_PLAIN_SIZES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious"), bool
    ),
    "statically_known_true": bool,
    "guarding_hint_or_throw": int,
    "has_guarding_hint": lambda size: True,
    "is_nested_int": lambda size: False,
    "sym_and": lambda *values: all(values),
    "sym_or": lambda *values: any(values),
    "sym_eq": lambda one, other: one == other,
    "free_unbacked_symbols": lambda value: set(),
}
"""What torch's shape functions ask about sizes that may be symbols, answered for sizes that are numbers."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import torch, transformers and PEFT for planning, and plan within.

    - `HIDDEN` is not there.
    - torch._dynamo, which transformers loads to mark functions that it must not compile, is there for marks alone, and
      for what gradient checkpointing reads of its configuration. Nothing is compiled here.
    - The symbols for unknown sizes, and sympy with them, are not there: every size is known (`OF_PLAIN_SIZES`).
    - torch.distributed says that it is not built in. Else DTensor is loaded, which needs them.
    - transformers reads the directories of all its models when it is imported, and once more for the package
      ``transformers.models``; the second time waits until something asks that package for a name.

    Whatever else is asked of a part that waits loads the real one, so a library that uses it after all works as ever.
    """
    gc.disable()  # half a million new objects, none of them garbage, now or at the end
    sys.modules.update(dict.fromkeys(HIDDEN))  # type: ignore[arg-type]  # None: as if not installed
    import torch

    waiting = {name: _Waiting(name) for name in WAITING}
    vars(waiting[DYNAMO]).update(
        dict.fromkeys(("assume_constant_result", "allow_in_graph", "disable"), _unmarked)
    )
    vars(waiting[DYNAMO_CONFIG]).update(error_on_nested_fx_trace=True)  # as it is in the real one
    vars(waiting[DYNAMO]).update(config=waiting[DYNAMO_CONFIG])
    vars(waiting[MASKS]).update(
        TransformGetItemToIndex=lambda: waiting[MASKS].real().TransformGetItemToIndex()
    )
    vars(waiting[SHAPES]).update(OF_PLAIN_SIZES)
    vars(waiting[SYMBOLS]).update(Basic=type("Basic", (), {}))  # nothing is one
    found = importlib.util.find_spec("transformers")
    for place in (found.submodule_search_locations if found else None) or ():
        waiting[MODELS].__path__ = [f"{place}/models"]
    vars(waiting[FUNCTIONS]).update(
        Max=None
    )  # imported by _is_non_overlapping_and_dense_or_false, and not used
    for name in (MASKS, SHAPES, FUNCTIONS):
        waiting[name].__path__ = []  # asked for at every import from them
    built_in, torch.distributed.is_available = torch.distributed.is_available, lambda: False
    sys.modules.update(waiting)
    try:
        import peft
        import transformers

        _ = peft.get_peft_model, transformers.AutoModelForCausalLM
        yield
    finally:
        torch.distributed.is_available = built_in
        for name in (*HIDDEN, *WAITING):
            if sys.modules.get(name) is None or isinstance(sys.modules[name], _Waiting):
                sys.modules.pop(name, None)
        gc.freeze()
        gc.enable()


class _Waiting(ModuleType):
    """A module that has some names and loads the real one for any other."""

    def real(self) -> Any:
        """Return the real module, which takes this one's place."""
        for name in WAITING:  # torch's need one another
            if isinstance(sys.modules.get(name), _Waiting) and (name == MODELS) == (
                self.__name__ == MODELS
            ):
                del sys.modules[name]
        module = importlib.import_module(self.__name__)
        gc.collect()  # cycles through the frames of a trace would keep its tensors alive, and count them
        return module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real(), name)


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """Take the place of a decorator, with arguments or without."""
    return function if callable(function) else _unmarked
