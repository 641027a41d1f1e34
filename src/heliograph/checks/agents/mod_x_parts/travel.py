"""Trips over AgentDojo's travel suite, planned by real peers, some of which are out of service.

Each goal is drawn so that a trip fits it: the suite's data are searched without any agent, and the budget is what the
cheapest such trip costs, or up to 60 % more. Which peers fail is drawn among all, the same for all contenders; nobody
is told.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from heliograph.agents.core.identity import KeyRing
from heliograph.agents.mod_x.discovery import HashedNgrams
from heliograph.agents.mod_x.travel import NoTrip, TravelGoal, TravelMesh, broken_wishes, verify_bundle
from heliograph.agents.mod_x.travel_agents import DINNER, DINNER_END, TravelMarket, serves
from heliograph.trials.check import Context

__all__ = ["draw_goal", "measure"]

DAY = "2024-05-16"
"""The only day on which the suite has flights, from Paris to London."""


def _cheapest(goal: TravelGoal, market: TravelMarket) -> float | None:
    """What the cheapest trip costs that fits all but the budget; None if none does."""
    world = market.world
    evening = next(
        (
            day
            for day in (date.fromisoformat(goal.start) + timedelta(days=night) for night in range(goal.nights))
            if not market.busy(datetime.combine(day, DINNER), datetime.combine(day, DINNER_END))
        ),
        None,
    )
    fitting = {
        "flight": [
            one.price
            for one in world.flights.flight_list
            if (one.departure_city, one.arrival_city) == (goal.origin, goal.city)
            and one.departure_time.date().isoformat() == goal.start
            and not market.busy(one.departure_time, one.arrival_time)
        ],
        "hotel": [
            goal.nights * one.price_min
            for one in world.hotels.hotel_list
            if one.city == goal.city and one.rating >= goal.least_rating
        ],
        "restaurant": [
            one.price_per_person
            for one in world.restaurants.restaurant_list
            if one.city == goal.city
            and goal.diet.lower() in one.dietary_restrictions.lower()
            and evening is not None
            and serves(one.operating_hours, evening)
        ],
        "car": [
            goal.nights * one.price_per_day
            for one in world.car_rental.company_list
            if one.city == goal.city
            and one.rating >= goal.least_rating
            and goal.car_type in ("", *one.car_types_available)
        ],
    }
    if not all(fitting[want] for want in goal.wants):
        return None
    return float(sum(min(fitting[want]) for want in goal.wants))


def draw_goal(noise: random.Random, market: TravelMarket) -> TravelGoal:
    """A goal that some trip fits; an appointment may stand in its way, and is entered into the calendar."""
    while True:
        market.reset()
        city, wants = noise.choice(
            [
                *3 * [("London", ("flight", "hotel", "restaurant", "car"))],
                *2 * [("Paris", ("hotel", "restaurant", "car"))],
                ("Tokyo", ("hotel",)),
                (noise.choice(("Dubai", "Los Angeles", "Miami", "Sydney")), ("car",)),
            ]
        )
        wanted = tuple(want for want in wants if noise.random() < 0.8) or wants
        later = 0 if "flight" in wanted else noise.randrange(14)
        goal = TravelGoal(
            city,
            (date.fromisoformat(DAY) + timedelta(days=later)).isoformat(),
            noise.randrange(1, 6),
            1.0,
            origin="Paris" if "flight" in wanted else "",
            wants=wanted,
            diet=noise.choice(("", "vegetarian", "vegan", "gluten-free")),
            car_type=noise.choice(("", "Sedan", "SUV", "Convertible")),
            least_rating=noise.choice((0.0, 4.0, 4.3, 4.5)),
        )
        if noise.random() < 0.5:
            start, end = noise.choice((("08:00", "10:00"), ("15:30", "16:30"), ("19:00", "20:00")))
            times = {"start_time": f"{goal.start} {start}", "end_time": f"{goal.start} {end}"}
            market.tool("create_calendar_event", title="Call with the office", **times)
        cheapest = _cheapest(goal, market)
        if cheapest is not None:
            return replace(goal, budget=math.ceil(100 * cheapest * noise.uniform(1.0, 1.6)) / 100)


async def _trips(arm: str, goals: int, failures: int, seed: int) -> dict[str, list[bool]]:
    noise = random.Random(seed)
    told: dict[str, list[bool]] = {"reached": [], "kept": [], "proven": [], "notices": []}
    replans = {"fixed": 0, "one spare": 1}.get(arm, 8)
    async with TravelMesh(embedder=HashedNgrams()) as mesh:
        providers = sorted(set(mesh.peers) - {mesh.guest.name})
        peers, notaries = KeyRing(mesh.keys), KeyRing(mesh.notaries)
        for _ in range(goals):
            goal = draw_goal(noise, mesh.market)
            mesh.out_of_service.clear()
            try:
                trip = await mesh.plan_trip(goal, failing=noise.sample(providers, failures), max_replans=replans)
            except NoTrip:
                told["reached"].append(False)
                continue
            told["reached"].append(True)
            told["kept"].append(not broken_wishes(goal, trip.itinerary, mesh.market))
            told["proven"].append(len(verify_bundle(trip.bundle, peers, notaries)) == len(trip.outcome.steps))
            spoiled = ({"start": "2024-01-01"}, {"city": "Rome"})
            told["notices"] += [
                *(bool(broken_wishes(goal, {**trip.itinerary, **change}, mesh.market)) for change in spoiled),
                bool(broken_wishes(replace(goal, budget=0.01), trip.itinerary, mesh.market)),
            ]
    return told


def measure(context: Context) -> Mapping[str, Any]:
    """Share of goals reached with all wishes kept, and whether each trip that was reached keeps them and is proven."""
    params = context.workload.params
    told = asyncio.run(_trips(context.contender, int(params["goals"]), int(params["failures"]), context.seed))
    return {
        "reached": sum(told["kept"]) / len(told["reached"]),
        "sound": told["kept"] + told["proven"],
        "notices": told["notices"],
    }
