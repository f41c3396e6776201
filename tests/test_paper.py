"""The paper's numbers are read as they are printed, agree with themselves where they should, and damage is refused in words."""

from dataclasses import replace

import pytest

import dart
from dart import paper

FILE = dart.data_root() / "paper" / "reported.yaml"
SCORED = [table for table in paper.tables() if table.id not in ("table2", "table6", "table10", "table11")]

# Rows whose printed average is not the mean of their ratios, and what that mean is.
DIFFERENT = {
    ("table1", "PDrop, 192 tokens"): (96.7, 96.9),
    ("table1", "HiRED, 64 tokens"): (87.0, 86.9),
    ("table4", "FastV, reduction=0.667"): (94.0, 93.8),
    ("table4", "FastV, reduction=0.778"): (91.0, 90.6),
    ("table4", "FastV, reduction=0.889"): (84.0, 83.8),
    ("table5", "FastV, reduction=0.667"): (89.0, 89.3),
    ("table5", "FastV, reduction=0.778"): (83.4, 83.8),
    ("table5", "FastV, reduction=0.889"): (68.4, 68.5),
    ("table8", "DART pivot=random, 128 tokens"): (96.0, 96.2),
    ("table8", "DART pivot=K-norm min, 128 tokens"): (96.8, 96.55),
    ("table8", "FastV, 128 tokens"): (81.5, 81.2),
}
INCOMPLETE = [("table9", "FastV, 128 tokens"), ("table9", "SparseVLM, 128 tokens")]


@pytest.mark.parametrize("table", SCORED, ids=lambda table: table.id)
def test_printed_averages_are_means_of_ratios(table):
    for row in table.rows:
        ours, name = paper.average(row, table.vanilla), (table.id, str(row))
        if name in DIFFERENT:
            printed, expected = DIFFERENT[name]
            assert row.avg == printed and ours == pytest.approx(expected, abs=0.051) and abs(ours - printed) > 0.1
        elif row.avg is not None and name not in INCOMPLETE:
            assert ours == pytest.approx(row.avg, abs=0.1), row
        if row.calc_avg is not None:
            assert ours == pytest.approx(row.calc_avg, abs=0.051), row


def test_the_average_of_an_earlier_version_is_over_its_nine_columns():
    table = paper.earlier_versions()
    assert "OCRBench" not in table.columns
    for row in table.rows:
        assert paper.average(row, paper.table("table1").vanilla) == pytest.approx(row.avg, abs=0.1)


def test_an_average_is_over_the_columns_that_both_rows_have():
    whole = paper.Row("Vanilla", {"GQA": 50.0, "POPE": 80.0, "MME": None})
    row = paper.Row("DART", {"GQA": 25.0, "POPE": 80.0, "MME": 1000.0})
    assert paper.average(row, whole) == 75
    assert paper.average(replace(row, values={**row.values, "GQA": None}), whole) == 100
    with pytest.raises(ValueError, match="no score in common"):
        paper.average(replace(row, values={"SQA": 1.0}), whole)
    times = paper.table("table2")
    with pytest.raises(ValueError, match="'18:13', which is no score"):
        paper.average(times.row("DART"), times.vanilla)


def test_cells_are_found_by_table_row_and_column():
    table = paper.table("table1")
    assert (table.title, table.model) == ("Table 1", "LLaVA-1.5-7B") and table.vanilla.tokens == 576
    row = table.row("DART", tokens=64)
    assert row.values["POPE"] == 73.9 and row.avg == 93.7 and "GQA" in row.ocr
    assert paper.table("table4").row("FastV", reduction=0.778).values["MME"] == 2031
    assert paper.table("table8").row("DART pivot=random").std["MME"] == 17.9
    assert paper.table("pace_table1").row("DART", retain=0.1).values["DocVQA_ANLS"] == 33.65
    assert [table.id for table in paper.tables()] == [f"table{number}" for number in range(1, 12)]
    assert paper.figure("fig6").model is None and "POPE" in paper.figure("fig6").claim
    assert paper.headline()["total_speedup"] == 1.99


