"""Reduction methods: one file each, all of them a frozen dataclass that answers what stays.

`base` says what a method sees and answers; `shares` and `thumbnails` hold what several methods compute alike.
"""

from dart.methods.base import Method, View, Vision, describe
from dart.methods.cdpruner import CDPruner
from dart.methods.dart import DART
from dart.methods.divprune import DivPrune
from dart.methods.downscale import Downscale
from dart.methods.fastervlm import FasterVLM
from dart.methods.fastv import FastV
from dart.methods.ficocov import FiCoCoV
from dart.methods.fitprune import FitPrune
from dart.methods.globalcom2 import GlobalCom2
from dart.methods.grid import Grid
from dart.methods.hired import HiRED
from dart.methods.holov import HoloV
from dart.methods.mustdrop import MustDrop
from dart.methods.prumerge import PruMerge
from dart.methods.pyramiddrop import PyramidDrop
from dart.methods.random import Random
from dart.methods.sparsevlm import SparseVLM
from dart.methods.tome import ToMe
from dart.methods.visionzip import VisionZip
from dart.methods.vispruner import VisPruner

METHODS: dict[str, type[Method]] = {
    method.__name__.lower(): method
    for method in (
        DART, Random, Grid, Downscale, ToMe, FastV, HiRED, FitPrune, PruMerge, SparseVLM, PyramidDrop, FiCoCoV, MustDrop,
        FasterVLM, GlobalCom2, VisionZip, VisPruner, DivPrune, CDPruner, HoloV,
    )
}
"""By the name that commands and records use: ours, the controls, the paper's baselines in its order, later ones."""

__all__ = ["METHODS", "Method", "View", "Vision", "describe", *(method.__name__ for method in METHODS.values())]
