"""A Mapper without memory: remembers what is mapped, refuses at random like a system out of mappings."""

from __future__ import annotations

import errno
import random

from xllm.types.pages import PageGeometry


class SimulatedMapper:
    """``refusal``: probability that a mapping fails; what was at the place is lost then, as the real call may do."""

    def __init__(self, geometry: PageGeometry, *, refusal: float = 0.0, seed: int = 0) -> None:
        self.geometry = geometry
        self.refusal = refusal
        self.mapped: dict[tuple[int, int], int] = {}
        self.num_refused = 0
        self.most_mapped = 0
        self._rng = random.Random(seed)

    def map(self, range_id: int, offset: int, page: int) -> None:
        assert 0 <= range_id < self.geometry.num_ranges and 0 <= offset < self.geometry.pages_per_range
        self.mapped.pop((range_id, offset), None)
        self._maybe_refuse()
        self.mapped[range_id, offset] = page
        self.most_mapped = max(self.most_mapped, len(self.mapped))

    def unmap(self, range_id: int, offset: int) -> None:
        self._maybe_refuse()
        self.mapped.pop((range_id, offset), None)

    def page_of(self, block: int) -> int:
        """The physical page behind a block number of the body; touching an unmapped place would kill the process."""
        first_linear = self.geometry.num_ranges * self.geometry.pages_per_range
        if block >= first_linear:
            return block - first_linear
        place = divmod(block, self.geometry.pages_per_range)
        assert place in self.mapped, f"SIGSEGV: nothing is mapped at {place}"
        return self.mapped[place]

    def _maybe_refuse(self) -> None:
        if self.refusal and self._rng.random() < self.refusal:
            self.num_refused += 1
            raise OSError(errno.ENOMEM, "injected")
