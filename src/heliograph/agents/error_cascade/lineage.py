"""Who said what, from whom they had it, and what becomes of it when it turns out to be false.

Nodes are claims, edges say how a claim came about. A claim is *live* while it may be passed on; rejecting one makes
every claim that was derived from it, directly or through others, not live either. What an operator or a verifier
confirmed stands on its own and survives.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.error_cascade.claims import Claim
from heliograph.agents.error_cascade.judges import Judge
from heliograph.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    import networkx

__all__ = ["Carrier", "Edge", "LineageGraph", "Node", "Rollback", "Root"]

Status = Literal["confirmed", "unverified", "rejected"]
EdgeKind = Literal["supports", "contradicts", "derived-from", "restates"]
DOWNSTREAM = ("derived-from", "restates")
SUSPECT = "suspect"
MAX_MESSAGES = 1000
"""Messages remembered of one claim; older ones cannot be recalled any more."""


@dataclass(frozen=True)
class Carrier:
    """Where an agent first passed a claim on: message and round."""

    message: str
    round: int


@dataclass
class Node:
    """A claim's state.

    Attributes:
        claim: what it says.
        message, agent, round: where it was first seen.
        status: confirmed, unverified or rejected.
        grounded: confirmed by an operator or a verifier, not merely by following from another claim.
        carriers: who sent it, and since when.
        backers: who sent it while it followed from a confirmed claim; counts towards a quorum.
        confirmed_round: when it was confirmed last.
        evidence: why it has its status.
        tags: marks, such as "suspect".
    """

    claim: Claim
    message: str = ""
    agent: str = ""
    round: int = 0
    status: Status = "unverified"
    grounded: bool = False
    carriers: dict[str, Carrier] = field(default_factory=dict)
    backers: set[str] = field(default_factory=set)
    confirmed_round: int = 0
    evidence: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)

    @property
    def live(self) -> bool:
        """Whether it may be passed on."""
        return self.status != "rejected" and SUSPECT not in self.tags


@dataclass(frozen=True)
class Edge:
    """``target`` came from, restates, is supported or contradicted by ``source``; ``message`` is where it shows."""

    source: str
    target: str
    kind: EdgeKind
    message: str = ""


@dataclass(frozen=True)
class Rollback:
    """What a rejection undid.

    Attributes:
        cause: id of the claim that was rejected.
        rejected: ids that now count as false: the claim, and what says the same.
        suspects: ids that had been derived from it and are not live any more.
        carriers: agents that sent one of them, with the ids.
        messages: ids of the messages that carried one of them.
        polluted_rounds: rounds in which one of them was in shared state.
    """

    cause: str
    rejected: tuple[str, ...]
    suspects: tuple[str, ...]
    carriers: dict[str, tuple[str, ...]]
    messages: tuple[str, ...]
    polluted_rounds: int


@dataclass(frozen=True)
class Root:
    """Where a claim entered: the claim at the root, who brought it, and how many claims and agents it reached."""

    claim: Claim
    agent: str
    message: str
    round: int
    claims_reached: int
    agents_reached: tuple[str, ...]


class LineageGraph:
    """Claims and how they came about.

    Args:
        max_nodes: kept. Past it, the oldest claims that nobody confirmed or rejected go first, then other unpinned
            claims that were only inferred; what is rejected is kept, since forgetting it would let it in again.
        max_sources: derived-from edges of one claim.

    Raises:
        BadInput: a limit below 1.
    """

    def __init__(self, max_nodes: int = 100_000, max_sources: int = 64) -> None:
        if max_nodes < 1 or max_sources < 1:
            raise BadInput(f"max_nodes and max_sources are 1 or more; got {max_nodes} and {max_sources}")
        self.max_nodes, self.max_sources = max_nodes, max_sources
        self.nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}
        self._out: dict[str, dict[Edge, None]] = {}
        self._in: dict[str, dict[Edge, None]] = {}
        self._by_key: dict[tuple[str, str, str], dict[str, None]] = {}
        self._scopes: dict[tuple[str, str], dict[str, None]] = {}
        self._messages: dict[str, dict[str, None]] = {}
        self._sent: dict[str, dict[str, None]] = {}
        self._loose: OrderedDict[str, None] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, claim: object) -> bool:
        return claim in self.nodes

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All, in the order in which they came."""
        return tuple(self._edges)

    def at_key(self, claim: Claim) -> Iterator[Node]:
        """Claims about the same thing, in the claim's scope and everywhere; does not look at any other claim."""
        scope, subject, predicate = claim.key
        for where in dict.fromkeys((scope, "")):
            for id_ in self._by_key.get((where, subject, predicate), ()):
                yield self.nodes[id_]

    def about(self, claim: Claim) -> list[Node]:
        """Claims that a trusted one bears on: the same thing in its scope; if it holds everywhere, in every scope."""
        scope, subject, predicate = claim.key
        scopes = dict.fromkeys((scope, "")) if scope else self._scopes.get((subject, predicate), {})
        keyed = [self._by_key.get((where, subject, predicate), {}) for where in scopes]
        return [self.nodes[id_] for held in keyed for id_ in held]

    def add(self, claim: Claim, *, message: str = "", agent: str = "", round: int = 0) -> Node:
        """The claim's node, new or old; the agent becomes a carrier if a message is named."""
        node = self.nodes.get(claim.id)
        if node is None:
            self._make_room()
            node = self.nodes[claim.id] = Node(claim, message, agent, round)
            self._by_key.setdefault(claim.key, {})[claim.id] = None
            self._scopes.setdefault(claim.key[1:], {})[claim.key[0]] = None
            self._loose[claim.id] = None
        if message:
            node.carriers.setdefault(agent, Carrier(message, round))
            self._note(message, claim.id)
        return node

    def _note(self, message: str, id_: str) -> None:
        self._messages.setdefault(message, {})[id_] = None
        sent = self._sent.setdefault(id_, {})
        sent[message] = None
        if len(sent) > MAX_MESSAGES:
            self._unnote(next(iter(sent)), id_)

    def _unnote(self, message: str, id_: str) -> None:
        self._sent[id_].pop(message, None)
        held = self._messages.get(message, {})
        held.pop(id_, None)
        if not held:
            self._messages.pop(message, None)

    def link(self, source: str, target: str, kind: EdgeKind, message: str = "") -> None:
        """Adds an edge between two claims that are here; a claim is not linked with itself, nor past ``max_sources``.

        What is derived from a claim that is not live is not live either, unless it is grounded.

        Raises:
            BadInput: one of them is not here.
        """
        for id_ in (source, target):
            if id_ not in self.nodes:
                raise BadInput(f"claim {id_} is not in the lineage; add it first")
        edge = Edge(source, target, kind, message)
        if source == target or edge in self._edges or len(self._in.get(target, ())) >= self.max_sources:
            return
        self._connect(edge)
        if kind in DOWNSTREAM and not self.nodes[source].live and not self.nodes[target].grounded:
            self._suspect(target, "derived from a claim that was taken back")

    def _connect(self, edge: Edge) -> None:
        self._edges[edge] = None
        self._out.setdefault(edge.source, {})[edge] = None
        self._in.setdefault(edge.target, {})[edge] = None

    def _suspect(self, id_: str, evidence: str) -> None:
        waiting = deque([id_])
        while waiting:
            here = waiting.popleft()
            node = self.nodes[here]
            if not node.live or node.grounded:
                continue
            node.status = "unverified"
            node.tags.add(SUSPECT)
            node.evidence.append(evidence)
            waiting.extend(edge.target for edge in self._out.get(here, ()) if edge.kind in DOWNSTREAM)

    def sources(self, id_: str) -> tuple[Edge, ...]:
        """Edges into a claim."""
        return tuple(self._in.get(id_, ()))

    def claims_of(self, message: str) -> tuple[str, ...]:
        """Ids of the claims that a message carried."""
        return tuple(self._messages.get(message, ()))

    def confirm(self, id_: str, evidence: str = "", *, grounded: bool = True, round: int = 0) -> None:
        """Makes a claim trusted; grounded means by an operator or a verifier.

        Raises:
            BadInput: the claim is not live, and not grounded now.
        """
        node = self._node(id_)
        if not grounded and not node.live:
            raise BadInput(f"claim {id_} was taken back; only an operator or a verifier can confirm it again")
        node.status = "confirmed"
        node.grounded = node.grounded or grounded
        node.confirmed_round = max(node.confirmed_round, round)
        if grounded:
            node.tags.discard(SUSPECT)
        if evidence:
            node.evidence.append(evidence)
        if node.grounded:
            self._loose.pop(id_, None)

    def demote(self, id_: str, evidence: str = "") -> None:
        """Makes a claim unverified, for example when its confirmation has expired."""
        node = self._node(id_)
        node.status, node.grounded = "unverified", False
        node.backers.clear()
        self._loose[id_] = None
        if evidence:
            node.evidence.append(evidence)
        above = (edge.source for edge in self._in.get(id_, ()) if edge.kind in DOWNSTREAM)
        if not all(self.nodes[source].live for source in above):
            self._suspect(id_, "no longer confirmed, and derived from a claim that was taken back")

    def release(self, id_: str, evidence: str = "") -> None:
        """Forgets what is known of a claim, and that it came from claims that are not live."""
        for edge in self.sources(id_):
            if edge.kind in DOWNSTREAM and not self.nodes[edge.source].live:
                self._edges.pop(edge)
                self._out[edge.source].pop(edge)
                self._in[id_].pop(edge)
        self._node(id_).tags.clear()
        self.demote(id_, evidence)

    def downstream(self, id_: str) -> tuple[str, ...]:
        """All claims derived from or restating a claim, directly or through others; cycles are no problem."""
        self._node(id_)
        seen = {id_: None}
        waiting = deque([id_])
        while waiting:
            for edge in self._out.get(waiting.popleft(), ()):
                if edge.kind in DOWNSTREAM and edge.target not in seen:
                    seen[edge.target] = None
                    waiting.append(edge.target)
        del seen[id_]
        return tuple(seen)

    def reject(self, id_: str, evidence: str, *, judge: Judge | None = None, round: int = 0) -> Rollback:
        """Rejects a claim and rolls back what came from it.

        Of the claims downstream, those from which the rejected one follows are rejected too; the others become
        unverified and suspect. Grounded claims, and what is reached only through them, are left alone.

        Args:
            id_: of the claim.
            evidence: why it is false.
            judge: says which claims entail the rejected one; without it only the claim itself is rejected.
            round: the current one, for the count of polluted rounds.
        """
        cause = self._node(id_)
        cause.grounded = False
        rejected, suspects = {id_: None}, dict[str, None]()
        waiting = deque([id_])
        while waiting:
            for edge in self._out.get(waiting.popleft(), ()):
                node = self.nodes[edge.target]
                fresh = edge.target not in rejected and edge.target not in suspects
                if edge.kind not in DOWNSTREAM or node.grounded or not fresh:
                    continue
                same = judge is not None and judge(node.claim, cause.claim) == "entails"
                (rejected if same else suspects)[edge.target] = None
                waiting.append(edge.target)
        for false in rejected:
            self.nodes[false].status = "rejected"
            self.nodes[false].tags.discard(SUSPECT)
            self.nodes[false].evidence.append(evidence)
            self._loose.pop(false, None)
        for doubtful in suspects:
            node = self.nodes[doubtful]
            if node.status != "rejected":
                node.status = "unverified"
                node.tags.add(SUSPECT)
                node.evidence.append(f"derived from a rejected claim: {evidence}")
        touched = (*rejected, *suspects)
        carriers: dict[str, list[str]] = {}
        for each in touched:
            for agent in self.nodes[each].carriers:
                carriers.setdefault(agent, []).append(each)
        messages = dict.fromkeys(message for each in touched for message in self._sent.get(each, ()))
        starts = [carrier.round for each in touched for carrier in self.nodes[each].carriers.values()]
        polluted = max(0, round - min(starts)) if starts else 0
        return Rollback(
            id_, tuple(rejected), tuple(suspects), {a: tuple(c) for a, c in carriers.items()}, tuple(messages), polluted
        )  # fmt: skip

    def find(self, what: str) -> tuple[str, ...]:
        """Ids of the claims with this id, or whose words or value contain a text."""
        if what in self.nodes:
            return (what,)
        wanted = what.casefold()
        return tuple(i for i, n in self.nodes.items() if wanted in f"{n.claim.said()} {n.claim.object}".casefold())

    def roots(self, what: str) -> tuple[Root, ...]:
        """Where a claim, by id or text, entered: upstream to claims that come from no other, widest reach first."""
        found: dict[str, None] = {}
        for start in self.find(what):
            seen = {start}
            waiting = deque([start])
            while waiting:
                here = waiting.popleft()
                above = {edge.source for edge in self._in.get(here, ()) if edge.kind in DOWNSTREAM}
                if not above:
                    found[here] = None
                waiting.extend(sorted(above - seen))
                seen |= above
            if not any(root in seen for root in found):
                found[start] = None  # a cycle without an entry
        return tuple(sorted((self.root(i) for i in found), key=lambda r: (-len(r.agents_reached), -r.claims_reached)))

    def root(self, id_: str) -> Root:
        """A claim with its reach."""
        node, below = self._node(id_), self.downstream(id_)
        agents = sorted({agent for each in (id_, *below) for agent in self.nodes[each].carriers})
        return Root(node.claim, node.agent, node.message, node.round, len(below), tuple(agents))

    def coverage(self, id_: str, agents: Iterable[str], rounds: int) -> list[float]:
        """Share of the agents that had passed on a claim, or what came of it, by each of ``rounds`` rounds."""
        everyone = list(agents)
        if not everyone:
            raise BadInput("coverage needs at least one agent")
        first: dict[str, int] = {}
        for each in (id_, *self.downstream(id_)):
            for agent, carrier in self.nodes[each].carriers.items():
                first[agent] = min(first.get(agent, carrier.round), carrier.round)
        return [sum(first.get(a, rounds) <= t for a in everyone) / len(everyone) for t in range(rounds)]

    def agents(self) -> tuple[str, ...]:
        """All carriers, sorted."""
        return tuple(sorted({agent for node in self.nodes.values() for agent in node.carriers}))

    def faults(self) -> list[str]:
        """What is wrong inside; empty if nothing. For tests."""
        found = []
        for edge in self._edges:
            for id_ in (edge.source, edge.target):
                if id_ not in self.nodes:
                    found.append(f"an edge names {id_}, which is not here")
        for id_, node in self.nodes.items():
            if id_ not in self._by_key.get(node.claim.key, ()):
                found.append(f"{id_} is not in the index")
        for id_, node in self.nodes.items():
            if node.status == "rejected":
                found += [
                    f"{i} is live below rejected {id_}" for i in self._ungrounded_below(id_) if self.nodes[i].live
                ]
        if len(self.nodes) > self.max_nodes and self._loose:
            found.append("there are more claims than fit")
        return found

    def _ungrounded_below(self, id_: str) -> set[str]:
        seen: set[str] = set()
        waiting = deque([id_])
        while waiting:
            for edge in self._out.get(waiting.popleft(), ()):
                if edge.kind in DOWNSTREAM and edge.target not in seen and not self.nodes[edge.target].grounded:
                    seen.add(edge.target)
                    waiting.append(edge.target)
        return seen

    def compact(self, keep: Callable[[Node], bool]) -> int:
        """Forgets the nodes for which ``keep`` is false, with their edges, for example those of finished runs."""
        gone = [id_ for id_, node in self.nodes.items() if not keep(node)]
        for id_ in gone:
            self._forget(id_)
        return len(gone)

    def _make_room(self) -> None:
        while len(self.nodes) >= self.max_nodes and self._loose:
            self._forget(next(iter(self._loose)))

    def _forget(self, id_: str) -> None:
        node = self.nodes.pop(id_)
        self._loose.pop(id_, None)
        held = self._by_key[node.claim.key]
        del held[id_]
        if not held:
            del self._by_key[node.claim.key]
            scopes = self._scopes[node.claim.key[1:]]
            del scopes[node.claim.key[0]]
            if not scopes:
                del self._scopes[node.claim.key[1:]]
        for edge in (*self._out.pop(id_, ()), *self._in.pop(id_, ())):
            self._edges.pop(edge, None)
            self._out.get(edge.source, {}).pop(edge, None)
            self._in.get(edge.target, {}).pop(edge, None)
        for message in tuple(self._sent.get(id_, ())):
            self._unnote(message, id_)
        self._sent.pop(id_, None)
        self.forgotten += 1

    def _node(self, id_: str) -> Node:
        node = self.nodes.get(id_)
        if node is None:
            raise BadInput(f"claim {id_} is not in the lineage")
        return node

    def to_jsonl(self) -> bytes:
        """Canonical lines, claims and then edges, sorted: two graphs are equal exactly if their bytes are."""
        lines = []
        for id_ in sorted(self.nodes):
            node = self.nodes[id_]
            claim = {name: value for name, value in asdict(node.claim).items() if name != "id"}
            claim["sources"] = list(node.claim.sources)
            carriers = {agent: [carrier.message, carrier.round] for agent, carrier in node.carriers.items()}
            own = {
                "id": id_, "claim": claim, "message": node.message, "agent": node.agent, "round": node.round,
                "status": node.status, "grounded": node.grounded, "carriers": carriers, "backers": sorted(node.backers),
                "confirmed_round": node.confirmed_round, "evidence": node.evidence, "tags": sorted(node.tags),
                "messages": list(self._sent.get(id_, ())),
            }  # fmt: skip
            lines.append(canonical_bytes(own))
        lines += sorted(canonical_bytes({"edge": [e.source, e.target, e.kind, e.message]}) for e in self._edges)
        return b"".join(line + b"\n" for line in lines)

    @classmethod
    def from_jsonl(cls, data: bytes | str | Path, *, max_nodes: int = 100_000) -> LineageGraph:
        """Reads what :meth:`to_jsonl` wrote, from bytes or a file.

        Raises:
            BadInput: a line is not one of ours; the message names it.
        """
        if isinstance(data, str | Path):
            path = Path(data)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise BadInput(f"cannot read {path}: {error.strerror}") from None
        graph = cls(max_nodes)
        for number, line in enumerate(data.splitlines(), 1):
            try:
                graph._take(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(f"line {number} is no line of a lineage graph: {error!r}") from None
        return graph

    def _take(self, own: dict[str, Any]) -> None:
        if "edge" in own:
            source, target, kind, message = own["edge"]
            if kind not in ("supports", "contradicts", *DOWNSTREAM):
                raise ValueError(f"{kind!r} is no kind of edge")
            if source not in self.nodes or target not in self.nodes:
                raise ValueError("an edge names a claim that no line before holds")
            self._connect(Edge(source, target, kind, message))
            return
        told = own["claim"]
        claim = Claim(**{**told, "sources": tuple(told["sources"])})
        if claim.id != own["id"] or own["status"] not in ("confirmed", "unverified", "rejected"):
            raise ValueError("its id or its status does not fit")
        node = self.add(claim, agent=own["agent"], round=own["round"])
        node.message, node.status, node.grounded = own["message"], own["status"], own["grounded"]
        node.carriers = {agent: Carrier(message, round_) for agent, (message, round_) in own["carriers"].items()}
        node.backers, node.confirmed_round = set(own["backers"]), own["confirmed_round"]
        node.evidence, node.tags = list(own["evidence"]), set(own["tags"])
        for message in own["messages"]:
            self._note(message, claim.id)
        if node.grounded or node.status == "rejected":
            self._loose.pop(claim.id, None)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """A directed multigraph of claim ids, with claim, status, agent and round at the nodes and kind at the edges.

        Raises:
            MissingExtra: networkx is not installed.
        """
        try:
            import networkx
        except ModuleNotFoundError as error:
            raise MissingExtra("networkx", "graphs") from error
        made = networkx.MultiDiGraph()
        for id_, node in self.nodes.items():
            made.add_node(id_, claim=node.claim.said(), status=node.status, agent=node.agent, round=node.round)
        for edge in self._edges:
            made.add_edge(edge.source, edge.target, kind=edge.kind, message=edge.message)
        return made
