"""Small benchmarks in the published formats, as the tests read them: each writer fills a benchmark's folder and gives it."""

import base64
import json
from io import BytesIO
from pathlib import Path

from PIL import Image

MME_SUBTASKS = (
    "existence count position color posters celebrity scene landmark artwork OCR "
    "commonsense_reasoning numerical_calculation text_translation code_reasoning"
).split()
IN_FOLDERS = ("posters", "celebrity", "scene", "landmark", "artwork")


def picture(path: Path, color="red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), color).save(path)


def encoded(color="red") -> str:
    buffer = BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def document(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def pope(folder: Path) -> Path:
    """Three questions a split on two pictures; the labels are yes, no, yes."""
    for split, absent in (("random", "kite"), ("popular", "person"), ("adversarial", "fork")):
        rows = [
            {"question_id": row, "image": f"COCO_val2014_{number:012}.jpg", "label": label,
             "text": f"Is there a {what} in the image?"}
            for row, (number, what, label) in enumerate(((1, "dog", "yes"), (1, absent, "no"), (2, "cup", "yes")), 1)
        ]
        path = folder / "coco" / f"coco_pope_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number in (1, 2):
        picture(folder / "val2014" / f"COCO_val2014_{number:012}.jpg")
    return folder


def mme(folder: Path) -> Path:
    """Two pictures a subtask; the first question is a yes, the second a no."""
    for subtask in MME_SUBTASKS:
        place = folder / "MME_Benchmark_release_version" / subtask
        texts, pictures = (place / "questions_answers_YN", place / "images") if subtask in IN_FOLDERS else (place, place)
        texts.mkdir(parents=True)
        for number, suffix in ((1, "jpg"), (2, "png")):
            picture(pictures / f"{number:04}.{suffix}")
            (texts / f"{number:04}.txt").write_text(
                f"Is this {subtask} {number}? Please answer yes or no.\tYes\nIs this a lie?  Please answer yes or no.\tNo\n"
            )
    return folder


def gqa(folder: Path) -> Path:
    """A verify, two query and one unbalanced question on two pictures."""
    rows = {
        "10": ("Is it overcast?", "no", "n1", "verify", "global", True),
        "11": ("Who is wearing the dress?", "woman", "n1", "query", "rel", True),
        "12": ("What color is the cup?", "dark brown", "n2", "query", "attr", True),
        "13": ("Is the cup white?", "no", "n2", "verify", "attr", False),
    }
    keys = ("question", "answer", "imageId", "types", "isBalanced")
    document(folder / "data" / "testdev_balanced_questions.json", {
        number: dict(zip(keys, (text, answer, image, {"structural": kind, "semantic": stratum}, balanced)))
        for number, (text, answer, image, kind, stratum, balanced) in rows.items()
    })
    for image in ("n1", "n2"):
        picture(folder / "data" / "images" / f"{image}.jpg")
    return folder


MMBENCH_COLUMNS = "index question hint A B C D answer category image source l2-category comment split".split()


def mmbench_rows() -> list[dict]:
    """Question 7 with two options in two rotations, which stand apart in the file, and question 9 with four in one row."""
    seven = {"index": "7", "question": "What is it?", "hint": "Look.\nTwice.", "A": "a dog", "B": "a cat", "answer": "B",
             "image": encoded("red")}
    turned = {**seven, "index": "1000007", "A": "a cat", "B": "a dog", "answer": "A"}
    nine = {"index": "9", "question": 'Which "color"?', "hint": "nan", "A": "red", "B": "blue", "C": "green",
            "D": "None of these", "answer": "D", "category": "color", "l2-category": "attribute", "image": encoded("blue")}
    blank = {"category": "object", "l2-category": "thing", "source": "made", "split": "dev"}
    return [{**dict.fromkeys(MMBENCH_COLUMNS, ""), **blank, **row} for row in (seven, nine, turned)]


def mmbench(folder: Path, name: str = "mmbench_dev_20230712") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    quoted = lambda cell: '"' + cell.replace('"', '""') + '"' if set('\n"') & set(cell) else cell
    rows = [MMBENCH_COLUMNS, *([quoted(row[column]) for column in MMBENCH_COLUMNS] for row in mmbench_rows())]
    (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return folder


def mmbench_cn(folder: Path) -> Path:
    return mmbench(folder, "mmbench_dev_cn_20231003")


def scienceqa(folder: Path) -> Path:
    """Two test problems with a picture and one without."""
    blank = {"caption": "", "lecture": "", "solution": "", "split": "test"}
    problems = {
        "5": {"question": "What is shown?", "choices": ["a wing", "a fin", "a leg"], "answer": 1, "hint": "Fish swim.",
              "image": "image.png", "subject": "natural science", **blank},
        "6": {"question": "Who spoke?", "choices": ["she", "he"], "answer": 0, "hint": "", "image": None,
              "subject": "language science", **blank},
        "8": {"question": "Which colony?", "choices": ["Ohio", "Maine"], "answer": 0, "hint": "", "image": "image.png",
              "subject": "social science", **blank},
    }
    document(folder / "problems.json", problems)
    document(folder / "pid_splits.json", {"train": [], "val": [], "test": ["5", "6", "8"]})
    for number in ("5", "8"):
        picture(folder / "images" / "test" / number / "image.png")
    return folder


def ten(*given: str) -> list[str]:
    """Ten annotators' answers: those given, the last of them as often as it takes."""
    return [*given, *[given[-1]] * (10 - len(given))]


def vqav2(folder: Path) -> Path:
    """Two questions on one picture."""
    document(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [
        {"image_id": 42, "question": "Is it red?", "question_id": 42000},
        {"image_id": 42, "question": "How many?", "question_id": 42001},
    ]})
    annotators = lambda answers: [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]
    document(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [
        {"question_id": 42001, "answer_type": "number", "answers": annotators(ten("two", "two", "3")), "image_id": 42},
        {"question_id": 42000, "answer_type": "yes/no", "answers": annotators(ten("yes")), "image_id": 42},
    ]})
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    return folder


def vqav2_testdev(folder: Path) -> Path:
    rows = [{"image_id": 1, "question": "Is it red?", "question_id": n} for n in (1000, 1001)]
    document(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": rows[1:]})
    document(folder / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": rows})
    picture(folder / "test2015" / "COCO_test2015_000000000001.jpg")
    return folder


def textvqa(folder: Path) -> Path:
    """Two questions on one picture, with the published OCR tokens."""
    document(folder / "TextVQA_0.5.1_val.json", {"data": [
        {"question_id": 1, "image_id": "aa", "question": "what is the brand of this Camera?", "answers": ten("gosses", "dakota")},
        {"question_id": 2, "image_id": "aa", "question": "what number is it?", "answers": ten("22", "22", "22", "21")},
    ]})
    document(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "aa", "ocr_tokens": ["DAKOTA", "22"]}]})
    picture(folder / "train_images" / "aa.jpg")
    return folder


