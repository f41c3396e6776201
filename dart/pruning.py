"""The context manager `dart.prune`: hooks in, hooks out.

How it works on a stock model, layer by layer (``layer=2``, T layers):

    layers 0 .. 1      the full prompt; what layer 1 hands to its attention kernel is noted
    before layer 2     the method decides; hidden states are gathered, the rest follows the same index:
    layers 2 .. T-1    rotary tables and masks gathered, position ids withheld
    final norm         dropped positions come back with the state they were dropped in, so that the last hidden states
                       and the logits have the shape that the plain model gives them

A method with several places does so at each of them. Kept tokens keep their original positions, and decoding goes on
behind the unpruned prompt. Layers before the first place have a cache of full length, the others shorter ones; masks for
later calls are made to measure for these. What happens in the vision tower is in `dart.tower`.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from dart.attention import Noting
from dart.families import Family, find, image_token_ids, lay_out, layer_types
from dart.methods.base import Method, View, answer
from dart.report import Prompt, Report, Stage, Stopwatch
from dart.tower import Tower, NoteSizes

_active: set[int] = set()       # ids of decoders inside a context


@contextmanager
def prune(model: nn.Module, method: Method, *, family: Family | None = None) -> Iterator[Report]:
    """Prune the image tokens of every prompt that `model` reads inside the ``with`` block.

    Parameters
    ----------
    model : nn.Module
        A stock transformers model of a family in :data:`dart.FAMILIES`, also wrapped by PEFT or split by accelerate. The
        attention kernel (``eager``, ``sdpa``, FlashAttention) stays as it is. Hooks do all the work (and, for pictures in
        tiles, a wrapper that notes their sizes); they are gone after the block, also after an exception.
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
        No method; an unknown family, or one whose vision tower is not described for a method that needs it; a place outside the
        decoder. In the block: image tokens in a call that continues a cache (later
        images of a chat, chunked prefill), a prompt whose last token is a dropped image token, several prompts packed into
        one row, flex attention, gradient checkpointing, a sequence longer than the window of a sliding layer that is
        pruned under FlashAttention or with a static cache, a cache that was pruned at another layer or cut out of step.
    RuntimeError
        A second context on a model that has one; two threads inside the model at once; a copy of the model inside the block.

    Notes
    -----
    Images are found by their placeholder ids in `input_ids`, or by the embeddings of these ids in `inputs_embeds`; embeddings
    that hold image features already have neither, and are not pruned. `output_hidden_states` and `output_attentions` show
    the short layers as they are. Methods decide without gradient: states that they change pass none on, all others do. Use a pruned cache inside a block of the same method only, and leave the order of its rows
    to `generate`. Code compiled by torch is traced anew at both ends of the block.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r} is no reduction method; give an instance, like dart.DART(keep=64)")
    family, body, decoder = find(model, family)
    n_layers = len(decoder.layers)
    places = method.places(n_layers)
    if any(not isinstance(place, int) or not 0 <= place < n_layers for place in places):
        raise ValueError(f"layer={', '.join(map(str, places))}, but the model has {n_layers} decoder layers; use 0 <= layer < {n_layers}")
    if list(places) != sorted(set(places)):
        raise ValueError(f"{type(method).__name__}.places gave {places}; give layers in ascending order, each once")
    if id(decoder) in _active:
        raise RuntimeError("dart.prune is already active on this model; leave that block before you enter another")

    report = Report(method, n_layers, decoder.config, family, body.config)
    pruner = _Pruner(method, places, family, body, decoder, report)
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


class _Untimed:
    """In place of a stopwatch in compiled code, where nothing has a time of its own."""

    seconds = math.nan

    def stop(self) -> None:
        """As a stopwatch would be."""


_UNTIMED = _Untimed()


@dataclass
class _Kept:
    """What the layers behind one reduction know of it. It lies on the cache that it belongs to."""

    index: Tensor               # (batch, kept) positions in the prompt, ascending; short rows begin with dropped positions
    real: Tensor | None         # bool (batch, kept), False at such fillers; None: there are none
    seen: Tensor | None         # bool (batch, kept), False at fillers and padding; None: all True
    length: int                 # of the prompt
    layer: int                  # the first that it holds for

    @property
    def dropped(self) -> int:
        """Positions that the short caches lack."""
        return self.length - self.index.shape[1]


