"""Any model of a known family under any method, in stock lmms-eval. It finds this file by itself once both are installed.

    lmms-eval --model dart --model_args pretrained=Qwen/Qwen2-VL-7B-Instruct,method=dart,reduction_ratio=0.889 --tasks mme,pope
    accelerate launch --num_processes 8 -m lmms_eval --model dart --batch_size 8 ...

Tasks, scores and the split over processes are lmms-eval's; prompts are made by the chat template of the model's processor.
"""

from __future__ import annotations

import logging
import time
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, fields
from inspect import signature
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.video_utils import VideoMetadata, load_video

import dart
from dart import bundled, evaluation

try:
    from lmms_eval.api.model import lmms as Base
except ModuleNotFoundError:  # prompts and answers need none of it
    Base = object

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
TOKENS = 128  # longest answer of tasks that name none, as in LLaVA's scripts


def manifest():
    """What lmms-eval asks of the entry point `dart` in the group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="dart", chat_class_path="dart.lmms.Pruned")


# ------------------------------------------------------------------------------------------------ settings


def find_method(name: str, settings: Mapping[str, Any], arguments: Sequence[str] = ()) -> dart.Method | None:
    """The method of that name, with its fields as lmms-eval reads them from `--model_args`; None for "unpruned".

    Parameters
    ----------
    name : str
        A name from `dart.evaluation.METHODS`.
    settings : mapping
        Fields of the method. Lists are written in brackets: ``recipe=[0,0,33,20]``.
    arguments : sequence of str
        Other names that could have been meant by one that is not known.

    Raises
    ------
    ValueError
        With the nearest valid names, what is missing, or what the method says to its settings.
    """
    method = evaluation.METHODS[evaluation.find_name("method", name, evaluation.METHODS)]
    known = {each.name: each for each in fields(method) if each.init} if method else {}
    budgets = {each.name for one in dart.METHODS.values() for each in fields(one)} - set(known)
    for key in settings:
        if method is None and key in budgets:
            raise ValueError(f"{key}={settings[key]}, but method=unpruned leaves the model alone; drop {key} or name a method")
        evaluation.find_name(f"model argument (method={name})", key, [*known, *arguments])
    missing = [key for key, each in known.items() if each.default is MISSING and key not in settings]
    if missing:
        raise ValueError(f"method={name} wants {', '.join(missing)}; write it behind a comma, as in method={name},keep=64")
    if method is None:
        return None
    return method(**{key: tuple(literal_eval(value)) if str(value).startswith("[") else value for key, value in settings.items()})


def generation(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A task's `generation_kwargs` as `generate` takes them, and the strings that an answer is cut at.

    Temperature 0, or none, is greedy whatever `do_sample` says, as in lmms-eval's own models. What `generate` does not know is
    left out with a warning.
    """
    until, known = given.get("until") or [], vars(transformers.GenerationConfig())
    how = {"max_new_tokens": TOKENS, **{key: value for key, value in given.items() if key != "until" and value is not None}}
    unknown = [key for key in how if key not in known]
    if unknown:
        logger.warning("not used of the task's generation_kwargs: %s", ", ".join(f"{key}={how.pop(key)}" for key in unknown))
    how["do_sample"] = float(how.get("temperature", 0)) > 0
    if not how["do_sample"]:
        how = {key: value for key, value in how.items() if key not in ("temperature", "top_p", "top_k")}
    return how, [until] if isinstance(until, str) else list(until)


# ------------------------------------------------------------------------------------------------ prompts


