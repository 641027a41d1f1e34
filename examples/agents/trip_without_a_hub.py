"""A trip planned by agents of several parties, without a hub, one of which fails half way.

Replace GOAL by your own. The data are those of AgentDojo's travel suite: pip install 'heliograph[agents,mcpbench]'.

python examples/agents/trip_without_a_hub.py
"""

from __future__ import annotations

import asyncio

from heliograph.agents.core.identity import KeyRing
from heliograph.agents.mod_x.travel import TravelGoal, TravelMesh, verify_bundle, write_bundle
from heliograph.errors import MissingData

GOAL = TravelGoal(city="London", start="2024-05-16", nights=3, budget=900, origin="Paris", diet="vegan", car_type="SUV")


async def main() -> None:
    async with TravelMesh() as mesh:
        trip = await mesh.plan_trip(GOAL, failing=["hotels-1"], after=4)
        for step in trip.outcome.steps:
            print("done  ", step)
        for step, reason in trip.outcome.failures.items():
            print("failed", step, "-", reason)
        print(trip.itinerary)
        steps = verify_bundle(trip.bundle, KeyRing(mesh.keys), KeyRing(mesh.notaries))
        print(len(steps), "steps are proven; what verifies them offline is in", write_bundle(trip, mesh, "proofs"))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except MissingData as error:
        print(error)
