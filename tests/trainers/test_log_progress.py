"""How far a trial is, as real trainers print it."""

import io

import pytest

from rankwise.trainers.log_progress import LogProgress


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("\r 10%|#         | 10/100 [00:05<00:45]\r 20%|##        | 20/100 [00:10<00:40]", 0.2),
        ("{'loss': 1.2, 'epoch': 0.1}\n  5%|5         | 2/40 [00:01<00:19,  2.00it/s]", 0.05),
        ("step 3/12: loss 1.2\nstep 6/12: loss 1.1\n", 0.5),
        ("INFO Step: 1 of 4", 0.25),
        ("[train] iteration 7 / 70", 0.1),
        ("Map: 100%|##########| 400/400 [00:01<00:00]\nLoading shards:  50%|##   | 1/2", None),
        ("loss 1.2 at 3/4 of the epoch", None),
        ("", None),
    ],
)
def test_what_a_log_tells(text: str, share: float | None) -> None:
    assert LogProgress().share(text) == share


def test_bars_of_evaluations_do_not_count() -> None:
    progress = LogProgress()
    assert progress.share("\r 50%|#####     | 50/100 [00:05<00:05]") == 0.5
    assert progress.share("\r 99%|######### | 99/100\n\n 20%|##        | 2/10") == 0.99
    assert progress.share("\r 90%|######### | 9/10") is None


@pytest.mark.parametrize(
    "before",
    [
        "Step 1/3: tokenizing\n",
        "step 1/3: tokenizing\nstep 3/3: training\n",
        "\r 90%|######### | 9/10\r100%|##########| 10/10\n",
    ],
)
def test_steps_before_training_do_not_hide_its_own(before: str) -> None:
    progress = LogProgress()
    assert progress.share(before) is not None
    assert progress.share(f"{before}\r  4%|          | 17/400") == 17 / 400
    assert progress.share(f"{before}\r  4%|          | 20/400") == 0.05
    assert progress.share(before) is None


def test_a_long_evaluation_inside_training_does_not_count() -> None:
    progress = LogProgress()
    assert progress.share("\r 50%|#####     | 50/100\n\n  2%|          | 20/1000") == 0.5
    assert progress.share("\r 60%|######    | 60/100") == 0.6


def test_the_bar_of_tqdm_itself() -> None:
    tqdm = pytest.importorskip("tqdm").tqdm

    drawn = io.StringIO()
    bar = tqdm(total=40, file=drawn, mininterval=0)
    bar.update(30)
    assert LogProgress().share(drawn.getvalue()) == 0.75
    bar.close()
