"""What the paper reports, read from `data/paper/reported.yaml`: facts and figures with their sources, nothing of ours.

    paper.table("table1").row("DART", tokens=64).values["POPE"]        # 73.9
    paper.average(row, vanilla)                                       # 93.7: the percentage that the tables print as "Avg."

The paper is arXiv 2502.11494 v2 (EMNLP 2025). Beside its tables stand a row that an earlier version most likely had, and what
others measured when they ran the method again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

import yaml

from dart import data_root

_TIME = re.compile(r"(\d+):([0-5]\d)")


@dataclass(frozen=True)
class Row:
    """One printed row.

    Attributes
    ----------
    method : str
        As the table names it; "DART_train" is the dagger row, trained with the reduction on.
    values : dict of str to float, str or None
        The printed cells by column; None where the table has a dash or the digits could not be told. Times are text, "min:sec".
    tokens : int, optional
        Image tokens that the table says are kept.
    reduction : float, optional
        Fraction of image tokens that it says are removed, where it gives that instead; rows of others may give `retain`, the
        fraction kept.
    config : str, optional
        Part of the table that the row stands in, where a method has several.
    avg : float, optional
        The printed average, percent; None if none is printed or it could not be read.
    calc_avg : float, optional
        Our own average of the row, noted where the printed one is missing or differs. Not a number of the paper.
    ocr : tuple of str
        Cells (or "avg") that were damaged in the copy read, and repaired.
    std : dict of str to float
        Standard deviations, where the table prints them.
    note : str, optional
    """

    method: str
    values: dict[str, float | str | None]
    tokens: int | None = None
    reduction: float | None = None
    retain: float | None = None
    config: str | None = None
    avg: float | None = None
    calc_avg: float | None = None
    ocr: tuple[str, ...] = ()
    std: dict[str, float] | None = None
    note: str | None = None

    def __str__(self) -> str:
        where = (self.config, self.tokens and f"{self.tokens} tokens", *(f"{name}={value}" for name, value in (
            ("reduction", self.reduction), ("retain", self.retain)) if value is not None))
        return ", ".join(filter(None, (self.method, *where)))


@dataclass(frozen=True)
class Table:
    """One table: who printed it, of which model, its columns in order, its rows in order."""

    id: str
    source: str
    model: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    title: str | None = None
    setting: str | None = None
    notes: tuple[str, ...] = ()

    def row(self, method: str, **where: float | str | None) -> Row:
        """The one row of a method, told apart where needed by `tokens`, `reduction`, `retain` or `config`.

        Raises
        ------
        ValueError
            If no row, or more than one, is meant.
        """
        named = [row for row in self.rows if row.method == method]
        if not named:
            raise ValueError(f"{self.id} has no row {method!r}; {_near(method, dict.fromkeys(row.method for row in self.rows))}")
        found = [row for row in named if all(getattr(row, name) == value for name, value in where.items())]
        if len(found) != 1:
            asked = ", ".join(f"{name}={value!r}" for name, value in where.items()) or "nothing else"
            raise ValueError(f"{self.id} has {len(found)} rows of {method!r} with {asked}; its rows are: {'; '.join(map(str, named))}")
        return found[0]

    @property
    def vanilla(self) -> Row:
        """The row of the whole model, to which averages refer.

        Raises
        ------
        ValueError
            If the table has none.
        """
        return self.row("Vanilla")

    def frame(self):
        """The table as printed, a `pandas.DataFrame` of text and numbers: rows by tokens and method, blank where nothing is printed.

        Tokens are how many are kept or, with a minus, which share goes; a dash where the table says neither.
        """
        from pandas import DataFrame

        def tokens(row: Row) -> int | str:
            if row.reduction is None:
                return row.tokens or "–"
            return f"−{row.reduction:.1%}".replace(".0%", "%") if row.reduction else "all"

        found = DataFrame([
            {"setting": row.config, "tokens": tokens(row), "method": row.method, **row.values}
            | ({} if row.avg is None else {"average": row.avg})
            for row in self.rows
        ], dtype=object).dropna(axis="columns", how="all")
        found.columns = found.columns.str.replace("_", " ")
        if "setting" in found:
            found["setting"] = found["setting"].str.replace("_", " ")
        return found.fillna("").set_index([name for name in ("setting", "tokens", "method") if name in found])


@dataclass(frozen=True)
class Figure:
    """What is known of a figure: its claim and where it stands. No figure's values are printed as numbers."""

    id: str
    claim: str
    source: str
    model: str | None = None


def tables() -> tuple[Table, ...]:
    """Tables 1 to 11 of the paper, in order."""
    return _reported()["tables"]


def table(name: str) -> Table:
    """One table of the paper or of others: "table1" to "table11", "eadp_table1", ...

    Raises
    ------
    ValueError
        With the nearest names.
    """
    return _pick("table", name, (*tables(), *third_party()))


def figures() -> tuple[Figure, ...]:
    """The figures of the paper that show results."""
    return _reported()["figures"]


def figure(name: str) -> Figure:
    """One figure, "fig1" to "fig9".

    Raises
    ------
    ValueError
        With the nearest names.
    """
    return _pick("figure", name, figures())


def third_party() -> tuple[Table, ...]:
    """What others report for the method, under their own protocols."""
    return _reported()["third_party"]


def earlier_versions() -> Table:
    """The rows of Table 1 as another paper reprints them; most likely those of arXiv v1."""
    return _reported()["earlier_version_rows"]


def headline() -> dict[str, Any]:
    """Numbers of the abstract and the running text."""
    return _reported()["headline"]


