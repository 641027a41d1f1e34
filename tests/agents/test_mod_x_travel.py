"""The worked example over AgentDojo's travel suite; what needs that package is skipped without it."""

import asyncio
import copy
import json
import runpy
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from heliograph.agents.core.identity import KeyRing
from heliograph.agents.mod_x import HashedNgrams, LedgerError, NoPlan
from heliograph.agents.mod_x import travel_agents as trips
from heliograph.agents.mod_x.travel import (
    NoTrip,
    TravelGoal,
    TravelMesh,
    broken_wishes,
    verify_bundle,
    write_bundle,
)
from heliograph.cli import main
from heliograph.errors import BadInput, MissingExtra

LONDON = TravelGoal("London", "2024-05-16", 3, 900, origin="Paris", diet="vegan", car_type="SUV", least_rating=4.2)
CARS = Path(trips.__file__).with_name("legacy_cars.py")


def planning(goal, before=lambda mesh: None, *, replicas=2, **options):
    """The trip, which keeps all wishes, and the mesh that it was made in."""

    async def main():
        async with TravelMesh(replicas=replicas, embedder=HashedNgrams(), step_timeout_s=2.0) as mesh:
            before(mesh)
            trip = await mesh.plan_trip(goal, **options)
            assert broken_wishes(goal, trip.itinerary, mesh.market) == []
            return trip, mesh

    return asyncio.run(main())


@pytest.fixture(scope="module")
def london():
    pytest.importorskip("agentdojo")
    return planning(LONDON)


def keys_of(mesh):
    return KeyRing(mesh.keys), KeyRing(mesh.notaries)


def test_a_trip_is_found_by_six_specialists(london):
    trip, _ = london
    assert trip.found == "calendar-1/enter_trip"
    assert {step.partition("-")[0] for step in trip.outcome.steps} == set(trips.KINDS)
    assert len(trip.outcome.steps) == 10
    assert trip.itinerary["choice"]["total"] <= LONDON.budget
    assert set(trip.itinerary["booked"]) == {"hotel", "table", "car"}


def test_a_provider_that_dies_half_way_is_replaced():
    pytest.importorskip("agentdojo")
    trip, _ = planning(LONDON, failing=["hotels-1"], after=4)
    assert trip.outcome.replans == 1
    assert "hotels-1/find_hotels" in trip.outcome.steps
    assert "hotels-2/reserve_hotel" in trip.outcome.steps
    assert trip.outcome.failures["hotels-1/reserve_hotel"] == "hotels-1 is out of service"


def test_a_host_that_is_dead_is_replaced():
    pytest.importorskip("agentdojo")
    goal = TravelGoal("Tokyo", "2024-06-01", 2, 500, wants=("hotel",))
    trip, _ = planning(goal, lambda mesh: mesh.network.down.add("budget-1"))
    assert "does not answer" in trip.outcome.failures["budget-1/choose_within_budget"]
    assert "budget-2/choose_within_budget" in trip.outcome.steps


def test_what_was_reserved_is_taken_back_if_no_way_is_left():
    pytest.importorskip("agentdojo")
    held = []

    def before(mesh):
        held.append(mesh.market)

    with pytest.raises(NoTrip, match="restaurants-1 is out of service; restaurants-2 is out of service") as no:
        planning(LONDON, before, failing=["restaurants-1", "restaurants-2"], after=8)
    assert sorted(no.value.outcome.undone) == ["cars-1/reserve_car", "hotels-1/reserve_hotel"]
    assert held[0].bookings == {}


def test_a_fixed_plan_fails_with_its_provider():
    pytest.importorskip("agentdojo")
    goal = TravelGoal("Tokyo", "2024-06-01", 2, 500, wants=("hotel",))
    with pytest.raises(NoTrip, match="budget-1 is out of service"):
        planning(goal, failing=["budget-1"], max_replans=0)
    assert planning(goal, failing=["budget-1"])[0].outcome.replans == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"city": "Atlantis", "wants": ("hotel",)}, "no hotel in Atlantis; there are some in London, Paris, Tokyo"),
        ({"city": "Tokyo", "wants": ("restaurant",)}, "no restaurant in Tokyo; there are some in London, Paris"),
        ({"city": "Tokyo", "wants": ("car",)}, "no rental car in Tokyo; there are some in Dubai, London"),
        ({"start": "2024-05-17"}, "no flight from Paris to London on 2024-05-17; there are some on 2024-05-16"),
        ({"budget": 300}, "the cheapest such trip costs 570; the budget is 300"),
        ({"least_rating": 5.1}, r"rated 5\.1 or more"),
        ({"car_type": "Truck"}, "no Truck rated"),
        ({"diet": "halal"}, "no halal restaurant in London is open"),
    ],
)
def test_a_goal_that_cannot_be_reached_says_why(change, reason):
    pytest.importorskip("agentdojo")
    fields = {name: getattr(LONDON, name) for name in TravelGoal.__dataclass_fields__}
    with pytest.raises(NoTrip, match=reason):
        planning(TravelGoal(**{**fields, **change}), replicas=1)


