"""What a context did: which image tokens stayed where, what that saves, and how it looks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dart import cost
from dart.families import Family, lay_out, layer_types
from dart.methods import Method


class Stopwatch:
    """Time on the device, read only when somebody asks: reading waits for it."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.start = self._now()

    def stop(self) -> None:
        self.end = self._now()

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @property
    def seconds(self) -> float:
        if not self.cuda:
            return self.end - self.start
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


@dataclass
class Stage:
    """One reduction of one batch: the layer from which on it holds, bool (batch, length) of the image tokens that stayed, its time."""

    layer: int
    stays: Tensor
    stopwatch: Stopwatch


@dataclass
class Prompt:
    """One batch that was read: masks (batch, length), m-RoPE positions if the family has them, and what was reduced."""

    image: Tensor
    padding: Tensor
    grid: Tensor | None
    stages: list[Stage]


@dataclass(frozen=True)
class Sample:
    """What happened to one sample (one row of a prompt's batch).

    Attributes
    ----------
    stages : tuple of (int, Tensor)
        For each reduction the decoder layer from which on it holds, and the positions in the prompt of the image tokens that
        stayed: int64, ascending; padding counts as positions.
    image : Tensor, int64
        Positions in the prompt of all its image tokens, ascending.
    length : int
        Tokens of the prompt without padding.
    """

    stages: tuple[tuple[int, Tensor], ...]
    image: Tensor
    length: int

    @property
    def kept(self) -> Tensor:
        """Positions in the prompt of the image tokens that stayed to the end, int64, ascending."""
        return self.stages[-1][1]


