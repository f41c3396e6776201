"""Times that can be compared, and where they go.

`interleaved` lets calls take turns, so that whatever else the machine does falls on all alike. `bench` does so with a plain
model and its pruned versions, and splits every answer into its stages:

    |-- vision --|-------- prefill --------|------ decode ------|
                     |-- selection --|                            total: from pixels to the last word, by the wall clock

beside what arithmetic and memory would allow (`dart.cost`). How long a model takes depends neither on its weights nor on what
it sees, so random ones will do: `build` makes a published architecture right on the device, `example` a prompt for it.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import wraps
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

import dart
from dart import cost
from dart.families import FAMILIES, base_and_tiles, find, image_token_ids
from dart.methods import Method
from dart.pruning import prune
from dart.report import Report, Stopwatch

STAGES = ("vision", "prefill", "selection", "decode")
READING = ("vision", "prefill", "selection")                # up to the first word
ATTENTION = {
    "eager": "the map is made and written out",
    "sdpa": "torch chooses the kernel",
    "sdpa-flash": "torch's own flash kernel and no other",
    "flash_attention_2": "the package flash-attn, on CUDA",
}
COMPILED = {
    "no": "one operation after the other",
    "default": "the decoder reads a prompt as one graph, compiled by torch",
    "reduce-overhead": "likewise, and CUDA replays the graph as a whole",
}


# ------------------------------------------------------------------------------------------------ taking turns


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
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, counts in _turns(list(calls), rounds, warmup):
        _wait()
        started = time.perf_counter()
        calls[name]()
        _wait()
        if counts:
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(each) for name, each in seconds.items()}


def _turns(names: Sequence[str], rounds: int, warmup: int) -> Iterator[tuple[str, bool]]:
    """Whose turn it is, and whether it counts."""
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds={rounds}, warmup={warmup}; give 1 or more rounds and 0 or more before them")
    for number in range(-warmup, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield name, number >= 0


def _wait() -> None:
    # asked every time: the first call may be what starts CUDA
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------ what is measured


def build(
    shape: str | PreTrainedConfig, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cuda"
) -> PreTrainedModel:
    """A model with random weights, made on the device and in the dtype where it stays: no other copy ever exists.

    Parameters
    ----------
    shape : str or PreTrainedConfig
        A name from :data:`dart.cost.SHAPES`, or a config.
    dtype : torch.dtype
    device : str or torch.device

    Raises
    ------
    ValueError
        If there is no such shape.
    """
    config = cost.shape(shape) if isinstance(shape, str) else shape
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def example(
    config: PreTrainedConfig,
    *,
    batch: int = 1,
    text_tokens: int = 60,
    grid: tuple[int, int] = (52, 100),
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[dict[str, Tensor], list[int]]:
    """Prompts of one picture each, random pixels between random words, all of one length.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    batch, text_tokens : int
        Prompts, and tokens of each that are not of the picture.
    grid : (int, int)
        Rows and columns of patches for Qwen-VL, which takes pictures as they are: 1300 image tokens unless told, about
        what the paper's settings give. LLaVA-NeXT, LLaVA-OneVision, Idefics3 and SmolVLM get five views, the others one.
    dtype, device
        Of the pixels; of everything.

    Returns
    -------
    dict of str to Tensor
        Arguments of the model and of `generate`.
    list of int
        Patches of each view of one prompt, as :func:`dart.cost.vision_flops` takes them.

    Raises
    ------
    ValueError
        A family for which no prompt is described, or fewer than four text tokens.
    """
    kind, vision = config.model_type, getattr(config, "vision_config", None)
    if text_tokens < 4:
        raise ValueError(f"text_tokens={text_tokens}; give 4 or more, for words on both sides of the picture")
    generator = torch.Generator().manual_seed(0)
    more: dict[str, Tensor] = {}
    brackets: list[list[int]] = [[], []]
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        count = grid[0] * grid[1]
        patches, tokens = [count], count // vision.spatial_merge_size**2
        shape = (batch * count, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
        more["image_grid_thw"] = torch.tensor([[1, *grid]] * batch)
        brackets = [[config.vision_start_token_id], [config.vision_end_token_id]]
    elif kind in ("llava", "llava_next", "llava_onevision", "video_llava", "internvl", "gemma3", "idefics3", "smolvlm"):
        side, patch = (size if isinstance(size, int) else size[0] for size in (vision.image_size, vision.patch_size))
        views = 5 if kind in ("llava_next", "llava_onevision", "idefics3", "smolvlm") else 1
        patches, tokens = [(side // patch) ** 2] * views, (side // patch) ** 2
        shape = (batch, 3, side, side) if views == 1 else (batch, views, 3, side, side)
        if kind in ("llava_next", "llava_onevision"):
            tokens = base_and_tiles(config, (2 * side, 2 * side))
            more["image_sizes"] = torch.tensor([[2 * side, 2 * side]] * batch)
        elif kind in ("idefics3", "smolvlm"):
            tokens = views * tokens // config.scale_factor**2
        elif kind == "internvl":
            tokens = round(tokens * config.downsample_ratio**2)
        elif kind == "gemma3":
            tokens = config.mm_tokens_per_image
    else:
        raise ValueError(f"no prompt is described for the family {kind!r}; described are llava, llava_next, llava_onevision, "
                         "video_llava, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, gemma3, idefics3, smolvlm")
    image = image_token_ids(config, FAMILIES[kind])[0]
    vocabulary = config.get_text_config().vocab_size
    words = torch.randint(vocabulary // 4, vocabulary // 2, (batch, text_tokens - sum(map(len, brackets))), generator=generator)
    before, after = words.split([words.shape[1] // 2, words.shape[1] - words.shape[1] // 2], dim=1)
    middle = torch.tensor([brackets[0] + [image] * tokens + brackets[1]] * batch)
    ids = torch.cat([before, middle, after], dim=1)
    if brackets[0]:
        more["mm_token_type_ids"] = (ids == image).int()
    if kind == "gemma3":
        more["token_type_ids"] = (ids == image).long()
    pixels = torch.randn(shape, generator=generator).to(dtype)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **more}
    return {name: each.to(device) for name, each in inputs.items()}, patches


def prompt_size(config: PreTrainedConfig, **options) -> tuple[int, int]:
    """Tokens of an `example` prompt, and how many of them are image tokens; the options are those of `example`."""
    ids = example(config, **options)[0]["input_ids"]
    return ids.shape[1], int(torch.isin(ids[0], torch.tensor(image_token_ids(config, FAMILIES[config.model_type]))).sum())


def measure(
    device: str | torch.device, dtype: torch.dtype = torch.bfloat16, size: int | None = None, times: int = 5
) -> cost.Machine:
    """What a device reaches: the best of some large matrix products, and of some copies in memory.

    Parameters
    ----------
    device, dtype
        As they will be used.
    size : int, optional
        Rows and columns of the matrices; 8192 on CUDA and 1024 elsewhere. The copy is of as many bytes as 16 of them have.
    times : int
    """
    device = torch.device(device)
    size = size or (8192 if device.type == "cuda" else 1024)
    # noise, since a GPU multiplies matrices of equal numbers faster than any model's
    noise = torch.Generator(device).manual_seed(0)
    with _on(device):
        matrix = torch.randn(size, size, device=device, dtype=dtype, generator=noise)
        source = matrix.repeat(16, 1)
        target = torch.empty_like(source)
        best = {name: min(each) for name, each in interleaved(
            {"product": lambda: matrix @ matrix, "copy": lambda: target.copy_(source)}, rounds=times).items()}
    return cost.Machine(f"{device_name(device)}, measured", 2 * size**3 / best["product"], 2 * source.nbytes / best["copy"])


def _on(device: torch.device):
    """Streams and events are those of the current device: under ``cuda:1`` it has to be that one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def find_device(name: str) -> torch.device:
    """A device that can be timed.

    Raises
    ------
    ValueError
        A device that torch does not know, that is not there, or whose work this module could not wait for.
    """
    try:
        device = torch.device(name)
    except RuntimeError as reason:
        raise ValueError(f"device={name!r} is none that torch knows: {str(reason).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} cannot be timed here; use cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here; use one that is there, or cpu")
    return device


