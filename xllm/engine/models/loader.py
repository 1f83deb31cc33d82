"""Directory -> loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from xllm.config.model_spec import ModelSpec
from xllm.engine.layers.build_context import BuildContext
from xllm.engine.layers.sources import Source
from xllm.engine.models.checkpoint import Checkpoint
from xllm.engine.models.decoder import CausalLM
from xllm.engine.models.registry import build_model
from xllm.errors import ModelError

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes to read)."""


def load_model(
    spec: ModelSpec,
    directory: str | Path,
    build: BuildContext,
    *,
    layer_range: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> CausalLM:
    """Build the spec's model and fill it from the directory's shards, cast to the run dtype.

    Everything is checked before the first byte is copied: each parameter is filled exactly once, each
    tensor has the shape its place has, and no tensor is left over. At the end matrices are packed for their kernels.

    Raises:
        ModelError: a file or tensor is missing, unexpected, truncated or of the wrong shape; names file and
            tensor.
    """
    checkpoint = Checkpoint(Path(directory))
    model = build_model(spec, build, layer_range)
    sources = model.sources()
    _check_filled(model, sources)
    _check_tensors(checkpoint, sources, spec, whole=layer_range in (None, (0, spec.num_layers)))
    total = sum(checkpoint.entry(s.name).num_bytes for s in sources)
    done = 0
    if progress:
        progress(0, total)
    with torch.inference_mode():
        for source in sources:
            source.target.copy_(checkpoint.tensor(source.name))
            done += checkpoint.entry(source.name).num_bytes
            if progress:
                progress(done, total)
        model.pack()
    return model.eval()


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
