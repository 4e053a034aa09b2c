"""Tables as people have them: dialects, numbers, dates, what is no row and what is a mistake."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebridge.cli import main as cli
from spikebridge.crossbar import measured
from spikebridge.data import numerals
from spikebridge.data.files import DataError
from spikebridge.data.forecast import Forecast
from spikebridge.data.tables import DataTable, read_table
from spikebridge.runs import rundir
from spikebridge.settings.tasks import ForecastConfig


def read(path: Path, content: str | bytes, **more: Any) -> DataTable:
    file = path / "t.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(file, **more)


def same(table: DataTable, **columns: list[float]) -> None:
    assert table.names == tuple(columns)
    np.testing.assert_array_equal(table.values.T, list(columns.values()))


NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("t\tu\n0\t0,25\n1\t0,5\n", [0.25, 0.5]),
        ('t,u\n0,"0,25"\n1,"0,5"\n', [0.25, 0.5]),
        ('t,u\n0,"1,000.5"\n1,2.25\n', [1000.5, 2.25]),
        ("t;u\n0;1.000,5\n1;2,25\n", [1000.5, 2.25]),
        ("t;u\n0;1 000,5\n1;2,25\n", [1000.5, 2.25]),
        ("t;u\n0;1\u00a0000,5\n1;2\u202f000\n", [1000.5, 2000]),
        ("t;u\n0;1'000.5\n1;2’000\n", [1000.5, 2000]),
        ("t|u\n0|1.5\n1|-2.5\n", [1.5, -2.5]),
        ("t u\n0   1.5\n1  -2.5 \n", [1.5, -2.5]),
        ("  t  u\n  0  1.5\n 10  \u22122.5\n", [1.5, -2.5]),
        ("t; u\n0; 1.5e3\n1; 2E-1\n", [1500, 0.2]),
        ("t;u\n0;1,5D+03\n1;2\n", [1500, 2]),
        ("t;u\n0;+1,5\n1;,5\n", [1.5, 0.5]),
        ("t,u\n0,1.234\n1,2.345\n", [1.234, 2.345]),  # commas part the fields
        ("t;u\n0;1.234\n1;2345\n", [1.234, 2345]),  # no thousands where 2345 stands
        ("t;u\n0;1.234\n1;0.345\n", [1.234, 0.345]),
        ("t;u\n0;1.234\n1;1.234.567\n", [1234, 1234567]),
        ("t;u\n0;1,234\n1;1,234,567\n", [1234, 1234567]),
        ("t;u;v\n0;1.234;1,5\n1;2.345;2,5\n", [1234, 2345]),  # the table decides
        ("t;u;v\n0;1,234;1.5\n1;2,345;2.5\n", [1234, 2345]),
        ("t;u;v\n0;1,5;1.5\n1;2,5;2.5\n", [1.5, 2.5]),  # each column for itself
        ("t;u\n0;1,5;\n1;2,5;\n", [1.5, 2.5]),
        ("sep=;\nt;u\n0;1,5\n1;2,5\n", [1.5, 2.5]),
    ],
)
def test_numbers_are_read_as_the_table_writes_them(
    tmp_path: Path, text: str, values: list[float]
) -> None:
    table = read(tmp_path, text)
    assert table.names[:2] == ("t", "u")
    assert table.values[:, 1].tolist() == values


def test_a_single_column_may_have_decimal_commas(tmp_path: Path) -> None:
    same(read(tmp_path, "v\n0,25\n1,5\n\n2,75\n\n"), v=[0.25, 1.5, NAN, 2.75])
    same(read(tmp_path, "v,\n0.25,\n1.5,\n"), v=[0.25, 1.5])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_encoding_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    table = read(tmp_path, "Zeit;Größe (°C)\r\n1;2,5\r\n2;3,5\r\n".encode(encoding))
    same(table, **{"Zeit": [1, 2], "Größe (°C)": [2.5, 3.5]})


def test_old_files_are_in_windows_1252(tmp_path: Path) -> None:
    same(read(tmp_path, "Zeit;Größe €\n1;2\n".encode("cp1252")), **{"Zeit": [1], "Größe €": [2]})


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    for content, message in (
        (b"PK\x03\x04rest", "found a spreadsheet; unpack it, or save the sheet as CSV"),
        (b"\x1f\x8brest", "found a gzip file"),
        (b"a,b\n1,\x00\x012\n", "no text in any encoding"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path, content)


@pytest.mark.parametrize(
    "mark", ["", "?", "-", "--", "NA", "n/a", "NaN", "null", ".", "#N/A", "None", "  "]
)
def test_marks_of_missing_values(tmp_path: Path, mark: str) -> None:
    same(read(tmp_path, f"t;u\n0;1,5\n1;{mark}\n2;3\n"), t=[0, 1, 2], u=[1.5, NAN, 3])


def test_marks_of_ones_own_are_numbers_however_written(tmp_path: Path) -> None:
    text = "t,u\n0,-9999\n1,-9999.0\n2,3.5\n3,bad\n4,1\n"
    table = read(tmp_path, text, missing=("-9999", "bad"))
    same(table, t=[0, 1, 2, 3, 4], u=[NAN, NAN, 3.5, NAN, 1])
    told = "column u holds -9999 2 times, far from its other values; if it stands for a missing"
    table = read(tmp_path, text.replace("bad", "2"))
    assert [note for note in table.remarks if note.startswith(told)]


def test_comments_lines_above_the_header_and_units_are_no_rows(tmp_path: Path) -> None:
    text = (
        "Station Nord\n# logger 5\n\n"
        "date;T;RH\n"
        ";°C;%\n"
        ";Avg;Smp\n"
        "# calibrated\n"
        "01.02.2024;1,5;50\n"
        "02.02.2024;2,5;51\n"
    )
    table = read(tmp_path, text)
    same(table, T=[1.5, 2.5], RH=[50, 51])
    for told in (
        "2 comment lines left out",
        "1 line above the header left out",
        "line 5 holds units and is left out: °C, %",
        "line 6 holds units and is left out: Avg, Smp",
        "columns left out, for they hold no numbers: date (dates or times)",
    ):
        assert told in table.remarks


def test_names_of_columns_may_stand_in_a_comment(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "np.txt", np.eye(2), header="a b")
    table = read_table(tmp_path / "np.txt")
    same(table, a=[1, 0], b=[0, 1])
    np.savetxt(tmp_path / "np.txt", np.eye(2), header="only one")
    same(read_table(tmp_path / "np.txt"), only=[1, 0], one=[0, 1])
    np.savetxt(tmp_path / "np.txt", np.eye(2), header="a text on it")
    with pytest.raises(DataError, match="a header line"):
        read_table(tmp_path / "np.txt")


def test_rows_named_by_r(tmp_path: Path) -> None:
    table = read(tmp_path, '"a" "b"\n"1" 1.5 2\n"2" 2.5 3\n')
    same(table, a=[1.5, 2.5], b=[2, 3])


def test_blank_rows_are_not_data_and_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"10/03/2004;{h:02d}.00.00;{h},5;;\n" for h in range(20))
    table = read(tmp_path, "Date;Time;CO;;\n" + rows + ";;;;\n" * 14)
    same(table, CO=[h + 0.5 for h in range(20)])
    assert "14 blank rows left out, lines 22 to 35" in table.remarks
    assert any("Date, Time (dates or times); 2 without name and entry" in r for r in table.remarks)


def test_a_torn_last_line_is_left_out_with_a_word(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b,c\n1,2,3\n4,5,6\n7,")
    same(table, a=[1, 4], b=[2, 5], c=[3, 6])
    assert "line 4, the last one, is torn and left out: 2 of 3 fields" in table.remarks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t;u\n0;1.234\n1;2.345\n", "can be read in one way only; found '1.234' in line 2.*--dec"),
        ('t,u\n0,"1,234"\n1,"2,345"\n', "found '1,234' in line 2, a fraction or thousands"),
        ('t;u\n0;1,234\n1;1.234\n', "found '1,234' in line 2"),
        ("t;u\n0;1,5\n1;1.5\n", "one decimal mark in column u; found '1.5' in line 3 and '1,5'"),
        ("t;u\n0;12 %\n1;13 %\n", "a finite number in column u; found '12 %' in line 2; write"),
        ("t;u\n0;$5\n1;$7\n", r"found '\$5' in line 2"),
        ("t;u\n0;1,23,456\n1;5\n", "found '1,23,456' in line 2"),
        ("t;u\n0;5 mV\n1;7 mV\n", "found '5 mV' in line 2"),
        ("t,u\n0,1,5\n1,2,5\n", "2 fields in each row; found 3 in line 2; put decimal commas in"),
        ("t;u\n0;1\n\n# x\n1;one\n2;2\n", "found 'one' in line 5; mend the file, leave the field"),
        ("2004-01-01,5\n2004-01-02,6\n", "a header line"),
        ("t;u;u\n0;1;2\n", "the name u twice"),
        ("t;u\n0;1\n1;2 # bad\n", "a finite number in column u; found '2 # bad' in line 3"),
        ("t;u\n0;1.2.3,4\n1;2\n", "found '1.2.3,4' in line 2"),
        ("t;u\n" + "0;off\n" * 40 + "".join(f"1;{n}\n" for n in range(12)),
         "found 'off' in line 2; .*or pass --missing 'off' if it stands for that"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_the_user_may_say_what_marks_fractions(tmp_path: Path) -> None:
    text = "t;u\n0;1.234\n1;2.345\n"
    assert read(tmp_path, text, decimal=".").values[0, 1] == 1.234
    assert read(tmp_path, text, decimal=",").values[0, 1] == 1234
    with pytest.raises(DataError, match=r"the decimal mark ',' in column u; found '0.5' in line 2"):
        read(tmp_path, "t;u\n0;0.5\n1;2.345\n", decimal=",")


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31", "2024/1/3 14:05", "2024-01-31T14:05:06Z", "2024-01-31 14:05:06.123+01:00",
        "31.01.2024", "31.1.24 7:05", "1/31/2024 2:05 PM", "31-Jan-2024", "Jan 31, 2024",
        "10/03/2004", "2020_01_01", "14:05", "14:05:06", "18.00.00",
        "Mon, 31 Jan 2024 14:05:06 GMT",
    ],
)  # fmt: skip
def test_dates_and_times_are_known_and_are_no_numbers(tmp_path: Path, text: str) -> None:
    assert numerals.is_date(text) or numerals.is_time(text)
    assert numerals.form(text) is None
    assert not numerals.looks_numeric(text)
    table = read(tmp_path, f"when;u\n{text};1\n{text};2\n")
    same(table, u=[1, 2])
    assert any("when (dates or times)" in remark for remark in table.remarks)


@pytest.mark.parametrize("text", ["192.168.0.1", "1.2.3", "A12", "12a", "Monday", "5-7", "x"])
def test_what_looks_like_no_number_is_left_out_as_text(tmp_path: Path, text: str) -> None:
    table = read(tmp_path, f"what;u\n{text};1\n{text};2\n")
    same(table, u=[1, 2])
    assert any("what (text)" in remark for remark in table.remarks)


@pytest.mark.parametrize(
    ("dates", "told"),
    [
        (["2024-01-03", "2024-01-02", "2024-01-01"], "when goes back in time from row to row: "),
        (["2024-01-03", "2024-01-02", "2024-01-05"], "when is not in order: row 2 is earlier "),
        (["2024-01-01", "2024-01-02", "2024-01-05"], "most rows are 1 days apart, some 1 days "),
        (["01/02/2024", "02/02/2024", "03/02/2024"], ""),  # in order, whatever comes first
        (["30/01/2024", "31/01/2024", "01/02/2024"], ""),
        (["01.11.2023", "01.12.2023", "01.01.2024"], ""),
        (["2024-01-01 10:00", "2024-01-01 11:00", "2024-01-01 12:00"], ""),
    ],
)  # fmt: skip
def test_the_order_of_rows_is_that_of_time(tmp_path: Path, dates: list[str], told: str) -> None:
    table = read(tmp_path, "when,u\n" + "".join(f"{date},{n}\n" for n, date in enumerate(dates)))
    notes = [remark for remark in table.remarks if remark.startswith("when")]
    assert len(notes) == bool(told)
    assert all(told in note for note in notes)


WRITERS = [
    (lambda x: f"{x:.2f}", ","),
    (lambda x: f"{x:.2f}".replace(".", ","), ";"),
    (lambda x: f"{x:,.2f}", "\t"),
    (lambda x: f"{x:,.2f}".replace(",", "_").replace(".", ",").replace("_", "."), ";"),
    (lambda x: f"{x:,.2f}".replace(",", " ").replace(".", ","), "|"),
    (lambda x: f"{x:,.2f}".replace(",", "'"), "\t"),
    (lambda x: f"{x:.2f}", "  "),
]


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-(10**9), 10**9).map(lambda n: n / 100), min_size=2, max_size=12),
    st.integers(0, len(WRITERS) - 1),
    st.sampled_from(["utf-8", "utf-16", "cp1252"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: list[float],
    way: int,
    encoding: str,
    end: str,
) -> None:
    write, by = WRITERS[way]
    rows = [f"t{by}Größe", *(f"{n}{by}{write(value)}" for n, value in enumerate(numbers))]
    path = tmp_path_factory.getbasetemp() / "w.csv"
    path.write_bytes(end.join(rows).encode(encoding))
    assert read_table(path).values[:, 1].tolist() == numbers


def test_many_columns_take_time_in_proportion(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(20_000)]
    rows = [names, *([f"{n % 7}.5" for n in range(20_000)] for _ in range(12))]
    path = tmp_path / "wide.csv"
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    start = time.process_time()
    task = Forecast(ForecastConfig(file=str(path), valid_share=0.3, test_share=0.3))
    assert time.process_time() - start < 20
    assert task.output_size == 20_000
    assert all(len(note) < 400 for note in task.notes)
    path.write_text("\n".join(map(",".join, [["same"] * 20_000, *rows[1:]])), encoding="utf-8")
    with pytest.raises(DataError, match="the name same twice"):
        read_table(path)


def test_the_command_says_what_was_read_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{n};{n % 5},5;x\n" for n in range(200))
    path, out = tmp_path / "t.csv", tmp_path / "run"
    path.write_text("n;u;s\n" + rows + ";;\n" * 3, encoding="utf-8")
    words = (
        f"train forecast --file {path} --hidden 4 --epochs 1 --threads 1 --no-report --out {out}"
    )
    assert cli.main(words.split()) == 0
    said = capsys.readouterr()
    read_first = said.err.split("epoch 1/1")[0]
    told = (
        "read t.csv: 200 rows, 2 columns of numbers: n, u (utf-8, parted by ;, decimal comma)",
        "3 blank rows left out, lines 202 to 204",
        "columns left out, for they hold no numbers: s (text)",
    )
    for line in told:
        assert line in read_first
        assert line in rundir.read_result(out).notes


def test_what_words_are_among_is_said(tmp_path: Path) -> None:
    table = read(tmp_path, "t;u\n0;a\n1;5\n2;b\n3;c\n")
    assert any("u, beside 1 numbers (text)" in remark for remark in table.remarks)


def test_ends_of_old_and_of_torn_files_are_no_entries(tmp_path: Path) -> None:
    for end in ("\x1a", "\0\0\0"):
        same(read(tmp_path, "a,b\n1,2\n3,4\n" + end), a=[1, 3], b=[2, 4])


@pytest.mark.parametrize(
    "text", ["g_uS;read_sd_uS\n0;0,1\n12,5;0,25\n", "g_uS\tread_sd_uS\n0\t.1\n12.5\t.25\n"]
)
def test_tables_of_devices_have_the_same_dialects(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode("utf-16"))
    assert measured.read_table(path) == measured.from_table(
        {"g_uS": [0, 12.5], "read_sd_uS": [0.1, 0.25]}, name="mine", source="mine.csv"
    )
