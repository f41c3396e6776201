"""The normalisers, soft accuracy, and the three benchmarks that share them."""

import json
from dataclasses import replace

import published
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart.tasks import textvqa, vizwiz, vqa, vqav2
from dart.tasks.prompts import SHORT, UNANSWERABLE


@pytest.mark.parametrize("text, official, evalai", [
    ("Yes", "yes", "yes"),
    ("The dog.", "dog", "dog"),
    ("two dogs", "2 dogs", "2 dogs"),
    ("none", "0", "0"),
    ("dont know", "don't know", "don't know"),
    ("couldnt've", "couldn't've", "couldn't've"),
    ("1,000", "1000", "1000"),
    ("3.5", "3.5", "3.5"),
    ("3. 5.", "3 5", "3 5"),
    ("half-open", "half open", "half open"),         # a mark between letters becomes a space
    ("half - open", "half open", "half open"),       # one that touches a space goes
    ("t-shirt -blue", "tshirt blue", "tshirt blue"),  # ... and so does every other of its kind
    ("red/blue, 1,000", "redblue 1000", "red blue 1000"),  # a comma between digits drops all marks; evalai has none left
    ("woman's", "woman's", "woman 's"),
    ("what?yes", "what yes", "whatyes"),
    (" a\nman\t", "man", "man"),
    ("", "", ""),
    ("the", "", ""),
])
def test_normalised_by_hand(text, official, evalai):
    assert vqa.official(text) == official
    assert vqa.evalai(text) == evalai


texts = st.text(st.sampled_from("abtheno 019.,'?!-/()\n\tÄß好"), max_size=20)


@given(texts)
def test_normalising_twice_changes_nothing(text):
    assert vqa.official(vqa.official(text)) == vqa.official(text)


@given(texts)
def test_nothing_is_left_that_should_go(text):
    for clean in (vqa.official(text), vqa.evalai(text)):
        assert not set(vqa.PUNCTUATION) & set(clean)
        assert clean == clean.strip() and "  " not in clean and clean == clean.lower()
        assert not set(clean.split()) & {*vqa.ARTICLES, *vqa.NUMBERS}


@given(texts)
def test_case_and_outer_space_do_not_matter(text):
    for normal in (vqa.official, vqa.evalai):
        assert normal(text.swapcase()) == normal(text) or "ß" in text  # its capital is SS
        assert normal(f" {text}") == normal(text) or set(vqa.PUNCTUATION) & set(text), "a space beside a mark tells"


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12), st.sampled_from("abcd"))
def test_soft_accuracy_leaves_each_annotator_out_once(answers, said):
    by_hand = 0
    for index in range(len(answers)):
        others = answers[:index] + answers[index + 1 :]
        by_hand += min(1, others.count(said) / 3) / len(answers)
    assert vqa.soft_accuracy(said, answers) == pytest.approx(by_hand)


def test_soft_accuracy_of_ten():
    got = [vqa.soft_accuracy("a", ["a"] * same + ["b"] * (10 - same)) for same in range(6)]
    # 3 of 10 agree: 3 annotators see 2 others (2/3), 7 see 3 (1): (3 * 2/3 + 7) / 10
    assert got == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])


def test_every_contraction_is_a_word_without_one_apostrophe():
    for key, word in (vqa.CONTRACTIONS.items() - {("somebody'd", "somebodyd")}):  # the wrong way round in the official table
        assert len(key) == len(word) - 1 and key.replace("'", "") == word.replace("'", "")
    assert vqa.CONTRACTIONS["somebody'd"] == "somebodyd" and vqa.CONTRACTIONS["couldn'tve"] == "couldn't've"


def test_vqav2(tmp_path):
    asked = vqav2.questions("vqav2", published.vqav2(tmp_path))
    assert [q.id for q in asked] == [42000, 42001] and [q.kind for q in asked] == ["yes/no", "number"]
    assert asked[0].text == f"Is it red?\n{SHORT}" and asked[0].picture_key == "val2014/COCO_val2014_000000000042.jpg"
    scores = vqav2.score(asked, ["Yes.", "Two"])
    # "two" of 2 annotators of 10: they see 1 other (1/3), 8 see 2 (2/3): (2/3 + 16/3) / 10
    assert scores["accuracy/yes/no"] == 1 and scores["accuracy/number"] == pytest.approx(0.6)
    assert scores["accuracy"] == pytest.approx(0.8)
    rows = json.loads(vqav2.submission(asked, ["Yes.", "Two"], tmp_path / "out").read_text())
    assert rows == [{"question_id": 42000, "answer": "yes"}, {"question_id": 42001, "answer": "2"}]


