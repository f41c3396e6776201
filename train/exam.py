"""Decide whether a trained model is fit to be the bundled one: its floors, and that it reads its image late.

    python train/exam.py --model data/model --out data/results/exam.json

Every floor is measured on held-out scenes, without pruning. The depth profile drops all image tokens at layer 2 (every task
has to come within five points of blind answering) and at three quarters of the depth (which may cost little), and keeps
64 and 16 random ones at layer 2 (which has to cost at least five points on three tasks, and on all).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import dart
from dart import bundled, evaluation, scenes

FLOORS = {
    ("existence", "f1/random"): 0.90,
    ("existence", "f1/popular"): 0.90,
    ("existence", "f1/adversarial"): 0.90,
    ("relations", "accuracy/where"): 0.90,
    ("relations", "accuracy/name"): 0.90,
    ("attributes", "accuracy/color"): 0.95,
    ("attributes", "accuracy/count"): 0.85,
    ("reading", "accuracy"): 0.70,
    ("easy-vqa", "accuracy"): 0.95,
}
METRIC = {"existence": "accuracy", "pairs": "accuracy", "choice": "accuracy"}  # chance is even for all splits here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the model; the bundled one if left out")
    parser.add_argument("--out", type=Path, default=dart.data_root() / "results" / "exam.json")
    parser.add_argument("--runs", type=Path, default=Path("build/eval"), help="where answers are kept; the same call resumes")
    parser.add_argument("--limit", type=int, help="only the first questions of each task, 18 or more, for the floors")
    parser.add_argument("--profile", type=int, default=200, help="the first questions of each task for the depth profile, 18 or more")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    model, processor = bundled.load(given.model, device=given.device)
    depth = len(model.model.language_model.layers)
    late = 3 * depth // 4
    methods = [
        None,
        dart.Random(keep=0, seed=0),
        dart.Random(keep=0, seed=0, layer=late),
        dart.Random(keep=64, seed=0),
        dart.Random(keep=16, seed=0),
    ]
    options = {"processor": processor, "folder": given.runs, "batch": given.batch}
    limits = {task: 1000 if task == "easy-vqa" and given.limit is None else given.limit for task in (*scenes.TASKS, "easy-vqa")}
    floors = {task: evaluation.run(model, None, task, limit=limit, **options) for task, limit in limits.items()}
    unseen = [task + scenes.UNSEEN for task in scenes.TASKS]
    floors |= {task: evaluation.run(model, None, task, limit=given.profile, **options) for task in unseen}  # reported, whatever they are
    records = {task: evaluation.sweep(model, methods, task, limit=given.profile, **options) for task in (*scenes.TASKS, "easy-vqa")}
    verdicts = []

    def judge(what: str, value: float, passed: bool) -> None:
        verdicts.append({"what": what, "value": round(value, 4), "passed": bool(passed)})

    for (task, metric), floor in FLOORS.items():
        value = floors[task].metrics[metric].value
        judge(f"{task} {metric} at least {floor}", value, value >= floor)
    for split in scenes.SPLITS:
        rate = floors["existence"].metrics[f"yes_rate/{split}"].value
        judge(f"existence yes_rate/{split} from 0.4 to 0.6", rate, 0.4 <= rate <= 0.6)
    costly = {64: 0, 16: 0}
    for task in scenes.TASKS:
        found, metric = evaluation.find_task(task), METRIC.get(task, "accuracy")
        plain, blind, top, *random = records[task]
        floor, value = found.floors()["blind"][metric], blind.metrics[metric].value
        judge(f"{task} {metric}, no image tokens from layer 2: at most 0.05 above blind {floor:.3f}", value, value <= floor + 0.05)
        value = plain.metrics[metric].value - top.metrics[metric].value
        judge(f"{task} {metric}, no image tokens from layer {late}: costs at most 0.05", value, value <= 0.05)
        for keep, record in zip(costly, random):
            lost = evaluation.paired_differences(found, plain.questions, record.answers, plain.answers)[metric]
            costly[keep] += lost.value <= -0.05 and lost.high < 0
    judge("tasks that lose 0.05 or more to 64 random tokens: at least 3", costly[64], costly[64] >= 3)
    judge("tasks that lose 0.05 or more to 16 random tokens: all", costly[16], costly[16] == len(scenes.TASKS))

    scores = {
        task: {record.settings["label"]: {name: asdict(metric) for name, metric in record.metrics.items()} for record in each}
        for task, each in records.items()
    }
    whole = {task: {name: asdict(metric) for name, metric in record.metrics.items()} for task, record in floors.items()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    asked = {"floors": {task: len(each.questions) for task, each in floors.items()}, "profile": {task: len(each[0].questions) for task, each in records.items()}}
    weights = records["existence"][0].settings["weights"]
    written = {"weights": weights, "questions": asked, "verdicts": verdicts, "floors": whole, "scores": scores}
    given.out.write_text(json.dumps(written, indent=1) + "\n")
    for verdict in verdicts:
        print(f"{'met   ' if verdict['passed'] else 'MISSED'}  {verdict['value']:.3f}  {verdict['what']}")
    return 0 if all(verdict["passed"] for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
