"""What a margin of 0.02 nats is in accuracy, on the tasks of ``results/strategies.json``.

    python benchmarks/margin.py

For each task a line is fitted through the trials' held-out losses and scores (a trial for each
rank and seed). Its slope says how many points of accuracy a difference in loss usually comes with.
"""

import json
from pathlib import Path

import numpy as np

from rankwise.decide.metrics import LOSS_MARGIN

RESULTS = Path(__file__).parent / "results" / "strategies.json"


def main() -> None:
    """Print a row for each task in Markdown."""
    tasks = json.loads(RESULTS.read_text())["tasks"]
    print(f"| task | mean loss | mean score, % | points for {LOSS_MARGIN} nats | correlation |")
    print("|---| ---: | ---: | ---: | ---: |")
    for name, content in tasks.items():
        losses = np.array([row["held_out_loss"] for row in content["grid"]]).ravel()  # (R * S,)
        scores = np.array([row["held_out_score"] for row in content["grid"]]).ravel()
        points = -100 * LOSS_MARGIN * np.polyfit(losses, scores, 1)[0]
        correlation = np.corrcoef(losses, scores)[0, 1]
        means = f"{losses.mean():.2f} | {100 * scores.mean():.1f}"
        print(f"| {name} | {means} | {points:.1f} | {correlation:.2f} |")


if __name__ == "__main__":
    main()
