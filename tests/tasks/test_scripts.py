"""The authors' evaluation scripts, line by line: each has its command, which prunes to the same budget, scores and hands in.

The line of Qwen2-VL's scripts, lmms-eval, runs in tests/checks/test_lmms_eval.py.
"""

import importlib.util
import json

import checkpoints
import published
import pytest

from dart import cli, families
from dart.tasks import SCRIPTS, TASKS, files

HANDED_IN = {
    "gqa": "testdev_balanced_predictions.json", "mmbench": "mmbench.xlsx", "mmbench-cn": "mmbench.xlsx", "mme": "existence.txt",
    "ocrbench": "ocrbench.json", "pope": "coco_pope_popular.json", "scienceqa": "scienceqa.json", "textvqa": "textvqa.json",
    "textvqa-plain": "textvqa.json", "vqav2-testdev": "vqav2.json", "vizwiz-test": "vizwiz.json",
}
SERVERS = ("vqav2-testdev", "vizwiz-test")                  # these alone know the answers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kinds = {"v1_5": "llava", "v1_6": "llava_next"}
    return {version: checkpoints.save(tmp_path_factory.mktemp(version), kind) for version, kind in kinds.items()}


def test_every_script_has_a_task():
    names = "gqa mmbench mmbench_cn mme ocrbench pope sqa textvqa vqav2"
    assert list(SCRIPTS) == ["v1_5", "v1_6"] and " ".join(SCRIPTS["v1_5"]) == names and " ".join(SCRIPTS["v1_6"]) == f"{names} vizwiz"
    assert {task for tasks in SCRIPTS.values() for task in tasks.values()} == set(HANDED_IN) <= set(TASKS)


@pytest.mark.parametrize(("version", "script"), [(version, script) for version in SCRIPTS for script in SCRIPTS[version]])
def test_a_script_has_its_command(models, tmp_path, monkeypatch, capsys, version, script):
    """As `bash scripts/VERSION/eval/SCRIPT.sh 0.778 128`."""
    task = SCRIPTS[version][script]
    monkeypatch.setenv("DART_BENCHMARKS", str(tmp_path))
    monkeypatch.setattr(cli.files, "check", lambda tasks: [])                   # the fixtures are too short to be what is published
    published.WRITERS[task](files.home(task))
    out = tmp_path / "out"
    command = f"eval --tasks {task} --model {models[version]} --reduction-ratio 0.778 --max-num-trunction 128 --limit 4 --out {out}"
    assert cli.main([*command.split(), "--methods", "unpruned", "dart"]) == 0
    said = capsys.readouterr()

    whole = 576 if version == "v1_5" else families.base_and_tiles(checkpoints.config("llava_next"), (6, 8))
    budget, stay = (16, 132) if version == "v1_5" else (40, 324)
    assert f"released budget, {stay} of {whole} image tokens stay" in said.out
    overrides = "--max-num-trunction 128 overrides --reduction-ratio 0.778" in said.err
    ignored = "takes neither --reduction-ratio nor --max-num-trunction on LLaVA-NeXT" in said.err
    assert (overrides, ignored) == (version == "v1_5", version == "v1_6")
    assert f"prompts of {task}: vicuna_v1" in said.out

    runs = {path.parent.name.split("-")[0]: path.parent for path in out.glob("*/*/settings.json")}
    assert set(runs) == {"unpruned", "dart"}
    settings = json.loads((runs["dart"] / "settings.json").read_text())
    assert settings["method"]["per_pivot"] == budget and settings["method"]["layer"] == 2 and settings["tokens"] == TASKS[task]().tokens
    assert json.loads((runs["dart"] / "environment.json").read_text())["prompt"].startswith("vicuna_v1")
    score = json.loads((runs["dart"] / "metrics.json").read_text())[TASKS[task]().metric]["value"]
    assert (score != score) if task in SERVERS else (score >= 0)
    assert said.out.count("by its server") == (3 if task in SERVERS else 0) and "nan" not in said.out.split("questions")[0]
    for run in runs.values():
        if "mmbench" in task and importlib.util.find_spec("openpyxl") is None:
            assert f"no submission of {run.name}: MMBench's server takes xlsx" in said.out
        else:
            assert f"submission: {run / 'submission'}" in said.out and (run / "submission" / HANDED_IN[task]).stat().st_size > 0
