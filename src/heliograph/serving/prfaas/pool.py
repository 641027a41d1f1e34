"""One pool of pages for caches of different kinds; a prefix is reusable only where every kind has it.

Full-attention layers keep token blocks, of which any leading run can be reused. Linear and sliding-window layers keep a
state, which stands for exactly the tokens that went into it: it is saved at checkpoints and reusable only at one. All
kinds draw pages of one size from one free list (arXiv:2604.15039, hybrid prefix cache pool).

A page is a *prefix* page once it is full and published, a *transfer* page while it holds bytes on their way to another
cluster, or free. A transfer page is never published: nobody can find it by its contents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import BlockPool, LeakError, chain_hashes
from heliograph.workload.shape import LlmShape

__all__ = ["CacheGroup", "HybridKVPool", "PrefixHit"]

Kind = Literal["full", "state"]


@dataclass(frozen=True)
class CacheGroup:
    """Layers whose caches are kept alike.

    Attributes:
        name: unique within a pool.
        kind: "full" keeps every token, "state" something of bounded size.
        token_bytes: that one token adds, of all layers of the group together.
        window: of a state that holds the last so many tokens; None for a recurrent state.
        state_bytes: of a recurrent state.
    """

    name: str
    kind: Kind
    token_bytes: int = 0
    window: int | None = None
    state_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit the kind."""
        windowed = self.window is not None
        if self.kind not in ("full", "state") or (self.kind == "full" and (windowed or self.state_bytes)):
            raise BadInput(f"group {self.name!r}: a full group keeps tokens and has neither window nor state")
        if windowed and (self.window or 0) < 1:
            raise BadInput(f"group {self.name!r}: a window is one token or more; got {self.window}")
        if (self.kind == "full" or windowed) and self.token_bytes < 1:
            raise BadInput(f"group {self.name!r}: needs token_bytes; got {self.token_bytes}")
        if self.kind == "state" and not windowed and self.state_bytes < 1:
            raise BadInput(f"group {self.name!r}: needs a window with token_bytes, or state_bytes")

    def snapshot_bytes(self, length: int) -> int:
        """Bytes that reproduce the group's state after ``length`` tokens."""
        if self.kind == "full":
            return length * self.token_bytes
        return self.state_bytes if self.window is None else min(length, self.window) * self.token_bytes

    @classmethod
    def of(cls, model: LlmShape, number_bytes: float = 2.0) -> tuple[CacheGroup, ...]:
        """The groups of a model's layers: full ones, one for each window, recurrent ones."""
        sizes: dict[tuple[str, int | None], float] = {}
        for layer in model.layers:
            attention = layer.attention
            key = ("linear" if attention.kind == "linear" else "attention", attention.window)
            sizes[key] = sizes.get(key, 0.0) + number_bytes * attention.kv_numbers(1, 1)
        found = []
        for (kind, window), nbytes in sizes.items():
            if kind == "linear":
                found.append(cls("linear", "state", state_bytes=math.ceil(nbytes)))
            elif window is None:
                found.append(cls("full", "full", token_bytes=math.ceil(nbytes)))
            else:
                found.append(cls(f"window {window}", "state", token_bytes=math.ceil(nbytes), window=window))
        return tuple(found)


@dataclass(frozen=True)
class PrefixHit:
    """What a prompt finds.

    Attributes:
        length: tokens whose caches all groups have; 0 for none.
        by_group: the longest that each group has alone.
    """

    length: int
    by_group: dict[str, int]


@dataclass
class _Held:
    """A request's pages."""

    tokens: Sequence[int]
    names: list[bytes]
    prompt: int  # tokens of it
    blocks: dict[str, list[list[int]]] = field(default_factory=dict)  # of full groups, by token block
    states: dict[tuple[str, int], list[int]] = field(default_factory=dict)  # of state groups, by length
    live: dict[str, list[int]] = field(default_factory=dict)  # working state of state groups
    computed: int = 0


