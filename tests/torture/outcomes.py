"""What a reader makes of a damaged input."""

import random
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankwise.errors import RankwiseError
from tests.torture.inputs import READERS
from tests.torture.mutations import damage

LONGEST_MESSAGE = 300  # characters


@contextmanager
def good_input(name: str) -> Iterator[tuple[Path, Path]]:
    """Yield a directory with a reader's good input, which it reads, and one for damaged copies."""
    make, read, _ = READERS[name]
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        good, place = Path(directory) / "good", Path(directory) / "place"
        good.mkdir()
        make(good)
        shutil.copytree(good, place)
        read(place)  # or every refusal would be for another reason
        yield good, place


def outcome(name: str, number: int, good: Path, place: Path) -> str:
    """Damage a copy of the good input, with a fixed seed, and read it.

    Returns:
        ``read``, ``refused``, or what went wrong: a message that is no short line, or the error.
    """
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    names = sorted(str(path.relative_to(good)) for path in good.rglob("*") if path.is_file())
    damage(place, names, random.Random(f"{name} {number}"))
    try:
        READERS[name][1](place)
    except RankwiseError as error:
        message = str(error).replace(str(place), "PLACE")
        is_line = "\n" not in message and 0 < len(message) <= LONGEST_MESSAGE
        return "refused" if is_line else f"{len(message)} characters: {message}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "".join(traceback.format_exception(error, limit=-3))[-1500:]
    return "read"
