"""Who holds which prefix, and up to which length all of its cache groups can be used there.

A prefix is named by the hash of its last block, chained with all before it. The index keeps lengths only: what a
cluster evicts it reports, and what it reports late costs a recomputation, never a wrong answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import chain_hashes
from heliograph.workload.requests import TraceRequest

__all__ = ["GlobalPrefixIndex", "prefix_names"]


class GlobalPrefixIndex:
    """Usable prefix lengths by cluster.

    Args:
        clusters: their names.
        block_tokens: tokens behind one name.
        capacity_blocks: of each cluster's cache; the names used longest ago go first. None for no limit.

    Raises:
        BadInput: no clusters, or no block size.
    """

    def __init__(self, clusters: Iterable[str], block_tokens: int, capacity_blocks: int | None = None) -> None:
        self._held: dict[str, OrderedDict[Hashable, None]] = {name: OrderedDict() for name in clusters}
        if not self._held or block_tokens < 1 or (capacity_blocks is not None and capacity_blocks < 0):
            raise BadInput("an index needs clusters, a block size of 1 or more and a capacity of 0 or more")
        self.block_tokens, self.capacity_blocks = block_tokens, capacity_blocks

    @property
    def clusters(self) -> tuple[str, ...]:
        """Those that it knows."""
        return tuple(self._held)

    def lengths(self, names: Sequence[Hashable], *, usable: int | None = None) -> dict[str, int]:
        """For each cluster the tokens of the longest prefix that it can reuse.

        A name that a cluster holds says that all of its groups can go on from there, full blocks before it included.

        Args:
            names: of the prompt's blocks, from the first.
            usable: at most so many tokens, usually one fewer than the prompt has.
        """
        most = len(names) if usable is None else min(len(names), max(0, usable) // self.block_tokens)
        found = {}
        for cluster, held in self._held.items():
            block = next((n for n in range(most, 0, -1) if names[n - 1] in held), 0)
            for name in names[:block]:
                if name in held:
                    held.move_to_end(name)
            found[cluster] = block * self.block_tokens
        return found

    def record(self, cluster: str, names: Sequence[Hashable], checkpoints: Iterable[int] | None = None) -> None:
        """A cluster holds a prefix now.

        Args:
            cluster: which one.
            names: of its blocks.
            checkpoints: numbers of blocks after which all groups can go on; every block where None, as for models
                without states.
        """
        held = self._cluster(cluster)
        for block in range(1, len(names) + 1) if checkpoints is None else sorted(checkpoints):
            if not 1 <= block <= len(names):
                raise BadInput(f"a checkpoint lies after block 1 to {len(names)}; got {block}")
            held[names[block - 1]] = None
            held.move_to_end(names[block - 1])
        if self.capacity_blocks is not None:
            while len(held) > self.capacity_blocks:
                held.popitem(last=False)

    def evicted(self, cluster: str, names: Iterable[Hashable]) -> None:
        """A cluster has these no more."""
        held = self._cluster(cluster)
        for name in names:
            held.pop(name, None)

    def forget(self, cluster: str) -> None:
        """A cluster was lost, or its model changed: nothing of it can be used."""
        self._cluster(cluster).clear()

    def _cluster(self, name: str) -> OrderedDict[Hashable, None]:
        if name not in self._held:
            raise BadInput(f"cluster {name!r} is not in the index; there are {', '.join(self._held)}")
        return self._held[name]


def prefix_names(request: TraceRequest, block_tokens: int, salt: str = "") -> list[Hashable]:
    """Names of a trace's prompt, block by block, from whatever the trace tells of its prefix.

    Token ids are hashed; block ids are taken where the sizes fit; a shared prefix counts by its id; a prompt of which
    only the length is known shares nothing.

    Raises:
        BadInput: block ids of another size.
    """
    if request.prompt_token_ids is not None:
        return list(chain_hashes(request.prompt_token_ids, block_tokens, salt))
    if request.prefix_block_ids:
        if request.prefix_block_tokens != block_tokens:
            raise BadInput(
                f"the trace names blocks of {request.prefix_block_tokens} tokens, the index blocks of {block_tokens}; "
                f"make the index with block_tokens={request.prefix_block_tokens}"
            )
        full = (request.prompt_length or 0) // block_tokens
        chain, names = b"", []
        for block in request.prefix_block_ids[:full]:
            chain = chain_hashes([block], 1, chain.hex())[0]
            names.append(chain)
        return list(names)
    return [(request.prefix_id, n) for n in range(request.prefix_tokens // block_tokens)] if request.prefix_id else []
