"""Each medium's own reader finds a hostile name to be that name, and nothing else."""

import ast
import io
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs
from rich.console import Console

from rankwise import escaping
from rankwise.report.style import new_table, page_template, print_lines
from tests.hostile_names import HOSTILE

ECHO = "import sys; print(ascii(sys.argv[1:]))"
CHARACTERS = [*map(chr, range(0x3000)), *"\ufeff\ufffe\uffff\U000e0001\U0001f600\ud800"]


def mixtures(count: int) -> list[str]:
    """Return texts in which any character may stand beside any other."""
    draw = random.Random(0)
    signs = [*"\n\r\t#-:'\"`|<>&[]{}*_\\$%@!~", "---", "```", "\x1b[", "\u2028", "\u202e", "://"]
    pieces = [*CHARACTERS, *200 * signs, *HOSTILE]
    return ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(count)]


TEXTS = ["", " ", *HOSTILE, *mixtures(300)]


def is_hidden(char: str) -> bool:
    category = unicodedata.category(char)
    return (category[0] == "C" or category in ("Zl", "Zp")) and char not in escaping.JOINERS


def assert_shown(text: str, breaks: str = "\n") -> None:
    hidden = {char for char in text if is_hidden(char) and char not in breaks}
    assert not hidden, text
    text.encode()  # no lone surrogate