def release() -> None:
    """Give back the memory of models that are no longer used."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def device_name(device: str | torch.device) -> str:
    """As pages show it: the card's name, or the processor's kind and the threads in use."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


# ------------------------------------------------------------------------------------------------ the bench


@dataclass(frozen=True)
class Run:
    """One method in one setting, measured.

    Attributes
    ----------
    label : str
        Of the method; "unpruned" is the plain model that the others of the setting took turns with.
    attention : str
        One of `ATTENTION`; the same for all runs of a setting.
    batch, new_tokens, text_tokens, image_tokens : int
        Prompts, and tokens of each.
    lengths : list of int
        Tokens of a prompt that each decoder layer saw; in a batch of unlike rows the longest, to which the others are padded.
    patches : list of int
        Of the views of one prompt.
    seconds : dict of str to list of float
        For each of `STAGES`, and "total" by the wall clock, one time a round. What is missing between them is `generate`'s own.
        Compiled code has no times of its parts: there the selection is within "prefill", and 0 by itself.
    peak_bytes : int or None
        Memory that the device held at most, weights included; None where it cannot be asked (CPU).
    flops, roofline : dict of str to int, dict of str to float
        What "vision", "prefill" and "decode" have to compute, and the seconds that the machine needs for it at least.
    compiled : str
        One of `COMPILED`.
    """

    label: str
    attention: str
    batch: int
    new_tokens: int
    text_tokens: int
    image_tokens: int
    lengths: list[int]
    patches: list[int]
    seconds: dict[str, list[float]]
    peak_bytes: int | None
    flops: dict[str, int]
    roofline: dict[str, float]
    compiled: str = "no"

    def times(self, *stages: str) -> np.ndarray:
        """Seconds of some stages together, float64 (rounds,); "total" stands alone."""
        return np.sum([self.seconds[stage] for stage in stages], axis=0)

    @property
    def per_token(self) -> np.ndarray | None:
        """Seconds of each token after the first, float64 (rounds,); None if there was none."""
        return np.array(self.seconds["decode"]) / (self.new_tokens - 1) if self.new_tokens > 1 else None


