"""Load the bundled model: a small LLaVA of stock classes, trained on scenes by `train/bundled.py`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dart import data_root


def load(
    source: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in evaluation mode, and its processor.

    Parameters
    ----------
    source : path or str, optional
        A folder that `from_pretrained` reads; `data/model` by default. What is no folder and reads "owner/name" is fetched from
        the Hub.
    dtype : torch.dtype
        The stored weights are bfloat16; float32 computes with them exactly as stored.
    device : str or torch.device
    attn_implementation : str, optional
        The model's own choice if left out.

    Raises
    ------
    FileNotFoundError
        If there is no model in that folder.
    """
    folder = Path(source) if source is not None else data_root() / "model"
    from_hub = not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None
    if not from_hub and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: make one with `make train`, or name a folder that has one or owner/name on the Hub")
    name = str(source) if from_hub else folder
    model = AutoModelForImageTextToText.from_pretrained(
        name, dtype=dtype, attn_implementation=attn_implementation, local_files_only=not from_hub
    )
    return model.to(device).eval(), AutoProcessor.from_pretrained(name, local_files_only=not from_hub)


def prompt(question: str) -> str:
    """The text that a processor of the bundled model wants for a question about one picture."""
    return f"<image>{question}"
