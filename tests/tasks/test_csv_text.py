"""Tables in CSV: separators, quotes, decimal commas, and faults with their lines."""

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rankwise.errors import RequestError
from rankwise.tasks.csv_text import find_separator, pandas_arguments, read_csv_text


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("expected", [",", "\t"])
@pytest.mark.parametrize("text", ["fine", "fine, good, better", "worth 3,5"])
def test_the_separator_that_fits_is_used(separator: str, expected: str, text: str) -> None:
    table = pd.DataFrame({"text": ["bad", text], "label": [0, 1]})
    rows, notes = read_csv_text(table.to_csv(index=False, sep=separator), "data", expected)
    pd.testing.assert_frame_equal(rows, table)
    assert len(notes) == (separator != expected)


def test_signs_inside_cells_are_no_separators() -> None:
    assert list(read_csv_text("text,a;b\nx;y,1\n", "data", ",")[0].columns) == ["text", "a;b"]
    assert list(read_csv_text("text\nx;y\n", "data", ",")[0]["text"]) == ["x;y"]
    assert find_separator("First, a line.\nThen another, longer, line.\n", ",") is None


def test_excel_s_line_of_the_separator_is_no_line_of_names() -> None:
    rows, _ = read_csv_text("sep=;\r\ntext;label\r\na, b;1\r\n", "data", ",")
    assert rows.to_dict("records") == [{"text": "a, b", "label": 1}]
    with pytest.raises(RequestError, match="line 3 has 3 fields"):
        read_csv_text("sep=;\na;b\n1;2;3\n", "data", ",")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_numbers(separator: str) -> None:
    table = pd.DataFrame({"rank": [2, 4], "loss": [0.5, -1.25], "text": ["a, b", "3,5 stars"]})
    text = table.to_csv(index=False, sep=separator, decimal=",")
    rows, notes = read_csv_text(text, "data", "," if separator == ";" else separator)
    pd.testing.assert_frame_equal(rows, table)
    assert "numbers have decimal commas" in notes
    assert pandas_arguments(text, ",") == f", sep={separator!r}, decimal=','"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('text,label\na,1\n"b,2\nc,3\n', "record in line 3 has a double quote too many or too few"),
        ('text,label\n\n"a\nb",1\n"he "said" it",2\n', "record in line 5 has a double quote"),
        (
            "text,label\na,1\nb,c,2\n",
            r"line 3 has 3 fields, and the line of names 2; put .* ',' in",
        ),
        ("text,label\nb,c,2\na,d,1\n", "line 2 has 3 fields"),
    ],
)
def test_faults_are_named_with_their_line(text: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        read_csv_text(text, "data", ",")


def test_the_remedies_for_quotes_work() -> None:
    rows, _ = read_csv_text('text,label\n"he ""said"" it",2\n"b,c",2\n', "data", ",")
    assert list(rows["text"]) == ['he "said" it', "b,c"]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('text,label\n"he \\"said, so\\" twice",1\n', "quotes inside texts follow a backslash"),
        ('label,text\n1, "he ""said, so"" twice"\n', "blanks after a separator are skipped"),
    ],
)
def test_other_ways_to_write_quotes_are_read_where_they_alone_fit(text: str, note: str) -> None:
    rows, notes = read_csv_text(text, "data", ",")
    assert list(rows["text"]) == ['he "said, so" twice'] and list(rows["label"]) == [1]
    assert notes == [note]


def test_quotes_in_tables_with_tabs_may_stand_alone() -> None:
    rows, notes = read_csv_text('text\tlabel\n"half\t1\nb "x" c\t2\n', "data", "\t")
    assert list(rows["text"]) == ['"half', 'b "x" c']
    assert notes == ["quotes are read as they stand"]


def test_very_long_fields_are_read_and_the_limit_of_csv_stays() -> None:
    limit = csv.field_size_limit()
    long = "x" * (3 * limit)
    rows, _ = read_csv_text(f"text,label\n{long},1\n", "data", ",")
    assert rows["text"][0] == long
    assert csv.field_size_limit() == limit


def test_a_column_has_one_type_and_words_stay_words() -> None:
    numbers = "".join(f"t{row},{row}\n" for row in range(20000))
    rows, _ = read_csv_text(f"text,label\n{numbers}NA,zz\n,\n", "data", ",")
    assert list(rows["label"][:2]) == ["0", "1"]
    assert rows["text"][20000] == "NA"
    assert rows.iloc[20001].isna().all()


def test_a_column_name_that_occurs_twice_is_said() -> None:
    rows, notes = read_csv_text("text,text\na,b\n", "data", ",")
    assert list(rows.columns) == ["text", "text.1"]
    assert notes == ["column 'text' occurs again, and is called 'text.1' there"]
    assert read_csv_text("text,,\na,b,c\n", "data", ",")[1] == []


MEASURE = """
import resource, sys
from pathlib import Path
from rankwise.tasks.files import read_file
read_file(Path(sys.argv[2]))  # what the libraries need, once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows, _ = read_file(Path(sys.argv[1]))
used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(len(rows), used / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_a_table_takes_at_most_four_times_its_size_in_memory(tmp_path: Path) -> None:
    row = '"a film with a plot that goes on for quite a while, and actors",1\n'
    (tmp_path / "large.csv").write_text("text,label\n" + 600_000 * row)
    (tmp_path / "small.csv").write_text("text,label\n" + 2 * row)
    words = [sys.executable, "-c", MEASURE, tmp_path / "large.csv", tmp_path / "small.csv"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    count, times = done.stdout.split()
    assert (int(count), float(times) <= 4) == (600_000, True), times