def speedup(plain: Run, pruned: Run, *stages: str) -> tuple[float, float, float]:
    """How many times as fast the pruned run was in some stages: median, lower and upper quartile over rounds.

    Each round is compared within itself: what slowed the machine down in it falls out.
    """
    low, middle, high = np.percentile(plain.times(*stages) / pruned.times(*stages), (25, 50, 75))
    return float(middle), float(low), float(high)


def limit(plain: Run, pruned: Run, *stages: str, by: str = "flops") -> float:
    """How many times as fast it could be at most: by its "flops", or by the "roofline" of the machine."""
    first, second = (sum(getattr(run, by)[stage] for stage in stages if stage != "selection") for run in (plain, pruned))
    return first / second


def bench(
    model: PreTrainedModel,
    methods: Mapping[str, Method],
    *,
    machine: cost.Machine,
    batch: int = 1,
    new_tokens: int = 1,
    attention: str = "sdpa",
    compiled: Sequence[str] = ("no",),
    text_tokens: int = 60,
    rounds: int = 9,
    warmup: int = 2,
) -> list[Run]:
    """Measure a model plain and under some methods, all in one run, turn by turn.

    Parameters
    ----------
    model : PreTrainedModel
        Of a family that `example` knows. It is left as it is: each run has a twin of it, with the same weights.
    methods : mapping of str to Method
        By label.
    machine : dart.cost.Machine
        For the roofline.
    batch, new_tokens, text_tokens : int
        Prompts in a call, tokens of every answer (to the last one, no end is taken), text tokens of a prompt.
    attention : str
        One of `ATTENTION`, for the plain model and all others.
    compiled : sequence of str
        Of `COMPILED`; the plain model and all others take turns in each of these ways. A prompt's layers are compiled, for
        its shapes are the same in every round; further tokens, whose cache grows, are not.
    rounds, warmup : int
        As for :func:`interleaved`, but one round before is the least: memory is measured and code compiled in these. A graph
        that CUDA replays takes three: it is compiled, tried and recorded.

    Returns
    -------
    list of Run
        For each of `compiled` "unpruned" first.

    Raises
    ------
    ValueError
        A batch or an answer of less than one; a kernel or a compiler that is unknown or cannot be had; a method that cannot
        be compiled; what `example` and `dart.prune` refuse.
    """
    _check_size(batch=batch, new_tokens=new_tokens)
    inputs, patches = example(model.config, batch=batch, text_tokens=text_tokens, dtype=model.dtype, device=model.device)
    length, cuda = inputs["input_ids"].shape[1], model.device.type == "cuda"
    layers = model.config.get_text_config().num_hidden_layers
    everyone = {(name, mode): method for mode in compiled for name, method in {"unpruned": None, **methods}.items()}
    seconds: dict[tuple, dict[str, list[float]]] = {each: {stage: [] for stage in (*STAGES, "total")} for each in everyone}
    peaks: dict[tuple, int | None] = {}
    lengths: dict[tuple, list[int]] = {}
    with ExitStack() as stack:
        stack.enter_context(_on(model.device))
        stack.enter_context(_kernel(model, attention))
        # All contexts are entered before anything is compiled: entering one drops what was.
        twins = {each: _twin(model) for each in everyone}
        reports = {each: stack.enter_context(prune(twins[each], method)) if method else None for each, method in everyone.items()}
        for each in everyone:
            stack.enter_context(_graph(twins[each], each[1], len(everyone)))
        for each, counts in _turns(list(everyone), rounds, max(warmup, 3 if "reduce-overhead" in compiled else 1)):
            report = reports[each]
            if cuda:
                torch.cuda.reset_peak_memory_stats(model.device)
            found = answer(twins[each], inputs, new_tokens, report)
            if counts:
                for stage, value in found.items():
                    seconds[each][stage].append(value)
                continue
            peaks[each] = torch.cuda.max_memory_allocated(model.device) if cuda else None
            rows = [report.lengths(row - batch) for row in range(batch)] if report else [[length] * layers]
            lengths[each] = [max(several) for several in zip(*rows)]
    runs = []
    for name, mode in everyone:
        each = name, mode
        work = cost.stages(model.config, lengths[each], patches, batch=batch, new_tokens=new_tokens, dtype=model.dtype,
                           causal=attention != "eager")
        runs.append(Run(
            name, attention, batch, new_tokens, text_tokens, length - text_tokens,
            lengths[each], patches, seconds[each], peaks[each],
            flops={stage: cost.total_flops(steps) for stage, steps in work.items()},
            roofline={stage: cost.roofline(steps, machine) for stage, steps in work.items()},
            compiled=mode,
        ))  # fmt: skip
    return runs


