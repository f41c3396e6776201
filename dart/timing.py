"""Times that can be compared: what is compared takes turns, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int = 7, warmup: int = 1) -> dict[str, np.ndarray]:
    """How long each call takes, all of them once a round.

    Parameters
    ----------
    calls : mapping of str to callable
        Called without arguments. Every other round goes backwards, so that a machine that grows slower or faster favours none.
    rounds : int
        Times of each call.
    warmup : int
        Rounds before these that are not counted.

    Returns
    -------
    dict of str to ndarray
        Seconds by the wall clock, float64 (rounds,), in the order of `calls`. Under CUDA a time ends when the device is done.

    Raises
    ------
    ValueError
        No call, no round, or a negative number of warm-up rounds.
    """
    if not calls:
        raise ValueError("no calls to time; give at least one")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds}, warmup={warmup}; give 1 or more rounds and 0 or more before them")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warmup, rounds):
        for name in list(calls) if number % 2 == 0 else reversed(list(calls)):
            _wait()
            started = time.perf_counter()
            calls[name]()
            _wait()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: np.array(each) for name, each in seconds.items()}


def _wait() -> None:
    # asked every time: the first call may be what starts CUDA
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