class _Short:
    """The layers behind one reduction, during one call: their masks and tables, made to measure."""

    def __init__(self, kept: _Kept, pruner: _Pruner, past: int | Tensor = 0, entering: Tensor | None = None, local: Tensor | None = None):
        self.kept = kept
        self.past = past                                    # entries of the short caches before this call
        self.entering = entering                            # prefill: hidden states before the reduction
        self.local = local                                  # prefill: which of these stayed, (batch, kept)
        self.attention_mask = pruner.attention_mask
        self.config, self.layer_types, self.first_place = pruner.decoder.config, pruner.layer_types, pruner.places[0]
        self.made: list[tuple[Tensor, Tensor]] = []         # what the layers share: (given, made to measure)

    def enter(self, number: int, args, kwargs):
        """Arguments of layer `number`, made to measure."""
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if mask is not None and not isinstance(mask, Tensor):
            raise ValueError(f"masks of type {type(mask).__name__} cannot be shortened; use eager, sdpa or flash attention")
        if self.entering is None:
            if mask is None and self.kept.seen is None and self.layer_types[number] == "full_attention":
                return None                                 # most steps of decoding: nothing to hide, nothing to make
            window = None if self._room(cache) else self.window(number, self.past + self.kept.dropped + args[0].shape[1], cache)
            mask = self._once((mask, window), self._mask_to_continue, number, self._room(cache), args[0])
            return args, {**kwargs, "attention_mask": mask}
        window = self.window(number, max(self.kept.length, self._room(cache)), cache)
        cos, sin = kwargs["position_embeddings"]
        kwargs = {
            **kwargs,
            "position_embeddings": tuple(self._once((table, None), lambda table, _: self.rows(table)) for table in (cos, sin)),
            "attention_mask": self._once((mask, window), self._mask_of_prompt, self._room(cache), args[0]),
        }
        if "position_ids" in kwargs:
            # FlashAttention reads ids with gaps as several packed sequences; the rotary table is gathered already.
            kwargs["position_ids"] = None
        return args, kwargs

    def restore(self, hidden: Tensor) -> Tensor:
        """States at the length before the reduction: what was dropped has the state it was dropped in."""
        index, entering = self.local.to(hidden.device)[..., None], self.entering.to(hidden.device)
        if self.kept.real is not None:
            real = self.kept.real.to(hidden.device)[..., None]
            hidden = torch.where(real, hidden, entering.take_along_dim(index, dim=1))
        return entering.scatter(1, index.expand_as(hidden), hidden)

    def rows(self, table: Tensor) -> Tensor:
        return table.take_along_dim(self.kept.index.to(table.device)[..., None], dim=-2)

    def _once(self, given: tuple[Tensor | None, int | None], make: Callable, *args):
        """`make(*given, *args)`, once for all layers of a call that are handed the same tensor and have the same window."""
        for (source, window), made in self.made:
            if source is given[0] and window == given[1]:
                return made
        made = make(*given, *args)
        self.made.append((given, made))
        return made

    def window(self, number: int, length: int, cache) -> int | None:
        """The window of layer `number` once `length` positions are more than it; before that it hides nothing.

        Raises
        ------
        ValueError
            Where the window cannot be measured in positions of the prompt.
        """
        window = getattr(self.config, "sliding_window", None)
        if self.layer_types[number] == "full_attention" or window is None or length <= window:
            return None
        if self.layer_types[number] != "sliding_attention" or "flash" in self.config._attn_implementation or getattr(cache, "is_compileable", False):
            raise ValueError(
                f"layer {number} attends to a sliding window of {window} positions, but the sequence has {length}: under FlashAttention "
                "and in static caches the window of a pruned layer would be measured in kept tokens; use sdpa or eager and a dynamic cache, prune "
                "behind the last sliding layer, or shorten the prompt"
            )
        return window

    def _mask_of_prompt(self, mask: Tensor | None, window: int | None, room: int, hidden: Tensor) -> Tensor | None:
        kept = self.kept
        if mask is None:
            if kept.real is None and window is None:
                return None
            real = kept.real if kept.real is not None else torch.ones_like(kept.index, dtype=torch.bool)
            return self._build_mask(real, hidden, 0, room, window, like=None)
        index = kept.index.to(mask.device)
        if mask.ndim == 2:
            mask = mask.take_along_dim(index, dim=1)
            return mask if kept.real is None else mask * kept.real.to(mask)
        mask = mask.take_along_dim(index[:, None, :, None], dim=-2).take_along_dim(index[:, None, None, :], dim=-1)
        hide = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        if kept.real is not None:
            mask = mask.masked_fill(~kept.real.to(mask.device)[:, None, None, :], hide)
        return nn.functional.pad(mask, (0, max(0, room - mask.shape[-1])), value=hide)

    def _mask_to_continue(self, mask: Tensor | None, window: int | None, number: int, room: int, hidden: Tensor) -> Tensor | None:
        """A mask for later tokens, over the short caches. The one that is handed is sized for a long cache, or for a short one
        as if it were a whole one: transformers takes the first layer of each kind for its measure."""
        kept, given, new = self.kept, self.attention_mask, hidden.shape[1]
        if mask is None and kept.seen is None and window is None:
            return None
        if isinstance(given, Tensor) and given.ndim == 2:
            given = given.to(hidden.device).bool()
            seen = given.take_along_dim(kept.index.to(hidden.device), dim=1)
            if kept.real is not None:
                seen &= kept.real.to(hidden.device)
            return self._build_mask(torch.cat([seen, given[:, kept.length :]], dim=1), hidden, self.past, room, window, like=mask)
        if given is not None and window is not None:
            raise ValueError(f"layer {number} has a sliding window of {window} positions and a mask of the caller's own; give a 2-D mask")
        measured = self.layer_types.index(self.layer_types[number])
        if given is not None and mask is not None and mask.ndim == 4 and measured < self.first_place:
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
        return self._build_mask(seen, hidden, self.past, room, window, like=mask)

    def _room(self, cache) -> int:
        """Columns that attention has in a static cache, filled or not; 0 for others."""
        return cache.get_max_length(self.kept.layer) if getattr(cache, "is_compileable", False) else 0

    def _build_mask(self, seen: Tensor, hidden: Tensor, past, room: int, window: int | None, like: Tensor | None) -> Tensor:
        """A causal mask over the short caches, in the form of `like` or else of the attention that is set.

        `seen` (batch, columns) hides padding and fillers; columns behind its end are visible. A layer with a window holds its
        last entries only, and which of these it sees is told by their positions in the prompt.
        """
        queries, device = hidden.shape[1], hidden.device
        entries = room or past + queries
        seen = seen.to(device)[:, :entries]
        seen = nn.functional.pad(seen, (0, entries - seen.shape[1]), value=True)
        attention = self.config._attn_implementation
        if like.ndim == 2 if like is not None else "flash" in attention:
            return seen if like is None else seen.to(like.dtype)
        columns = torch.arange(entries, device=device)
        causal = columns <= torch.arange(queries, device=device)[:, None] + past
        mask = seen[:, None, None, :] & causal
        if window is not None:
            index = self.kept.index.to(device)
            later = torch.arange(entries - index.shape[1], device=device) + self.kept.length
            positions = torch.cat([index, later.expand(len(index), -1)], dim=1)
            mask = mask & (positions[:, None, None, :] > positions[:, None, past:, None] - window)
            mask = mask[..., -(min(past, window - 1) + queries) :]
        if like.dtype == torch.bool if like is not None else attention != "eager":
            return mask
        dtype = hidden.dtype if like is None else like.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill(~mask, torch.finfo(dtype).min)