def frames(video: Any, most: int, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, VideoMetadata]:
    """Frames evenly spaced over a video, the first and the last among them.

    Parameters
    ----------
    video : str or sequence of pictures
        A file, which PyAV decodes, or its frames.
    most : int
        This many, or all if there are fewer.
    start, end : float, optional
        Part of the file to look at, in seconds.

    Returns
    -------
    array, uint8 (frames, height, width, 3)
    VideoMetadata
        With the frames' indices; `fps` is None for a sequence of pictures.
    """

    def even(metadata: VideoMetadata, **_) -> np.ndarray:
        last, fps = metadata.total_num_frames - 1, metadata.fps or 0
        first = min(round((start or 0) * fps), last)
        last = last if end is None else min(max(round(end * fps), first), last)
        return np.linspace(first, last, min(most, last - first + 1)).round().astype(int)

    if isinstance(video, str):
        return load_video(video, sample_indices_fn=even)
    metadata = VideoMetadata(total_num_frames=len(video))
    metadata.frames_indices = even(metadata)
    return np.stack([np.asarray(_picture(video[index])) for index in metadata.frames_indices]), metadata


def _picture(given: Any) -> Any:
    """A picture in RGB; names of files and addresses are left to the processor."""
    if isinstance(given, np.ndarray):
        given = Image.fromarray(given)
    return given.convert("RGB") if isinstance(given, Image.Image) else given


def conversation(messages: Sequence[Mapping], most_frames: int, videos: bool) -> tuple[list[dict], list[VideoMetadata]]:
    """A task's messages in lmms-eval's form, as chat templates of transformers take them.

    Parameters
    ----------
    messages : sequence of mapping
        `role`, and `content`: a list of parts with `type` and `text` or `url`.
    most_frames : int
        Of every video.
    videos : bool
        Whether the model takes videos. One that does not gets the frames as pictures, in order.

    Returns
    -------
    conversation : list of dict
    metadata : list of VideoMetadata
        Of each video in it.

    Raises
    ------
    ValueError
        For a part that is neither text nor picture nor video.
    """
    turns, found = [], []
    for message in messages:
        parts = []
        for part in message["content"]:
            kind, source = part["type"], part.get("url")
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif kind == "image":
                parts.append({"type": "image", "image": _picture(source)})
            elif kind == "video":
                clip = {"video_start": part.get("start_time"), "video_end": part.get("end_time")}
                if isinstance(source, Mapping):
                    clip, source = {**clip, **source}, source.get("path") or source.get("url")
                shown, metadata = frames(source, most_frames, clip["video_start"], clip["video_end"])
                if videos:
                    parts.append({"type": "video", "video": shown})
                    found.append(metadata)
                else:
                    parts += [{"type": "image", "image": Image.fromarray(frame)} for frame in shown]
            else:
                raise ValueError(f"the task's prompt holds a part of type {kind!r}; text, image and video can be asked")
        turns.append({"role": message["role"], "content": parts})
    return turns, found


def prompts(model, processor, asked: Sequence[Sequence[Mapping]], *, most_frames: int = 32):
    """What the model takes for a batch of conversations in lmms-eval's form.

    Parameters
    ----------
    model, processor
        As `from_pretrained` gives them.
    asked : sequence of sequences of mapping
        The messages of each conversation, see `conversation`.
    most_frames : int
        Of every video.

    Returns
    -------
    mapping of str to Tensor
        On the model's device and in its dtype, padded on the left so that every answer starts at the end of its row.
    """
    read = [conversation(messages, most_frames, getattr(processor, "video_processor", None) is not None) for messages in asked]
    settings = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    metadata = [each for _, found in read for each in found]
    if metadata:
        settings |= {"do_sample_frames": False, "video_metadata": metadata}
    inputs = processor.apply_chat_template(
        [turns for turns, _ in read], add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=settings
    )
    return inputs.to(model.device, model.dtype)


# ------------------------------------------------------------------------------------------------ answers


@dataclass
class Said:
    """What a model said to a batch of conversations.

    Attributes
    ----------
    texts : list of str
    tokens : list of int
        Of each text, padding left out.
    images : list of (int, int)
        Image tokens of each conversation that held a picture, and how many stayed; none without a method.
    """

    texts: list[str]
    tokens: list[int]
    images: list[tuple[int, int]]