class Report:
    """What a context did: for every sample, in the order read, which image tokens stayed and what that saves.

    Attributes
    ----------
    method : Method
        The method of the context.
    """

    def __init__(self, method: Method, n_layers: int, decoder_config, family: Family, config):
        self.method = method
        self._n_layers, self._decoder_config, self._family, self._config = n_layers, decoder_config, family, config
        self._element_size = 0                  # bytes of a key's or value's number
        self._prompts: list[Prompt] = []
        self._samples: list[Sample] = []        # of the first prompts, as many as somebody asked about so far
        self._rows: list[tuple[int, int]] = []  # prompt and row of each of them

    def _add(self, prompt: Prompt, element_size: int) -> None:
        # Copies: a graph that CUDA replays writes what it makes of the next prompt over these.
        stages = [Stage(stage.layer, stage.stays.clone(), stage.stopwatch) for stage in prompt.stages]
        self._prompts.append(Prompt(prompt.image, prompt.padding.clone(), prompt.grid, stages))
        self._element_size = element_size

    @property
    def samples(self) -> list[Sample]:
        """One :class:`Sample` a row of every prompt that held an image, oldest first (beams and repeats are rows too)."""
        for number in range(self._rows[-1][0] + 1 if self._rows else 0, len(self._prompts)):
            prompt = self._prompts[number]
            for row, (image, padding) in enumerate(zip(prompt.image, prompt.padding)):
                stages = tuple((stage.layer, stage.stays[row].nonzero().flatten().cpu()) for stage in prompt.stages)
                self._samples.append(Sample(stages, image.nonzero().flatten().cpu(), int((~padding).sum())))
                self._rows.append((number, row))
        return self._samples

    @property
    def selection_seconds(self) -> list[float]:
        """Time that `select` took at all places, in seconds, one number a prompt (a batch is one prompt); NaN where torch compiled
        it into one graph with the layers. Waits for the device."""
        return [sum(stage.stopwatch.seconds for stage in prompt.stages) for prompt in self._prompts]

    def image_tokens(self, sample: int = -1) -> list[int]:
        """Image tokens of one sample that each decoder layer sees."""
        s = self._sample(sample)
        counts = [len(s.image)] * self._n_layers
        for layer, kept in s.stages:
            counts[layer:] = [len(kept)] * (self._n_layers - layer)
        return counts

    def layer_average(self, sample: int = -1) -> float:
        """Image tokens of one sample that a decoder layer sees on average: the other thing that "64 tokens" may mean."""
        return sum(self.image_tokens(sample)) / self._n_layers

    def lengths(self, sample: int = -1) -> list[int]:
        """Tokens of one sample, text included and padding left out, that each decoder layer sees when the prompt is read."""
        s = self._sample(sample)
        return [s.length - len(s.image) + count for count in self.image_tokens(sample)]

    def flops(self, sample: int = -1) -> tuple[int, int]:
        """FLOPs of the decoder layers over one sample's prompt, by :func:`dart.cost.layer_flops`: plain, and pruned."""
        plain = [self._sample(sample).length] * self._n_layers
        return tuple(sum(cost.layer_flops(self._decoder_config, lengths)) for lengths in (plain, self.lengths(sample)))

    def kv_lengths(self, sample: int = -1) -> list[int]:
        """Cache entries of one sample, layer by layer, after its prompt was read and without padding.

        Sliding layers keep one less than their window, as a dynamic cache does.
        """
        return self._in_windows(self.lengths(sample))

    def _in_windows(self, lengths: list[int]) -> list[int]:
        window = getattr(self._decoder_config, "sliding_window", None)
        kinds = layer_types(self._decoder_config)
        return [min(n, window - 1) if window and kind != "full_attention" else n for n, kind in zip(lengths, kinds)]

    def kv_bytes(self, sample: int = -1) -> tuple[int, int]:
        """Bytes of one sample's keys and values in all layers: what the plain prompt takes, and what the pruned one does."""
        s, config = self._sample(sample), self._decoder_config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        entry = 2 * heads * head_dim * self._element_size
        return entry * sum(self._in_windows([s.length] * self._n_layers)), entry * sum(self.kv_lengths(sample))

    def show(self, image, sample: int = -1, *, ax=None):
        """Draw the kept patches of one sample over its image.

        Parameters
        ----------
        image : PIL.Image.Image or array, or a list of them
            The picture or pictures of the sample, as they went into the processor; for a video its frames, one for each
            step in time.
        sample : int
            Which of :attr:`samples`; the last unless told.
        ax : matplotlib.axes.Axes, optional
            Where to draw; only for a sample with one view.

        Returns
        -------
        list of matplotlib.axes.Axes
            One for every view: LLaVA has one, LLaVA-NeXT the base view and the tiles.

        Raises
        ------
        ValueError
            If the family has no layout, or the pictures are not as many as the sample has.
        IndexError
            If there is no such sample.
        """
        from dart.plots import draw_patches

        s = self._sample(sample)
        stays = torch.isin(s.image, s.kept)
        pictures = list(image) if isinstance(image, (list, tuple)) else [image]
        images = self._images(sample, pictures)
        views = [view for each in images for view in each]
        if len(pictures) == len(images):
            shown = [picture for picture, each in zip(pictures, images) for _ in each]
        elif len(pictures) == len(views):
            shown = pictures
        else:
            raise ValueError(f"{len(pictures)} pictures given, but the sample has {len(images)}; give them all, in order")
        title = f"{len(s.kept)} of {len(s.image)} image tokens kept"
        if self._family.centre_crop:
            shown = [_centre_square(picture) for picture in shown]
        return [draw_patches(picture, stays[view].numpy(), ax=ax, title=title) for picture, view in zip(shown, views)]

    def _images(self, sample: int, pictures: list) -> list[tuple[Tensor, ...]]:
        """For each image of a sample its views: tables of ranks among the sample's image tokens."""
        s = self._sample(sample)
        number, row = self._rows[sample]
        rotary = self._prompts[number].grid
        rotary = None if rotary is None else rotary[:, row].cpu()[:, s.image]
        sizes = [_pixels(picture).shape[:2] for picture in pictures]
        return lay_out(self._family, self._config, s.image, sizes, rotary)

    def _sample(self, sample: int) -> Sample:
        samples = self.samples
        if not -len(samples) <= sample < len(samples):
            raise IndexError(f"sample {sample}, but {len(samples)} prompts with an image were read in the block")
        return samples[sample]

    def __str__(self) -> str:
        samples = self.samples
        if not samples:
            return f"{type(self.method).__name__}: no prompt with an image was read"
        layers = [layer for layer, _ in samples[0].stages]
        counts = [[len(s.image) for s in samples]] + [[len(s.stages[i][1]) for s in samples] for i in range(len(layers))]
        plain, pruned = zip(*(self.kv_bytes(i) for i in range(len(samples))))
        seconds = sorted(each for each in self.selection_seconds if not math.isnan(each))
        timed = f"{1000 * seconds[len(seconds) // 2]:.2g} ms" if seconds else "compiled with the layers, no time of its own"
        text = (
            f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}: "
            f"{_span(counts[0])} image tokens -> {' -> '.join(map(_span, counts[1:]))}; "
            f"KV cache {sum(plain) / 2**20:.4g} -> {sum(pruned) / 2**20:.4g} MiB; "
            f"selection {timed}"
        )
        if len(samples) > 1:
            text = f"{len(samples)} samples, {text}"
        everything = sum(len(s.image) == len(s.kept) for s in samples)
        if everything:
            text += f" ({everything} of {len(samples)} samples kept everything: the budget is not below what they hold)"
        return text


def _span(numbers: list[int]) -> str:
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _pixels(picture) -> np.ndarray:
    return np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)


def _centre_square(picture) -> np.ndarray:
    pixels = _pixels(picture)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]