class HybridKVPool:
    """Pages of one size for all groups.

    Args:
        groups: of the model; at least one.
        page_bytes: of every page. What a group needs is rounded up to whole pages.
        num_pages: in all.
        block_tokens: tokens of a full group that are published together.
        checkpoint_tokens: every so many tokens, and at the end of a prompt, states are saved; a multiple of
            ``block_tokens``.
        fingerprint: of model, number format and page layout; caches of others are never found.

    Raises:
        BadInput: sizes that do not fit.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        page_bytes: int,
        num_pages: int = 1024,
        *,
        block_tokens: int = 16,
        checkpoint_tokens: int = 1024,
        fingerprint: str = "",
    ) -> None:
        if not groups or len({group.name for group in groups}) != len(groups):
            raise BadInput("a pool has at least one group, and their names differ")
        if page_bytes < 1 or block_tokens < 1 or checkpoint_tokens < 1 or checkpoint_tokens % block_tokens:
            raise BadInput(
                "pages and blocks have a size, and checkpoints lie on block ends; got "
                f"page_bytes={page_bytes}, block_tokens={block_tokens}, checkpoint_tokens={checkpoint_tokens}"
            )
        self.groups, self.page_bytes = tuple(groups), page_bytes
        self.block_tokens, self.checkpoint_tokens, self.fingerprint = block_tokens, checkpoint_tokens, fingerprint
        self.pages = BlockPool(num_pages, 1)
        self._requests: dict[Hashable, _Held] = {}
        self._transfers: dict[Hashable, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be taken; what is kept in some of them for reuse would be lost."""
        return self.pages.num_free

    def padding(self) -> dict[str, float]:
        """Share of each group's pages that rounding leaves unused, for a block or a whole state."""
        found = {}
        for group in self.groups:
            nbytes = group.snapshot_bytes(self.block_tokens if group.kind == "full" else 2**30)
            found[group.name] = 1 - nbytes / (self._pages(nbytes) * self.page_bytes)
        return found

    def match(self, tokens: Sequence[int]) -> PrefixHit:
        """The longest prefix that all groups have. At least one token is always left to compute."""
        names = self._names(tokens)
        usable = max(0, (len(tokens) - 1) // self.block_tokens)
        runs = {group.name: self._run(group, names, usable, tokens) for group in self.groups if group.kind == "full"}
        bound = min(runs.values(), default=usable)
        states = [group for group in self.groups if group.kind == "state"]
        best = {group.name: 0 for group in states}
        common = 0
        for block in range(usable, 0, -1):
            has = [group for group in states if self._find_state(group, names, block, tokens) is not None]
            for group in has:
                best[group.name] = max(best[group.name], block)
            if not common and block <= bound and len(has) == len(states):
                common = block
            if common and all(best.values()):
                break
        found = {name: blocks * self.block_tokens for name, blocks in {**runs, **best}.items()}
        return PrefixHit(common * self.block_tokens, found)

    def begin(self, request: Hashable, tokens: Sequence[int], *, most: int | None = None) -> PrefixHit:
        """Admits a request: holds the pages of its hit, so that they stay while it runs.

        Args:
            request: its id.
            tokens: of its prompt.
            most: reuses no more than so many tokens.

        Raises:
            BadInput: the request runs already, or has no tokens.
        """
        if request in self._requests or not len(tokens):
            raise BadInput(f"request {request!r} {'runs already' if request in self._requests else 'has no tokens'}")
        hit = self.match(tokens if most is None else tokens[: most + 1])
        names, blocks = self._names(tokens), hit.length // self.block_tokens
        held = _Held(tokens, names, len(tokens), computed=hit.length)
        for group in self.groups:
            if group.kind == "full":
                found = (self._find_block(group, names, n, tokens) for n in range(blocks))
                held.blocks[group.name] = [self._share(pages) for pages in found]
            elif blocks:
                held.states[group.name, hit.length] = self._share(self._find_state(group, names, blocks, tokens))
        self._requests[request] = held
        return hit

    def extend(self, request: Hashable, computed: int) -> bool:
        """Takes the pages for tokens up to ``computed`` and for the states at checkpoints passed; False, and nothing
        taken, where there are not enough.

        Full blocks and saved states are published: later prompts find them.

        Raises:
            BadInput: the request does not run, or would shrink.
        """
        held = self._held(request)
        if not held.computed <= computed <= len(held.tokens):
            raise BadInput(f"request {request!r} has {held.computed} of {len(held.tokens)} tokens; got {computed}")
        wanted: list[tuple[CacheGroup, int | None, int]] = []  # group, block or length, pages
        saved = self._checkpoints(held.computed, computed, held.prompt)
        for group in self.groups:
            if group.kind == "full":
                size = self._pages(group.snapshot_bytes(self.block_tokens))
                have = len(held.blocks[group.name])
                wanted += [(group, n, size) for n in range(have, math.ceil(computed / self.block_tokens))]
            else:
                if group.name not in held.live:
                    wanted.append((group, None, self._pages(group.snapshot_bytes(len(held.tokens)))))
                wanted += [(group, n, self._pages(group.snapshot_bytes(n))) for n in saved]
        taken = self.pages.take(sum(pages for *_, pages in wanted))
        if taken is None:
            return False
        for group, what, count in wanted:
            own, taken = taken[:count], taken[count:]
            if what is None:
                held.live[group.name] = own
            elif group.kind == "full":
                held.blocks[group.name].append(own)
            else:
                held.states[group.name, what] = own
                self._publish(group, held.names, what // self.block_tokens, own, held.tokens)
        before, held.computed = held.computed, computed
        for group in self.groups:
            if group.kind == "full":
                for block in range(before // self.block_tokens, computed // self.block_tokens):
                    self._publish(group, held.names, block + 1, held.blocks[group.name][block], held.tokens)
        return True

    def append(self, request: Hashable, tokens: Sequence[int]) -> None:
        """Tokens of the answer, which may be computed next; states are saved at checkpoints only."""
        held = self._held(request)
        held.tokens = [*held.tokens, *tokens]
        held.names = chain_hashes(held.tokens, self.block_tokens, self.fingerprint, held.names)

    def end(self, request: Hashable) -> None:
        """Lets go of a request's pages; published ones can be found until somebody takes them."""
        held = self._held(request)
        del self._requests[request]
        pages = [page for blocks in held.blocks.values() for block in blocks for page in block]
        pages += [page for own in (*held.states.values(), *held.live.values()) for page in own]
        self.pages.give_back(pages)

    def reserve_transfer(self, transfer: Hashable, nbytes: int) -> bool:
        """Takes all pages of a transfer before its first byte; False, and nothing taken, where there are not enough.

        Two long caches that each got half of their pages would wait for each other for ever.
        """
        if transfer in self._transfers or nbytes < 1:
            raise BadInput(f"transfer {transfer!r} has {nbytes} bytes or is under way already")
        taken = self.pages.take(self._pages(nbytes))
        if taken is not None:
            self._transfers[transfer] = taken
        return taken is not None

    def end_transfer(self, transfer: Hashable) -> None:
        """Frees a transfer's pages; their contents are gone.

        Raises:
            BadInput: no such transfer.
        """
        if transfer not in self._transfers:
            raise BadInput(f"no transfer {transfer!r} is under way")
        self.pages.give_back(self._transfers.pop(transfer))

    def check(self) -> None:
        """Compares pages with their holders.

        Raises:
            LeakError: pages are lost or counted wrongly, or a transfer's page can be found by its contents.
        """
        holders = list(self._transfers.values())
        for held in self._requests.values():
            holders += [pages for blocks in held.blocks.values() for pages in blocks]
            holders += [*held.states.values(), *held.live.values()]
        self.pages.check(holders)
        moving = {page for pages in self._transfers.values() for page in pages}
        for page in sorted(page for page in moving if self.pages.has_name(page)):
            raise LeakError(f"page {page} of a transfer can be found by its contents")

    # names: a chained hash of the tokens, the group, and the page within what the group keeps there

    def _names(self, tokens: Sequence[int]) -> list[bytes]:
        return chain_hashes(tokens, self.block_tokens, self.fingerprint)

    def _page_name(self, group: CacheGroup, name: bytes, page: int) -> bytes:
        return hashlib.blake2b(name + f"/{group.name}/{page}".encode(), digest_size=16).digest()

    def _pages(self, nbytes: int) -> int:
        return max(1, math.ceil(nbytes / self.page_bytes))

    def _publish(
        self, group: CacheGroup, names: list[bytes], blocks: int, pages: list[int], tokens: Sequence[int]
    ) -> None:
        """Gives pages their names: they hold what this group keeps of the first so many blocks."""
        last = tokens[(blocks - 1) * self.block_tokens : blocks * self.block_tokens]
        for number, page in enumerate(pages):
            self.pages.publish(page, self._page_name(group, names[blocks - 1], number), names[blocks - 1], last)

    def _lookup(
        self, group: CacheGroup, names: list[bytes], blocks: int, nbytes: int, tokens: Sequence[int]
    ) -> list[int] | None:
        last = tokens[(blocks - 1) * self.block_tokens : blocks * self.block_tokens]
        found = []
        for number in range(self._pages(nbytes)):
            page = self.pages.find(self._page_name(group, names[blocks - 1], number), names[blocks - 1], last)
            if page is None:
                return None  # a page was taken since: without it the others are of no use
            found.append(page)
        return found

    def _find_block(self, group: CacheGroup, names: list[bytes], block: int, tokens: Sequence[int]) -> list[int] | None:
        return self._lookup(group, names, block + 1, group.snapshot_bytes(self.block_tokens), tokens)

    def _find_state(
        self, group: CacheGroup, names: list[bytes], blocks: int, tokens: Sequence[int]
    ) -> list[int] | None:
        return self._lookup(group, names, blocks, group.snapshot_bytes(blocks * self.block_tokens), tokens)

    def _run(self, group: CacheGroup, names: list[bytes], usable: int, tokens: Sequence[int]) -> int:
        for block in range(usable):
            if self._find_block(group, names, block, tokens) is None:
                return block
        return usable

    def _share(self, pages: list[int] | None) -> list[int]:
        assert pages is not None  # match has just found them
        for page in pages:
            self.pages.share(page)
        return pages

    def _checkpoints(self, before: int, after: int, whole: int) -> list[int]:
        """Lengths in (before, after] at which states are saved."""
        step = self.checkpoint_tokens
        found = list(range((before // step + 1) * step, after + 1, step))
        last = (whole // self.block_tokens) * self.block_tokens  # a block that is not full cannot be found
        if before < last <= after and last not in found:
            found.append(last)
        return sorted(found)

    def _held(self, request: Hashable) -> _Held:
        if request not in self._requests:
            raise BadInput(f"request {request!r} does not run")
        return self._requests[request]
