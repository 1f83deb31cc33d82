"""PageGeometry: the sizes that the planner of pages (brain) and their mapper (body) must agree on."""

from __future__ import annotations

from msgspec import Struct


class PageGeometry(Struct, frozen=True, kw_only=True):
    """Equal virtual ranges in one reserved arena, backed page by page (layout ``xtensor``).

    A page is a block: ``tokens_per_page`` is the block size of the KVLayout. A page holds whole tokens of all layers,
    so tokens follow each other through the pages of a range without a gap.
    """

    page_bytes: int
    """A multiple of the system's page and of a token's bytes over all layers."""
    tokens_per_page: int
    pages_per_range: int
    """Pages that a sequence of ``max_model_len`` tokens needs."""
    num_ranges: int
    """Ranges in the arena: sequences running at once."""
    max_mappings: int
    """Pages that may be mapped into ranges at the same time; a page in two ranges counts twice."""

    @property
    def range_bytes(self) -> int:
        """Address space of one range."""
        return self.pages_per_range * self.page_bytes
