"""What happens in the vision tower inside `dart.prune`, for methods that look into it or reduce there.

A picture that lost patches in the tower comes back to its full length before the projector, so that the model finds the
number of features it counts on; what came back is remembered and leaves the prompt at decoder layer 0.
"""

from __future__ import annotations

from functools import partial, wraps

import torch
from torch import Tensor, nn

from dart.attention import Noting
from dart.families import Family
from dart.methods.base import Method, View, Vision, answer


class Tower:
    """The hooks in one vision tower, and what they noted of its last run."""

    def __init__(self, method: Method, family: Family, body: nn.Module, sizes: list[tuple[int, int]]):
        self.method, self.family, self.body = method, family, body
        self.sizes = sizes                                  # of the pictures, as `NoteSizes` finds them
        if family.tower is None:
            raise ValueError(
                f"{type(method).__name__} works with the vision tower, which is not described for {body.config.model_type!r}: it runs on "
                "LLaVA and LLaVA-NeXT, or give dart.Family(tower=..., patches=...)"
            )
        self.tower = body.get_submodule(family.tower)
        config, strategy = self.tower.config, body.config.vision_feature_select_strategy
        try:
            layers = self.tower.get_submodule("encoder.layers")
        except AttributeError:
            raise ValueError(
                f"{type(method).__name__} works with the vision tower; {type(self.tower).__name__} has no encoder.layers and is not described"
            ) from None
        has_class_token = hasattr(getattr(self.tower, "embeddings", None), "class_embedding")
        if has_class_token != (strategy == "default"):
            raise ValueError(
                f"{type(method).__name__} works with the vision tower, but vision_feature_select_strategy={strategy!r} does not fit a tower "
                f"{'with' if has_class_token else 'without'} a class token; use {'default' if has_class_token else 'full'!r}"
            )
        feature = body.config.vision_feature_layer
        last = max(number % (len(layers) + 1) for number in ([feature] if isinstance(feature, int) else feature))
        self.layers = layers[:last]                         # the others do not reach the projector
        self.places = method.tower_places(last)
        if self.places and not isinstance(feature, int):
            raise ValueError(f"{type(method).__name__} reduces patches in the tower, but the projector takes layers {feature}; it can take one")
        if any(not 0 <= place < last for place in self.places):
            raise ValueError(f"tower_places={self.places}, but {last} tower layers reach the projector; use 0 <= place < {last}")
        self.side = config.image_size // config.patch_size
        self.class_tokens = int(has_class_token)
        self.unread = False                                 # whether features of reduced pictures wait for a prompt
        self.forget()

    @property
    def reduces(self) -> bool:
        return bool(self.places) or type(self.method).resize is not Method.resize

    def forget(self) -> None:
        self.noted: dict = {}
        self.hidden_states: Tensor | None = None
        self.projected: Tensor | None = None                # (pictures, patches, width of the decoder)
        self.embeddings: Tensor | None = None               # of the prompt that is read now
        self.index: Tensor | None = None                    # (pictures, patches that are left), None: all are
        self.memory: dict = {}

    def hook(self, handles: list) -> None:
        last = len(self.layers)
        read = {number: number % last for number in self.method.tower_layers}
        self.noting = {number: Noting(self.layers[number].self_attn) for number in {*read.values(), *(place - 1 for place in self.places if place)}}
        self.read = read
        for noting in self.noting.values():
            handles += noting.hook()
        handles.append(self.tower.register_forward_pre_hook(self._enter_tower, with_kwargs=True))
        for stage, place in enumerate(self.places):
            handles.append(self.layers[place].register_forward_pre_hook(partial(self._reduce, stage, place)))
        handles.append(self.layers[-1].register_forward_hook(self._leave_last_layer))
        handles.append(self.body.multi_modal_projector.register_forward_pre_hook(self._restore_length))
        handles.append(self.body.multi_modal_projector.register_forward_hook(self._leave_projector))

    # ---- hooks, in the order in which a run meets them

    def _enter_tower(self, tower, args, kwargs):
        self.forget()
        self.unread = self.reduces
        asked = kwargs.get("output_hidden_states")
        if not isinstance(asked, bool):
            self._refuse_layer(asked)
        scaled = self.method.resize(self.side, self.side)
        if scaled is None or scaled == (self.side, self.side):
            return None
        pixels, size = (args[0] if args else kwargs["pixel_values"]), tower.config.patch_size
        rows, columns = scaled
        small = nn.functional.interpolate(
            pixels.float(), (rows * size, columns * size), mode="bicubic", antialias=True, align_corners=False
        ).to(pixels.dtype)
        # each patch of the small picture comes back as the patch of the large one that lies at its middle
        down = ((torch.arange(rows) + 0.5) * self.side / rows).long()
        across = ((torch.arange(columns) + 0.5) * self.side / columns).long()
        index = (down[:, None] * self.side + across).flatten().to(pixels.device)
        self.index = index.expand(len(pixels), -1)
        kwargs = {**kwargs, "interpolate_pos_encoding": True}
        return ((small, *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": small})

    def _reduce(self, stage, place, layer, args):
        hidden, noted = args[0], self.noting[place - 1].noted if place else None
        image = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        image[:, : self.class_tokens] = False
        index = self._index(hidden)
        view = View(
            hidden, noted.keys if noted else hidden[:, None], noted.values if noted else hidden[:, None], image, torch.zeros_like(image), layer=place, n_layers=len(self.layers), stage=stage,
            image_count=torch.full((len(hidden),), self.side**2, device=hidden.device), memory=self.memory, noted=noted,
            find_grid=lambda: self._grid(index),
        )
        stays, hidden = answer(self.method, self.method.select_patches, view)
        stays = stays | ~image
        counts = stays.sum(1)
        if (counts != counts[0]).any():
            raise ValueError(f"{type(self.method).__name__}.select_patches kept {counts.tolist()} tokens of the pictures; keep equally many")
        local = stays.nonzero()[:, 1].view(len(hidden), -1)
        self.index = index.take_along_dim(local[:, self.class_tokens :] - self.class_tokens, 1)
        return (hidden.take_along_dim(local[..., None], 1), *args[1:])

    def _leave_last_layer(self, layer, args, output):
        self.hidden_states = self._full(output, self.class_tokens)
        self.noted = {number: self.noting[place].noted for number, place in self.read.items()}

    def _restore_length(self, projector, args):
        return (self._full(args[0], 0), *args[1:])

    def _leave_projector(self, projector, args, output):
        self.projected = output

    # ---- what the decoder's side asks

    def reads(self, embeddings: Tensor) -> None:
        """A prompt with these input embeddings, (batch, length, width), is read now."""
        self.embeddings = embeddings

    def refuse_prompt(self, given: dict, has_images: bool) -> None:
        """Refuse calls of the model that do not fit what the tower did."""
        self._refuse_layer(given.get("vision_feature_layer"))
        if self.unread and not has_images:
            raise ValueError(
                f"{type(self.method).__name__} reduced pictures in the vision tower, but this prompt has no placeholders for them: embeddings "
                "that hold image features cannot be shortened; give the model input_ids and pixels"
            )
        self.unread = False

    def _refuse_layer(self, asked) -> None:
        feature = self.body.config.vision_feature_layer
        if asked is not None and asked != feature:
            raise ValueError(f"vision_feature_layer={asked} in the call, {feature} in the config; {type(self.method).__name__} goes by the config: "
                             "set it there")

    def vision(self, image_mask: Tensor) -> Vision:
        """What the tower saw, laid out over the image tokens of a prompt."""
        return Vision(self.hidden_states, self.class_tokens, self._patches(image_mask), self.noted)

    def left(self, image_mask: Tensor) -> Tensor:
        """Image tokens of a prompt that the tower did not reduce away, bool (batch, length). LLaVA-NeXT's newlines go with the first patch."""
        patches = self._patches(image_mask)
        if self.index is None or self.index.shape[1] == self.side**2:
            return image_mask
        left = torch.zeros(len(self.index), self.side**2, dtype=torch.bool, device=self.index.device).scatter(1, self.index, True)
        left = left.flatten().to(patches.device)[patches.clamp(min=0)] & (patches >= 0)
        return left & image_mask

    def _patches(self, image_mask: Tensor) -> Tensor:
        """Which patch every token of the prompt is, int64 (batch, length), -1 for none; see `Vision`."""
        other = ValueError(
            f"{type(self.method).__name__} works with the vision tower, but the image features of this prompt are not those of its last run "
            "in this block; give the model the pixels of the prompt"
        )
        if self.projected is None:
            raise other
        found = self.family.patches(self.body, len(self.projected), self.side**2, self.sizes).to(image_mask.device)
        tokens = int(image_mask.sum())
        if len(found) == 0 or tokens % len(found):
            raise other
        repeats = tokens // len(found)                      # beams and several answers a prompt repeat its rows
        patches = torch.full_like(image_mask[::repeats], -1, dtype=torch.long)
        patches[image_mask[::repeats]] = found
        patches = patches.repeat_interleave(repeats, 0)
        real = patches >= 0
        projected = self.projected.flatten(0, 1).to(self.embeddings.device, self.embeddings.dtype)
        if not torch.equal(projected[patches[real].to(projected.device)], self.embeddings[real.to(self.embeddings.device)]):
            raise other
        return patches

    def _index(self, hidden: Tensor) -> Tensor:
        if self.index is not None:
            return self.index
        return torch.arange(self.side**2, device=hidden.device).expand(len(hidden), -1)

    def _full(self, states: Tensor, before: int) -> Tensor:
        """States with reduced patches back in their places, as zeros; `before` tokens stand before the patches."""
        if self.index is None:
            return states
        full = states.new_zeros(len(states), before + self.side**2, states.shape[-1])
        full[:, :before] = states[:, :before]
        return full.scatter(1, (self.index + before)[..., None].expand(-1, -1, states.shape[-1]), states[:, before:])

    def _grid(self, index: Tensor) -> Tensor:
        picture = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
        grid = torch.stack([picture, index.div(self.side, rounding_mode="floor"), index % self.side], -1)
        return nn.functional.pad(grid, (0, 0, self.class_tokens, 0), value=-1)


class NoteSizes:
    """Keep the sizes of pictures that `get_image_features` is handed: `generate` hands them to nothing else. Undone by `remove`."""

    def __init__(self, body: nn.Module, sizes: list):
        self.body, self.before = body, vars(body).get("get_image_features")
        function = body.get_image_features

        @wraps(function)                                    # generate reads its signature
        def noted(*args, **kwargs):
            given = kwargs.get("image_sizes", args[1] if len(args) > 1 else None)
            sizes[:] = [] if given is None else [tuple(size) for size in torch.as_tensor(given).tolist()]
            return function(*args, **kwargs)

        body.get_image_features = self.noted = noted

    def remove(self) -> None:
        if vars(self.body).get("get_image_features") is self.noted:
            del self.body.get_image_features
            if self.before is not None:
                self.body.get_image_features = self.before
