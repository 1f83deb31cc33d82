"""WeightArena: one stretch of memory for all weights of a model on a CPU, each in its kernel's order.

One stretch, in huge pages, because a step reads all of it: separate allocations of a few MiB lose their first and last
huge page each. Nothing is touched here; a page exists once something is written to it.

INVARIANTS
- A place belongs to one parameter; places do not overlap and begin at multiples of ``ALIGN``.
- The order of the places is the model's own, so the same model has the same arena in every process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from xllm.engine.kernels.linear.native import PackedWeight
from xllm.engine.layers.embedding import Embedding
from xllm.engine.layers.sources import Packable
from xllm.engine.models.decoder import CausalLM

ALIGN = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in the arena, and in which shape."""

    name: str
    """Of the parameter in the model."""
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    is_packed: bool

    @property
    def num_bytes(self) -> int:
        """Of the parameter."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_places(model: CausalLM) -> list[Place]:
    """The arena of a model that is not loaded yet: every parameter once, matrices packed where their kernels pack."""
    places: list[Place] = []
    seen: set[int] = set()
    at = 0
    for path, module in model.named_modules():
        shapes = _packed_shapes(model, module)
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            shape = shapes.get(attribute)
            place = Place(
                f"{path}.{attribute}",
                module,
                attribute,
                tuple(parameter.shape) if shape is None else shape,
                parameter.dtype,
                at,
                shape is not None,
            )
            places.append(place)
            at += -(-place.num_bytes // ALIGN) * ALIGN
    return places


def arena_bytes(places: Sequence[Place]) -> int:
    """Length of the arena."""
    return places[-1].begin + -(-places[-1].num_bytes // ALIGN) * ALIGN if places else 0


@dataclass(frozen=True, slots=True)
class Bound:
    """Parameters by ``id``, as they were before the arena."""

    packed: Mapping[int, Sequence[PackedWeight]]
    """Those that packed weights have replaced: one, or one per index of a stacked parameter."""
    plain: frozenset[int]
    """Those that are what they were, with memory in the arena."""

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self.packed or id(parameter) in self.plain


def bind(places: Sequence[Place], arena: torch.Tensor) -> Bound:
    """Make the arena the model's weights."""
    packed: dict[int, Sequence[PackedWeight]] = {}
    plain: set[int] = set()
    for place in places:
        raw = arena[place.begin : place.begin + place.num_bytes]
        data = raw.view(place.dtype).view(place.shape)
        parameter = getattr(place.module, place.attribute)
        if place.is_packed:
            assert isinstance(place.module, Packable)
            packed[id(parameter)] = place.module.adopt(place.attribute, data)
        else:
            parameter.data = data
            plain.add(id(parameter))
    return Bound(packed, frozenset(plain))


def _packed_shapes(model: CausalLM, module: nn.Module) -> dict[str, tuple[int, ...]]:
    if isinstance(module, Embedding) and module is not model.head:
        return {}
    return module.packed_shapes() if isinstance(module, Packable) else {}
