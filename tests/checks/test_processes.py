"""`accelerate launch -m dart eval`: two processes on the CPU share a run and get what one gets."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import dart
from dart import cli

ROOT = Path(__file__).parents[2]
ARGUMENTS = ["eval", "--tasks", "existence", "--methods", "unpruned", "dart", "--limit", "11", "--batch", "2", "--device", "cpu",
             "--reduction-ratio", "0.778", "--max-num-trunction", "128", "--out"]
RUNS = ("unpruned", "dart-per-pivot-16")

pytestmark = pytest.mark.skipif(not (dart.data_root() / "model" / "config.json").exists(), reason="no model has been trained yet")


def launch(*arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the flag starts processes by torch's launcher, on whatever device; without a GPU they talk through gloo
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
               "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port),
               "-m", "dart", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_get_what_one_gets_and_resume(tmp_path, capsys):
    assert cli.main([*ARGUMENTS, str(tmp_path / "one")]) == 0
    alone = capsys.readouterr()
    assert alone.err.count("overrides --reduction-ratio 0.778") == 1
    together = launch(*ARGUMENTS, tmp_path / "two")
    assert together.returncode == 0, together.stderr
    assert together.stdout == alone.out, "one table, with the same numbers"
    assert together.stderr.count("overrides --reduction-ratio 0.778") == 1
    for name in RUNS:
        one, two = (next((tmp_path / each / "existence").glob(f"{name}-*")) for each in ("one", "two"))
        assert (one / "predictions.jsonl").read_text() == (two / "predictions.jsonl").read_text()
        assert (one / "metrics.json").read_text() == (two / "metrics.json").read_text()
        assert sorted(path.name for path in two.iterdir()) == ["environment.json", "metrics.json", "predictions.jsonl", "settings.json"]

        whole = lines(two / "predictions.jsonl")            # as a kill leaves them: two parts and half a line
        kept = {"predictions.jsonl": whole[:3], "predictions-1.jsonl": whole[5:8]}
        for part, entries in kept.items():
            (two / part).write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"index": 9, "ans')
        (two / "metrics.json").unlink()
    again = launch(*ARGUMENTS, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert again.stdout == alone.out
    for name in RUNS:
        one, two = (next((tmp_path / each / "existence").glob(f"{name}-*")) for each in ("one", "two"))
        assert lines(one / "predictions.jsonl") == lines(two / "predictions.jsonl")
        assert json.loads((two / "environment.json").read_text())["answered"] == (11 - 6) * len(RUNS)


def test_what_is_wrong_is_said_although_the_launcher_ends_all_when_one_fails(tmp_path):
    failed = launch("eval", "--tasks", "existance", "--out", tmp_path)
    assert failed.returncode != 0 and "task 'existance' is not known; did you mean existence" in failed.stderr
    assert "Traceback" not in failed.stderr.split("existance")[0], "words come first, the launcher's report after them"
