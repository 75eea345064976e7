"""A function of the user in a process of its own, which a sweep treats like a command.

The function and its trial go there as a pickle, and the modules are found there as
`multiprocessing` finds them in a process that it spawns.
"""

import multiprocessing
import os
import pickle
import sys
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from rankwise.engine.trial import Trial
from rankwise.errors import RequestError
from rankwise.trainers.child import python
from rankwise.trainers.engine import OUT, Launch
from rankwise.trainers.function import FunctionTrial, TrainFunction, keep, told
from rankwise.trainers.left_adapter import UnusableTrialError

CALL = "call.pickle"
RETURNED = "returned.txt"  # the directory with what the function returned
IMPORTING = "RANKWISE_IMPORTING"  # variable that is set while a script is imported for a call


@dataclass(frozen=True, kw_only=True)
class FunctionLaunch(Launch):
    """How the calls of a function are launched, each in a process of its own."""

    function: TrainFunction
    noun = "process"

    def prepare(self, trial: Trial) -> list[str]:
        """Write the call of a trial, and return the command that makes it."""
        path = self.place(trial) / CALL
        call = pickle.dumps((self.function, told(trial, self)))
        path.write_bytes(pickle.dumps((_preparation(), call)))
        return python("rankwise.trainers.function_child", str(path.absolute()))

    def left(self, trial: Trial) -> Path:
        """Return the directory with what the function returned."""
        returned = self.place(trial) / RETURNED
        if not returned.is_file():
            raise UnusableTrialError("its process ended before the function returned")
        return Path(returned.read_text())


def check_child(function: TrainFunction) -> None:
    """Refuse a function that another process cannot be given.

    Raises:
        RequestError: it cannot be pickled, is part of a notebook, or this is such a process.
    """
    hint = "define it at the top of a module, or leave train_in out"
    if IMPORTING in os.environ:
        raise RequestError(
            "train_in 'child': the process of a trial runs this script again, up to the sweep; put "
            "the sweep below: if __name__ == '__main__':"
        )
    try:
        call = pickle.dumps(function)
    except Exception as error:  # an object may raise anything when it is pickled
        reason = " ".join(str(error).split())
        raise RequestError(
            f"train_in 'child': train cannot be pickled ({reason}); {hint}"
        ) from None
    prepared = _preparation()
    has_script = "init_main_from_path" in prepared or "init_main_from_name" in prepared
    if b"__main__" in call and not has_script:
        raise RequestError(f"train_in 'child': train is part of no file; {hint}")


def _preparation() -> dict[str, Any]:
    """Return what a new process needs to find the modules of this one."""
    start_method = multiprocessing.get_start_method(allow_none=True)
    prepared = dict(spawn.get_preparation_data("trial"))
    del prepared["authkey"]  # of a pipe, and there is none
    if start_method is None:
        # It was chosen by the call above, and is still the user's to choose, there too.
        multiprocessing.set_start_method(None, force=True)
        del prepared["start_method"]
    return prepared


def main() -> None:
    """Call the function for its trial, and keep what it returns."""
    path = Path(sys.argv[1])
    prepared, call = pickle.loads(path.read_bytes())
    os.environ[IMPORTING] = "1"
    spawn.prepare(prepared)
    del os.environ[IMPORTING]
    function, trial = pickle.loads(call)
    assert isinstance(trial, FunctionTrial)
    left = keep(function(trial), path.parent / OUT)
    (path.parent / RETURNED).write_text(str(left.absolute()))


if __name__ == "__main__":
    main()
