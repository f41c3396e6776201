"""Stock lmms-eval, in a folder of its own, gives the answers and scores of `dart eval`; its scorers agree with ours."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dart
from dart import cli, evaluation

ROOT = Path(__file__).parents[2]
WANTED = Path(__file__).with_name("lmms-eval.txt")
HOME = ROOT / "build" / "lmms-eval"
# 18 questions on one drawing, in three batches; two on several drawings each, of different lengths, so that a row is padded
LIMITS = {"existence": 18, "videos": 2}
BATCH = 6


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Environment of a process that finds lmms-eval, no network, and no cache but a folder of ours."""
    made_of = f"{sys.version}\n{WANTED.read_text()}"
    stamp = HOME / "installed"
    if not stamp.exists() or stamp.read_text() != made_of:
        shutil.rmtree(HOME, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", HOME, "-r", WANTED]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        unreachable = "connection broken|name resolution|unreachable|proxyerror|timed out"
        if done.returncode and re.search(unreachable, done.stderr.lower()):
            pytest.skip("lmms-eval is not installed and the package registry cannot be reached")
        assert done.returncode == 0, done.stderr[-3000:]
        stamp.write_text(made_of)
    cache = tmp_path_factory.mktemp("cache")
    paths = [str(Path(dart.__file__).parents[1]), str(HOME)]
    ours = {
        "PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "",
    }
    return {**os.environ, **ours}


SCORING = """
from statistics import mean

from PIL import Image

from lmms_eval.tasks.pope import utils as pope


def pictures(doc):
    return [Image.open(file) for file in doc["pictures"]]


def process_results(doc, results):
    scored = {**pope.pope_process_results(doc, results)["pope_f1_score"], "split": doc["split"]}
    return {"f1": scored, "accuracy": scored}


def over_splits(aggregate, results):
    return mean(aggregate([each for each in results if each["split"] == split]) for split in {each["split"] for each in results})


def f1(results):
    return over_splits(pope.pope_aggregate_f1_score, results)


def accuracy(results):
    return over_splits(pope.pope_aggregate_accuracy, results)
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks as lmms-eval reads them: our questions, drawn, scored by its own functions for POPE."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, limit in LIMITS.items():
        rows = []
        for number, question in enumerate(evaluation.asked_of(name, limit)):
            pictures = question.pictures() if hasattr(question, "pictures") else [question.picture()]
            files = [folder / f"{name}-{number}-{frame}.png" for frame in range(len(pictures))]
            for picture, file in zip(pictures, files):
                picture.save(file)
            rows.append({
                "question_id": number, "text": question.text, "answer": question.answer, "split": question.kind,
                "pictures": list(map(str, files)),
            })
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {metric: f"!function scoring.{metric}" for metric in ("f1", "accuracy")}
        metrics = own if name == "existence" else {"exact_match": "mean"}
        (folder / f"{name}.yaml").write_text("\n".join([
            f"task: scenes_{name}",
            "dataset_path: json",
            f"dataset_kwargs: {{data_files: {{test: '{folder}/{name}.jsonl'}}}}",
            "test_split: test",
            "output_type: generate_until",
            "doc_to_visual: !function scoring.pictures",
            "doc_to_text: text",
            "doc_to_target: answer",
            *(["process_results: !function scoring.process_results"] if name == "existence" else []),
            "generation_kwargs: {max_new_tokens: 8, temperature: 0, do_sample: false}",
            "metric_list:",
            *(f"  - {{metric: {metric}, aggregation: {how}, higher_is_better: true}}" for metric, how in metrics.items()),
        ]))
    (folder / "scoring.py").write_text(SCORING)
    return folder


def asked_by_lmms_eval(environment, tasks, out, launcher, arguments):
    """Scores by task and metric, and answers by task in the order of the questions."""
    command = [
        *launcher, "--model", "dart", "--model_args", arguments, "--tasks", ",".join(f"scenes_{name}" for name in LIMITS),
        "--include_path", tasks, "--batch_size", BATCH, "--output_path", out, "--log_samples",
    ]
    done = subprocess.run(list(map(str, command)), cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-2000:] + done.stderr[-3000:]
    (written,) = out.glob("**/*_results.json")
    scores, answers = json.loads(written.read_text()), {}
    for name in LIMITS:
        (file,) = out.glob(f"**/*_samples_scenes_{name}.jsonl")
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
        answers[name] = [row["filtered_resps"] for row in rows]
    return scores, answers


def asked_by_dart_eval(out, *methods):
    """The same of `dart eval`."""
    scores, answers = {}, {}
    for name, limit in LIMITS.items():
        command = ["eval", "--tasks", name, "--limit", limit, "--batch", BATCH, "--device", "cpu", "--out", out]
        command += ["--methods", *methods]
        assert cli.main(list(map(str, command))) == 0
        (folder,) = (out / name).iterdir()
        scores[name] = json.loads((folder / "metrics.json").read_text())
        rows = sorted(map(json.loads, (folder / "predictions.jsonl").read_text().splitlines()), key=lambda row: row["index"])
        answers[name] = [row["answer"].strip() for row in rows]
    return scores, answers


@pytest.mark.parametrize(("arguments", "methods", "processes"), [
    ("method=unpruned", ["unpruned"], 1),
    ("method=dart,keep=64", ["dart", "--keep", 64], 2),
])
def test_lmms_eval_gives_what_dart_eval_gives(environment, tasks, tmp_path, arguments, methods, processes):
    if processes == 1:
        launcher = [sys.executable, HOME / "bin" / "lmms-eval"]
    else:
        # the flag starts processes by torch's launcher, on whatever device
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", processes]
        launcher += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
        launcher += ["-m", "lmms_eval"]
    out = tmp_path / "lmms-eval"
    out.mkdir()
    theirs, their_answers = asked_by_lmms_eval(environment, tasks, out, launcher, arguments)
    ours, our_answers = asked_by_dart_eval(tmp_path / "dart", *methods)
    assert their_answers == our_answers
    results = theirs["results"]
    for metric in ("f1", "accuracy"):
        assert results["scenes_existence"][f"{metric},none"] == pytest.approx(ours["existence"][metric]["value"])
    assert results["scenes_videos"]["exact_match,none"] == pytest.approx(ours["videos"]["accuracy"]["value"])
    if methods != ["unpruned"]:
        assert theirs["throughput"]["avg_image_tokens_kept"] == 64 < theirs["throughput"]["avg_image_tokens"]


def test_the_plugin_is_found_by_its_entry_point():
    found = {each.name: each.value for each in importlib.metadata.entry_points(group="lmms_eval.models")}
    assert found.get("dart") == "dart.lmms:manifest", "installed before it had this entry point; `make check` installs it again"


def test_its_scoring_functions_agree_with_ours(environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name("lmms_eval_scores.py")]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
