"""Load the bundled model: a small LLaVA of stock classes, trained on scenes by `train/bundled.py`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForMultimodalLM, AutoProcessor, PreTrainedModel, ProcessorMixin

from dart import data_root


def load(
    source: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str | None = None,
    revision: str | None = None,
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
    revision : str, optional
        Branch, tag or commit on the Hub.

    Raises
    ------
    FileNotFoundError
        If there is no model in that folder, or none of that name and revision on the Hub, or the Hub cannot be reached.
    ModuleNotFoundError
        If the model's processor needs a library that is not installed, with its name; most often torchvision.
    ValueError
        If a file is cut short or is not what `SHA256SUMS` in the folder says, with the file's name; a revision of a folder; a model
        that stock classes do not know.
    """
    folder = Path(source) if source is not None else data_root() / "model"
    from_hub = not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None
    if not from_hub and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model in {folder}: make one with `make train`, or name a folder that has one or owner/name on the Hub")
    if revision is not None and not from_hub:
        raise ValueError(f"revision={revision!r}, but {folder} is a folder and has one state only; leave the revision out")
    name = str(source) if from_hub else folder
    if not from_hub:
        check(folder)
    # code that comes with weights is never run, nor asked about
    options = {"local_files_only": not from_hub, "trust_remote_code": False, **({} if revision is None else {"revision": revision})}
    try:
        model = AutoModelForMultimodalLM.from_pretrained(name, dtype=dtype, attn_implementation=attn_implementation, **options)
        processor = AutoProcessor.from_pretrained(name, **options)
    except ImportError as reason:
        words = " ".join(str(reason).split()).partition(". ")[0]
        raise ModuleNotFoundError(f"{name} loads only with another library: {words}. What the paper's models want is in the extra "
                                  f"`paper`; torchvision has to be built for torch {torch.__version__}") from reason
    except ValueError as reason:
        if "trust_remote_code" not in str(reason):
            raise
        raise ValueError(f"{name} brings its model as code of its own, which is not run here; transformers "
                         f"{transformers.__version__} has no class for it. Some models are on the Hub in a version that stock classes "
                         "read, under another name or revision") from reason
    except SafetensorError as reason:
        raise ValueError(f"weights of {name} are cut short or broken ({reason}); get the files again") from reason
    except OSError as reason:
        if not from_hub:
            raise ValueError(f"the model in {folder} cannot be read: {reason}; get its files again") from reason
        raise FileNotFoundError(_refusal(name, revision, reason)) from reason
    return model.to(device).eval(), processor


def check(folder: Path) -> None:
    """Compare a model's files with `SHA256SUMS` beside them, if that is there.

    Raises
    ------
    ValueError
        With the first file that is missing or another.
    """
    sums = folder / "SHA256SUMS"
    for line in sums.read_text().splitlines() if sums.is_file() else ():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, which {sums} names; get the model's files again")
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{folder / name} is cut short or another file (its SHA-256 is not {digest[:12]}...); get it again")


def _refusal(name: str, revision: str | None, reason: BaseException | None) -> str:
    """What the Hub's refusal means, and what to do."""
    words = str(reason).splitlines()[0]
    while reason is not None:
        if isinstance(reason, RevisionNotFoundError):
            return f"{name} has no revision {revision!r}; its branches, tags and commits are on https://huggingface.co/{name}/commits/main"
        if isinstance(reason, GatedRepoError):
            return f"{name} is open only to those who accepted its terms; do so on https://huggingface.co/{name}, then `hf auth login`"
        if isinstance(reason, RepositoryNotFoundError):
            return f"no model {name} on the Hub; check owner and name, or log in with `hf auth login` if it is private"
        reason = reason.__cause__ or reason.__context__
    return f"{name} cannot be got from the Hub: {words} Is there a network? Without one give a folder that holds the model"


def prompt(question: str) -> str:
    """The text that a processor of the bundled model wants for a question about one picture."""
    return f"<image>{question}"
