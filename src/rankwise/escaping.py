"""Text from data and files, escaped for the place where it is written: one function a medium.

A role, a column, a label, a path or the name of a layer may hold anything. Written as it is, it
could end a comment, start a tag, colour a terminal, or show words in another order than they are
read. Each function here returns text that its medium shows as that text, and as nothing else.
"""

import html
import re
import shlex
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

COMMENT_WIDTH = 100
LONGEST_MESSAGE = 300  # characters
COMMANDS = ("rankwise", "rm -r")  # that end messages
JOINERS = "\u200c\u200d"  # part of words in Persian and Hindi, and of emoji; they hide nothing
MARKDOWN = re.compile(
    r"[\\`*~$]|(?<![^\W_])_|_(?![^\W_])|^\[|\[(?=\^)|\](?=[\[(:])"
)  # an underscore inside a word and a bracket that begins no link stay as they are
MARKDOWN_START = re.compile(r"^(?:[#+=-](?=[\s#+=-]|$)|\d+(?=[.)](?:\s|$)))")
START = r"(?<![\w.:/~-])(?:~|[A-Za-z]:)?[/\\]"
PATHS = re.compile(
    rf"(?P<quote>['\"]){START}[^'\"]*?(?P<quoted>[^'\"/\\]+)[/\\]?(?=['\"])"
    rf"|{START}(?:[^\s'\"`/\\]+[/\\])+?(?P<plain>[^\s'\"`/\\]+)[/\\]?(?![^\s'\"`])"
)
DIRECTORIES = rf"(?:{START}|\.\.\./)(?:[^\s'\"`/\\]+[/\\])+"
SHORTER_PATHS = (  # two parts of a path are left, or its last one
    re.compile(rf"{DIRECTORIES}(?=[^\s'\"`/\\]+[/\\][^\s'\"`/\\]+)"),
    re.compile(rf"{DIRECTORIES}(?=[^\s'\"`/\\]+)"),
)
MARKDOWN_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;"}


def terminal(text: object, keep: str = "") -> str:
    r"""Return text for a terminal, with what it would not show as a character escaped.

    Control characters, those of ANSI sequences among them, marks of the direction of writing, line
    and paragraph separators and lone surrogates become ``\x1b``, ``\u2028`` and so on, as Python
    writes them. Rich must print the result without its markup.

    Args:
        text: anything that has a text.
        keep: characters to leave as they are, such as line breaks.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(char if char in keep else _visible(char) for char in whole)


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if (category[0] != "C" and category not in ("Zl", "Zp")) or char in JOINERS:
        return char
    return char.encode("unicode_escape").decode("ascii")


def shell(words: Iterable[str]) -> str:
    r"""Return a command for bash or zsh on one line, which runs as it is where it is copied.

    A word with characters that a terminal would not show is written as ``$'a\nb'``.
    """
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if terminal(word) == word:
        return shlex.quote(word)
    quoted = word.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{''.join(map(_shell_char, quoted))}'"


def _shell_char(char: str) -> str:
    seen = _visible(char)
    if seen == char or char in "\t\n\r":
        return seen
    # The shell reads \x as a byte, and Python keeps bytes that are no text as lone surrogates.
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode(errors=errors))


def message(text: object) -> str:
    """Return the line of an error for a terminal, at most `LONGEST_MESSAGE` characters.

    A longer one loses the upper directories of its paths, then its middle. A command at its end
    stays whole, if it can, because it is there to be copied: half of a path must not be removed.
    """
    line = terminal(re.sub(r"\s+", " ", str(text)).strip())
    start = max(line.rfind(f": {command} ") for command in COMMANDS)
    problem, remedy = (line[:start], line[start:]) if start >= 0 else (line, "")
    for directories in SHORTER_PATHS:
        changes = 1
        while len(problem + remedy) > LONGEST_MESSAGE and changes:
            problem, changes = directories.subn(".../", problem, count=1)
    line = problem + remedy
    if len(line) <= LONGEST_MESSAGE:
        return line
    gap, tail = " ... ", 2 * LONGEST_MESSAGE // 3
    if tail < len(remedy) < LONGEST_MESSAGE - len(gap):
        tail = len(remedy)
    return line[: LONGEST_MESSAGE - tail - len(gap)] + gap + line[-tail:]


def comment(notes: Iterable[str]) -> str:
    """Return notes as comment lines of YAML, Python or a shell; each note starts a new line."""
    lines = []
    for note in notes:
        words = terminal(re.sub(r"[ \t\r\n]+", " ", note))
        lines += textwrap.wrap(words, COMMENT_WIDTH - 2, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines)


def yaml_mapping(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML, one on a line."""
    return _yaml(dict(settings), "\n", sort_keys=False)


def yaml_value(value: object) -> str:
    """Return a value on one line of YAML; 1e-05 gets a point, or YAML 1.1 would read a text."""
    text = _yaml(value, "", default_flow_style=True, width=10**9)
    return text.split("\n...")[0].strip()


def _yaml(content: Any, plain: str, **options: Any) -> str:
    """Return a YAML document; texts with control characters but ``plain`` are in double quotes."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def represent(dumper: Any, text: str) -> Any:
        style = None if terminal(text, plain) == text else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    document = yaml.dump(content, Dumper=Dumper, allow_unicode=True, **options)
    # Marks of direction count as printable in YAML. They are between double quotes here.
    return terminal(document, keep="\n")


def front_matter(settings: Mapping[str, Any]) -> str:
    """Return the metadata at the head of a Markdown file, with the lines that enclose them."""
    return f"---\n{yaml_mapping(settings)}---\n"


def python(value: object) -> str:
    """Return a text, a number, or a list or mapping of these, as Python writes it."""
    return terminal(repr(value))


def markdown(text: object) -> str:
    """Return one line of text for Markdown (CommonMark and GitHub's), also in a table's cell."""
    line = terminal(text)
    line = "".join(MARKDOWN_ENTITIES.get(char, char) for char in line)
    line = MARKDOWN.sub(lambda match: f"\\{match[0]}", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    start = MARKDOWN_START.match(line)
    if start is None:
        return line
    # A number at the start would begin a list, and the other signs a heading or a list.
    end = start.end()
    return f"{line[:end]}\\{line[end:]}" if line[0].isdigit() else f"\\{line}"


def markdown_fence(code: str, language: str) -> str:
    """Return code as a fenced block of Markdown."""
    runs = re.findall(r"`+", code)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    shown = terminal(code, keep="\n").rstrip()
    return f"{fence}{language}\n{shown}\n{fence}\n"


def without_directories(text: str) -> str:
    """Return text with absolute paths cut to their last part, for a page that others will read."""

    def last_part(path: re.Match[str]) -> str:
        return path["quote"] + path["quoted"] if path["quote"] else path["plain"]

    return PATHS.sub(last_part, text)


def page(text: object) -> str:
    """Return text for an HTML page, and for a label of plotly, which reads tags as well.

    Plotly knows eight entities by name, among them none of a quotation mark.
    """
    return html.escape(terminal(text, keep="\n")).replace("&quot;", "&#34;")
