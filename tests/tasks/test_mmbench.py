import importlib.util

import published
import pytest

from dart.tasks import mmbench
from dart.tasks.prompts import LETTER, LETTER_CN


@pytest.fixture
def folder(tmp_path):
    return published.mmbench(tmp_path)


def test_questions_as_llava_asks_them(folder):
    asked = mmbench.questions("mmbench", folder)
    assert [q.id for q in asked] == [7, 1000007, 9], "rotations stand together"
    assert asked[0].text == f"Look.\nTwice.\nWhat is it?\nA. a dog\nB. a cat\n{LETTER}"
    assert asked[2].text == f'Which "color"?\nA. red\nB. blue\nC. green\nD. None of these\n{LETTER}'
    assert asked[0].group == asked[1].group != asked[2].group
    assert asked[0].picture_key == asked[1].picture_key == "mmbench_dev_20230712/7"
    assert asked[2].choices == tuple("ABCD") and (asked[2].kind, asked[2].stratum) == ("color", "attribute")
    assert asked[2].picture().getpixel((0, 0)) == (0, 0, 255)
    published.mmbench_cn(folder / "cn")
    assert mmbench.questions("mmbench-cn", folder / "cn")[0].text.endswith(f"B. a cat\n{LETTER_CN}")


def test_scores_by_hand(folder):
    asked = mmbench.questions("mmbench", folder)
    scores = mmbench.score(asked, ["B", "B", "D. None of these"])
    # rows: right, wrong (the right letter moved to A), right; question 7 needs both of its rows
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["circular"] == 0.5
    assert scores["circular/object"] == 0 and scores["circular/color"] == 1
    assert mmbench.score(asked, ["B", "A", "D"])["circular"] == 1
    floors = mmbench.floors("mmbench", folder)
    assert floors["chance"]["accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 4) / 3)
    assert floors["chance"]["circular"] == pytest.approx((1 / 2 * 1 / 2 + 1 / 4) / 2)
    assert floors["blind"]["circular"] == 0.5  # always D: question 9 only


@pytest.mark.parametrize("answer, letter", [
    ("B", "B"), ("B.", "B"), ("(C)", "C"), ("B. blue", "B"), ("The answer is D", "D"), ("D:", "D"), ("E", "E"),
    ("A red one is shown", "A"),        # the A is taken for an article, but the text names red
    ("A thing that nobody knows", None), ("blue", "B"), ("red or blue", None), ("A or B", None), ("", None), ("b", None),
])
def test_letters_as_the_script_reads_them(answer, letter):
    assert mmbench.letter(answer, {"A": "red", "B": "blue", "C": "green", "D": "None of these"}) == letter


def test_a_table_without_public_answers_gives_no_score(folder):
    path = folder / "mmbench_dev_20230712.tsv"
    whole = path.read_text()
    for answer in ("B\tobject", "A\tobject", "D\tcolor"):
        whole = whole.replace(answer, answer[1:])
    path.write_text(whole)
    asked = mmbench.questions("mmbench", folder)
    assert [q.answer for q in asked] == ["", "", ""]
    scores = mmbench.score(asked, ["A", "", "B"])
    assert scores["circular"] != scores["circular"] and scores["accuracy"] != scores["accuracy"], "nan"


def test_a_row_may_name_the_row_with_its_picture(folder):
    path = folder / "mmbench_dev_20230712.tsv"
    head, tail = path.read_text().rsplit(published.encoded("red"), 1)
    path.write_text(head + "7" + tail)
    assert mmbench.questions("mmbench", folder)[1].picture().getpixel((0, 0)) == (255, 0, 0)
    path.write_text(head + "8" + tail)
    with pytest.raises(ValueError, match="row 1000007: its picture is in row 8, which is missing"):
        mmbench.questions("mmbench", folder)


def test_bad_rows_are_named(folder):
    path = folder / "mmbench_dev_20230712.tsv"
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("object")])   # as a broken download ends
    with pytest.raises(ValueError, match=r"mmbench_dev_20230712.tsv, line 5: cut short or broken row '1000007'"):
        mmbench.questions("mmbench", folder)
    path.write_bytes(whole.encode().replace(b"a cat", b"a \xe9", 1))
    with pytest.raises(ValueError, match="mmbench_dev_20230712.tsv, behind line .: broken text"):
        mmbench.questions("mmbench", folder)
    path.write_text(whole.replace("index\t", "number\t"))
    with pytest.raises(ValueError, match="line 1: no column 'index'"):
        mmbench.questions("mmbench", folder)
    path.write_text(whole.replace("\tD\tcolor", "\tE\tcolor"))
    with pytest.raises(ValueError, match="line 4: answer 'E' is not one of A, B, C, D"):
        mmbench.questions("mmbench", folder)
    path.write_text(whole.replace(published.encoded("blue"), "aGFsZg=="))
    with pytest.raises(ValueError, match="picture mmbench_dev_20230712/9 does not decode"):
        mmbench.questions("mmbench", folder)[2].picture()


def test_submission(folder, tmp_path):
    asked = mmbench.questions("mmbench", folder)
    if importlib.util.find_spec("openpyxl") is None:
        with pytest.raises(ModuleNotFoundError, match="pip install openpyxl"):
            mmbench.submission(asked, ["B", "A", "D"], tmp_path)
        return
    import openpyxl

    rows = list(openpyxl.load_workbook(mmbench.submission(asked, ["B", "A", "D"], tmp_path)).active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[2] == (1000007, "What is it?", "a cat", "a dog", None, None, "A", "A", "dev")
    assert rows[3][5:7] == ("None of these", "D")
