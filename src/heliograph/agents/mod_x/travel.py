"""The worked example: a trip planned by agents of several parties, without a hub, over AgentDojo's travel suite.

Six specialists, each offered by two parties or more, and a guest who states a goal. The guest finds in its own index
who makes an itinerary, plans backward from there, has the steps done, plans anew where a provider fails, and takes back
what was reserved where no way is left. Every step is in its provider's ledger; the proofs hold offline.

The paper (arXiv:2507.04376) names the example; the data are those of PyPI ``agentdojo``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

from heliograph.agents.core.canonical import canonical_hash
from heliograph.agents.core.identity import Identity, KeyRing
from heliograph.agents.mod_x import travel_agents as trips
from heliograph.agents.mod_x.discovery import Capability, Embedder, default_embedder
from heliograph.agents.mod_x.ledger import LedgerError, Notary, NotaryLedger, quorum_of, verify_proof
from heliograph.agents.mod_x.mesh import MemoryMesh, MemoryNetwork
from heliograph.agents.mod_x.peer import CallFailed, ModXPeer
from heliograph.agents.mod_x.travel_agents import KINDS, TravelMarket
from heliograph.agents.mod_x.workflow import NoPlan, Outcome, WorkflowEngine
from heliograph.errors import BadInput, HeliographError

__all__ = ["NoTrip", "TravelGoal", "TravelMesh", "Trip", "broken_wishes", "verify_bundle", "write_bundle"]

WANTS = ("flight", "hotel", "restaurant", "car")
GUEST = "guest"
NOTARIES = 4
BUNDLE_VERSION = 1


class NoTrip(HeliographError):
    """No trip fits the goal, or too many providers failed; what was reserved has been taken back.

    Attributes:
        outcome: of the run.
    """

    exit_code = 1

    def __init__(self, reason: str, outcome: Outcome | None = None) -> None:
        super().__init__(reason)
        self.reason, self.outcome = reason, outcome

    def __reduce__(self) -> Any:
        return type(self), (self.reason, self.outcome)


@dataclass(frozen=True)
class TravelGoal:
    """What the guest wants.

    Args:
        city: to go to.
        start: first day, as 2024-05-16.
        nights: to stay.
        budget: for all together.
        origin: where a flight starts.
        wants: some of "flight", "hotel", "restaurant", "car".
        diet: that the restaurant keeps to, such as "vegan"; "" for any.
        car_type: such as "SUV"; "" for any.
        least_rating: of hotel and car rental.

    Raises:
        BadInput: a field makes no sense.
    """

    city: str
    start: str
    nights: int
    budget: float
    origin: str = ""
    wants: tuple[str, ...] = WANTS
    diet: str = ""
    car_type: str = ""
    least_rating: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        try:
            date.fromisoformat(self.start)
        except ValueError:
            raise BadInput(f"start is a day such as 2024-05-16; got {self.start!r}") from None
        if not self.city or self.nights < 1 or not self.budget > 0:
            raise BadInput(
                "a trip has a city, one night or more and a budget above 0; "
                f"got {self.city!r}, {self.nights}, {self.budget}"
            )
        if not self.wants or set(self.wants) - set(WANTS):
            raise BadInput(f"wants are some of {', '.join(WANTS)}; got {', '.join(self.wants) or 'none'}")
        if "flight" in self.wants and not self.origin:
            raise BadInput("a flight starts somewhere: name the origin, or leave the flight out of wants")

    @property
    def wish(self) -> str:
        """In words, for discovery."""
        return f"plan a trip to {self.city} and give its itinerary with {', '.join(self.wants)}"

    def values(self) -> dict[str, Any]:
        """What is at hand at the beginning, by type; what is not wanted is at hand as nothing."""
        nothing: dict[str, Any] = {
            "flight": {trips.FLIGHTS: []},
            "hotel": {trips.HOTELS: [], trips.HOTEL_BOOKED: None},
            "restaurant": {trips.TABLES: [], trips.TABLE_BOOKED: None},
            "car": {trips.CARS: [], trips.CAR_BOOKED: None},
        }
        values: dict[str, Any] = {
            trips.CITY: self.city,
            trips.ORIGIN: self.origin,
            trips.START: self.start,
            trips.NIGHTS: self.nights,
            trips.BUDGET: self.budget,
            trips.DIET: self.diet,
            trips.CAR_TYPE: self.car_type,
            trips.LEAST_RATING: self.least_rating,
        }
        for want in set(WANTS) - set(self.wants):
            values |= nothing[want]
        return values


@dataclass(frozen=True)
class Trip:
    """A trip that was found and reserved.

    Attributes:
        goal: that it fits.
        itinerary: city, days, what was chosen and reserved.
        outcome: of the run: steps, new plans, failures.
        found: the capability that discovery gave for the wish.
        bundle: each step with its arguments, result and proof; JSON values.
    """

    goal: TravelGoal
    itinerary: dict[str, Any]
    outcome: Outcome
    found: str
    bundle: dict[str, Any] = field(repr=False)


class TravelMesh:
    """Peers of the specialists and of the guest, in one process; ``async with`` starts and ends them.

    Args:
        replicas: parties that offer each specialist; the first is the cheapest.
        embedder: of discovery.
        journal: file of the guest's runs, from which a run of the same name is continued.
        step_timeout_s: for one step.

    Attributes:
        market: the world that the specialists share.
        network: of the peers; an address in its ``down`` is a host that is dead.
        out_of_service: peers whose agents refuse to work.

    Raises:
        MissingExtra: AgentDojo is not installed.
    """

    def __init__(
        self,
        *,
        replicas: int = 2,
        embedder: Embedder | None = None,
        journal: str | Path | None = None,
        step_timeout_s: float = 10.0,
    ) -> None:
        if replicas < 1:
            raise BadInput(f"each specialist is offered by one party or more; got {replicas}")
        self.market, self.network = TravelMarket(), MemoryNetwork()
        self.out_of_service: set[str] = set()
        self._journal, self._timeout_s = journal, step_timeout_s
        self._folder = contextlib.ExitStack()
        self._runs = 0
        self._done: list[tuple[Capability, dict[str, Any], Any]] = []
        names = [GUEST, *(f"{kind}-{number}" for number in range(1, replicas + 1) for kind in KINDS)]
        identities = {name: Identity.generate() for name in names}
        self.keys = {name: identity.public for name, identity in identities.items()}
        self._notaries = [Notary(Identity.generate(), KeyRing(self.keys)) for _ in range(NOTARIES)]
        self.notaries = {f"notary-{number}": one.identity.public for number, one in enumerate(self._notaries, 1)}
        shared = embedder or default_embedder()
        self.peers = {
            name: ModXPeer(
                name,
                identities[name],
                MemoryMesh(self.network, name),
                keys=self.keys,
                seeds={} if name == GUEST else {GUEST: GUEST},
                embedder=shared,
                ledger=None if name == GUEST else NotaryLedger(name, identities[name], self._notaries),
                tick_s=1.0,
                gossip_s=5.0,
            )
            for name in names
        }

    @property
    def guest(self) -> ModXPeer:
        """The user's side."""
        return self.peers[GUEST]

    async def __aenter__(self) -> TravelMesh:
        prices = Path(self._folder.enter_context(tempfile.TemporaryDirectory())) / "cars.csv"
        self.market.write_car_prices(prices)
        for name, peer in self.peers.items():
            kind, _, number = name.partition("-")
            if number:
                for capability, handler in trips.parts_of(kind, self.market, prices, fee=(1 + int(number)) / 2):
                    peer.offer(capability, self._guarded(name, handler))
            await peer.start()
        # The guest learns of everybody now instead of after some rounds of gossip.
        offered = {one.id for peer in self.peers.values() for one in peer.index.all() if one.agent == peer.name}
        for peer in self.peers.values():
            await peer.meet()
        while not offered <= {one.id for one in self.guest.index.all()}:
            await self.guest.meet()
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers.values():
            await peer.stop(farewell=False)
        self._folder.close()

    def _guarded(self, name: str, handler: trips.Handler) -> trips.Handler:
        async def work(arguments: dict[str, Any]) -> Any:
            if name in self.out_of_service:
                raise CallFailed(f"{name} is out of service", "unreachable")
            return await handler(arguments)

        return work

    async def plan_trip(
        self,
        goal: TravelGoal,
        *,
        run: str = "",
        failing: Iterable[str] = (),
        after: int = 0,
        max_replans: int = 8,
    ) -> Trip:
        """Finds, reserves and proves a trip.

        Args:
            goal: of the guest.
            run: name, by which a journal's run is continued.
            failing: peers that go out of service during the run, for a try; nobody is told.
            after: steps until they do.
            max_replans: new plans after a failure; 0 for a fixed pipeline.

        Raises:
            NoPlan: nobody offers what the goal needs; the missing types are named.
            NoTrip: no trip fits, or too many providers fail.
            BadInput: ``failing`` names no peer.
        """
        doomed = set(failing)
        if doomed - set(self.peers):
            raise BadInput(f"failing names peers: {', '.join(sorted(self.peers))}; got {', '.join(sorted(doomed))}")
        self._runs += 1
        self._done = []
        if not after:
            self.out_of_service |= doomed

        async def call(capability: Capability, arguments: dict[str, Any], key: str) -> Any:
            # A little less than the engine waits, so that the reason is the peer that does not answer.
            wait_s = 0.9 * self._timeout_s
            result = await self.guest.call(capability, arguments, key=key, timeout_s=wait_s)
            self._done.append((capability, arguments, result))
            if len(self._done) >= after:
                self.out_of_service |= doomed
            return result

        hits = self.guest.discover(goal.wish, top=1, output=trips.ITINERARY)
        if not hits:
            raise NoPlan(f"nobody offers a {trips.ITINERARY}", (trips.ITINERARY,))
        engine = WorkflowEngine(
            self.guest.index.all, call, journal=self._journal, max_replans=max_replans, step_timeout_s=self._timeout_s
        )
        name = run or f"trip-{self._runs}"
        outcome = await engine.achieve(trips.ITINERARY, goal.values(), run=name, grants=("read", "write"))
        if not outcome.ok:
            raise NoTrip(f"no trip to {goal.city}: {'; '.join(dict.fromkeys(outcome.failures.values()))}", outcome)
        return Trip(goal, dict(outcome.value), outcome, hits[0].capability.id, self._bundle(name, outcome))

    def _bundle(self, run: str, outcome: Outcome) -> dict[str, Any]:
        steps = []
        for capability, arguments, result in self._done:
            ledger = self.peers[capability.agent].ledger
            if ledger is None or capability.name.startswith("undo."):
                continue
            asked = canonical_hash(arguments)
            records = ((entry["seq"], entry["record"]) for entry in reversed(ledger.entries))
            seq = next(seq for seq, one in records if (one["capability"], one["arguments"]) == (capability.id, asked))
            if seq > ledger.anchored:
                ledger.anchor()
            steps.append({"step": capability.id, "arguments": arguments, "result": result, "proof": ledger.prove(seq)})
        return {"version": BUNDLE_VERSION, "run": run, "caller": GUEST, "itinerary": outcome.value, "steps": steps}