def test_a_terminal_gets_nothing_but_characters_to_show() -> None:
    for text in TEXTS:
        shown = escaping.terminal(text)
        assert_shown(shown, "")
        plain = text.replace("\\", "")  # else escapes could be told from the text's own
        back = escaping.terminal(plain).encode("ascii", "backslashreplace").decode("unicode_escape")
        assert back == plain
    assert (
        escaping.terminal("caf\u00e9 \u4e2d\u6587\xa0\U0001f600")
        == "caf\u00e9 \u4e2d\u6587\xa0\U0001f600"
    )
    assert escaping.terminal("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_rich_prints_lines_and_tables_without_markup() -> None:
    for text in HOSTILE:
        console = Console(file=io.StringIO(), force_terminal=True, width=1000)
        print_lines(console, text)
        table = new_table(text, text)
        table.add_column(text)
        table.add_row(text)
        console.print(table)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        plain = printed
        for code in ("0", "1", "2", "3"):  # rich's own styles of titles, headers and captions
            plain = plain.replace(f"\x1b[{code}m", "").replace(f"\x1b[2;{code}m", "")
        assert_shown(plain)
        line, *_ = plain.split("\n")
        assert line == escaping.terminal(text)
        first_word = escaping.terminal(text).split("\\n")[0].strip()
        assert plain.count(first_word) >= 5


def test_a_comment_stays_a_comment() -> None:
    for text in TEXTS:
        lines = escaping.comment([text, f"column {text!r} and {text}"])
        for line in lines.splitlines():  # at every separator that Python knows
            assert line.startswith("# ")
        assert yaml.safe_load(f"{lines}a: 1\n") == {"a": 1}
        assert ast.dump(ast.parse(f"{lines}a = 1\n")) == ast.dump(ast.parse("a = 1\n"))
        assert_shown(lines)


def test_yaml_gives_back_the_value() -> None:
    for text in TEXTS:
        value = {"a": text, "b": {text: [text, 1e-05, None, True]}, "c": 2}
        document = escaping.yaml_mapping(value)
        assert yaml.safe_load(document) == value
        assert_shown(document)
        line = escaping.yaml_value(text)
        assert len(line.splitlines()) == 1
        assert yaml.safe_load(f"a: {line}\nb: 1\n") == {"a": text, "b": 1}
    assert escaping.yaml_value(1e-05) == "1.0e-05"
    assert (
        escaping.yaml_mapping({"a": "one\ntwo", "b": "\u4e2d"}) == "a: 'one\n\n  two'\nb: \u4e2d\n"
    )


def test_python_gives_back_the_value() -> None:
    for text in TEXTS:
        code = escaping.python({"a": [text, 1.5], 0: text})
        assert ast.literal_eval(code) == {"a": [text, 1.5], 0: text}
        assert_shown(code, "")


def shown_by_markdown(source: str) -> list[str]:
    """Return the texts of a Markdown page; None of what a name wrote may be anything else."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source)
    texts = []
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children or []} <= {"text", "text_special"}
            texts.append("".join(child.content for child in token.children or []))
    kinds = [token.type for token in tokens if token.type.endswith("_open")]
    allowed = {
        "paragraph_open",
        "table_open",
        "thead_open",
        "tbody_open",
        "tr_open",
        "th_open",
        "td_open",
    }
    assert set(kinds) <= allowed, source
    return texts


def test_markdown_shows_the_text_in_a_paragraph_and_in_a_cell() -> None:
    for text in TEXTS:
        line, shown = escaping.markdown(text), escaping.terminal(text).strip()
        assert shown_by_markdown(f"{line}\n") == ([shown] if shown else [])
        table = f"| a | b |\n| --- | --- |\n| {line} | c |\n"
        assert shown_by_markdown(table) == ["a", "b", shown, "c"]
        assert "://" not in line and "www." not in line and "@" not in line  # GitHub links these
    assert (
        escaping.markdown("loss 0.5 [+0.1, +0.2] of layer_norm")
        == "loss 0.5 [+0.1, +0.2] of layer_norm"
    )


def test_code_ends_where_its_fence_does() -> None:
    for text in TEXTS:
        (token,) = MarkdownIt("commonmark").parse(escaping.markdown_fence(text, "python"))
        assert (token.type, token.info) == ("fence", "python")
        assert token.content == escaping.terminal(text, keep="\n").rstrip() + "\n"


def test_front_matter_gives_back_the_metadata() -> None:
    for text in TEXTS:
        card = ModelCard(escaping.front_matter({"model_name": text, "tags": [text]}) + "# Body\n")
        assert card.text == "# Body\n"
        content = card.data.to_dict()
        assert (content["model_name"], content["tags"]) == (text, [text])


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_the_text_and_has_no_tag_of_it() -> None:
    for text in TEXTS:
        reader = Reader()
        reader.feed(f"<p title='{escaping.page(text)}'>{escaping.page(text)}</p>")
        reader.close()
        assert reader.tags == ["p"]
        assert reader.text == escaping.terminal(text, keep="\n")


def test_a_label_of_plotly_has_only_entities_that_plotly_knows() -> None:
    """Its own file decodes them with a pattern and a table of names."""
    script = get_plotlyjs()
    pattern = r"/&(#\d+|#x[\da-fA-F]+|[a-z]+);/g"
    table = script[script.index(pattern) - 200 : script.index(pattern)].rpartition("{")[2]
    names = re.findall(r"(\w+):\"", table)
    assert {"amp", "lt", "gt"} <= set(names)
    for text in TEXTS:
        label = escaping.page(text)
        assert set(re.findall("&([a-z]+);", label)) <= set(names)


def test_a_command_is_one_line_that_runs_as_it_is() -> None:
    words = [text for text in TEXTS if "\0" not in text and "\ud800" not in text]
    words += ["a\nb", "it's\n\\n $HOME", "\udcff\n", "\x01f"]
    line = escaping.shell([sys.executable, "-c", ECHO, *words])
    assert_shown(line, "")
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert ast.literal_eval(done.stdout.decode()) == words
    assert escaping.shell(["python", "a b", "a\nb"]) == r"python 'a b' $'a\nb'"


def test_a_template_of_a_page_escapes_what_it_shows() -> None:
    environment = page_template("shrink", ("seconds",)).environment
    for text in HOSTILE:
        page = environment.from_string("<p>{{ name }}</p>").render(name=text)
        reader = Reader()
        reader.feed(page)
        reader.close()
        assert (reader.tags, reader.text) == (["p"], escaping.terminal(text, keep="\n"))


def test_a_message_is_one_short_line_that_keeps_its_end() -> None:
    for text in TEXTS:
        line = escaping.message(f"{100 * text} remedy")
        assert len(line) <= escaping.LONGEST_MESSAGE
        assert_shown(line, "")
        assert line.endswith("remedy")
    assert escaping.message("a\n  b\u2028c") == "a b c"
    deep = "/".join(["", *20 * ["directory"], "trials", "r8"])
    line = escaping.message(f"trial {deep!r}: cannot read {deep + '/a.txt'!r}; delete it")
    assert line == f"trial '.../trials/r8': cannot read {deep + '/a.txt'!r}; delete it"
    line = escaping.message(f"{deep!r}: {deep!r}; or: rankwise analyze {deep}")
    assert line == f"'.../trials/r8': '.../trials/r8'; or: rankwise analyze {deep}"
    for remedy in (f": rm -r {deep}", f": rankwise analyze {deep}"):  # of more than 200 characters
        assert escaping.message(100 * "what is wrong " + remedy).endswith(f" ... {remedy}")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see /home/me/out/trials/.failed-r8/log.txt", "see log.txt"),
        ("no such file: '/home/me and/b c.csv'.", "no such file: 'b c.csv'."),
        (r"in C:\Users\me\data.csv", "in data.csv"),
        ("the base in ~/models/base/", "the base in base"),
        ("'/home/me/base/'", "'base'"),
        ("docs/learning-rate.md, https://a.b/c/d, 1/2 and r=4/8", "docs/learning-rate.md, https://a.b/c/d, 1/2 and r=4/8"),
    ],
)  # fmt: skip
def test_paths_are_cut_to_their_last_part(text: str, kept: str) -> None:
    assert escaping.without_directories(text) == kept
