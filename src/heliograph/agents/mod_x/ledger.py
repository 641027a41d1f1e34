"""A ledger among peers that do not trust each other: signed chains, Merkle anchors, blocks signed by a quorum.

Each peer keeps a chain of signed entries. From time to time it anchors the new ones: the root of their Merkle tree goes
into a block, which 2f+1 of 3f+1 notaries sign. High-value records stand in the block themselves ("on-chain"), routine
ones only as a leaf ("off-chain"). There is no mining and no public chain. arXiv:2507.04376 proposes the split; the
forms and the quorum are ours.

Every file and proof has one spelling only (canonical JSON, lower-case hexadecimal), so that any changed byte is found.
Cutting entries off the end of a chain, before they were anchored, can only be seen by whoever kept a later head.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliograph.agents.core.canonical import canonical_bytes, canonical_hash
from heliograph.agents.core.identity import Identity, IdentityError, KeyRing
from heliograph.errors import BadInput, HeliographError

__all__ = [
    "Block",
    "Equivocation",
    "LedgerError",
    "Notary",
    "NotaryLedger",
    "merkle_path",
    "merkle_root",
    "quorum_of",
    "verify_chain",
    "verify_proof",
]

GENESIS = "0" * 64
PROOF_VERSION = 1


class LedgerError(HeliographError):
    """A chain, block or proof is not what its signers made.

    Attributes:
        entry: number of the first bad entry, from 1; 0 where it is not about one.
    """

    exit_code = 1

    def __init__(self, reason: str, entry: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.entry = reason, entry

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.entry)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def _leaf(data: str) -> bytes:
    # Leaves and nodes are marked apart, so that no node can be shown as a leaf (RFC 6962, section 2.1).
    return _hash(b"\0" + data.encode())


def merkle_root(leaves: Sequence[str]) -> str:
    """Root over texts; a tree splits at the largest power of two below its size."""
    return _root([_leaf(one) for one in leaves]).hex()


def _root(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return _hash(b"")
    if len(hashes) == 1:
        return hashes[0]
    cut = 1 << (len(hashes) - 1).bit_length() - 1
    return _hash(b"\1" + _root(hashes[:cut]) + _root(hashes[cut:]))


def merkle_path(leaves: Sequence[str], place: int) -> list[str]:
    """The hashes beside the way from a leaf to the root, from the leaf up."""
    if not 0 <= place < len(leaves):
        raise BadInput(f"a leaf's place lies in 0..{len(leaves) - 1}; got {place}")

    def walk(hashes: Sequence[bytes], at: int) -> list[bytes]:
        if len(hashes) == 1:
            return []
        cut = 1 << (len(hashes) - 1).bit_length() - 1
        if at < cut:
            return [*walk(hashes[:cut], at), _root(hashes[cut:])]
        return [*walk(hashes[cut:], at - cut), _root(hashes[:cut])]

    return [one.hex() for one in walk([_leaf(one) for one in leaves], place)]


def _climb(leaf: str, place: int, count: int, path: Sequence[str]) -> str:
    """The root that a path leads to.

    Raises:
        LedgerError: the path does not fit the tree's size.
    """
    if not 0 <= place < count:
        raise LedgerError("the place lies outside the tree")
    sides: list[bool] = []
    while count > 1:
        cut = 1 << (count - 1).bit_length() - 1
        sides.append(place < cut)
        place, count = (place, cut) if place < cut else (place - cut, count - cut)
    if len(sides) != len(path):
        raise LedgerError("the path is not as long as the tree is high")
    node = _leaf(leaf)
    for left, other in zip(reversed(sides), path, strict=True):
        beside = _unhex(other, 32)
        node = _hash(b"\1" + (node + beside if left else beside + node))
    return node.hex()


def _unhex(text: Any, size: int) -> bytes:
    if not isinstance(text, str) or len(text) != 2 * size or set(text) - set("0123456789abcdef"):
        raise LedgerError(f"{size} bytes in lower-case hexadecimal are expected; got {str(text)[:80]!r}")
    return bytes.fromhex(text)


def quorum_of(notaries: int) -> int:
    """2f+1 for 3f+1 notaries; with other numbers, the smallest two of which share an honest one.

    Raises:
        BadInput: fewer than one.
    """
    if notaries < 1:
        raise BadInput(f"a ledger has one notary or more; got {notaries}")
    faulty = (notaries - 1) // 3
    return (notaries + faulty) // 2 + 1


_FIELDS = {"seq", "peer", "time", "record", "high_value", "prev", "hash", "kid", "sig"}


def _sealed(fields: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    digest = canonical_hash(dict(fields))
    return {**fields, "hash": digest, "sig": identity.sign(bytes.fromhex(digest)).hex()}


def _check_entry(line: bytes, seq: int, prev: str, keys: KeyRing) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise LedgerError("not JSON", seq) from None
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise LedgerError("not an entry of a ledger", seq)
    try:
        if canonical_bytes(entry) != line:
            raise LedgerError("not in its one spelling", seq)
        bare = {key: value for key, value in entry.items() if key not in ("hash", "sig")}
        if entry["hash"] != canonical_hash(bare):
            raise LedgerError("its content does not match its hash", seq)
        if entry["seq"] != seq or isinstance(entry["seq"], bool):
            raise LedgerError(f"its number is {entry['seq']} instead of {seq}", seq)
        if entry["prev"] != prev:
            raise LedgerError("it does not follow from the entry before", seq)
        owner = keys.verify(str(entry["kid"]), bytes.fromhex(entry["hash"]), _unhex(entry["sig"], 64))
    except BadInput:
        raise LedgerError("its content has no canonical form", seq) from None
    except IdentityError as error:
        raise LedgerError(str(error), seq) from None
    if owner != entry["peer"]:
        raise LedgerError(f"{owner} signed an entry of {entry['peer']}", seq)
    return entry


def verify_chain(data: bytes, keys: KeyRing, *, head: str = "", allow_torn: bool = False) -> list[dict[str, Any]]:
    """The entries of a chain, one a line.

    Args:
        data: of the file.
        keys: of peers.
        head: hash of the last entry as somebody kept it; without it a cut end cannot be seen.
        allow_torn: leave out an unfinished last line, as a killed writer leaves it.

    Raises:
        LedgerError: with the number of the first bad entry.
    """
    lines = data.split(b"\n")
    torn = lines.pop()
    if torn and not allow_torn:
        raise LedgerError("the last line is unfinished", len(lines) + 1)
    entries: list[dict[str, Any]] = []
    prev, peer = GENESIS, None
    for seq, line in enumerate(lines, 1):
        entry = _check_entry(line, seq, prev, keys)
        peer = peer or entry["peer"]
        if entry["peer"] != peer:
            raise LedgerError(f"a chain is one peer's; this entry is {entry['peer']}'s", seq)
        entries.append(entry)
        prev = entry["hash"]
    if head and prev != head:
        raise LedgerError("the chain does not end at the head that was kept", len(entries) + 1)
    return entries


@dataclass(frozen=True)
class Block:
    """An anchor.

    Attributes:
        peer: whose entries.
        height: number of the block in its peer's chain of blocks, from 1.
        prev: hash of the block before.
        first_seq, count: entries that it covers.
        root: of their Merkle tree.
        records: the high-value entries themselves.
        signatures: by the notary's key id, over the block's hash.
    """

    peer: str
    height: int
    prev: str
    first_seq: int
    count: int
    root: str
    records: tuple[dict[str, Any], ...] = ()
    signatures: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "peer": self.peer,
            "height": self.height,
            "prev": self.prev,
            "first_seq": self.first_seq,
            "count": self.count,
            "root": self.root,
            "records": list(self.records),
        }

    @property
    def hash(self) -> str:
        """Of its content."""
        return canonical_hash(self.content())

    def to_builtins(self) -> dict[str, Any]:
        """JSON values."""
        return {**self.content(), "signatures": dict(self.signatures)}

    @classmethod
    def from_builtins(cls, data: Any) -> Block:
        """From JSON values.

        Raises:
            LedgerError: not a block.
        """
        names = {"peer", "height", "prev", "first_seq", "count", "root", "records", "signatures"}
        if not isinstance(data, Mapping) or set(data) != names:
            raise LedgerError("not a block")
        good = isinstance(data["signatures"], Mapping) and isinstance(data["records"], list)
        for name in ("height", "first_seq", "count"):
            good = good and isinstance(data[name], int) and not isinstance(data[name], bool)
        if not good or not all(isinstance(data[name], str) for name in ("peer", "prev", "root")):
            raise LedgerError("not a block")
        return cls(**{**data, "records": tuple(data["records"])})

    def check(self, notaries: KeyRing, quorum: int) -> None:
        """Refuses a block that too few trusted notaries signed.

        Raises:
            LedgerError: so, or one of its signatures is wrong.
        """
        try:
            digest = bytes.fromhex(self.hash)
            signers = {notaries.verify(kid, digest, _unhex(sig, 64)) for kid, sig in self.signatures.items()}
        except (IdentityError, BadInput) as error:
            raise LedgerError(f"block {self.height}: {error}") from None
        if len(signers) < quorum:
            raise LedgerError(f"block {self.height} has {len(signers)} signatures; {quorum} are needed")


@dataclass(frozen=True)
class Equivocation:
    """Two blocks of one peer at one height: proof that who signed both is faulty.

    Attributes:
        first, second: the blocks.
        signers: key ids that signed both.
    """

    first: Block
    second: Block
    signers: tuple[str, ...]


class Notary:
    """Signs blocks, at most one for each peer and height.

    Args:
        identity: its key.
        keys: of the peers.

    Attributes:
        up: whether it answers; for tests and simulations.
        evidence: equivocations that it met.
    """

    def __init__(self, identity: Identity, keys: KeyRing) -> None:
        self.identity, self.keys, self.up = identity, keys, True
        self._blocks: dict[str, list[Block]] = {}
        self.evidence: list[Equivocation] = []

    def sign(self, block: Block, entries: Sequence[Mapping[str, Any]]) -> str:
        """The signature in hexadecimal.

        Raises:
            LedgerError: the block is not made of these entries, does not follow from the last one, or another of the
                same height was signed.
        """
        if not self.up:
            raise LedgerError("the notary does not answer")
        known = self._blocks.setdefault(block.peer, [])
        if block.height <= len(known):
            other = known[block.height - 1]
            if other.hash == block.hash:
                return self.identity.sign(bytes.fromhex(block.hash)).hex()
            both = tuple(sorted(set(other.signatures) & set(block.signatures)))
            self.evidence.append(Equivocation(other, block, both))
            raise LedgerError(f"another block of height {block.height} of {block.peer} was signed")
        last = known[-1] if known else None
        if block.height != len(known) + 1 or block.prev != (last.hash if last else GENESIS):
            raise LedgerError(f"block {block.height} does not follow from block {len(known)}")
        if block.first_seq != (last.first_seq + last.count if last else 1) or block.count != len(entries):
            raise LedgerError("the block leaves entries out, or has some twice")
        prev = entries[0]["prev"] if entries else GENESIS
        for seq, entry in enumerate(entries, block.first_seq):
            _check_entry(canonical_bytes(dict(entry)), seq, prev, self.keys)
            if entry["peer"] != block.peer:
                raise LedgerError(f"entry {seq} is not {block.peer}'s", seq)
            prev = entry["hash"]
        high = tuple(dict(entry) for entry in entries if entry["high_value"])
        if merkle_root([entry["hash"] for entry in entries]) != block.root or canonical_bytes(
            list(high)
        ) != canonical_bytes(list(block.records)):
            raise LedgerError("the block is not made of these entries")
        known.append(block)
        return self.identity.sign(bytes.fromhex(block.hash)).hex()


class NotaryLedger:
    """One peer's chain, and its anchors.

    Args:
        peer: name, as the notaries' keys know it.
        identity: its key.
        notaries: that sign anchors.
        path: of the chain's file, continued if it exists; None keeps it in memory. Blocks lie beside it in ``.blocks``.
        anchor_every: entries, after which it anchors by itself; 0 for never.
        wall_time: seconds since 1970.

    Attributes:
        degraded: the last anchor found no quorum; entries are kept, and anchored later.
        torn: bytes of an unfinished last line that were cut off at the start.

    Raises:
        LedgerError: the file was changed.
    """

    def __init__(
        self,
        peer: str,
        identity: Identity,
        notaries: Iterable[Notary] = (),
        *,
        path: str | Path | None = None,
        anchor_every: int = 100,
        wall_time: Callable[[], float] = time.time,
    ) -> None:
        if anchor_every < 0:
            raise BadInput(f"anchor_every is 0 or more; got {anchor_every}")
        self.peer, self.identity, self.notaries = peer, identity, list(notaries)
        self.anchor_every, self._wall_time = anchor_every, wall_time
        self.entries: list[dict[str, Any]] = []
        self.blocks: list[Block] = []
        self.degraded = False
        self.torn = 0
        self._waiting: Block | None = None
        self._path = None if path is None else Path(path)
        if self._path is not None and self._path.exists():
            self._continue(self._path)

    def _continue(self, path: Path) -> None:
        data = path.read_bytes()
        self.entries = verify_chain(data, KeyRing({self.peer: self.identity.public}), allow_torn=True)
        self.torn = len(data) - (data.rfind(b"\n") + 1)
        if self.torn:
            os.truncate(path, len(data) - self.torn)
        beside = Path(f"{path}.blocks")
        if beside.exists():
            for line in beside.read_bytes().split(b"\n")[:-1]:
                try:
                    self.blocks.append(Block.from_builtins(json.loads(line)))
                except ValueError:
                    raise LedgerError(f"{beside}: block {len(self.blocks) + 1} is not JSON") from None

    @property
    def head(self) -> str:
        """Hash of the last entry; keep it elsewhere to notice a cut end."""
        return str(self.entries[-1]["hash"]) if self.entries else GENESIS

    @property
    def anchored(self) -> int:
        """Entries that blocks cover."""
        return self.blocks[-1].first_seq + self.blocks[-1].count - 1 if self.blocks else 0

    def append(self, record: Any, *, high_value: bool = False) -> dict[str, Any]:
        """Signs and keeps a record; returns the entry.

        Args:
            record: JSON values.
            high_value: put the record itself into a block, at once.

        Raises:
            BadInput: the record has no canonical form.
        """
        entry = _sealed(
            {
                "seq": len(self.entries) + 1,
                "peer": self.peer,
                "time": round(self._wall_time(), 6),
                "record": record,
                "high_value": high_value,
                "prev": self.head,
                "kid": self.identity.kid,
            },
            self.identity,
        )
        if self._path is not None:
            _append_line(self._path, canonical_bytes(entry))
        self.entries.append(entry)
        due = self.anchor_every and len(self.entries) - self.anchored >= self.anchor_every
        if self.notaries and (high_value or due):
            self.anchor()
        return entry

    def anchor(self) -> Block | None:
        """Anchors what is not yet; None if nothing is, or no quorum answers (then ``degraded``)."""
        block = self._waiting
        if block is None:
            new = self.entries[self.anchored :]
            if not new:
                return None
            block = Block(
                self.peer,
                len(self.blocks) + 1,
                self.blocks[-1].hash if self.blocks else GENESIS,
                self.anchored + 1,
                len(new),
                merkle_root([entry["hash"] for entry in new]),
                tuple(entry for entry in new if entry["high_value"]),
            )
        covered = self.entries[block.first_seq - 1 : block.first_seq - 1 + block.count]
        signatures: dict[str, str] = {}
        for notary in self.notaries:
            try:
                signatures[notary.identity.kid] = notary.sign(block, covered)
            except LedgerError:
                continue
        self.degraded = len(signatures) < quorum_of(len(self.notaries)) if self.notaries else True
        if self.degraded:
            # Some notaries may have signed this very block; another of its height would be an equivocation.
            self._waiting = block if signatures else None
            return None
        self._waiting = None
        sealed = Block(**{**block.__dict__, "signatures": signatures})
        if self._path is not None:
            _append_line(Path(f"{self._path}.blocks"), canonical_bytes(sealed.to_builtins()))
        self.blocks.append(sealed)
        return sealed

    def prove(self, seq: int) -> dict[str, Any]:
        """What shows offline that an entry was anchored: JSON values.

        Raises:
            BadInput: no such entry, or not anchored yet.
        """
        if not 1 <= seq <= self.anchored:
            raise BadInput(f"entry {seq} is not anchored; entries 1..{self.anchored} are, of {len(self.entries)}")
        block = next(one for one in self.blocks if seq < one.first_seq + one.count)
        covered = self.entries[block.first_seq - 1 : block.first_seq - 1 + block.count]
        place = seq - block.first_seq
        return {
            "version": PROOF_VERSION,
            "entry": self.entries[seq - 1],
            "path": merkle_path([entry["hash"] for entry in covered], place),
            "block": block.to_builtins(),
        }


def verify_proof(proof: Any, peers: KeyRing, notaries: KeyRing, quorum: int) -> dict[str, Any]:
    """The entry that a proof is about. Who is trusted and how many must have signed come from the verifier, never
    from the proof.

    Raises:
        LedgerError: the proof does not hold.
    """
    if not isinstance(proof, Mapping) or set(proof) != {"version", "entry", "path", "block"}:
        raise LedgerError("not a proof of a ledger")
    if proof["version"] != PROOF_VERSION or isinstance(proof["version"], bool):
        raise LedgerError(f"proofs of version {PROOF_VERSION} are known; got {proof['version']!r}")
    block, entry, path = Block.from_builtins(proof["block"]), proof["entry"], proof["path"]
    if not isinstance(entry, Mapping) or not isinstance(path, list):
        raise LedgerError("not a proof of a ledger")
    seq = entry.get("seq")
    if isinstance(seq, bool) or not isinstance(seq, int):
        raise LedgerError("an entry has a number")
    try:
        line = canonical_bytes(dict(entry))
    except BadInput:
        raise LedgerError("its entry has no canonical form") from None
    checked = _check_entry(line, seq, str(entry.get("prev")), peers)
    if checked["peer"] != block.peer:
        raise LedgerError("the block is another peer's")
    block.check(notaries, quorum)
    if _climb(checked["hash"], seq - block.first_seq, block.count, path) != block.root:
        raise LedgerError("the path does not lead to the block's root")
    if checked["high_value"] and checked not in block.records:
        raise LedgerError("a high-value record stands in its block; this one does not")
    return checked


def _append_line(path: Path, line: bytes) -> None:
    """One write, so that a killed process leaves at most an unfinished last line."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise BadInput(f"cannot write the ledger {path}: {error.strerror}") from None
    try:
        start = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line + b"\n") != len(line) + 1:
                raise OSError(28, "the disk took only a part of the line")
        except OSError as error:
            os.ftruncate(descriptor, start)
            raise LedgerError(f"cannot write the ledger {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
