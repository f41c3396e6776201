"""MMBench dev, English and Chinese: one of up to four options, asked in rotations (arXiv 2307.06281).

Read are the published tables with pictures inside, `mmbench_dev_20230712.tsv` and `mmbench_dev_cn_20231003.tsv`. Row i +
1,000,000 k is question i with its options rotated k times; a question is right only if all of its rows are.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dart.tasks import base, files
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import LETTER, LETTER_CN

LETTERS = "ABCD"
ROTATION = 1_000_000
# cells that pandas, with which LLaVA's script reads the table, takes for empty, and two that the script adds
_EMPTY = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
_AROUND = (("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","),
           (":", "."), (":", ")"), (":", ")."))
_NOT_HANDED_IN = ("hint", "category", "source", "image", "comment", "l2-category")


def task(name: str = "mmbench") -> Benchmark:
    title = "MMBench dev" if name == "mmbench" else "MMBench-CN dev"
    return Benchmark(name, title, "circular", partial(questions, name), score, partial(floors, name), submission, tokens=1024)


def _empty(cell: str | None) -> bool:
    return cell is None or cell in _EMPTY or cell.lower() in ("nan", "none")


def questions(name: str = "mmbench", folder: str | Path | None = None) -> tuple[Question, ...]:
    """All rows, the rotations of a question together; `kind` is the category, `stratum` the one above it.

    Raises
    ------
    FileNotFoundError
        With the official source of what is missing.
    ValueError
        With file and line of a row that is cut short or no question.
    """
    path = files.need(name, files.FILES[name][0].path, folder)
    read, asked = [], []
    for place, row in _rows(path):
        with base.reading():
            read.append(_question(name, path.stem, row, place))
    pictures = {question.id: question.source for question in read}
    for question in read:
        with base.reading():
            if question.source.isdecimal():  # some releases name the row that holds the picture
                if int(question.source) not in pictures:
                    raise ValueError(f"{path}, row {question.id}: its picture is in row {question.source}, which is missing")
                question = replace(question, source=pictures[int(question.source)])
            asked.append(question)
    return tuple(sorted(asked, key=lambda question: (question.id % ROTATION, question.id)))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, each with its place in words; what is cut short or no text is a ValueError that names it."""
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        try:
            for column in ("index", "question", "A", "B", "image"):
                if column not in (table.fieldnames or ()):
                    raise ValueError(f"{path}, line 1: no column {column!r}; get the file again")
            ended = table.line_num
            for row in table:
                place, ended = f"{path}, line {ended + 1}", table.line_num  # a row may go over several lines
                with base.reading():
                    if None in row or None in row.values() or not row["index"].isdecimal() or not row["image"]:
                        raise ValueError(f"{place}: cut short or broken row {row['index']!r}; get the file again")
                    yield place, row
        except (csv.Error, UnicodeDecodeError) as reason:
            raise ValueError(f"{path}, behind line {table.line_num}: broken text ({reason}); get the file again") from reason


def _question(name: str, split: str, row: Mapping[str, str], place: str) -> Question:
    options = []
    for letter in LETTERS:
        if _empty(row.get(letter)):
            break
        options.append(f"{letter}. {row[letter]}")
    letters = LETTERS[: len(options)]
    answer = row.get("answer", "")
    if not _empty(answer):
        base.one_of(answer, tuple(letters), place, "answer")
    hint = [] if _empty(row.get("hint")) else [row["hint"]]
    number = int(row["index"])
    return Question(
        id=number, text="\n".join([*hint, row["question"], *options, LETTER if name == "mmbench" else LETTER_CN]),
        answer="" if _empty(answer) else answer, choices=tuple(letters), kind=row.get("category", "none"),
        picture_key=f"{split}/{number % ROTATION}", source=row["image"], group=f"{split}/{number % ROTATION}",
        stratum=row.get("l2-category", "none"), entry={key: cell for key, cell in row.items() if key != "image"},
    )


def letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that MMBench's script reads in an answer before it would ask a language model; None if it would.

    That is the only letter A to E which stands alone or with a bracket, full stop, comma or colon, where an A among more than
    three words is taken for the article; else the only option whose text occurs in the answer.
    """
    words = answer.split()
    for before, after in _AROUND:
        found = [each for each in "ABCDE" if f"{before}{each}{after}" in words]
        if len(found) == 1 and not (not before + after and "A" in words and len(words) > 3):
            return found[0]
    named = [each for each, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """`circular`, MMBench's score: the share of questions with all rotations right; and `accuracy` of single rows; each also
    by category, all 0 to 1.

    The official script asks a language model about answers in which it finds no letter; here they are wrong. Models that
    are told to answer with the letter hardly need it. Rows whose true answer is not public give nan.

    Parameters
    ----------
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each row counts; a question counts as often as its first row. The scores have shape (...).
    """
    weights = base.counts(asked, weights)
    pairs = list(zip(asked, base.said(asked, answers)))
    right = np.array([letter(answer, {each: q.entry[each] for each in q.choices}) == q.answer for q, answer in pairs], bool)
    unknown = np.array([not question.answer for question in asked], bool)
    first, whole = base.whole_groups(right, asked)
    values, wholes = np.where(unknown, np.nan, right), np.where(unknown, np.nan, whole)
    circular = {f"circular/{kind}": base.mean(wholes, weights, rows & first) for kind, rows in base.kinds(asked).items()}
    return {"circular": base.mean(wholes, weights, first), **base.by_kind("accuracy", values, asked, weights), **circular}


def floors(name: str = "mmbench", folder: str | Path | None = None) -> dict[str, dict[str, float]]:
    """`blind`: the commonest letter; `chance`: one over the number of options, and for all rotations each guessed."""
    asked = questions(name, folder)
    groups: dict[str | None, float] = {}
    for question in asked:
        groups[question.group] = groups.get(question.group, 1.0) / len(question.choices)
    return {
        "blind": base.blind(asked, score),
        "chance": {"accuracy": base.guess(asked), "circular": float(np.mean(list(groups.values())))},
    }


def submission(asked: Sequence[Question], answers: Sequence[str], folder: str | Path) -> Path:
    """`mmbench.xlsx`, the table without pictures, hints and categories, with a column `prediction` behind the options.

    Raises
    ------
    ModuleNotFoundError
        If openpyxl, which writes the format, is not installed.
    """
    texts = base.said(asked, answers)
    try:
        from openpyxl import Workbook
    except ModuleNotFoundError:
        raise ModuleNotFoundError("MMBench's server takes xlsx; install its writer with: pip install openpyxl") from None
    columns = [column for column in asked[0].entry if column not in _NOT_HANDED_IN]
    columns.insert(6, "prediction")
    book = Workbook()
    book.active.append(columns)
    for question, text in zip(asked, texts):
        row = {**question.entry, "index": question.id, "prediction": text}
        book.active.append([None if column != "prediction" and _empty(str(row[column])) else row[column] for column in columns])
    path = Path(folder) / "mmbench.xlsx"
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path