@pytest.mark.parametrize(
    ("peer", "name", "missing"), [("cars-1", "find_cars", "car.offers"), ("calendar-1", "enter_trip", "trip.itinerary")]
)
def test_a_goal_that_nobody_serves_names_the_missing_type(peer, name, missing):
    pytest.importorskip("agentdojo")

    async def main():
        async with TravelMesh(replicas=1, embedder=HashedNgrams()) as mesh:
            mesh.peers[peer].withdraw(name)
            while mesh.guest.index.get(f"{peer}/{name}"):
                await mesh.guest.meet()
            await mesh.plan_trip(LONDON)

    with pytest.raises(NoPlan) as no:
        asyncio.run(main())
    assert no.value.missing == (missing,)


@pytest.mark.parametrize(
    "change",
    [
        {"city": ""},
        {"start": "tomorrow"},
        {"nights": 0},
        {"budget": 0},
        {"budget": float("nan")},
        {"wants": ()},
        {"wants": ("ship",)},
        {"origin": ""},
    ],
)
def test_goals_that_make_no_sense_are_refused(change):
    fields = {name: getattr(LONDON, name) for name in TravelGoal.__dataclass_fields__}
    with pytest.raises(BadInput):
        TravelGoal(**{**fields, **change})


def test_appointments_move_flights_and_dinners():
    pytest.importorskip("agentdojo")

    def before(mesh):
        for start, end in (("14:00", "18:00"), ("20:00", "23:00")):
            times = {"start_time": f"2024-05-16 {start}", "end_time": f"2024-05-16 {end}"}
            mesh.market.tool("create_calendar_event", title="Exam", **times)

    trip, _ = planning(LONDON, before)
    assert trip.itinerary["choice"]["flight"]["name"] == "AF456"  # the cheaper one leaves at 15:00
    assert trip.itinerary["evening"] == "2024-05-17"


def test_a_run_is_continued_from_its_journal(tmp_path):
    pytest.importorskip("agentdojo")

    async def main():
        async with TravelMesh(embedder=HashedNgrams(), journal=tmp_path / "journal") as mesh:
            first = await mesh.plan_trip(LONDON, run="summer")
            again = await mesh.plan_trip(LONDON, run="summer")
            return first, again, len(mesh.market.bookings)

    first, again, bookings = asyncio.run(main())
    assert again.itinerary == first.itinerary
    assert bookings == 4


def test_a_bundle_is_written_and_verified_offline(london, tmp_path):
    trip, mesh = london
    write_bundle(trip, mesh, tmp_path)
    bundle = json.loads((tmp_path / "bundle.json").read_text())
    peers, notaries = (
        KeyRing({name: bytes.fromhex(key) for name, key in json.loads((tmp_path / file).read_text()).items()})
        for file in ("peers.json", "notaries.json")
    )
    assert verify_bundle(bundle, peers, notaries) == trip.outcome.steps
    proof = sorted((tmp_path / "proofs").iterdir())[0]
    keys = ["--keys", tmp_path / "peers.json", "--notaries", tmp_path / "notaries.json"]
    run = "import sys; from heliograph.cli import main; main()"
    command = [sys.executable, "-c", run, "agents", "mod_x", "ledger", proof, *keys]
    assert "the proof holds" in subprocess.run(command, capture_output=True, text=True).stdout
    assert len(list((tmp_path / "proofs").iterdir())) == 10
    with pytest.raises(BadInput, match="cannot write"):
        write_bundle(trip, mesh, tmp_path / "bundle.json")


def change_itinerary(bundle):
    bundle["itinerary"]["city"] = "Rome"


def change_result(bundle):
    bundle["steps"][-1]["result"]["city"] = bundle["itinerary"]["city"] = "Rome"


def change_arguments(bundle):
    bundle["steps"][0]["arguments"]["city"] = "Rome"


def change_provider(bundle):
    bundle["steps"][0]["step"] = "cars-2/find_cars"


def change_caller(bundle):
    bundle["caller"] = "cars-1"


def change_signature(bundle):
    signatures = bundle["steps"][0]["proof"]["block"]["signatures"]
    signatures.pop(next(iter(signatures)))
    signatures.pop(next(iter(signatures)))


def exchange_proofs(bundle):
    first, second = bundle["steps"][:2]
    first["proof"], second["proof"] = second["proof"], first["proof"]


def drop_the_last_step(bundle):
    bundle["steps"].pop()


def drop_all_steps(bundle):
    bundle["steps"].clear()


