"""Draw decision.svg, the picture in docs/decision.md, from a sweep directory.

python docs/figures/draw_decision.py [rankwise-out]

Needs kaleido and a Chromium (extra ``dev``).
"""

import sys
from pathlib import Path

from rankwise.report.figures import sure_figure
from rankwise.store.records import read_json


def main() -> None:
    """Draw how sure it is of each rank that it is within the margin."""
    decision = read_json(
        Path(sys.argv[1] if len(sys.argv) > 1 else "rankwise-out") / "decision.json"
    )
    if decision is None:
        raise SystemExit("there is no decision.json; run rankwise sweep first")
    rows = [row for row in decision["table"] if row["loss_mean"] is not None]
    sure_figure(rows, decision).write_image(
        Path(__file__).with_name("decision.svg"), width=560, height=340
    )


if __name__ == "__main__":
    main()