@torch.no_grad()                                            # and not inference_mode, from which recorded graphs cannot be left
def answer(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int, report: Report | None = None
) -> dict[str, float]:
    """Answer once: seconds of each of `STAGES` and of the "total". The report is that of the context that the model is in."""
    with _watched(model) as watches:
        _wait()
        started = time.perf_counter()
        model.generate(**inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False)
        watches["decode"].stop()
        _wait()
        total = time.perf_counter() - started
    found = {stage: watches[stage].seconds for stage in ("vision", "prefill", "decode")}
    selection = report.selection_seconds[-1] if report else 0.0
    selection = 0.0 if math.isnan(selection) else selection             # compiled code has no times of its parts
    return {**found, "prefill": found["prefill"] - selection, "selection": selection, "total": total}


@dataclass(frozen=True)
class Words:
    """Words behind a pruned prompt, inside the context and without it, on the same short caches.

    Attributes
    ----------
    label : str
        Of the method.
    batch, count : int
        Prompts, and words of each.
    cache : list of int
        Entries of each layer before the first of these words.
    seconds : dict of str to list of float
        Of one word, one time a round: "inside", and with "no hooks".
    """

    label: str
    batch: int
    count: int
    cache: list[int]
    seconds: dict[str, list[float]]

    @property
    def more(self) -> tuple[float, float, float]:
        """By which share a word takes longer inside: median, lower and upper quartile over rounds."""
        low, middle, high = np.percentile(np.divide(self.seconds["inside"], self.seconds["no hooks"]) - 1, (25, 50, 75))
        return float(middle), float(low), float(high)