class _Pruner:
    """The hooks of one context, and what they hand on to each other within one call of the model."""

    def __init__(self, method: Method, places: tuple[int, ...], family: Family, body: nn.Module, decoder: nn.Module, report: Report):
        self.method, self.family, self.report, self.body, self.decoder = method, family, report, body, decoder
        self.token_ids = image_token_ids(body.config, family)
        self.parameters = list(inspect.signature(body.forward).parameters)
        self.layer_types = layer_types(decoder.config)
        self.sizes: list[tuple[int, int]] = []              # of the pictures, where the family asks for them
        self.tower = Tower(method, family, body, self.sizes) if method.reads_tower else None
        self.asked = set(places)                            # layers before which `select` is asked
        self.places = sorted(self.asked | {0}) if self.tower and self.tower.reduces else list(places)
        if not self.places:
            raise ValueError(f"{type(method).__name__} reduces nowhere: its places are empty, and it does nothing in the tower")
        self.stages = [bisect_right(self.places, number) - 1 for number in range(len(decoder.layers))]      # of each layer, -1: none
        self.noting = {place: Noting(decoder.layers[place - 1].self_attn, self._wanted) for place in self.places if place > 0}
        self.thread: int | None = None                      # the one that is inside the model
        self._forget()

    def hook(self, handles: list) -> None:
        """Set the hooks, and put the handle of each into `handles` at once."""
        first = self.places[0]
        layers = self.decoder.layers
        deepstack = "deepstack_visual_embeds" in inspect.signature(self.decoder.forward).parameters
        if hasattr(self.body.config, "image_grid_pinpoints") and hasattr(self.body, "get_image_features"):
            handles.append(NoteSizes(self.body, self.sizes))
        if self.tower is not None:
            self.tower.hook(handles)
        handles.append(self.body.register_forward_pre_hook(self._enter_body, with_kwargs=True))
        handles.append(self.body.register_forward_hook(self._leave_body, always_call=True))
        handles.append(self.decoder.register_forward_pre_hook(self._enter_decoder, with_kwargs=True))
        handles.append(self.decoder.norm.register_forward_pre_hook(self._restore_length))
        handles.append(layers[max(first - 1, 0)].register_forward_pre_hook(self._refuse_continuation, with_kwargs=True))
        for place, noting in self.noting.items():
            handles += noting.hook()
        for number, layer in enumerate(layers):
            if number in self.places:
                handles.append(layer.register_forward_pre_hook(partial(self._enter_place, number), with_kwargs=True))
            if number >= first:
                handles.append(layer.register_forward_pre_hook(partial(self._enter_short_layer, number), with_kwargs=True))
            if deepstack:
                handles.append(layer.register_forward_hook(partial(self._add_deepstack, number)))

    def __deepcopy__(self, memo):
        raise RuntimeError("a model cannot be copied or saved whole inside dart.prune: its copy would stay pruned; leave the block")

    __reduce_ex__ = __deepcopy__

    def _forget(self) -> None:
        self.image_mask: Tensor | None = None
        self.image_counts: list[int] = []                   # of its rows, on the host
        self.padding: Tensor | None = None
        self.attention_mask = None                          # as the caller gave it
        self.position_ids: Tensor | None = None             # likewise
        self.grid: Tensor | None = None
        self.stayed: list[tuple[int, Tensor, Stopwatch]] = []       # what the report will show of each place
        self.memory: dict = {}
        self.shorts: list[_Short] = []                      # one for each place, in order, as far as this call has come
        self.deepstack: list[Tensor] = []
        for noting in self.noting.values():
            noting.noted = None

    def _wanted(self) -> bool:
        return self.image_mask is not None

    def _short(self, number: int) -> _Short | None:
        """The reduction that holds for layer `number`."""
        stage = self.stages[number]
        return self.shorts[stage] if 0 <= stage < len(self.shorts) else None

    # ---- hooks, in the order in which a call meets them

    @torch.compiler.disable
    def _enter_body(self, body, args, kwargs):
        if self.thread not in (None, threading.get_ident()):
            raise RuntimeError("two threads call a model inside dart.prune at once; let one wait for the other, or give each its model")
        self.thread = threading.get_ident()
        self._forget()
        given = {**dict(zip(self.parameters, args)), **kwargs}
        self.attention_mask, self.position_ids = given.get("attention_mask"), given.get("position_ids")
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if ids is None and embeds is None or (ids if ids is not None else embeds).shape[1] == 1:
            return                                       # a decoding step: looking for images in it would wait for the device
        if ids is not None:
            mask = torch.isin(ids, torch.tensor(self.token_ids, device=ids.device))
        else:
            tokens = body.get_input_embeddings()(torch.tensor(self.token_ids, device=embeds.device))
            mask = (embeds[:, :, None] == tokens).all(-1).any(-1)
        image_counts = mask.sum(1).tolist()
        if self.tower is not None:
            self.tower.refuse_prompt(given, any(image_counts))
        if any(image_counts):
            self.image_mask, self.image_counts = mask, image_counts
            self._refuse_prompt(given)

    @torch.compiler.disable
    def _leave_body(self, body, args, output):
        if self.thread == threading.get_ident():
            if output is not None and self.stayed:          # a prompt was read to the end
                device = self.padding.device
                prompt = Prompt(self.image_mask.to(device), self.padding, self.grid, [Stage(*each) for each in self.stayed])
                self.report._add(prompt, self.shorts[0].entering.element_size())
            self.thread = None
            self._forget()

    def _enter_decoder(self, decoder, args, kwargs):
        if self.image_mask is None:
            return None
        if isinstance(positions := kwargs.get("position_ids"), Tensor) and positions.ndim == 3:
            self.grid = positions[-3:].int()             # m-RoPE: tells where on the picture a token lies
        if self.tower is not None:
            self.tower.reads(kwargs["inputs_embeds"])
        features = kwargs.get("deepstack_visual_embeds")
        if features is None or self.places[0] >= len(features):
            return None
        # The decoder would add them at full length behind layers that are short by then; the hooks do it instead.
        where = kwargs["visual_pos_masks"]
        for feature in features:
            dense = feature.new_zeros(*where.shape, feature.shape[-1])
            dense[where] = feature
            self.deepstack.append(dense)
        return args, {**kwargs, "visual_pos_masks": None, "deepstack_visual_embeds": None}

    def _enter_place(self, place, layer, args, kwargs):
        cache, hidden = kwargs.get("past_key_values"), args[0]
        if self.image_mask is None:
            if place == self.places[0]:
                self._continue(cache, hidden)
            return None
        short = self._reduce(place, hidden, kwargs.get("attention_mask"))
        if cache is not None:
            cache.dart_kept = [short.kept for short in self.shorts]
        return (short, *args[1:]), kwargs

    def _enter_short_layer(self, number, layer, args, kwargs):
        short = self._short(number)
        return None if short is None else short.enter(number, args, kwargs)

    def _add_deepstack(self, number, layer, args, output):
        if number >= len(self.deepstack):
            return None
        feature, short = self.deepstack[number].to(output.device, output.dtype), self._short(number)
        return output + (feature if short is None else short.rows(feature))

    def _restore_length(self, norm, args):
        hidden = args[0]
        if self.image_mask is not None:
            for short in reversed(self.shorts):
                hidden = short.restore(hidden)
        return (hidden, *args[1:])

    # ---- the decision

    def _reduce(self, place: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Ask the method what stays from layer `place` on; the hidden states of that."""
        device, before = hidden.device, self.shorts[-1].kept if self.shorts else None
        if before is None:
            image = self.image_mask.to(device)
            self.padding = padding = self._padding(image, mask)
        else:
            index = before.index.to(device)
            image, padding = (each.to(device).take_along_dim(index, 1) for each in (self.image_mask, self.padding))
            if before.real is not None:
                image, padding = image & before.real.to(device), padding | ~before.real.to(device)
        view = self._view(place, hidden, image, padding)
        compiled = torch.compiler.is_compiling()
        stopwatch = _UNTIMED if compiled else Stopwatch(device)
        stays, states = answer(self.method, self.method.select, view) if place in self.asked else (image, hidden)
        if place == 0 and self.tower and self.tower.reduces:
            stays = stays & self.tower.left(image)
        stopwatch.stop()
        stays = stays | ~image
        if before is not None and before.real is not None:
            stays &= before.real.to(device)
        counts = stays.sum(1)
        last = view.last_token
        found = torch.stack([counts.amax(), counts.amin(), stays.take_along_dim(last, 1).all()])
        longest, shortest, all_last = self._planned(place, found) if compiled else found.tolist()
        if not all_last:
            raise ValueError("the last token of a prompt is an image token that was dropped, but generation goes on from the last "
                             "token; put text behind the image")
        # Fillers stand in front: at the end they would push real tokens out of the caches of layers with a window.
        local = stays.byte().argsort(dim=1, stable=True)[:, -longest:]
        real = None if longest == shortest else torch.arange(longest, device=device) >= longest - counts[:, None]
        seen = ~padding.take_along_dim(local, dim=1)
        if real is not None:
            seen &= real
        elif mask is None:      # transformers leaves the mask out where nothing is padded
            seen = None
        index = local if before is None else index.take_along_dim(local, 1)
        length = self.image_mask.shape[1]
        kept = _Kept(index, real, seen, length, place)
        self.shorts.append(_Short(kept, self, entering=hidden, local=local))
        held = torch.ones_like(index, dtype=torch.bool) if real is None else real
        stayed = torch.zeros(len(index), length, dtype=torch.bool, device=device).scatter(1, index, held)
        self.stayed.append((place, stayed & self.image_mask.to(device), stopwatch))
        return states.take_along_dim(local[..., None], dim=1)

    def _planned(self, place: int, found: Tensor) -> tuple[int, int, bool]:
        """What `found` will say, (longest row, shortest row, whether all last tokens stay), by the plan of the method.

        Code compiled by torch has shapes of its own for every length, and none for a length that is still to be computed.
        """
        n_layers, length = len(self.layer_types), self.image_mask.shape[1]
        lengths = [length - count + self.method.kept(count, n_layers)[place] for count in self.image_counts]
        longest, shortest = max(lengths), min(lengths)
        torch._assert_async(
            (found[0] == longest) & (found[1] == shortest) & (found[2] == 1),
            "the method kept another number of image tokens than its plan, or dropped the last token of a prompt; run this prompt uncompiled",
        )
        return longest, shortest, True

    def _view(self, place: int, hidden: Tensor, image: Tensor, padding: Tensor) -> View:
        common = dict(
            layer=place, n_layers=len(self.layer_types), stage=len(self.shorts), image_count=self.image_mask.sum(1).to(hidden.device),
            memory=self.memory, find_vision=partial(self._vision, hidden.device), find_grid=partial(self._find_grid, hidden.device),
        )
        if place == 0:
            keys = hidden[:, None]
            return View(hidden, keys, keys, image, padding, **common)
        noted = self.noting[place].noted
        if noted is None:
            raise ValueError(f"layer {place - 1} called no attention kernel, as under gradient checkpointing; prune without it")
        noted = noted.to(hidden.device)
        return View(hidden, noted.keys, noted.values, image, padding, self._final_norm, noted=noted, **common)

    def _vision(self, device: torch.device):
        if self.tower is None:
            raise ValueError(f"{type(self.method).__name__} looks into the vision tower; say so in the class: reads_tower = True")
        vision = self.tower.vision(self.image_mask.to(device))
        return replace(vision, patches=self._remaining(vision.patches))

    def _find_grid(self, device: torch.device) -> Tensor:
        """Number of the view, row and column of every token, int64 (batch, length, 3); -1 at what lies nowhere."""
        rows = [mask.nonzero().flatten() for mask in self.image_mask.cpu()]
        repeats = 1
        if self.sizes:                                      # beams and several answers a prompt repeat its rows
            tokens = sum(self.family.tokens(self.body.config, size) for size in self.sizes)
            repeats, rest = divmod(sum(map(len, rows)), tokens)
            if rest or not repeats:
                raise ValueError(f"{len(self.sizes)} pictures make {tokens} image tokens, but the prompt has {sum(map(len, rows))}")
        grid = torch.full((*self.image_mask.shape, 3), -1)
        sizes, views = list(self.sizes), 0
        for number, positions in enumerate(rows):
            if number % repeats:
                grid[number] = grid[number - 1]
                continue
            if not len(positions):
                continue
            rotary = None if self.grid is None else self.grid[:, number].cpu()[:, positions]
            images = lay_out(self.family, self.body.config, positions, sizes or [(0, 0)], rotary)
            sizes = sizes[len(images) :]
            for ranks in (view for image in images for view in image):
                down, across = torch.meshgrid(*map(torch.arange, ranks.shape), indexing="ij")
                grid[number, positions[ranks]] = torch.stack([torch.full_like(down, views), down, across], -1)
                views += 1
        return self._remaining(grid.to(device))

    def _remaining(self, per_token: Tensor) -> Tensor:
        """Of something that every position of the prompt has, (batch, length, ...), the part that is still there."""
        if not self.shorts:
            return per_token
        index = self.shorts[-1].kept.index.to(per_token.device)
        return per_token.take_along_dim(index.reshape(*index.shape, *[1] * (per_token.ndim - 2)), 1)

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

    # ---- later calls

    def _continue(self, cache, hidden: Tensor) -> None:
        """Take up what lies on a cache, if it was pruned."""
        laid = getattr(cache, "dart_kept", None)
        if laid is None:
            return
        # Copies: the length of a static cache is a tensor that the layers of this call count up.
        pasts = [cache.get_seq_length(kept.layer) + 0 for kept in laid]
        past = pasts[0]
        if isinstance(past, int) or hidden.shape[1] > 1 or not past.is_cuda:
            if int(past) == 0:                           # a cache that was reset for another prompt
                del cache.dart_kept
                return
        self.shorts = [_Short(kept, self, past) for kept, past in zip(laid, pasts)]
        self._check_continuation(cache, hidden.shape[1])

    # ---- what cannot be pruned, or continued

    def _refuse_prompt(self, given: dict) -> None:
        if self.decoder.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.decoder.layers):
            raise ValueError("gradient checkpointing runs layers a second time, without their hooks; prune without it")
        packed = given.get("cu_seq_lens_q") is not None
        if self.attention_mask is None and isinstance(self.position_ids, Tensor) and self.position_ids.ndim == 2:
            packed |= bool((self.position_ids.diff() < 0).any())
        if packed:
            raise ValueError("several prompts packed into one row cannot be pruned; give one prompt a row")

    def _refuse_continuation(self, layer, args, kwargs) -> None:
        if self.image_mask is None:
            return
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length(max(self.places[0] - 1, 0)))
        if past > 0:
            raise ValueError(
                f"image tokens in a call that continues a cache of {past} positions: later images of a chat and chunked "
                "prefill through an image cannot be pruned; give all images in the first call, in one piece"
            )

    def _check_continuation(self, cache, new: int) -> None:
        layers = [short.kept.layer for short in self.shorts]
        if layers != self.places:
            was, now = (", ".join(map(str, each)) for each in (layers, self.places))
            raise ValueError(f"this cache was pruned at layer {was}, the context prunes at layer {now}; "
                             "continue it in a context with the same layer")
        if layers[0] == 0:
            if new > 1:
                raise ValueError("a second turn on a cache pruned at layer 0: transformers counts the conversation by the "
                                 "length of layer 0; start a new prompt, or prune at layer 1 or later")
            if self.position_ids is None:
                raise ValueError("decoding on a cache pruned at layer 0 needs position_ids (generate gives them)")
        first = self.shorts[0]
        if not isinstance(first.past, int):
            return
        whole = first.past + first.kept.dropped if layers[0] == 0 else cache.get_seq_length(0) - new
        for short in self.shorts:
            if whole - short.past != short.kept.dropped:
                raise ValueError(
                    f"the cache is out of step: layer 0 has {whole} positions and layer {short.kept.layer} "
                    f"{short.past}, which should be {short.kept.dropped} fewer; was it cropped? Start again from the prompt"
                )
        for number in range(layers[0], len(self.layer_types)):
            self._short(number).window(number, whole + new, cache)
