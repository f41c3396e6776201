"""Load the bundled model: a small LLaVA of stock classes, trained on scenes by `train/bundled.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dart import data_root


def load(
    folder: str | Path | None = None, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in evaluation mode, and its processor.

    Parameters
    ----------
    folder : path, optional
        Any folder that `from_pretrained` reads; `data/model` by default.
    dtype : torch.dtype
        The stored weights are bfloat16; float32 computes with them exactly as stored.
    device : str or torch.device

    Raises
    ------
    FileNotFoundError
        If there is no model in that folder.
    """
    folder = Path(folder) if folder is not None else data_root() / "model"
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: make one with `make train`, or name a folder that has one")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device).eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)


def prompt(question: str) -> str:
    """The text that a processor of the bundled model wants for a question about one picture."""
    return f"<image>{question}"