@torch.no_grad()
def later_words(
    model: PreTrainedModel, label: str, method: Method, *, batch: int = 1, count: int = 16, rounds: int = 9, warmup: int = 2
) -> Words:
    """What a context costs every word after the first, when the method has nothing more to choose.

    Both models read the same words one by one, by turns, on copies of the caches that one pruned prompt left. Attention is
    SDPA's, which needs no mask here: the plain model would make one for its long layers, and it would fit no other.

    Parameters
    ----------
    model : PreTrainedModel
        As for :func:`bench`.
    label, method
        A method and its label.
    batch, count, rounds, warmup : int
        Prompts, words of each; rounds that count, and before these.

    Raises
    ------
    ValueError
        A batch or a count of less than one; what `example` and `dart.prune` refuse.
    """
    _check_size(batch=batch, count=count)
    inputs, _ = example(model.config, batch=batch, dtype=model.dtype, device=model.device)
    word, start = inputs["input_ids"][:, -1:], inputs["input_ids"].shape[1]
    places = [torch.full_like(word, start + step) for step in range(count)]
    seconds: dict[str, list[float]] = {"inside": [], "no hooks": []}
    with _on(model.device), _kernel(model, "sdpa"):
        twins = {name: _twin(model) for name in seconds}
        with prune(twins["inside"], method) as report:
            read = twins["inside"](**inputs, use_cache=True, logits_to_keep=1).past_key_values
            for name, counts in _turns(list(seconds), rounds, warmup):
                cache = copy.deepcopy(read)
                _wait()
                started = time.perf_counter()
                for place in places:
                    twins[name](input_ids=word, past_key_values=cache, position_ids=place)
                _wait()
                if counts:
                    seconds[name].append((time.perf_counter() - started) / count)
            return Words(label, batch, count, report.kv_lengths(), seconds)