def average(row: Row, vanilla: Row) -> float:
    """The paper's "Avg.": the mean over the columns that both rows have of score / score of the whole model, in percent.

    The paper states no formula; this one reproduces its printed averages.

    Raises
    ------
    ValueError
        If the rows share no score, or a cell is no score (a time, say).
    """
    shared = [column for column, value in row.values.items() if value is not None and vanilla.values.get(column) is not None]
    if not shared:
        raise ValueError(f"{row.method} and {vanilla.method} have no score in common; take two rows of one table")
    for column in shared:
        if isinstance(row.values[column], str) or isinstance(vanilla.values[column], str):
            raise ValueError(f"column {column!r} holds {row.values[column]!r}, which is no score; averages are of scores only")
    return 100 * sum(row.values[column] / vanilla.values[column] for column in shared) / len(shared)


def seconds(time: str) -> int:
    """Seconds of a printed time, "min:sec".

    Raises
    ------
    ValueError
        If it is not of that form.
    """
    found = _TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"{time!r} is no time; give min:sec, like '36:16'")
    return 60 * int(found[1]) + int(found[2])


# ------------------------------------------------------------------------------------------------ the file


def read(path: str | Path) -> dict[str, Any]:
    """Everything in such a file, with tables, rows and figures as the classes above.

    Raises
    ------
    ValueError
        If it is no YAML, a part or a field is missing or unknown, a name stands twice, or a row does not fit its columns.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as reason:
        raise ValueError(f"{path} cannot be read: {reason}") from reason
    try:
        parts = _known(content, "the file", "headline tables figures earlier_version_rows third_party", "meta not_seen")
        found = {
            "headline": _known(parts["headline"], "headline"),
            "tables": tuple(_table(entry) for entry in _list(parts["tables"], "tables")),
            "figures": tuple(_figure(entry) for entry in _list(parts["figures"], "figures")),
            "third_party": tuple(_table(entry) for entry in _list(parts["third_party"], "third_party")),
            "earlier_version_rows": _table(_known(parts["earlier_version_rows"], "earlier_version_rows") | {"id": "earlier_version_rows"}),
        }
        for kinds in (("tables", "third_party"), ("figures",)):
            names = [each.id for kind in kinds for each in found[kind]]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{', '.join(sorted(twice))} stands there twice")
    except ValueError as reason:
        raise ValueError(f"{path} is damaged: {reason}; restore it from the project") from reason
    return found


@lru_cache
def _read_once(path: Path) -> dict[str, Any]:
    return read(path)


def _reported() -> dict[str, Any]:
    return _read_once(data_root() / "paper" / "reported.yaml")


def _table(entry: Any) -> Table:
    name = entry.get("id", "a table") if isinstance(entry, dict) else "a table"
    entry = _known(entry, name, "id source model columns rows", "table setting notes note")
    columns = tuple(_list(entry["columns"], f"columns of {name}"))
    notes = (*_list(entry.get("notes", []), f"notes of {name}"), *filter(None, [entry.get("note")]))
    rows = tuple(_row(row, columns, name) for row in _list(entry["rows"], f"rows of {name}"))
    return Table(name, entry["source"], entry["model"], columns, rows, entry.get("table"), entry.get("setting"), notes)


def _row(entry: Any, columns: tuple[str, ...], table: str) -> Row:
    entry = _known(entry, f"a row of {table}", "method values", "tokens reduction retain config avg calc_avg ocr std note")
    what = f"row {entry['method']!r} of {table}"
    cells = {}
    for name in ("values", "std"):
        if name in entry:
            given = _list(entry[name], f"{name} of {what}")
            if len(given) != len(columns):
                raise ValueError(f"{what} has {len(given)} {name} for {len(columns)} columns")
            cells[name] = dict(zip(columns, given))
    for column, value in (*cells["values"].items(), *cells.get("std", {}).items()):
        if not (value is None or _number(value) or isinstance(value, str) and _TIME.fullmatch(value)):
            raise ValueError(f"{what} has {value!r} under {column}; give a number, null or a time in quotes, min:sec")
    for name in ("tokens", "reduction", "retain", "avg", "calc_avg"):
        if entry.get(name) is not None and not _number(entry[name]):
            raise ValueError(f"{what} has {name}={entry[name]!r}, which is no number")
    ocr = tuple(_list(entry.get("ocr", []), f"ocr of {what}"))
    for column in ocr:
        if column not in (*columns, "avg"):
            raise ValueError(f"{what} marks a cell {column!r}; {_near(str(column), columns)}")
    return Row(**{**entry, **cells, "ocr": ocr})


def _figure(entry: Any) -> Figure:
    name = entry.get("id", "a figure") if isinstance(entry, dict) else "a figure"
    entry = _known(entry, name, "id claim source", "model numbers")
    return Figure(name, entry["claim"], entry["source"], entry.get("model"))


def _known(entry: Any, what: str, needed: str = "", allowed: str | None = None) -> dict[str, Any]:
    """`entry`, if it is a mapping with all `needed` keys and none but these and the `allowed`; any keys if both are left out."""
    if not isinstance(entry, dict):
        raise ValueError(f"{what} is {type(entry).__name__}, not a mapping")
    if missing := set(needed.split()) - set(entry):
        raise ValueError(f"{what} lacks {', '.join(sorted(missing))}")
    if allowed is not None:
        known = [*needed.split(), *allowed.split()]
        for key in entry:
            if key not in known:
                raise ValueError(f"{what} has a field {key!r}; {_near(str(key), known)}")
    return entry


def _list(entry: Any, what: str) -> list:
    if not isinstance(entry, list):
        raise ValueError(f"{what} is {type(entry).__name__}, not a list")
    return entry


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _pick(what: str, name: str, among: Iterable[Any]) -> Any:
    by_name = {each.id: each for each in among}
    if name not in by_name:
        raise ValueError(f"{what} {name!r} is not known; {_near(name, by_name)}")
    return by_name[name]


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
