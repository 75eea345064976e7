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
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else "rankwise-out")
    decision = read_json(directory / "decision.json")
    if decision is None:
        raise SystemExit("there is no decision.json; run rankwise sweep first")
    figure = sure_figure(decision, "nats per example")
    if figure is None:
        raise SystemExit("the decision gives no confidence")
    figure.write_image(Path(__file__).with_name("decision.svg"), width=720, height=240)


if __name__ == "__main__":
    main()
