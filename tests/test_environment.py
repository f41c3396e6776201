"""The environment is written down three times, for pip, for conda and as exact pins: the three must say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
CONDA_PIP = next(entry["pip"] for entry in CONDA if isinstance(entry, dict))
PINS = {
    pin.name: pin
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for pin in [Requirement(line)]
}


def test_conda_installs_what_pip_installs():
    wanted = PROJECT["dependencies"] + EXTRAS["book"] + EXTRAS["test"]
    assert {line for line in CONDA_PIP if not line.startswith("--")} == set(wanted)


def test_conda_uses_the_pins_and_the_same_pythons():
    assert {"--constraint constraints.txt", "--editable ."} <= set(CONDA_PIP)
    python = next(entry for entry in CONDA if str(entry).startswith("python"))
    assert python.removeprefix("python") == PROJECT["requires-python"]


@pytest.mark.parametrize("group", ["dependencies", *EXTRAS])
def test_every_requirement_is_pinned_within_its_range(group):
    for text in EXTRAS.get(group, PROJECT["dependencies"]):
        wanted = Requirement(text)
        assert wanted.name in PINS, f"{wanted.name} has no line in constraints.txt"
        (pin,) = PINS[wanted.name].specifier
        assert wanted.specifier.contains(pin.version), f"{text} does not admit {PINS[wanted.name]}"


def test_pins_are_exact_and_name_no_build_of_their_own():
    """A local version such as 2.13.0+cpu exists on some machines only; 2.13.0 admits it too."""
    for name, pin in PINS.items():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{name}{pin.specifier} is not an exact pin"
