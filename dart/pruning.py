"""The context manager `dart.prune`: hooks in, hooks out, and a report of what it did.

How it works on a stock model, layer by layer (``layer=2``, T layers):

    layers 0 .. 1      the full prompt; the keys of layer 1 are noted as it hands them to its cache
    before layer 2     the method decides; hidden states are gathered, the rest follows the same index:
    layers 2 .. T-1    rotary tables and masks gathered, position ids withheld
    final norm         dropped positions come back with the state they were dropped in, so that the last hidden states
                       and the logits have the shape that the plain model gives them

Kept tokens keep their original positions, and decoding goes on behind the unpruned prompt. Layers before `layer` have
a cache of full length, the others a short one; masks for later calls are made to measure for the short ones.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from dart.families import Family, find, image_token_ids, layer_types
from dart.methods import Method, View

_active: set[int] = set()       # ids of decoders inside a context


@contextmanager
def prune(model: nn.Module, method: Method, *, family: Family | None = None) -> Iterator[Report]:
    """Prune the image tokens of every prompt that `model` reads inside the ``with`` block.

    Parameters
    ----------
    model : nn.Module
        A stock transformers model of a family in :data:`dart.FAMILIES`, also wrapped by PEFT or split by accelerate. The
        attention kernel (``eager``, ``sdpa``, FlashAttention) stays as it is. Nothing of it is replaced; hooks are gone
        after the block, also after an exception.
    method : Method
        What to keep: ``dart.DART(keep=64)``, ``dart.Random(keep=64, seed=0)`` or one of your own.
    family : Family, optional
        Description of a family that is not in :data:`dart.FAMILIES`.

    Yields
    ------
    Report
        What was kept, for every sample read in the block.

    Raises
    ------
    ValueError
        No method; an unknown family; ``layer`` outside the decoder. In the block: image tokens in a call that continues a cache (later
        images of a chat, chunked prefill), a prompt whose last token is a dropped image token, several prompts packed into
        one row, flex attention, gradient checkpointing, a sequence longer than the window of a sliding layer that is
        pruned, a cache that was pruned at another layer or cut out of step.
    RuntimeError
        A second context on a model that has one; two threads inside the model at once; a copy of the model inside the block.

    Notes
    -----
    Images are found by their placeholder ids in `input_ids`, or by the embeddings of these ids in `inputs_embeds`; embeddings
    that hold image features already have neither, and are not pruned. `output_hidden_states` and `output_attentions` show
    the short layers as they are. Use a pruned cache inside a block of the same method only, and leave the order of its rows
    to `generate`. Code compiled by torch is traced anew at both ends of the block.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r} is no reduction method; give an instance, like dart.DART(keep=64)")
    family, body, decoder = find(model, family)
    n_layers = len(decoder.layers)
    if not isinstance(method.layer, int) or not 0 <= method.layer < n_layers:
        raise ValueError(f"layer={method.layer}, but the model has {n_layers} decoder layers; use 0 <= layer < {n_layers}")
    if id(decoder) in _active:
        raise RuntimeError("dart.prune is already active on this model; leave that block before you enter another")

    report = Report(method, n_layers, decoder.config, family, body.config)
    pruner = _Pruner(method, family, body, decoder, report)
    _active.add(id(decoder))
    handles: list = []
    try:
        pruner.hook(handles)
        _forget_compiled_code()
        yield report
    finally:
        _active.discard(id(decoder))
        for handle in handles:
            handle.remove()
        _forget_compiled_code()


