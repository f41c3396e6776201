"""The scoring functions of lmms-eval, on the same answers, must agree with ours wherever both follow the official script.

`test_lmms_eval.py` runs this file where lmms-eval is installed.
"""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart import tasks
from dart.tasks import mmbench, vqa

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
import published  # noqa: E402

from lmms_eval.api.metrics import exact_match_hf_evaluate  # noqa: E402
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor  # noqa: E402
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator  # noqa: E402
from lmms_eval.tasks.mme import utils as mme_utils  # noqa: E402
from lmms_eval.tasks.ocrbench import utils as ocrbench_utils  # noqa: E402
from lmms_eval.tasks.pope import utils as pope_utils  # noqa: E402
from lmms_eval.tasks.scienceqa import utils as scienceqa_utils  # noqa: E402
from lmms_eval.tasks.textvqa import utils as textvqa_utils  # noqa: E402
from lmms_eval.tasks.vizwiz_vqa import utils as vizwiz_utils  # noqa: E402
from lmms_eval.tasks.vqav2 import utils as vqav2_utils  # noqa: E402

words = st.text(st.sampled_from("aAbethno 019.,'?!-/()\n\ts"), max_size=20)
SEEDS = range(20)


def asked_of(name, folder):
    found = tasks.TASKS[name]()
    return found, found.questions(published.WRITERS[name](folder))


@given(words)
def test_the_evalai_normaliser(text):
    assert vqa.evalai(text) == EvalAIAnswerProcessor()(text)


@given(words.filter(lambda text: ",," not in text))     # lmms-eval has MMF's pattern for commas between digits
def test_the_official_normaliser(text):
    theirs, clean = EvalAIAnswerProcessor(), text.replace("\n", " ").replace("\t", " ").strip()
    assert vqa.official(text) == theirs.process_digit_article(theirs.process_punctuation(clean))


def test_the_table_of_contractions():
    theirs = {key: word for key, word in EvalAIAnswerProcessor.CONTRACTIONS.items() if key == key.lower() and key != word}
    assert vqa.CONTRACTIONS == theirs, "but for capitals, which never meet it, and words that stay as they are"


@given(st.text(st.sampled_from("ABCDE aredblu.,:()"), max_size=16))
def test_letters_of_mmbench(answer):
    options = {"A": "red", "B": "blue", "C": "Ad", "D": "be."}
    assert mmbench.letter(answer.strip(), options) == (MMBench_Evaluator().can_infer(answer.strip(), dict(options)) or None)


@pytest.mark.parametrize("seed", SEEDS)
def test_pope(tmp_path, seed):
    found, asked = asked_of("pope", tmp_path)
    answers = random.Random(seed).choices(["Yes", "No", "yes", "no"], k=len(asked))
    ours = found.score(asked, answers)
    for split in ("random", "popular", "adversarial"):
        rows = [
            pope_utils.pope_process_results({"question_id": q.id, "answer": q.answer}, [said])["pope_f1_score"]
            for q, said in zip(asked, answers) if q.kind == split
        ]
        for name, theirs in (("f1", "f1_score"), ("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall")):
            assert ours[f"{name}/{split}"] == pytest.approx(getattr(pope_utils, f"pope_aggregate_{theirs}")(rows))


@pytest.mark.parametrize("seed", SEEDS)
def test_mme(tmp_path, seed):
    found, asked = asked_of("mme", tmp_path)
    answers = random.Random(seed).choices(["Yes", "No.", "yes, it is", "Not at all", "perhaps", "A yes", ""], k=len(asked))
    ours = found.score(asked, answers)
    rows = [
        mme_utils.mme_process_results({"question_id": q.group, "answer": q.entry["answer"], "category": q.kind}, [said])
        for q, said in zip(asked, answers)
    ]
    for name in ("perception", "cognition"):
        key = f"mme_{name}_score"
        assert ours[name] == pytest.approx(mme_utils.mme_aggregate_results([row[key] for row in rows if key in row]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name, process", [
    ("textvqa", textvqa_utils.textvqa_process_results), ("vizwiz", vizwiz_utils.vizwiz_vqa_process_results),
    ("vqav2", vqav2_utils.vqav2_process_results),
])
def test_soft_accuracy(tmp_path, name, process, seed):
    found, asked = asked_of(name, tmp_path)
    dice = random.Random(seed)
    answers = [dice.choice([*q.answers, "The " + q.answer, q.answer.upper() + ".", "t-shirt", "3", "1,000"]) for q in asked]
    for question, said in zip(asked, answers):
        given_ = list(question.answers)
        if name == "vqav2":
            given_ = [{"answer": answer, "answer_id": number} for number, answer in enumerate(given_)]
        theirs = process({"question_id": question.id, "answers": given_}, [said])
        assert found.score([question], [said])["accuracy"] == pytest.approx(theirs["exact_match"])


@pytest.mark.parametrize("seed", SEEDS)
def test_ocrbench(tmp_path, seed):
    found, asked = asked_of("ocrbench", tmp_path)
    dice = random.Random(seed)
    for question in asked:
        said = dice.choice([question.answer, f"it says {question.answer.lower()}", question.answer.replace(" ", ""), "no"])
        doc = {"answer": question.entry["answers"], "dataset": question.entry["dataset_name"], "question_type": question.kind}
        theirs = ocrbench_utils.ocrbench_process_results(doc, [said])["ocrbench_accuracy"]["score"]
        assert found.score([question], [said])["score"] == theirs


@pytest.mark.parametrize("seed", SEEDS)
def test_gqa(tmp_path, seed):
    """lmms-eval scores GQA with the settings of its `gqa.yaml`."""
    found, asked = asked_of("gqa", tmp_path)
    dice = random.Random(seed)
    answers = [dice.choice([q.answer, q.answer.capitalize() + ".", "no", "the " + q.answer, q.answer + " now"]) for q in asked]
    theirs = exact_match_hf_evaluate(answers, [q.answer for q in asked], ignore_case=True, ignore_punctuation=True)
    assert found.score(asked, answers)["accuracy"] == pytest.approx(theirs["exact_match"])


@pytest.mark.parametrize("said", ["A", "B", "C", "B. a fin", "A. a wing", "a fin", "D", "no", "E. x"])
def test_scienceqa(tmp_path, said):
    found, asked = asked_of("scienceqa", tmp_path)
    for question in asked:
        doc = {"choices": question.choices, "answer": question.choices.index(question.answer)}
        assert found.score([question], [said])["accuracy"] == scienceqa_utils.sqa_process_results(doc, [said])["exact_match"]


@pytest.mark.parametrize("seed", SEEDS)
def test_circular_accuracy_of_mmbench(tmp_path, seed):
    found, asked = asked_of("mmbench", tmp_path)
    answers = random.Random(seed).choices(["A", "B", "D", "B. a cat"], k=len(asked))
    rows = [
        {**{letter: cell if (cell := q.entry[letter]) else float("nan") for letter in "ABCD"}, "index": q.id, "answer": q.answer,
         "prediction": said, "category": q.kind, "l2-category": q.stratum, "question": q.entry["question"]}
        for q, said in zip(asked, answers)
    ]
    overall, category, _ = MMBench_Evaluator().eval_result(rows, eval_method="static")
    ours = found.score(asked, answers)
    assert ours["circular"] == pytest.approx(overall)
    for kind, value in category.items():
        assert ours[f"circular/{kind}"] == pytest.approx(value)