def answer(
    model,
    processor,
    asked: Sequence[Sequence[Mapping]],
    method: dart.Method | None,
    how: Mapping[str, Any],
    *,
    most_frames: int = 32,
) -> Said:
    """What a model answers to a batch of conversations under a method.

    Parameters
    ----------
    model, processor, asked, most_frames
        As `prompts` takes them.
    method : Method or None
        None leaves the model alone.
    how : mapping
        Arguments of `generate`.
    """
    inputs = prompts(model, processor, asked, most_frames=most_frames)
    with torch.inference_mode(), dart.prune(model, method) if method else nullcontext() as report:
        ids = model.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]
    tokens = (ids != processor.tokenizer.pad_token_id).sum(1).tolist()
    images = [(len(sample.image), len(sample.kept)) for sample in report.samples if len(sample.image)] if report else []
    return Said(processor.batch_decode(ids, skip_special_tokens=True), tokens, images)


def cut(text: str, ends: Sequence[str]) -> str:
    """What stands before the first of some strings."""
    return min((text.split(end)[0] for end in ends if end), key=len, default=text)


# ------------------------------------------------------------------------------------------------ the model


class Pruned(Base):
    """A model under a reduction method, as lmms-eval calls it.

    Parameters
    ----------
    pretrained : str, optional
        A name on the Hub, or a folder; the bundled model if left out.
    revision : str, optional
        Branch, tag or commit on the Hub.
    method : str
        A name from `dart.evaluation.METHODS`; "unpruned" leaves the model alone.
    batch_size : int
        Questions a call; `--batch_size` on the command line. Halved, with a warning, where memory does not suffice.
    device : str, optional
        The accelerator if left out; each process has its own under `accelerate launch`.
    device_map : str, optional
        "auto" splits a model that is too large for one device over all of them. For a process on its own.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Of the computation; float32 on a CPU and bfloat16 elsewhere if left out.
    attn_implementation : str, optional
        The model's own choice if left out.
    max_num_frames : int
        Of every video.
    min_pixels, max_pixels : int, optional
        Bounds of a picture's area, for models whose tokens follow its size (Qwen-VL).
    system_prompt : str, optional
        What a system turn says, or a file that holds it: model_args end at a comma.
    **settings
        Fields of the method, as in ``keep=64,layer=2,pivot_rule=random``.

    Raises
    ------
    ValueError
        For names and values that are not known, with the nearest valid ones.
    FileNotFoundError
        If there is no such model.
    """

    is_simple = False                                       # it takes chat messages

    def __init__(
        self,
        pretrained: str | None = None,
        revision: str | None = None,
        method: str = "dart",
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        max_num_frames: int = 32,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        system_prompt: str | None = None,
        **settings: Any,
    ):
        super().__init__()
        arguments = [name for name in signature(type(self)).parameters if name != "settings"]
        self.method = find_method(method, settings, arguments)
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}; give a whole number, 1 or more")
        if not isinstance(max_num_frames, int) or max_num_frames < 1:
            raise ValueError(f"max_num_frames={max_num_frames}; give a whole number, 1 or more")
        self.batch_size = int(batch_size)

        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device_map is not None and self._world_size > 1:
            raise ValueError(f"device_map={device_map} splits one model over all devices, but {self._world_size} processes want "
                             "one each; launch one process, or leave device_map out")
        alone = device is not None and self._world_size == 1
        self.device = torch.device(device) if alone else self.accelerator.device
        if dtype is not None:
            evaluation.find_name("dtype", dtype, DTYPES)
        number = getattr(torch, dtype or ("float32" if self.device.type == "cpu" else "bfloat16"))
        options = {"dtype": number, "attn_implementation": attn_implementation, "revision": revision}
        if device_map is None:
            self.model, self.processor = bundled.load(pretrained, device=self.device, **options)
        else:
            name = pretrained or dart.data_root() / "model"
            self.model = AutoModelForMultimodalLM.from_pretrained(name, device_map=device_map, **options).eval()
            self.processor = AutoProcessor.from_pretrained(name, revision=revision)

        self.most_frames = max_num_frames
        self._bound(min_pixels, max_pixels)
        self.system_prompt = self._resolve_system_prompt(system_prompt)

    def _bound(self, least: int | None, most: int | None) -> None:
        """Set the bounds of a picture's area, which processors that go by it call edges."""
        images = self.processor.image_processor
        given = {name: value for name, value in (("shortest_edge", least), ("longest_edge", most)) if value is not None}
        own = {name: value for name, value in dict(images.size).items() if value is not None}
        if given and set(own) != {"shortest_edge", "longest_edge"}:
            raise ValueError(f"{type(images).__name__} does not go by a picture's area; leave min_pixels and max_pixels out")
        if given:
            images.size = {**own, **given}

    def generate_until(self, requests: Sequence) -> list:
        """Answers to lmms-eval's requests, in their order; those with the same `generation_kwargs` share batches.

        Raises
        ------
        ValueError
            Where memory does not suffice for one question.
        """
        from lmms_eval.api.instance import GenerationResult, TokenCounts
        from lmms_eval.models.model_utils.gen_metrics import log_metrics

        results, images, started = {}, [], time.perf_counter()
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="dart", unit="q", dynamic_ncols=True)
        for indices in self._batches(requests):
            how, until = generation(requests[indices[0]].args[2])
            said = self._answer([self._messages(requests[index]) for index in indices], how)
            for index, (text, tokens) in zip(indices, zip(said.texts, said.tokens)):
                results[index] = GenerationResult(cut(text, until), TokenCounts(output_tokens=tokens))
            images += said.images
            bar.update(len(indices))
        bar.close()
        seconds, tokens = time.perf_counter() - started, sum(each.token_counts.output_tokens for each in results.values())
        pruned = dict(zip(("image_tokens", "image_tokens_kept"), np.mean(images, axis=0).tolist())) if images else None
        log_metrics(seconds, tokens, tokens / seconds, pruned)
        return [results[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence) -> Iterator[list[int]]:
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[2]), []).append(index)
        for indices in alike.values():
            while indices:
                batch, indices = indices[: self.batch_size], indices[self.batch_size :]
                yield batch

    def _answer(self, asked: Sequence[Sequence[Mapping]], how: Mapping[str, Any]) -> Said:
        """What `answer` gives, in smaller batches from now on if memory does not suffice for this one."""
        try:
            return answer(self.model, self.processor, asked, self.method, how, most_frames=self.most_frames)
        except torch.OutOfMemoryError as reason:
            if len(asked) == 1:
                raise ValueError("out of memory with one question at a time; give a smaller model or dtype, a larger device or "
                                 "device_map=auto; with --use_cache what was answered is kept") from reason
        torch.cuda.empty_cache()                            # here, for the error holds on to what was computed
        half = self.batch_size = (len(asked) + 1) // 2
        logger.warning("out of memory with %d questions at a time; going on with %d", len(asked), half)
        first, rest = self._answer(asked[:half], how), self._answer(asked[half:], how)
        return Said(first.texts + rest.texts, first.tokens + rest.tokens, first.images + rest.images)

    def _messages(self, request) -> list[dict]:
        _, messages_of, _, number, task, split = request.args
        return self._apply_system_prompt(messages_of(self.task_dict[task][split][number]), self.system_prompt)

    def loglikelihood(self, requests: Sequence) -> list:
        raise NotImplementedError("dart runs tasks with output_type generate_until, not loglikelihood or multiple_choice")

    def generate_until_multi_round(self, requests: Sequence) -> list:
        raise NotImplementedError("dart runs tasks with output_type generate_until, not generate_until_multi_round")