def _check_size(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number}; give 1 or more")


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model with modules and hooks of its own around the same weights."""
    return copy.deepcopy(model, {id(each): each for each in chain(model.parameters(), model.buffers())})


@contextmanager
def _graph(model: PreTrainedModel, mode: str, alike: int) -> Iterator[None]:
    """The decoder reads prompts as one compiled graph; `alike` is how many models may do so at a time."""
    if mode not in COMPILED:
        raise ValueError(f"compiled={mode!r}; give some of {', '.join(COMPILED)}")
    if mode == "no":
        yield
        return
    _check_compiler(model.device)
    from torch._dynamo import config                        # late: it takes a second to import
    from torch._dynamo.exc import TorchDynamoException

    decoder = find(model)[2]
    plain = decoder.forward
    graph = torch.compile(plain, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode)

    @wraps(plain)
    def forward(*args, **kwargs):
        if kwargs["inputs_embeds"].shape[1] == 1:
            return plain(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()          # nothing of the last answer is needed any more
        try:
            return graph(*args, **kwargs)
        except TorchDynamoException as reason:
            words = str(reason).strip().partition("\n")[0]
            raise ValueError(f"the decoder could not be compiled: {words}; measure without --compile") from reason

    decoder.forward = forward
    try:
        # Twins share their code, and what was compiled for one is not to serve another: hooks are what tells them apart.
        with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=2 * alike):
            yield
    finally:
        del decoder.forward
        torch.compiler.reset()


def _check_compiler(device: torch.device) -> None:
    """Whether torch finds what it compiles with."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError("compiled code on CUDA needs the package triton, which comes with the CUDA builds of torch; pip install triton")
        wanted = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        if not any(map(which, wanted)):
            raise ValueError(f"compiled code on CUDA needs a C compiler, and none is found as {' or '.join(wanted)}; install one "
                             "(Debian: apt install gcc) or name it in CC")
    elif which(name := os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")) is None:
        raise ValueError(f"compiled code on a CPU needs a C++ compiler, and none is found as {name}; install one (Debian: apt install g++, "
                         "conda: conda install gxx) or name it in CXX")


@contextmanager
def _watched(model: PreTrainedModel) -> Iterator[dict[str, Stopwatch]]:
    """Stopwatches over the stages of one `generate`; that of "decode" runs on."""
    _, body, decoder = find(model)
    watches: dict[str, Stopwatch] = {}
    before, look = vars(body).get("get_image_features"), body.get_image_features

    @wraps(look)                                            # generate reads its signature
    def watched(*args, **kwargs):
        watches["vision"] = Stopwatch(model.device)
        features = look(*args, **kwargs)
        watches["vision"].stop()
        return features

    def enter(*_) -> None:
        if "prefill" not in watches:
            watches["prefill"] = Stopwatch(model.device)

    def leave(*_) -> None:
        if "decode" not in watches:
            watches["prefill"].stop()
            watches["decode"] = Stopwatch(model.device)

    body.get_image_features = watched
    handles = [decoder.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    try:
        yield watches
    finally:
        for handle in handles:
            handle.remove()
        del body.get_image_features
        if before is not None:
            body.get_image_features = before


@contextmanager
def _kernel(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """One attention kernel for the whole model, and the one it had afterwards."""
    if attention not in ATTENTION:
        raise ValueError(f"attention={attention!r}; give one of {', '.join(ATTENTION)}")
    if attention == "flash_attention_2" and (find_spec("flash_attn") is None or model.device.type != "cuda"):
        raise ValueError("flash_attention_2 needs the package flash-attn and a CUDA device; or use sdpa-flash, torch's own")
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if attention == "sdpa-flash" else attention)
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if attention == "sdpa-flash" else nullcontext():
            yield
    finally:
        model.set_attn_implementation(before)


# ------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Record:
    """What one call of the bench measured, and where.

    Attributes
    ----------
    model : str
        A shape, or the name of the folder.
    weights : str
        "random", or the fingerprint of the checkpoint.
    dtype : str
    machine : dart.cost.Machine
        Whose roofline the runs have.
    environment : dict
        Device, versions, commit, date, and the machine's load before and after.
    runs : list of Run
        Setting by setting, "unpruned" first in each.
    not_run : list of dict
        Settings that could not be measured, and why.
    words : list of Words
        What contexts cost words after the first.
    """

    model: str
    weights: str
    dtype: str
    machine: cost.Machine
    environment: dict[str, Any]
    runs: list[Run]
    not_run: list[dict[str, Any]] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)

    def settings(self) -> list[list[Run]]:
        """Runs that took turns with each other, "unpruned" first in each list."""
        found: list[list[Run]] = []
        for run in self.runs:
            if run.label == "unpruned":
                found.append([])
            found[-1].append(run)
        return found

    def find(
        self, labels: Iterable[str] = (), *, attention: str = "sdpa", batch: int = 1, new_tokens: int = 1, compiled: str = "no"
    ) -> list[Run] | None:
        """Runs of a setting in which methods of all these labels took turns, "unpruned" first; None if there is none."""
        wanted = (attention, batch, new_tokens, compiled)
        for runs in self.settings():
            plain, there = runs[0], {run.label for run in runs}
            if (plain.attention, plain.batch, plain.new_tokens, plain.compiled) == wanted and {*labels} <= there:
                return runs
        return None

    def table(self) -> list[dict[str, Any]]:
        """A row for every run: milliseconds (medians), and speed-ups beside what arithmetic and the machine allow."""
        return [_row(plain, run) for plain, *others in self.settings() for run in (plain, *others)]

    def write(self, folder: str | Path, place: Path | None = None) -> Path:
        """Write it to a new file, named by model, device and time; or to `place`, where it was written when it was shorter."""
        words = " ".join((self.model, self.environment["device"], self.environment["date"])).lower()
        new = Path(folder) / ("-".join(re.findall(r"[a-z0-9.]+", words)) + ".json")
        new.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({**asdict(self), "runs": []}, indent=1)
        runs = ",\n".join(f"  {json.dumps(asdict(run))}" for run in self.runs)
        text = head.replace('"runs": []', f'"runs": [\n{runs}\n ]') + "\n"
        if place is None:
            with new.open("x") as file:
                file.write(text)
            return new
        unfinished = place.with_suffix(".unfinished")
        unfinished.write_text(text)
        return unfinished.replace(place)                    # at once: who is cut off meanwhile has the one or the other


def read(place: str | Path) -> Record:
    """A record out of its file.

    Raises
    ------
    ValueError
        If it is damaged or has other fields.
    """
    try:
        content = json.loads(Path(place).read_text())
        machine, runs = cost.Machine(**content["machine"]), [Run(**run) for run in content["runs"]]
        words = [Words(**each) for each in content.get("words", [])]
        return Record(**{**content, "machine": machine, "runs": runs, "words": words})
    except (OSError, json.JSONDecodeError, TypeError, KeyError) as reason:
        raise ValueError(f"the record in {place} cannot be read: {reason}; make it anew with dart bench") from reason


def records(model: str | None = None, folder: str | Path | None = None) -> list[Record]:
    """All records of the store, or those of one model, the latest last.

    Parameters
    ----------
    model : str, optional
        A shape, or "bundled".
    folder : path, optional
        Of the records, `data/results/bench` unless told.
    """
    places = Path(folder or dart.data_root() / "results" / "bench").glob("*.json")
    found = sorted(map(read, places), key=lambda record: record.environment["date"])
    return [record for record in found if model in (None, record.model)]


def newest(model: str, labels: Iterable[str] = (), *, device: str = "", **setting) -> tuple[Record, list[Run]] | None:
    """The latest stored runs of a model in a setting, and their record; None if there are none.

    Parameters
    ----------
    model : str
        A shape, or "bundled".
    labels : iterable of str
        Of methods that have to be among them.
    device : str
        Part of a device's name.
    **setting
        As for :meth:`Record.find`.
    """
    for record in reversed(records(model)):
        if device in record.environment["device"] and (runs := record.find(labels, **setting)):
            return record, runs
    return None


def _row(plain: Run, run: Run) -> dict[str, Any]:
    def milliseconds(*stages: str) -> float:
        return round(1000 * float(np.median(run.times(*stages))), 3)

    row = {
        "method": run.label,
        "attention": run.attention,
        "compiled": run.compiled,
        "batch": run.batch,
        "new tokens": run.new_tokens,
        **{f"{stage}, ms": milliseconds(stage) for stage in READING},
        **({"selection, ms": "in prefill"} if run is not plain and run.compiled != "no" else {}),
        "a token, ms": "" if run.per_token is None else round(1000 * float(np.median(run.per_token)), 3),
        "total, ms": milliseconds("total"),
    }
    for name, measured, counted in (("first word", READING, READING), ("all", ("total",), STAGES)):
        if run is plain:
            row |= {f"{name}: measured": "", f"{name}: FLOPs limit": "", f"{name}: roofline": ""}
            continue
        middle, low, high = speedup(plain, run, *measured)
        row |= {
            f"{name}: measured": f"{middle:.2f}x ({low:.2f} to {high:.2f})",
            f"{name}: FLOPs limit": f"{limit(plain, run, *counted):.2f}x",
            f"{name}: roofline": f"{limit(plain, run, *counted, by='roofline'):.2f}x",
        }
    return row | {"peak, MiB": "not measured" if run.peak_bytes is None else round(run.peak_bytes / 2**20)}


# ------------------------------------------------------------------------------------------------ what is worth measuring


@dataclass(frozen=True)
class Case:
    """A model (a folder, or a name from :data:`dart.cost.SHAPES`) in some settings, each with each.

    `keep` None is one image token in nine, the paper's 88.9 % removed. `words` of 1 and more times as many words behind the
    prompt, see :func:`later_words`. `rounds` are the most that are worth their time.
    """

    model: str | None
    methods: tuple[str, ...] = ("dart",)
    keep: tuple[int, ...] | None = None
    batch: tuple[int, ...] = (1,)
    new_tokens: tuple[int, ...] = (1,)
    attention: tuple[str, ...] = ("sdpa",)
    compiled: tuple[str, ...] = ("no",)
    words: int = 0
    rounds: int | None = None


# The bundled model, on any machine.
SMALL = (
    Case(None, ("dart", "fastv"), batch=(1, 8), new_tokens=(1, 32)),
    Case(None, attention=("eager", "sdpa-flash"), words=32),
    Case(None, batch=(1, 8), compiled=("no", "default")),
)

# The paper's efficiency, on a CUDA device. What is missed most comes first: a machine may be lent for a while only.
_PAPER = ("llava-next-7b", "llava-1.5-7b")
LARGE = (
    # Table 2 and the latencies of Figure 4
    Case("llava-next-7b", ("dart", "random", "fastv", "sparsevlm", "pyramiddrop"), keep=(320, 640, 960)),
    *(
        case for name in _PAPER for case in (
            Case(name, batch=(1, 8)),
            # what the map costs, and what a flash kernel gains
            Case(name, ("dart", "fastv", "sparsevlm"), attention=tuple(ATTENTION)),
            # long answers
            Case(name, new_tokens=(8, 32, 128), words=32, rounds=5),
        )
    ),
    Case("llava-1.5-7b", batch=(2, 4, 16)),
    Case("qwen2-vl-7b", batch=(1, 8)),
    Case("qwen2-vl-7b", new_tokens=(8, 32, 128), rounds=5),
    # every other family
    *(Case(name, batch=(1, 8)) for name in cost.SHAPES if name not in (*_PAPER, "qwen2-vl-7b")),
    # short layers wait for their kernels to be started; to compile them takes longest of all
    *(Case(name, compiled=("no", mode), rounds=5) for name in reversed(_PAPER) for mode in ("default", "reduce-overhead")),
    Case("llava-next-7b", batch=(16,), new_tokens=(1, 128), rounds=3),
)  # fmt: skip