def test_vqav2_normalises_nothing_where_all_annotators_agree(tmp_path):
    asked = vqav2.questions("vqav2", published.vqav2(tmp_path))
    agreed = asked[0]
    two = replace(agreed, answers=("two",) * 10)
    assert vqav2.score([two], ["two"])["accuracy"] == 0, "the submission says 2"
    almost = replace(agreed, answers=("two",) * 9 + ("2",))
    assert vqav2.score([almost], ["two"])["accuracy"] == 1


def test_vqav2_testdev_is_handed_in_with_the_whole_test_set(tmp_path):
    asked = vqav2.questions("vqav2-testdev", published.vqav2_testdev(tmp_path))
    assert [q.id for q in asked] == [1001]
    scores = vqav2.score(asked, ["yes"])
    assert scores["accuracy"] != scores["accuracy"], "nan"
    rows = json.loads(vqav2.submission(asked, ["Yes"], tmp_path / "out").read_text())
    assert rows == [{"question_id": 1000, "answer": ""}, {"question_id": 1001, "answer": "yes"}]
    (tmp_path / vqav2.TEST).unlink()
    with pytest.raises(FileNotFoundError, match="test2015_questions.json, which is missing; get .*v2_Questions_Test_mscoco.zip"):
        vqav2.submission(asked, ["Yes"], tmp_path / "out")


def test_vqav2_wants_annotations_of_its_questions(tmp_path):
    path = published.vqav2(tmp_path) / "v2_mscoco_val2014_annotations.json"
    rows = json.loads(path.read_text())["annotations"]
    published.document(path, {"annotations": rows[:1]})
    with pytest.raises(ValueError, match="val2014_questions.json, question 1: 42000 has no annotation"):
        vqav2.questions("vqav2", tmp_path)
    published.document(path, {"annotations": [{key: row[key] for key in row if key != "answers"} for row in rows]})
    with pytest.raises(ValueError, match="annotations.json, annotation 1: no 'answers'"):
        vqav2.questions("vqav2", tmp_path)


def test_textvqa(tmp_path):
    asked = textvqa.questions("textvqa", published.textvqa(tmp_path))
    assert asked[0].text == f"What is the brand of this camera?\nReference OCR token: DAKOTA, 22\n{SHORT}"
    plain = textvqa.questions("textvqa-plain", tmp_path)
    assert plain[0].text == f"What is the brand of this camera?\n{SHORT}"
    scores = textvqa.score(asked, ["Dakota.", "22"])
    assert scores == {"accuracy": pytest.approx((1 + 0.9) / 2)}         # 9 of 10, then 3 of 10 annotators
    rows = json.loads(textvqa.submission(asked, ["Dakota.", "22"], tmp_path / "out").read_text())
    assert rows == [{"question_id": 1, "answer": "dakota"}, {"question_id": 2, "answer": "22"}]


def test_textvqa_takes_llavas_tokens_first(tmp_path):
    path = published.textvqa(tmp_path) / textvqa.LLAVA
    line = {"question_id": "aa", "image": "aa.jpg", "text": f"What?\nReference OCR token: DA, KOTA\n{SHORT}"}
    path.write_text(json.dumps(line) + "\n")
    assert textvqa.questions("textvqa", tmp_path)[1].text == f"What number is it?\nReference OCR token: DA, KOTA\n{SHORT}"
    path.write_text(json.dumps({**line, "text": f"What?\n{SHORT}"}))
    with pytest.raises(ValueError, match="ocr.jsonl, line 1: no line 'Reference OCR token: '"):
        textvqa.questions("textvqa", tmp_path)
    path.write_text(json.dumps({**line, "question_id": "bb"}))
    with pytest.raises(ValueError, match="question 1: no OCR tokens for picture aa"):
        textvqa.questions("textvqa", tmp_path)
    path.unlink(), (tmp_path / textvqa.ROSETTA).unlink()
    with pytest.raises(FileNotFoundError, match="llava_textvqa_val_v051_ocr.jsonl, which is missing; get eval.zip"):
        textvqa.questions("textvqa", tmp_path)


def test_vizwiz(tmp_path):
    asked = vizwiz.questions("vizwiz", published.vizwiz(tmp_path))
    assert asked[0].text == f"What is this? and what color?\n{UNANSWERABLE}\n{SHORT}"
    scores = vizwiz.score(asked, ["Unanswerable", "Corn"])
    assert scores["accuracy/unanswerable"] == 1 and scores["accuracy/other"] == pytest.approx(0.6)   # "the corn" and "corn"
    rows = json.loads(vizwiz.submission(asked, ["Unanswerable", "The corn"], tmp_path / "out").read_text())
    assert rows[1] == {"image": "VizWiz_val_00000001.jpg", "answer": "corn"}
    assert vizwiz.questions("vizwiz-test", published.vizwiz_test(tmp_path))[0].answers == ()
