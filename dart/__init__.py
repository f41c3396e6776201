"""Prune the vision tokens of stock Hugging Face models by duplication, and reproduce the DART paper.

    with dart.prune(model, dart.DART(keep=64)) as report:
        model.generate(**inputs)
    print(report)
"""

import os
from pathlib import Path

from dart import select
from dart.families import FAMILIES, Family
from dart.methods import (
    CDPruner, DART, DivPrune, Downscale, FasterVLM, FastV, FiCoCoV, FitPrune, GlobalCom2, Grid, HiRED, HoloV, Method,
    METHODS, MustDrop, PruMerge, PyramidDrop, Random, SparseVLM, ToMe, View, Vision, VisionZip, VisPruner,
)
from dart.pruning import prune
from dart.report import Report

__version__ = "0.1.0"
__all__ = [
    "CDPruner", "DART", "data_root", "DivPrune", "Downscale", "FAMILIES", "Family", "FasterVLM", "FastV", "FiCoCoV",
    "FitPrune", "GlobalCom2", "Grid", "HiRED", "HoloV", "Method", "METHODS", "MustDrop", "PruMerge", "prune",
    "PyramidDrop", "Random", "Report", "select", "SparseVLM", "ToMe", "View", "Vision", "VisionZip", "VisPruner",
]


def data_root() -> Path:
    """Folder of the project's data: `DART_DATA` if it is set, else `data` of the checkout this module lies in.

    Raises
    ------
    FileNotFoundError
        If that folder is not there.
    """
    named = os.environ.get("DART_DATA")
    root = Path(named) if named else Path(__file__).resolve().parent.parent / "data"
    if not root.is_dir():
        where = f"DART_DATA={named!r} is not a folder" if named else "dart is not installed from a checkout"
        raise FileNotFoundError(f"{where}; set DART_DATA to the data folder of a clone of the project")
    return root
