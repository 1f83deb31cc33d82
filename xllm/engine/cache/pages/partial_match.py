"""PartialMatches: which cached page begins with the tokens that follow a whole-page hit.

Pages are coarse, so a prefix often ends inside one. The tokens up to there are copied out of a page that begins with
them, instead of computed again.

INVARIANTS
- Every page named here is committed in the prefix index, by the same name.
- Costs O(pages cached): the tokens of each are kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from xllm.types.ids import BlockHash

MAX_SIBLINGS = 16
"""Pages with the same beginning that are looked at, the latest first."""


class PartialMatches:
    """Tokens of committed pages by the name of what comes before them."""

    __slots__ = ("_children", "_parents", "_promised")

    def __init__(self) -> None:
        self._children: dict[BlockHash, dict[BlockHash, array[int]]] = {}
        self._parents: dict[BlockHash, BlockHash] = {}
        self._promised: dict[BlockHash, tuple[BlockHash, array[int]]] = {}

    def promise(self, name: BlockHash, parent: BlockHash, tokens: Sequence[int]) -> None:
        """The page will hold these tokens after what ``parent`` names (the root, for a first page)."""
        self._promised[name] = parent, array("I", tokens)

    def commit(self, name: BlockHash) -> None:
        """It does; nothing happens when it was never promised."""
        found = self._promised.pop(name, None)
        if found is not None:
            parent, tokens = found
            self._children.setdefault(parent, {})[name] = tokens
            self._parents[name] = parent

    def drop(self, name: BlockHash) -> None:
        """It does not, or not any more."""
        self._promised.pop(name, None)
        parent = self._parents.pop(name, None)
        if parent is not None:
            siblings = self._children[parent]
            del siblings[name]
            if not siblings:
                del self._children[parent]

    def clear(self) -> None:
        """Forget what is committed."""
        self._children.clear()
        self._parents.clear()

    def find(self, parent: BlockHash, tokens: Sequence[int]) -> tuple[BlockHash, int] | None:
        """The page after ``parent`` that begins with most of ``tokens``, and with how many; None: none with any."""
        best: tuple[BlockHash, int] | None = None
        siblings = self._children.get(parent, {})
        for name, _ in zip(reversed(siblings), range(MAX_SIBLINGS), strict=False):
            length = _common(siblings[name], tokens)
            if length and (best is None or length > best[1]):
                best = name, length
        return best

    def names(self) -> Iterator[BlockHash]:
        """Every committed page."""
        return iter(self._parents)


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
