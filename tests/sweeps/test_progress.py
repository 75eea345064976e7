import inspect

from rankwise.sweeps.progress import Progress, Silent
from tests.factories import finished


def test_the_silent_receiver_takes_every_call_and_prints_nothing(capsys) -> None:
    silent: Progress = Silent()
    silent.note("text")
    silent.plan(1, 2)
    silent.work(0.5)
    silent.trial(finished())
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_has_the_methods_of_the_interface() -> None:
    from rankwise.report.progress_bar import ProgressBar

    for name in ("note", "plan", "work", "trial"):
        expected = inspect.signature(getattr(Progress, name)).parameters
        assert list(inspect.signature(getattr(ProgressBar, name)).parameters) == list(expected)
