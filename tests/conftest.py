import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

# The tests run in two processes on two cores, on tensors so small that a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_seen: dict[str, str] = {}


def pytest_addoption(parser):
    parser.addoption("--cuda-record", type=Path, help="write down which tests marked cuda passed, and on what device")


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA device")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        for item in marked:
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def pytest_runtest_logreport(report):
    if "cuda" in report.keywords and (report.when == "call" or not report.passed):
        _seen[report.nodeid] = report.outcome


def pytest_sessionfinish(session):
    place = session.config.getoption("--cuda-record")
    if place is None or not _seen:
        return
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    place.write_text(json.dumps({"device": device, "torch": torch.__version__, "date": date, "tests": _seen}, indent=1) + "\n")
