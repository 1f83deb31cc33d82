"""Mesh: sizes and own ranks per axis. Only the mesh of one is built; sharded meshes get their own type."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The world as attention sees it, pp x dp x tp."""

    pp: int = 1
    dp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        assert self.pp == self.dp == self.tp == 1, "only the mesh of one is built"

    def layer_range(self, num_layers: int) -> tuple[int, int]:
        """First and one-past-last layer of this rank."""
        return 0, num_layers