def vizwiz(folder: Path) -> Path:
    annotators = lambda answers: [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    document(folder / "val.json", [
        {"image": "VizWiz_val_00000000.jpg", "question": "What is this? And what color?",
         "answers": annotators(ten("unanswerable")), "answer_type": "unanswerable", "answerable": 0},
        {"image": "VizWiz_val_00000001.jpg", "question": "Which can?", "answers": annotators(ten("the corn", "corn", "soup")),
         "answer_type": "other", "answerable": 1},
    ])
    for number in (0, 1):
        picture(folder / "val" / f"VizWiz_val_{number:08}.jpg")
    return folder


def vizwiz_test(folder: Path) -> Path:
    document(folder / "test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What is this?"}])
    picture(folder / "test" / "VizWiz_test_00000000.jpg")
    return folder


def ocrbench(folder: Path) -> Path:
    rows = [
        ("IIIT5K", "IIIT5K/1.png", "CENTRE", "Regular Text Recognition"),
        ("ctw", "ctw/2.jpg", ["ANTONIOS", "ANTONIO'S"], "Irregular Text Recognition"),
        ("docVQA", "docVQA/3.png", ["May 5"], "Doc-oriented VQA"),
        ("HME100k", "HME100K/4.jpg", ["y _ { 2 } = - 1\n"], "Handwritten Mathematical Expression Recognition"),
    ]
    document(folder / "OCRBench" / "OCRBench.json", [
        {"dataset_name": name, "image_path": image, "question": "what is written in the image?", "answers": answers, "type": kind}
        for name, image, answers, kind in rows
    ])
    for _, image, _, _ in rows:
        picture(folder / "OCRBench_Images" / image)
    return folder


WRITERS = {
    "pope": pope, "mme": mme, "gqa": gqa, "mmbench": mmbench, "mmbench-cn": mmbench_cn, "scienceqa": scienceqa, "vqav2": vqav2,
    "vqav2-testdev": vqav2_testdev, "textvqa": textvqa, "textvqa-plain": textvqa, "vizwiz": vizwiz, "vizwiz-test": vizwiz_test,
    "ocrbench": ocrbench,
}