def _forget_compiled_code() -> None:
    """Compiled code does not look for hooks again: it would go on without them, or with them."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@dataclass
class _Kept:
    """What the layers of the short sequence know of it. It lies on the cache that it belongs to."""

    index: Tensor               # (batch, kept) positions in the prompt, ascending; short rows end in dropped positions
    real: Tensor | None         # bool (batch, kept), False at such fillers; None: there are none
    seen: Tensor | None         # bool (batch, kept), False at fillers and padding; None: all True
    length: int                 # of the prompt
    layer: int

    @property
    def dropped(self) -> int:
        """Positions that the short caches lack."""
        return self.length - self.index.shape[1]


class _NotingCache:
    """Stands in for the cache during one layer, to note the keys and values it hands over; also where there is none."""

    def __init__(self, cache):
        self.cache = cache
        self.keys = self.values = None

    def update(self, keys, values, *args, **kwargs):
        self.keys, self.values = keys, values
        return (keys, values) if self.cache is None else self.cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.cache, name)


class _Pruner:
    """The hooks of one context, and what they hand on to each other within one call of the model."""

    def __init__(self, method: Method, family: Family, body: nn.Module, decoder: nn.Module, report: Report):
        self.method, self.report, self.body, self.decoder = method, report, body, decoder
        self.token_ids = image_token_ids(body.config, family)
        self.signature = inspect.signature(body.forward)
        self.layer_types = layer_types(decoder.config)
        self.thread: int | None = None                      # the one that is inside the model
        self._forget()

    def hook(self, handles: list) -> None:
        """Set the hooks, and put the handle of each into `handles` at once."""
        first = self.method.layer
        layers = self.decoder.layers
        deepstack = "deepstack_visual_embeds" in inspect.signature(self.decoder.forward).parameters
        handles.append(self.body.register_forward_pre_hook(self._enter_body, with_kwargs=True))
        handles.append(self.body.register_forward_hook(self._leave_body, always_call=True))
        handles.append(self.decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
        handles.append(self.decoder.norm.register_forward_pre_hook(self._restore_length))
        handles.append(layers[first].register_forward_pre_hook(self._enter_first_short_layer, with_kwargs=True))
        if first > 0:
            handles.append(layers[first - 1].register_forward_pre_hook(self._enter_layer_before, with_kwargs=True))
        for number, layer in enumerate(layers):
            if number >= first:
                handles.append(layer.register_forward_pre_hook(partial(self._enter_short_layer, number), with_kwargs=True))
            if deepstack:
                handles.append(layer.register_forward_hook(partial(self._add_deepstack, number)))

    def __deepcopy__(self, memo):
        raise RuntimeError("a model cannot be copied or saved whole inside dart.prune: its copy would stay pruned; leave the block")

    __reduce_ex__ = __deepcopy__

    def _forget(self) -> None:
        self.image_mask: Tensor | None = None
        self.attention_mask = None                          # as the caller gave it
        self.position_ids: Tensor | None = None             # likewise
        self.grid: Tensor | None = None
        self.noting: _NotingCache | None = None
        self.kept: _Kept | None = None
        self.past: int | Tensor = 0                         # entries of the short caches before this call
        self.entering: Tensor | None = None                 # full hidden states at the first short layer, prefill only
        self.deepstack: list[Tensor] = []
        self.gathered: list[tuple[Tensor, Tensor]] = []     # what the layers of one call share: (given, made to measure)

    # ---- hooks, in the order in which a call meets them

    def _enter_body(self, body, args, kwargs):
        if self.thread not in (None, threading.get_ident()):
            raise RuntimeError("two threads call a model inside dart.prune at once; let one wait for the other, or give each its model")
        self.thread = threading.get_ident()
        self._forget()
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        self.attention_mask, self.position_ids = given.get("attention_mask"), given.get("position_ids")
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embeds is None or (ids if ids is not None else embeds).shape[1] == 1:
            return                                       # a decoding step: looking for images in it would wait for the device
        if ids is not None:
            mask = torch.isin(ids, torch.tensor(self.token_ids, device=ids.device))
        else:
            tokens = body.get_input_embeddings()(torch.tensor(self.token_ids, device=embeds.device))
            mask = (embeds[:, :, None] == tokens).all(-1).any(-1)
        if mask.any():
            self.image_mask = mask
            self._refuse_prompt(given)

    def _leave_body(self, body, args, output):
        if self.thread == threading.get_ident():
            self.thread = None
            self._forget()

    def _enter_decoder(self, decoder, args, kwargs):
        if isinstance(positions := kwargs.get("position_ids"), Tensor) and positions.ndim == 3:
            self.grid = positions[-3:].int()             # m-RoPE: tells where on the picture a token lies
        features = kwargs.get("deepstack_visual_embeds")
        if self.image_mask is None or features is None or self.method.layer >= len(features):
            return None
        # The decoder would add them at full length behind layers that are short by then; the hooks do it instead.
        where = kwargs["visual_pos_masks"]
        for feature in features:
            dense = feature.new_zeros(*where.shape, feature.shape[-1])
            dense[where] = feature
            self.deepstack.append(dense)
        return args, {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}

    def _enter_layer_before(self, layer, args, kwargs):
        if self.image_mask is None:
            return None
        cache = kwargs.get("past_key_values")
        self._refuse_continuation(cache, self.method.layer - 1)
        self.noting = _NotingCache(cache)
        return args, {**kwargs, "past_key_values": self.noting}

    def _enter_first_short_layer(self, layer, args, kwargs):
        cache, hidden = kwargs.get("past_key_values"), args[0]
        if self.image_mask is None:
            kept = getattr(cache, "dart_kept", None)
            if kept is None:
                return None
            # A copy: the length of a static cache is a tensor that the layers of this call count up.
            self.past = cache.get_seq_length(kept.layer) + 0
            if isinstance(self.past, int) or hidden.shape[1] > 1 or not self.past.is_cuda:
                if int(self.past) == 0:                  # a cache that was reset for another prompt
                    del cache.dart_kept
                    return None
            self.kept = kept
            self._check_continuation(cache, hidden.shape[1])
            return None
        if self.method.layer == 0:
            self._refuse_continuation(cache, 0)
        self.kept = self._select(hidden, kwargs.get("attention_mask"))
        self.entering = hidden
        if cache is not None:
            cache.dart_kept = self.kept
        short = hidden.take_along_dim(self.kept.index.to(hidden.device)[..., None], dim=1)
        return (short, *args[1:]), kwargs

    def _enter_short_layer(self, number, layer, args, kwargs):
        if self.kept is None:
            return None
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if mask is not None and not isinstance(mask, Tensor):
            raise ValueError(f"masks of type {type(mask).__name__} cannot be shortened; use eager, sdpa or flash attention")
        if self.entering is None:
            mask = self._once(mask, self._mask_to_continue, number, self._room(cache), args[0])
            return args, {**kwargs, "attention_mask": mask}
        self._refuse_sliding(number, max(self.kept.length, self._room(cache)))
        cos, sin = kwargs["position_embeddings"]
        kwargs = {
            **kwargs,
            "position_embeddings": (self._once(cos, self._rows), self._once(sin, self._rows)),
            "attention_mask": self._once(mask, self._mask_of_prompt, self._room(cache), args[0]),
        }
        if "position_ids" in kwargs:
            # FlashAttention reads ids with gaps as several packed sequences; the rotary table is gathered already.
            kwargs["position_ids"] = None
        return args, kwargs

    def _add_deepstack(self, index, layer, args, output):
        if index >= len(self.deepstack):
            return None
        feature = self.deepstack[index].to(output.device, output.dtype)
        if self.kept is not None:
            feature = self._rows(feature)
        return output + feature

    def _restore_length(self, norm, args):
        if self.entering is None:
            return None
        hidden, index = args[0], self.kept.index.to(args[0].device)[..., None]
        entering = self.entering.to(hidden.device)
        if self.kept.real is not None:
            real = self.kept.real.to(hidden.device)[..., None]
            hidden = torch.where(real, hidden, entering.take_along_dim(index, dim=1))
        return (entering.scatter(1, index.expand_as(hidden), hidden), *args[1:])

    # ---- the decision

    def _select(self, hidden: Tensor, mask: Tensor | None) -> _Kept:
        image = self.image_mask.to(hidden.device)
        padding = self._padding(image, mask)
        if self.noting is None:
            keys = values = hidden[:, None]
            view = View(hidden, keys, values, image, padding, final_norm=lambda states: states)
        elif self.noting.keys is None:
            raise ValueError(
                f"layer {self.method.layer - 1} handed no keys to a cache, as under gradient checkpointing; prune without it"
            )
        else:
            # A static cache may have handed back its whole length; what the layer gave it is the prompt.
            view = View(hidden, self.noting.keys.to(hidden.device), self.noting.values.to(hidden.device), image, padding,
                        self._final_norm)
        stopwatch = _Stopwatch(hidden.device)
        with torch.no_grad():
            stays = self.method.select(view)
        stopwatch.stop()
        if not isinstance(stays, Tensor) or stays.shape != image.shape or stays.dtype != torch.bool:
            got = f"{stays.dtype} of shape {tuple(stays.shape)}" if isinstance(stays, Tensor) else type(stays).__name__
            raise ValueError(f"{type(self.method).__name__}.select gave {got}; give bool (batch, length) = {tuple(image.shape)}")
        stays = stays | ~image
        counts = stays.sum(1)
        positions = torch.arange(image.shape[1], device=image.device)
        last = positions.masked_fill(padding, -1).argmax(1, keepdim=True)
        longest, shortest, all_last = torch.stack([counts.amax(), counts.amin(), stays.take_along_dim(last, 1).all()]).tolist()
        if not all_last:
            raise ValueError("the last token of a prompt is an image token that was dropped, but generation goes on from the last "
                             "token; put text behind the image")
        self.report._add(image, image & stays, padding, stopwatch, self.grid, hidden.element_size())
        index = stays.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
        real = None if longest == shortest else torch.arange(longest, device=index.device) < counts[:, None]
        seen = ~padding.take_along_dim(index, dim=1)
        if real is not None:
            seen &= real
        elif mask is None:      # transformers leaves the mask out where nothing is padded
            seen = None
        return _Kept(index, real, seen, hidden.shape[1], self.method.layer)

    def _padding(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Padding of the prompt, from the caller's mask or else from what the layer's mask hides of every position."""
        length = image.shape[1]
        if isinstance(self.attention_mask, Tensor) and self.attention_mask.ndim == 2:
            return ~self.attention_mask[:, :length].to(image.device).bool()
        if mask is None:
            return torch.zeros_like(image)
        if mask.ndim == 2:
            return ~mask[:, :length].bool()
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return ~allowed[:, 0, :, :length].any(1).expand_as(image)

    def _final_norm(self, hidden: Tensor) -> Tensor:
        # `forward`, not a call, which would run the hook that restores the length; accelerate replaces `forward` itself.
        return self.decoder.norm.forward(hidden).to(hidden.device)

    # ---- masks and tables made to measure

    def _once(self, given: Tensor | None, make, *args):
        """`make(given, *args)`, once for all layers of a call that are handed the same tensor."""
        for source, made in self.gathered:
            if source is given:
                return made
        made = make(given, *args)
        self.gathered.append((given, made))
        return made

    def _rows(self, table: Tensor) -> Tensor:
        return table.take_along_dim(self.kept.index.to(table.device)[..., None], dim=-2)

    def _mask_of_prompt(self, mask: Tensor | None, room: int, hidden: Tensor) -> Tensor | None:
        kept = self.kept
        if mask is None:
            return None if kept.real is None else self._build_mask(kept.real, hidden, 0, room, like=None)
        index = kept.index.to(mask.device)
        if mask.ndim == 2:
            mask = mask.take_along_dim(index, dim=1)
            return mask if kept.real is None else mask * kept.real.to(mask)
        mask = mask.take_along_dim(index[:, None, :, None], dim=-2).take_along_dim(index[:, None, None, :], dim=-1)
        hide = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        if kept.real is not None:
            mask = mask.masked_fill(~kept.real.to(mask.device)[:, None, None, :], hide)
        return nn.functional.pad(mask, (0, max(0, room - mask.shape[-1])), value=hide)

    def _mask_to_continue(self, mask: Tensor | None, number: int, room: int, hidden: Tensor) -> Tensor | None:
        """A mask for later tokens, over the short caches. The one that is handed is sized for a long cache, or for a short one
        as if it were a whole one: transformers takes the first layer of each kind for its measure."""
        kept, given, new = self.kept, self.attention_mask, hidden.shape[1]
        if mask is None and kept.seen is None:
            return None
        if isinstance(given, Tensor) and given.ndim == 2:
            given = given.to(hidden.device).bool()
            seen = given.take_along_dim(kept.index.to(hidden.device), dim=1)
            if kept.real is not None:
                seen &= kept.real.to(hidden.device)
            return self._build_mask(torch.cat([seen, given[:, kept.length :]], dim=1), hidden, self.past, room, like=mask)
        measured = self.layer_types.index(self.layer_types[number])
        if given is not None and mask is not None and mask.ndim == 4 and measured < kept.layer:
            # Made beforehand, over a static cache (or by the caller): column j of the short cache is position index[j].
            tail = torch.arange(kept.length, mask.shape[-1], device=mask.device).expand(len(kept.index), -1)
            columns = torch.cat([kept.index.to(mask.device), tail], dim=1)[:, None, None]
            hide = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
            mask = mask.expand(len(hidden), -1, -1, -1).take_along_dim(columns, dim=-1)
            if kept.real is not None:
                real = nn.functional.pad(kept.real.to(mask.device), (0, tail.shape[1]), value=True)
                mask = mask.masked_fill(~real[:, None, None], hide)
            return nn.functional.pad(mask, (0, max(0, room - mask.shape[-1])), value=hide)
        if given is not None and new > 1:
            raise ValueError("a second turn in a static cache whose pruned layers are the first with full attention: its padding "
                             "cannot be told; use a dynamic cache")
        seen = kept.seen if kept.seen is not None else torch.ones_like(kept.index, dtype=torch.bool)
        return self._build_mask(seen, hidden, self.past, room, like=mask)

    def _room(self, cache) -> int:
        """Columns that attention has in a static cache, filled or not; 0 for others."""
        return cache.get_max_length(self.kept.layer) if getattr(cache, "is_compileable", False) else 0

    def _build_mask(self, seen: Tensor, hidden: Tensor, past, room: int, like: Tensor | None) -> Tensor:
        """A causal mask over the short caches, in the form of `like` or else of the attention that is set.

        `seen` (batch, columns) hides padding and fillers; columns behind its end are visible.
        """
        queries, device = hidden.shape[1], hidden.device
        entries = room or past + queries
        seen = seen.to(device)[:, :entries]
        seen = nn.functional.pad(seen, (0, entries - seen.shape[1]), value=True)
        attention = self.decoder.config._attn_implementation
        if like.ndim == 2 if like is not None else "flash" in attention:
            return seen if like is None else seen.to(like.dtype)
        columns = torch.arange(entries, device=device)
        causal = columns <= torch.arange(queries, device=device)[:, None] + past
        mask = seen[:, None, None, :] & causal
        if like.dtype == torch.bool if like is not None else attention != "eager":
            return mask
        dtype = hidden.dtype if like is None else like.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)

    # ---- what cannot be pruned, or continued

    def _refuse_prompt(self, given: dict) -> None:
        if self.decoder.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.decoder.layers):
            raise ValueError("gradient checkpointing runs layers a second time, without their hooks; prune without it")
        packed = given.get("cu_seq_lens_q") is not None
        if self.attention_mask is None and isinstance(self.position_ids, Tensor) and self.position_ids.ndim == 2:
            packed |= bool((self.position_ids.diff() < 0).any())
        if packed:
            raise ValueError("several prompts packed into one row cannot be pruned; give one prompt a row")

    def _refuse_continuation(self, cache, layer: int) -> None:
        past = 0 if cache is None else int(cache.get_seq_length(layer))
        if past > 0:
            raise ValueError(
                f"image tokens in a call that continues a cache of {past} positions: later images of a chat and chunked "
                "prefill through an image cannot be pruned; give all images in the first call, in one piece"
            )

    def _check_continuation(self, cache, new: int) -> None:
        kept, past = self.kept, self.past
        if kept.layer != self.method.layer:
            raise ValueError(f"this cache was pruned at layer {kept.layer}, the context prunes at layer {self.method.layer}; "
                             "continue it in a context with the same layer")
        if kept.layer == 0:
            if new > 1:
                raise ValueError("a second turn on a cache pruned at layer 0: transformers counts the conversation by the "
                                 "length of layer 0; start a new prompt, or prune at layer 1 or later")
            if self.position_ids is None:
                raise ValueError("decoding on a cache pruned at layer 0 needs position_ids (generate gives them)")
        if isinstance(past, int):
            if kept.layer > 0 and cache.get_seq_length(0) - new - past != kept.dropped:
                raise ValueError(
                    f"the cache is out of step: layer 0 has {cache.get_seq_length(0) - new} positions and layer {kept.layer} "
                    f"{past}, which should be {kept.dropped} fewer; was it cropped? Start again from the prompt"
                )
            for number in range(kept.layer, len(self.layer_types)):
                self._refuse_sliding(number, past + kept.dropped + new)

    def _refuse_sliding(self, number: int, length: int) -> None:
        window = getattr(self.decoder.config, "sliding_window", None)
        if self.layer_types[number] != "full_attention" and window is not None and length > window:
            raise ValueError(
                f"layer {number} attends to a sliding window of {window} positions, but the sequence has {length}: once "
                "pruned, its window would be measured in kept tokens; prune behind the last sliding layer, or shorten the prompt"
            )


