"""The signals that ask a command to stop: Ctrl-C, SIGTERM and SIGHUP, at any moment."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
}
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
if HANGUP is not None:
    WORDS[HANGUP] = "ended with its terminal (SIGHUP)"
AGAIN_SECONDS = 0.05  # after which a signal that met a callback of Python comes again


class Stopped(KeyboardInterrupt):
    """A signal asks the process to stop; what cleans up after Ctrl-C cleans up after it too.

    Attributes:
        number: the signal.
    """

    received: signal.Signals | None = None
    """The first signal that the process got. A library may turn the exception into another."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self.number = number


def attend() -> None:
    """Let each signal raise `Stopped` in the main thread; one that is ignored stays ignored.

    A signal that arrives while Python runs a destructor or a callback raises where nothing can
    catch it. It is then sent again.
    """
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    report = sys.unraisablehook

    def catch(event: "sys.UnraisableHookArgs") -> None:
        if isinstance(event.exc_value, Stopped):
            again = (os.getpid(), event.exc_value.number)
            threading.Timer(AGAIN_SECONDS, os.kill, again).start()
        else:
            report(event)

    sys.unraisablehook = catch


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    asked = signal.Signals(number)
    Stopped.received = Stopped.received or asked
    raise Stopped(asked)


def stopped_by(error: BaseException) -> signal.Signals | None:
    """Return the signal behind an error; None if it has another cause."""
    if isinstance(error, Stopped):
        return error.number
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(error, SystemExit):
        codes = {128 + number: number for number in WORDS}
        code: Any = error.code
        return codes.get(code)
    return Stopped.received


def let_go(code: int) -> None:
    """Leave signals to the system once a command has ended with an exit code.

    While Python shuts down, one is ignored where all is done, and else ends the process at once.
    """
    for number in WORDS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL if code else signal.SIG_IGN)