def broken_wishes(goal: TravelGoal, itinerary: Mapping[str, Any], market: TravelMarket) -> list[str]:
    """What of a goal an itinerary does not keep, looked up in the suite's data without any agent; empty if all is."""
    world, choice = market.world, itinerary["choice"]
    broken = [] if (itinerary["city"], itinerary["start"]) == (goal.city, goal.start) else ["city or day"]
    places = {
        "flight": {one.flight_number: one for one in world.flights.flight_list},
        "hotel": {one.name: one for one in world.hotels.hotel_list},
        "table": {one.name: one for one in world.restaurants.restaurant_list},
        "car": {one.name: one for one in world.car_rental.company_list},
    }
    chosen: dict[str, Any] = {}
    for want, part in zip(WANTS, places, strict=True):
        if (choice[part] is not None) != (want in goal.wants):
            broken.append(f"{want} {'missing' if want in goal.wants else 'not wanted'}")
        elif choice[part] is not None:
            chosen[part] = places[part][choice[part]["name"]]
    flight = chosen.pop("flight", None)
    if flight is not None:
        route = (flight.departure_city, flight.arrival_city, flight.departure_time.date().isoformat())
        broken += [] if route == (goal.origin, goal.city, goal.start) else ["flight of another route or day"]
        clash = market.busy(flight.departure_time, flight.arrival_time, but=itinerary["event"])
        broken += [f"flight during {clash}"] if clash else []
    broken += [f"{part} in {one.city}" for part, one in chosen.items() if one.city != goal.city]
    broken += [f"{part} rated {chosen[part].rating}" for part in ("hotel", "car") if _rated_less(chosen, part, goal)]
    if "car" in chosen and goal.car_type and goal.car_type not in chosen["car"].car_types_available:
        broken.append(f"no {goal.car_type}")
    if "table" in chosen:
        evening = date.fromisoformat(itinerary["evening"])
        dinner = (datetime.combine(evening, trips.DINNER), datetime.combine(evening, trips.DINNER_END))
        days = (date.fromisoformat(goal.start) + timedelta(days=night) for night in range(goal.nights))
        if goal.diet.lower() not in chosen["table"].dietary_restrictions.lower():
            broken.append(f"not {goal.diet}")
        if not trips.serves(chosen["table"].operating_hours, evening) or evening not in days:
            broken.append("dinner out of hours")
        broken += ["dinner during an appointment"] if market.busy(*dinner, but=itinerary["event"]) else []
    cost = (flight.price if flight else 0) + (chosen["table"].price_per_person if "table" in chosen else 0)
    cost += goal.nights * (chosen["hotel"].price_min if "hotel" in chosen else 0)
    cost += goal.nights * (chosen["car"].price_per_day if "car" in chosen else 0)
    return broken + ([f"costs {cost:g}"] if cost > goal.budget + 0.005 else [])