def change_version(bundle):
    bundle["version"] = 2


@pytest.mark.parametrize(
    "change",
    [
        change_itinerary,
        change_result,
        change_arguments,
        change_provider,
        change_caller,
        change_signature,
        exchange_proofs,
        drop_the_last_step,
        drop_all_steps,
        change_version,
    ],
)
def test_a_changed_bundle_is_refused(london, change):
    trip, mesh = london
    bundle = copy.deepcopy(trip.bundle)
    change(bundle)
    with pytest.raises(LedgerError):
        verify_bundle(bundle, *keys_of(mesh))


def test_keys_come_from_the_verifier(london):
    trip, mesh = london
    peers, notaries = keys_of(mesh)
    with pytest.raises(LedgerError):
        verify_bundle(trip.bundle, peers, KeyRing({}))
    with pytest.raises(LedgerError):
        verify_bundle(trip.bundle, KeyRing({}), notaries)


def test_a_mesh_refuses_what_makes_no_sense():
    with pytest.raises(BadInput, match="one party"):
        TravelMesh(replicas=0)
    pytest.importorskip("agentdojo")
    with pytest.raises(BadInput, match="failing names peers"):
        planning(LONDON, failing=["trains-1"])


def test_without_agentdojo_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "agentdojo", None)
    monkeypatch.setitem(sys.modules, "agentdojo.functions_runtime", None)
    with pytest.raises(MissingExtra, match=r"pip install 'heliograph\[mcpbench\]'"):
        TravelMesh()


PRICES = "city,name,price,rating,types\nOslo,A,10,4.0,SUV|Sedan\nOslo,B,8,3.0,Sedan\n"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Oslo,,0", "name,price,rating\nA,10,4.0\nB,8,3.0\n"),
        ("Oslo,SUV,0", "name,price,rating\nA,10,4.0\n"),
        ("Oslo,,3.5", "name,price,rating\nA,10,4.0\n"),
        ("Oslo,Truck,0", "no Truck rated 0 or more in Oslo\n"),
        ("Bergen,,0", "no rental car in Bergen; there are some in Oslo\n"),
    ],
)
def test_the_old_program_speaks_csv(tmp_path, question, answer):
    (tmp_path / "prices.csv").write_text(PRICES)
    done = subprocess.run(
        [sys.executable, "-I", "-S", CARS, tmp_path / "prices.csv"],
        input=f"city,car_type,least_rating\n{question}\n",
        capture_output=True,
        text=True,
    )
    assert (done.stdout or done.stderr) == answer


@pytest.mark.parametrize(
    ("hours", "day", "open_"),
    [
        ("11:00 AM - 10:00 PM, open every day", 16, True),
        ("11:00 AM - 9:00 PM, open every day", 16, False),
        ("12:00 PM - 2:00 PM, 7:30 PM - 10:30 PM, open on Tuesdays, Thursdays", 16, True),
        ("12:00 PM - 2:00 PM, 7:30 PM - 10:30 PM, open on Tuesdays, Fridays", 16, False),
        ("12:00 PM - 2:00 PM, 7:30 PM - 10:30 PM, open on Tuesdays, and Fridays", 17, True),
        ("", 16, False),
    ],
)
def test_opening_hours_are_read_as_the_suite_writes_them(hours, day, open_):
    assert trips.serves(hours, date(2024, 5, day)) is open_


EXAMPLE = Path(__file__).parents[2] / "examples" / "agents" / "trip_without_a_hub.py"


def test_the_example_plans_anew_and_writes_its_proofs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("agentdojo")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert "failed hotels-1/reserve_hotel - hotels-1 is out of service" in said
    assert "10 steps are proven" in said
    assert (tmp_path / "proofs" / "bundle.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--fail hotels-1 --after 4 --proofs here", 0, "10 steps are proven; new plans: 1"),
        ("--city Tokyo --start 2024-06-01 --want hotel --json", 0, '"name": "City Hub"'),
        ("--city Atlantis", 1, "no rental car in Atlantis; there are some in Dubai"),
        ("--nights 0", 2, "one night or more"),
    ],
)
def test_a_trip_is_planned_from_the_command_line(tmp_path, monkeypatch, capsys, words, code, said):
    pytest.importorskip("agentdojo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["heliograph", "agents", "mod_x", "trip", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert (tmp_path / "here" / "bundle.json").exists() == ("--proofs" in words)


def test_the_command_line_names_the_command_that_installs_agentdojo(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "agentdojo.functions_runtime", None)
    monkeypatch.setattr(sys, "argv", ["heliograph", "agents", "mod_x", "trip"])
    with pytest.raises(SystemExit):
        main()
    assert "pip install 'heliograph[mcpbench]'" in capsys.readouterr().err
