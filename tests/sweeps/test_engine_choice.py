from pathlib import Path

import pytest

from rankwise import SweepConfig
from rankwise.engine.fused.engine import FusedEngine
from rankwise.engine.reference import ReferenceEngine
from rankwise.sweeps.engine_choice import choose_engine
from rankwise.sweeps.run import open_run
from tests.factories import Notes


@pytest.mark.parametrize(("name", "kind"), [("fused", FusedEngine), ("reference", ReferenceEngine)])
def test_the_engine_is_the_one_that_the_request_names(
    tiny_model: Path, reviews: Path, tmp_path: Path, name: str, kind: type
) -> None:
    config = SweepConfig(
        model=str(tiny_model),
        data=reviews,
        ranks=(2, 4),
        engine=name,
        epochs=3,
        out=tmp_path / "out",
    )
    notes = Notes()
    with open_run(config, notes) as run:
        engine = choose_engine(run)
    assert type(engine) is kind
    assert engine.config.epochs == 3
    assert not any("instead of the fused one" in note for note in notes.notes)