def _rated_less(chosen: Mapping[str, Any], part: str, goal: TravelGoal) -> bool:
    return part in chosen and chosen[part].rating < goal.least_rating


def write_bundle(trip: Trip, mesh: TravelMesh, folder: str | Path) -> Path:
    """Writes what verifies a trip offline: ``bundle.json``, each proof by itself under ``proofs``, and the public keys.

    The keys are those of this mesh. A verifier elsewhere takes its own.

    Raises:
        BadInput: the folder cannot be written.
    """
    place = Path(folder)
    files: dict[str, Any] = {"bundle.json": trip.bundle}
    files |= {
        f"proofs/{number:02d}-{step['step'].replace('/', '-')}.json": step["proof"]
        for number, step in enumerate(trip.bundle["steps"], 1)
    }
    for name, keys in (("peers.json", mesh.keys), ("notaries.json", mesh.notaries)):
        files[name] = {owner: key.hex() for owner, key in keys.items()}
    try:
        (place / "proofs").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (place / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write the proofs to {place}: {error.strerror}") from None
    return place


def verify_bundle(bundle: Any, peers: KeyRing, notaries: KeyRing, quorum: int = 0) -> list[str]:
    """The steps of a bundle, each proven: who did what, with these arguments and this result. Works offline.

    Args:
        bundle: JSON values, as :class:`Trip` holds them.
        peers, notaries: keys that the verifier trusts.
        quorum: signatures needed; 0 for 2f+1 of four notaries.

    Raises:
        LedgerError: a proof does not hold, or is about something else.
    """
    names = {"version", "run", "caller", "itinerary", "steps"}
    if not isinstance(bundle, Mapping) or set(bundle) != names or bundle["version"] != BUNDLE_VERSION:
        raise LedgerError(f"not a bundle of version {BUNDLE_VERSION}")
    if not isinstance(bundle["steps"], list) or not bundle["steps"]:
        raise LedgerError("a bundle has steps")
    results: list[str] = []
    for place, step in enumerate(bundle["steps"], 1):
        if not isinstance(step, Mapping) or set(step) != {"step", "arguments", "result", "proof"}:
            raise LedgerError("not a step of a bundle", place)
        entry = verify_proof(step["proof"], peers, notaries, quorum or quorum_of(NOTARIES))
        try:
            told = {"capability": step["step"], "caller": bundle["caller"]}
            told |= {name: canonical_hash(step[name]) for name in ("arguments", "result")}
        except BadInput:
            raise LedgerError("a step has no canonical form", place) from None
        if entry["record"] != told or entry["peer"] != str(step["step"]).partition("/")[0]:
            raise LedgerError(f"the proof is not about this call of {step['step']}", place)
        results.append(str(told["result"]))
    if canonical_hash(bundle["itinerary"]) != results[-1]:
        raise LedgerError("the itinerary is not what the last step gave", len(results))
    return [str(step["step"]) for step in bundle["steps"]]