class _Stopwatch:
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


@dataclass(frozen=True)
class Sample:
    """What happened to one sample (one row of a prompt's batch).

    Attributes
    ----------
    kept : Tensor, int64
        Positions in the prompt of the image tokens that stayed, ascending; padding counts as positions.
    image : Tensor, int64
        Positions in the prompt of all its image tokens, ascending.
    length : int
        Tokens of the prompt without padding.
    """

    kept: Tensor
    image: Tensor
    length: int


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
        self._prompts: list[tuple] = []
        self._samples: list[Sample] = []        # of the first prompts, as many as somebody asked about so far
        self._rows: list[tuple[int, int]] = []  # prompt and row of each of them

    def _add(self, image, stays, padding, stopwatch, grid, element_size) -> None:
        self._prompts.append((image, stays, padding, stopwatch, grid))
        self._element_size = element_size

    @property
    def samples(self) -> list[Sample]:
        """One :class:`Sample` a row of every prompt that held an image, oldest first (beams and repeats are rows too)."""
        for number in range(self._rows[-1][0] + 1 if self._rows else 0, len(self._prompts)):
            for row, (image, stays, padding) in enumerate(zip(*self._prompts[number][:3])):
                kept, held = (mask.nonzero().flatten().cpu() for mask in (stays, image))
                self._samples.append(Sample(kept, held, int((~padding).sum())))
                self._rows.append((number, row))
        return self._samples

    @property
    def selection_seconds(self) -> list[float]:
        """Time that `select` took, in seconds, one number a prompt (a batch is one prompt). Waits for the device."""
        return [stopwatch.seconds for *_, stopwatch, _ in self._prompts]

    def kv_lengths(self, sample: int = -1) -> list[int]:
        """Cache entries of one sample, layer by layer, after its prompt was read and without padding.

        Sliding layers keep one less than their window, as a dynamic cache does.
        """
        s = self._sample(sample)
        short = s.length - len(s.image) + len(s.kept)
        return self._in_windows([s.length if layer < self.method.layer else short for layer in range(self._n_layers)])

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
        if self._family.layout is None:
            raise ValueError(
                f"where the tokens of {self._config.model_type!r} lie on the image is not described; give dart.Family(layout=...) "
                "or draw with dart.plots.draw_patches"
            )
        s = self._sample(sample)
        number, row = self._rows[sample]
        grid = self._prompts[number][-1]
        grid = None if grid is None else grid[:, row].cpu()[:, s.image]
        breaks = (s.image.diff() > 1).nonzero().flatten() + 1
        spans = torch.tensor_split(torch.arange(len(s.image)), breaks.tolist())
        if len(spans) == 1 and grid is None:            # nothing but the pictures tells images apart that touch
            spans = spans[0].tensor_split(len(pictures))
        sizes = [_pixels(picture).shape[:2] for picture in pictures]
        sizes = sizes if len(sizes) == len(spans) else sizes[:1] * len(spans)
        return [
            tuple(span[view] for view in self._family.layout(self._config, len(span), size, None if grid is None else grid[:, span]))
            for span, size in zip(spans, sizes)
        ]

    def _sample(self, sample: int) -> Sample:
        samples = self.samples
        if not -len(samples) <= sample < len(samples):
            raise IndexError(f"sample {sample}, but {len(samples)} prompts with an image were read in the block")
        return samples[sample]

    def __str__(self) -> str:
        samples = self.samples
        if not samples:
            return f"layer {self.method.layer}: no prompt with an image was read"
        before = sorted({len(s.image) for s in samples})
        after = sorted({len(s.kept) for s in samples})
        plain, pruned = zip(*(self.kv_bytes(i) for i in range(len(samples))))
        seconds = sorted(self.selection_seconds)
        text = (
            f"layer {self.method.layer}: {_span(before)} image tokens -> {_span(after)}; "
            f"KV cache {sum(plain) / 2**20:.4g} -> {sum(pruned) / 2**20:.4g} MiB; "
            f"selection {1000 * seconds[len(seconds) // 2]:.2g} ms"
        )
        if len(samples) > 1:
            text = f"{len(samples)} samples, {text}"
        everything = sum(len(s.image) == len(s.kept) for s in samples)
        if everything:
            text += f" ({everything} of {len(samples)} samples kept everything: the budget is not below what they hold)"
        return text


def _span(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _pixels(picture) -> np.ndarray:
    return np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture)


def _centre_square(picture) -> np.ndarray:
    pixels = _pixels(picture)
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]