def test_a_table_is_shown_as_printed():
    shown = paper.table("table1").frame()
    assert shown.loc[(64, "DART"), "POPE"] == 73.9 and shown.loc[(64, "DART"), "average"] == 93.7
    assert shown.loc[(64, "MustDrop"), "average"] == paper.table("table1").row("MustDrop", tokens=64).avg
    assert list(paper.table("table4").frame().index[:2]) == [("all", "Vanilla"), ("−66.7%", "FastV")]
    for table in paper.tables():
        cells = [value for row in table.rows for value in (*row.values.values(), row.avg) if value is not None]
        assert sum((table.frame() != "").sum()) == len(cells), table.id


def test_every_source_is_named_and_every_figure_of_results_is_there():
    everything = (*paper.tables(), *paper.third_party(), paper.earlier_versions(), *paper.figures())
    assert all(each.source.strip() for each in everything)
    assert [figure.id for figure in paper.figures()] == ["fig1", "fig2", *(f"fig{number}" for number in range(4, 10))]


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="table 'tabel1' is not known; did you mean table1"):
        paper.table("tabel1")
    with pytest.raises(ValueError, match="figure 'fig33' is not known; did you mean .*fig"):
        paper.figure("fig33")
    with pytest.raises(ValueError, match="table1 has no row 'FiCoCo'; did you mean FiCoCo-V"):
        paper.table("table1").row("FiCoCo")
    with pytest.raises(ValueError, match="3 rows of 'DART' with nothing else; its rows are: DART, 192 tokens"):
        paper.table("table1").row("DART")
    with pytest.raises(ValueError, match="0 rows of 'DART' with tokens=65"):
        paper.table("table1").row("DART", tokens=65)


def test_times_are_read_in_minutes_and_seconds():
    assert paper.seconds("36:16") == 2176
    for wrong in ("36", "36:1", "36:75", "a:16", "36.16"):
        with pytest.raises(ValueError, match="min:sec"):
            paper.seconds(wrong)


CELLS = "[55.9, 60.6, 53.2, 1765, 73.9, 69.8, 72.4, 54.4, 51.6, 270]"
DAMAGE = {
    "no YAML": ("tables:", "tables: [", "cannot be read"),
    "a part missing": ("\ntables:", "\ntabels:", "the file lacks tables"),
    "a cell missing": (CELLS, CELLS.replace("60.6, ", ""), "row 'DART' of table1 has 9 values for 10 columns"),
    "a cell no number": (CELLS, CELLS.replace("60.6", "yes"), "row 'DART' of table1 has True under MMB; give a number"),
    "a word for a cell": (CELLS, CELLS.replace("60.6", "n/a"), "has 'n/a' under MMB; give a number"),
    "an average no number": ("avg: 93.7, calc_avg: 93.66", "avg: about 93.7, calc_avg: 93.66", "avg='about 93.7'"),
    "a field unknown": ("avg: 93.7, calc_avg: 93.66", "avrg: 93.7, calc_avg: 93.66", "'avrg'; did you mean avg"),
    "a comma unquoted": ('"v2 Fig 5, section 5.3"', "v2 Fig 5, section 5.3", "fig5 has a field 'section 5.3'"),
    "a mark on no column": ("calc_avg: 93.66, ocr: [GQA]", "calc_avg: 93.66, ocr: [GQU]", "'GQU'; did you mean GQA"),
    "a table twice": ("id: table3", "id: table2", "table2 stands there twice"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_words(tmp_path, name):
    before, after, message = DAMAGE[name]
    text = FILE.read_text()
    assert text.count(before) == 1
    (tmp_path / "reported.yaml").write_text(text.replace(before, after))
    with pytest.raises(ValueError, match=message):
        paper.read(tmp_path / "reported.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"reported.yaml cannot be read: .*No such file"):
        paper.read(tmp_path / "reported.yaml")
