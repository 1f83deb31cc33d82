"""Directory -> loaded model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from xllm.base.phases import OnPhase, measured
from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source
from xllm.engine.models.arena import arena_bytes, bind, plan_places
from xllm.engine.models.checkpoint import Checkpoint
from xllm.engine.models.decoder import CausalLM
from xllm.engine.models.packed_cache import PackedCache
from xllm.engine.models.reader import read_weights
from xllm.engine.models.registry import build_model
from xllm.engine.platform.host_memory import untouched_bytes
from xllm.engine.platform.native import native_library
from xllm.errors import ModelError

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes to read)."""


def load_model(
    spec: ModelSpec,
    directory: str | Path,
    build: BuildContext,
    *,
    layer_range: tuple[int, int] | None = None,
    progress: Progress | None = None,
    on_phase: OnPhase = lambda phase, seconds: None,
    packed_cache: Path | None = None,
) -> CausalLM:
    """Build the spec's model and fill it from the directory's shards, cast to the run dtype.

    Everything is checked before the first byte is copied: each parameter is filled exactly once, each
    tensor has the shape its place has, and no tensor is left over. On a CPU matrices are packed for their kernels as
    they are read, or come from ``packed_cache``, a directory, in that form.

    Raises:
        ModelError: a file or tensor is missing, unexpected, truncated or of the wrong shape; names file and
            tensor.
    """
    with measured("weights map", on_phase):
        checkpoint = Checkpoint(Path(directory))
        model = build_model(spec, build, layer_range)
        sources = model.sources()
        _check_filled(model, sources)
        _check_tensors(checkpoint, sources, spec, whole=layer_range in (None, (0, spec.num_layers)))
    total = sum(checkpoint.entry(s.name).num_bytes for s in sources)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress(done, total)

    advance(0)
    with torch.inference_mode(), measured("weights read and packed", on_phase):
        if build.device.type == "cpu":
            _fill_arena(model, checkpoint, sources, packed_cache, advance)
        else:
            for source in sources:
                source.target.copy_(checkpoint.tensor(source.name))
                advance(checkpoint.entry(source.name).num_bytes)
        model.pack()
    return model.eval()


def _fill_arena(
    model: CausalLM,
    checkpoint: Checkpoint,
    sources: list[Source],
    cache_dir: Path | None,
    advance: Callable[[int], None],
) -> None:
    """Weights on the host: from the packed cache where there is one for this checkpoint, else from the checkpoint."""
    places, num_threads = plan_places(model), torch.get_num_threads()
    cache = None
    if cache_dir is not None:
        if native_library() is None:
            _LOG.warning("packed weights are not kept: without the CPU kernels nothing is packed")
        else:
            cache = PackedCache(cache_dir, checkpoint, places)
    if cache is not None and (arena := cache.try_open()) is not None:
        bound = bind(places, arena)
        advance(sum(checkpoint.entry(s.name).num_bytes for s in sources if s.parameter in bound))
        sources = [source for source in sources if source.parameter not in bound]
        read_weights(checkpoint, sources, bound.packed, num_threads=num_threads, progress=advance)
        return
    created = None if cache is None else cache.try_create()
    bound = bind(places, untouched_bytes(arena_bytes(places)) if created is None else created)
    try:
        read_weights(checkpoint, sources, bound.packed, num_threads=num_threads, progress=advance)
        if cache is not None and created is not None:
            cache.publish()
    finally:
        if cache is not None:
            cache.abandon()


def _check_filled(model: CausalLM, sources: list[Source]) -> None:
    """Our own books: the sources cover every element of every parameter once."""
    filled: dict[int, int] = {}
    for source in sources:
        key = id(source.parameter)
        filled[key] = filled.get(key, 0) + source.target.numel()
    for name, parameter in model.named_parameters():
        assert filled.get(id(parameter)) == parameter.numel(), f"sources do not cover {name} exactly"


def _check_tensors(checkpoint: Checkpoint, sources: list[Source], spec: ModelSpec, *, whole: bool) -> None:
    for source in sources:
        if source.name not in checkpoint:
            raise ModelError(
                f"{checkpoint.directory}: tensor {source.name!r} is missing",
                hint=f"the shards do not fit a {spec.architecture} with the settings of config.json",
            )
        entry, wanted = checkpoint.entry(source.name), tuple(source.target.shape)
        if entry.shape != wanted:
            raise ModelError(
                f"{checkpoint.file(source.name)}: tensor {source.name!r} has shape {list(entry.shape)}, "
                f"config.json makes it {list(wanted)}",
                hint="config.json and the weights belong to different models",
            )
        if not (entry.dtype.startswith("F") or entry.dtype == "BF16"):
            raise ModelError(
                f"{checkpoint.file(source.name)}: tensor {source.name!r} has dtype {entry.dtype}",
                hint="quantised checkpoints are not built",
            )
    if not whole:
        return
    extra = set(checkpoint.names) - {s.name for s in sources}
    unexpected = sorted(name for name in extra if not _is_redundant(name, spec))
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise ModelError(
            f"{checkpoint.file(unexpected[0])}: unexpected tensor {unexpected[0]!r}{more}",
            hint=f"the shards do not fit a {spec.architecture} with the settings of config.json",
        )


def _is_redundant(name: str, spec: ModelSpec) -> bool:
    """Tensors that some exporters write although they follow from others."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and spec.tie_word_embeddings)
