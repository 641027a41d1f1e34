"""The memory of keys and values: blocks of a fixed number of tokens, shared by requests whose texts begin alike.

A block that is full gets a name: a hash chained with the block before it. A freed block keeps its contents and its name
until somebody takes it, oldest first; a request that begins with the same tokens finds it there.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.request import Request

__all__ = ["BlockPool", "KVManager", "LeakError", "Lease", "chain_hashes"]


class LeakError(HeliographError):
    """Blocks are lost, shared where they must not be, or counted wrongly; always a fault of ours."""

    exit_code = 1


def chain_hashes(tokens: Sequence[int], block_size: int, salt: str, known: Sequence[bytes] = ()) -> list[bytes]:
    """Names of the full blocks of a text, 16 bytes each; a name stands for all tokens up to the end of its block.

    Args:
        tokens: of the text.
        block_size: tokens a block.
        salt: what else must agree: model, number format, adapter, tenant.
        known: names of the first blocks, computed before.
    """
    names = list(known)
    for number in range(len(names), len(tokens) // block_size):
        before = names[-1] if names else hashlib.blake2b(salt.encode(), digest_size=16).digest()
        part = array("q", tokens[number * block_size : (number + 1) * block_size])
        names.append(hashlib.blake2b(before + part.tobytes(), digest_size=16).digest())
    return names


@dataclass(frozen=True)
class _Kept:
    """What a named block holds; compared on a hit, so that a collision is a miss."""

    block: int
    before: bytes
    tokens: tuple[int, ...]


class BlockPool:
    """Blocks with reference counts, and the names of those that are full.

    Args:
        num_blocks: of the cache.
        block_size: tokens a block.

    Attributes:
        stored, removed: names that appeared and went since somebody last emptied these lists; None records nothing.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise BadInput(f"a pool has at least one block of one token; got {num_blocks} of {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._count = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._kept: dict[bytes, _Kept] = {}
        self._name: dict[int, bytes] = {}
        self.stored: list[bytes] | None = None
        self.removed: list[bytes] | None = None

    @property
    def num_free(self) -> int:
        """Blocks that can be taken, those with a name included."""
        return len(self._free)

    @property
    def num_named(self) -> int:
        """Full blocks that can be found by name."""
        return len(self._kept)

    def has_name(self, block: int) -> bool:
        """Whether a block can be found by its contents."""
        return block in self._name

    def take(self, count: int) -> list[int] | None:
        """So many blocks, the longest unused first; None, and nothing taken, where there are not enough."""
        if count > len(self._free):
            return None
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._count[block] = 1
            taken.append(block)
        return taken

    def share(self, block: int) -> None:
        """One more holder of a block; a free one is taken out of the free list."""
        if self._count[block] == 0:
            del self._free[block]
        self._count[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One holder less of each. The last of a text are taken again first: they are the least likely to be shared.

        Raises:
            LeakError: a block that nobody holds.
        """
        for block in reversed(list(blocks)):
            if self._count[block] < 1:
                raise LeakError(f"block {block} was given back by somebody who does not hold it")
            self._count[block] -= 1
            if self._count[block] == 0:
                self._free[block] = None
                if block not in self._name:
                    self._free.move_to_end(block, last=False)  # holds nothing that could be found again

    def find(self, name: bytes, before: bytes, tokens: Sequence[int]) -> int | None:
        """The block of that name, provided that it holds these tokens."""
        kept = self._kept.get(name)
        if kept is None or kept.before != before or kept.tokens != tuple(tokens):
            return None
        return kept.block

    def publish(self, block: int, name: bytes, before: bytes, tokens: Sequence[int]) -> None:
        """Names a full block; a name that another block has already stays with that one."""
        if name in self._kept or block in self._name:
            return
        self._kept[name] = _Kept(block, before, tuple(tokens))
        self._name[block] = name
        if self.stored is not None:
            self.stored.append(name)

    def forget_all(self) -> int:
        """Takes all names away, so that nothing is found; the number of names."""
        forgotten = len(self._kept)
        for block in list(self._name):
            self._forget(block)
        return forgotten

    def names(self) -> list[bytes]:
        """Of all full blocks that can be found."""
        return list(self._kept)

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Compares the counts with the lists of all who hold blocks.

        Raises:
            LeakError: a difference; the message names the block.
        """
        counted = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                counted[block] += 1
        for block, (have, should) in enumerate(zip(self._count, counted, strict=True)):
            if have != should:
                raise LeakError(f"block {block} counts {have} holders; {should} hold it")
            if (block in self._free) != (have == 0):
                raise LeakError(
                    f"block {block} has {have} holders and {'is' if block in self._free else 'is not'} free"
                )
        for name, kept in self._kept.items():
            if self._name.get(kept.block) != name:
                raise LeakError(f"block {kept.block} is found under a name that it does not have")
        if len(self._name) != len(self._kept):
            raise LeakError(f"{len(self._name)} blocks have names, {len(self._kept)} names have blocks")

    def _forget(self, block: int) -> None:
        name = self._name.pop(block, None)
        if name is not None:
            del self._kept[name]
            if self.removed is not None:
                self.removed.append(name)


@dataclass
class Lease:
    """Blocks held for a transfer, until it is acknowledged or the deadline passes."""

    key: str
    blocks: list[int]
    tokens: int
    deadline_s: float


class KVManager:
    """Which blocks each request has.

    Args:
        pool: of blocks.
        fingerprint: of the model and its number format; part of every name.
        prefix_cache: whether texts that begin alike share blocks.
    """

    def __init__(self, pool: BlockPool, fingerprint: str = "", *, prefix_cache: bool = True) -> None:
        self.pool, self.fingerprint, self.prefix_cache = pool, fingerprint, prefix_cache
        self._holders: dict[str, Request] = {}
        self.leases: dict[str, Lease] = {}
        self.queried_tokens = self.hit_tokens = 0

    @property
    def usage(self) -> float:
        """Share of the blocks that are held."""
        return 1 - self.pool.num_free / self.pool.num_blocks

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.pool.block_size)

    def match(self, request: Request) -> list[int]:
        """Blocks that hold the beginning of a request's text; never the last token, whose logits are needed."""
        if not self.prefix_cache or request.prompt_logprobs:
            return []
        self._name_blocks(request)
        size, found = self.pool.block_size, []
        for number in range((len(request.tokens) - 1) // size):
            tokens = request.tokens[number * size : (number + 1) * size]
            block = self.pool.find(request.hashes[number], self._before(request, number), tokens)
            if block is None:
                break
            found.append(block)
        return found

    def start(self, request: Request, shared: Sequence[int], num_tokens: int) -> bool:
        """Gives a request the blocks that it shares and as many new ones as ``num_tokens`` take; all or none."""
        assert not request.blocks
        for block in shared:
            self.pool.share(block)
        fresh = self.pool.take(self.blocks_for(num_tokens) - len(shared))
        if fresh is None:
            self.pool.give_back(shared)
            return False
        request.blocks, request.num_published = [*shared, *fresh], len(shared)
        self._holders[request.id] = request
        return True

    def ensure(self, request: Request, num_tokens: int) -> bool:
        """Room for so many tokens of a request that has blocks; all of it or none."""
        if num_tokens <= len(request.blocks) * self.pool.block_size:
            return True
        fresh = self.pool.take(self.blocks_for(num_tokens) - len(request.blocks))
        if fresh is None:
            return False
        request.blocks.extend(fresh)
        return True

    def publish(self, request: Request, num_computed: int) -> None:
        """Names the blocks that are full with known tokens, so that others find them."""
        if not self.prefix_cache:
            return
        self._name_blocks(request)
        size, full = self.pool.block_size, min(num_computed, len(request.tokens)) // self.pool.block_size
        for number in range(request.num_published, full):
            self.pool.publish(
                request.blocks[number],
                request.hashes[number],
                self._before(request, number),
                request.tokens[number * size : (number + 1) * size],
            )
        request.num_published = max(request.num_published, full)

    def free(self, request: Request) -> None:
        """Takes a request's blocks away; their contents stay findable until the blocks are needed."""
        if self._holders.pop(request.id, None) is not None:
            self.pool.give_back(request.blocks)
        request.blocks, request.num_published = [], 0

    def hold(self, request: Request, key: str, tokens: int, deadline_s: float) -> Lease:
        """Moves a request's blocks to a lease.

        Raises:
            BadInput: the key is in use.
        """
        if key in self.leases:
            raise BadInput(f"a lease {key!r} exists already")
        lease = Lease(key, request.blocks[: self.blocks_for(tokens)], tokens, deadline_s)
        self.pool.give_back(request.blocks[len(lease.blocks) :])
        self._holders.pop(request.id)
        request.blocks, request.num_published = [], 0
        self.leases[key] = lease
        return lease

    def release(self, key: str) -> bool:
        """Ends a lease; False where it has ended already."""
        lease = self.leases.pop(key, None)
        if lease is None:
            return False
        self.pool.give_back(lease.blocks)
        return True

    def expire(self, now_s: float) -> list[str]:
        """Ends the leases whose deadline has passed; their keys."""
        late = [key for key, lease in self.leases.items() if lease.deadline_s <= now_s]
        for key in late:
            self.release(key)
        return late

    def check(self) -> None:
        """Compares all counts with all holders.

        Raises:
            LeakError: a difference.
        """
        for request in self._holders.values():
            if len(set(request.blocks)) != len(request.blocks):
                raise LeakError(f"request {request.id} has a block twice: {request.blocks}")
        self.pool.check(
            [*(request.blocks for request in self._holders.values()), *(lease.blocks for lease in self.leases.values())]
        )

    def _name_blocks(self, request: Request) -> None:
        salt = f"{self.fingerprint}/{request.salt}"
        request.hashes = chain_hashes(request.tokens, self.pool.block_size, salt, request.hashes)

    def _before(self, request: Request, number: int) -> bytes:
        if number:
            return request.hashes[number - 1]
        return hashlib.blake2b(f"{self.fingerprint}/{request.salt}".encode(), digest_size=16).digest()
