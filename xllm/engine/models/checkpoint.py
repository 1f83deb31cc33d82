"""Checkpoint: the safetensors shards of a model directory as one set of named tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from xllm.config.model_json import read_json_object
from xllm.engine.models.safetensors import SafetensorsFile, TensorEntry
from xllm.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """Opens every shard at once (mapping costs nothing) and knows which holds what.

    Raises:
        ModelError: no weights in the directory, a shard that the index names is missing or damaged, or the
            index and
            a shard disagree.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if (directory / INDEX).exists():
            self._holder = self._open_index()
        elif (directory / SINGLE).exists():
            shard = SafetensorsFile(directory / SINGLE)
            self._holder = dict.fromkeys(shard.entries, shard)
        else:
            raise ModelError(
                f"{directory}: neither {SINGLE} nor {INDEX} exists", hint=self._no_weights_hint()
            )

    def _no_weights_hint(self) -> str:
        if any(self.directory.glob("*.bin")) or any(self.directory.glob("*.pt*")):
            return "the weights are pickled (.bin, .pth), which is never read; convert them to safetensors"
        if any(self.directory.glob("*.gguf")):
            return "GGUF is not read; use the safetensors checkpoint"
        return "download the model completely"

    def _open_index(self) -> dict[str, SafetensorsFile]:
        path = self.directory / INDEX
        names = read_json_object(path, what="index of the shards").get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
            raise ModelError(f"{path}: weight_map is missing or not an object of file names")
        shards: dict[str, SafetensorsFile] = {}
        for file in sorted(set(names.values())):
            if Path(file).name != file:
                raise ModelError(f"{path}: shard name {file!r} is not a plain file name")
            shards[file] = SafetensorsFile(self.directory / file)
        for name, file in names.items():
            if name not in shards[file].entries:
                raise ModelError(
                    f"{self.directory / file}: tensor {name!r} is missing, {INDEX} says it is here"
                )
        return {name: shards[file] for name, file in names.items()}

    @property
    def names(self) -> Iterable[str]:
        """All tensors."""
        return self._holder.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._holder

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and size of a tensor."""
        return self._holder[name].entries[name]

    def file(self, name: str) -> Path:
        """The shard that holds a tensor."""
        return self._holder[name].path

    @property
    def files(self) -> list[Path]:
        """All shards."""
        return sorted({shard.path for shard in self._holder.values()})

    def shard(self, name: str) -> SafetensorsFile:
        """The open file that holds a tensor."""
        return self._holder[name]

    def tensor(self, name: str) -> torch.Tensor:
        """A read-only view of the mapped bytes."""
        return self._holder[name].tensor(name)
