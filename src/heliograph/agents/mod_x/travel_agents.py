"""The six specialists of the travel example, over the world of AgentDojo's travel suite.

Flights, hotels, restaurants, rental cars (an old program that speaks CSV), a calendar (rules) and a budget (a logic
program). Each works through the suite's own tools, whose answers are text for people. The types that they exchange are
the constants of this module; what a step takes and gives is all that the planner knows.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from heliograph.agents.mod_x.adapters import LegacyAgent, Rule, RuleAgent, SymbolicAgent
from heliograph.agents.mod_x.discovery import Capability
from heliograph.agents.mod_x.peer import CallFailed, call_key
from heliograph.errors import MissingExtra

__all__ = ["KINDS", "TravelMarket", "parts_of"]

KINDS = ("flights", "hotels", "restaurants", "cars", "calendar", "budget")

CITY, ORIGIN, START, NIGHTS = "trip.city", "trip.origin", "trip.start", "trip.nights"
BUDGET, DIET, CAR_TYPE, LEAST_RATING = "trip.budget", "trip.diet", "trip.car_type", "trip.least_rating"
FLIGHTS, HOTELS, TABLES, CARS = "flight.offers", "hotel.offers", "table.offers", "car.offers"
FITTING, EVENING = "calendar.flights", "calendar.evening"
CHOICE, ITINERARY = "trip.choice", "trip.itinerary"
HOTEL_BOOKED, TABLE_BOOKED, CAR_BOOKED = "hotel.booking", "table.booking", "car.booking"

DINNER, DINNER_END = time(19, 30), time(21, 30)
Handler = Callable[[dict[str, Any]], Awaitable[Any]]
Offer = dict[str, Any]


class TravelMarket:
    """The world that the specialists share: the travel suite of AgentDojo, and what was booked in it.

    Raises:
        MissingExtra: AgentDojo is not installed.
    """

    def __init__(self) -> None:
        try:
            from agentdojo.functions_runtime import FunctionsRuntime
            from agentdojo.task_suite.load_suites import get_suites
        except ModuleNotFoundError as error:
            raise MissingExtra((error.name or "agentdojo").split(".")[0], "mcpbench") from error
        suite = get_suites("v1")["travel"]
        self._tools = FunctionsRuntime(suite.tools)
        self._untouched = suite.load_and_inject_default_environment({})
        self.reset()

    def reset(self) -> None:
        """The world as the suite has it, with nothing booked."""
        self.world = self._untouched.model_copy(deep=True)
        self.bookings: dict[str, dict[str, Any]] = {}

    def tool(self, name: str, **arguments: Any) -> Any:
        """What one of the suite's tools answers.

        Raises:
            CallFailed: an error.
        """
        result, error = self._tools.run_function(self.world, name, arguments)
        if error is not None:
            raise CallFailed(f"{name}: {error}")
        return result

    def names(self, tool: str, city: str) -> list[str]:
        """Names from a tool that lists those of a city.

        Raises:
            CallFailed: none; the message names the cities that have some.
        """
        found = [name for name in str(self.tool(tool, city=city)).partition(": ")[2].split("\n") if name]
        if not found:
            places = self.world.hotels.hotel_list if "hotel" in tool else self.world.restaurants.restaurant_list
            some = ", ".join(sorted({place.city for place in places}))
            what = "hotel" if "hotel" in tool else "restaurant"
            raise CallFailed(f"no {what} in {city}; there are some in {some}", "refused")
        return found

    def ratings(self, tool: str, names: list[str]) -> dict[str, float]:
        """Ratings from a tool that gives them with reviews."""
        argument = "hotel_names" if "hotel" in tool else "restaurant_names"
        told = self.tool(tool, **{argument: names})
        return {name: float(str(text).partition("Rating: ")[2].split("\n")[0]) for name, text in told.items()}

    def busy(self, start: datetime, end: datetime, *, but: str = "") -> str:
        """Title of an appointment that lies across a time; "" if none does.

        Args:
            start, end: of it.
            but: id of an appointment that does not count.
        """
        for day in sorted({start.date(), end.date()}):
            for event in self.tool("get_day_calendar_events", day=day.isoformat()):
                clashes = event.start_time < end and start < event.end_time
                if clashes and event.id_ != but and str(event.status) != "canceled":
                    return str(event.title)
        return ""

    def write_car_prices(self, path: Path) -> None:
        """The price list of the old program."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("city", "name", "price", "rating", "types"))
            for one in self.world.car_rental.company_list:
                writer.writerow((one.city, one.name, one.price_per_day, one.rating, "|".join(one.car_types_available)))


def parts_of(kind: str, market: TravelMarket, prices: Path, fee: float) -> list[tuple[Capability, Handler]]:
    """What a specialist of a kind offers, and what does it.

    Args:
        kind: one of :data:`KINDS`.
        market: of all.
        prices: the old program's price list.
        fee: for each step, by which the planner chooses among alike.
    """
    if kind == "cars":
        return [_find_cars(prices, fee), *_reserving("car", CAR_BOOKED, market, fee)]
    if kind == "calendar":
        return [_free(market, fee), *_entering(market, fee)]
    if kind == "budget":
        return [_choosing(fee)]
    if kind == "hotels":
        return [_find_hotels(market, fee), *_reserving("hotel", HOTEL_BOOKED, market, fee)]
    if kind == "restaurants":
        return [_find_tables(market, fee), *_reserving("table", TABLE_BOOKED, market, fee)]
    return [_find_flights(market, fee)]


def _step(
    name: str,
    concept: str,
    description: str,
    takes: dict[str, str],
    gives: tuple[str, ...],
    fee: float,
    *,
    undoable: bool = False,
) -> Capability:
    """What a specialist does for a trip; the peer that offers it fills in the agent. What is undoable writes."""
    return Capability(
        name=name,
        agent="",
        description=description,
        inputs=takes,
        outputs=gives,
        concepts=(concept,),
        effects="write" if undoable else "read",
        undo=f"undo.{name}" if undoable else "",
        price=fee,
    )


def _find_flights(market: TravelMarket, fee: float) -> tuple[Capability, Handler]:
    told = re.compile(r"Flight Number: ([^,]+), Departure Time: ([^,]+), Arrival Time: ([^,]+), Price: ([\d.]+)")

    async def find(arguments: dict[str, Any]) -> list[Offer]:
        origin, city, start = arguments["origin"], arguments["city"], arguments["start"]
        text = str(market.tool("get_flight_information", departure_city=origin, arrival_city=city))
        found = [
            {"name": name, "departs": departs, "arrives": arrives, "price": float(price)}
            for name, departs, arrives, price in told.findall(text)
            if departs.startswith(start)
        ]
        if not found:
            days = sorted({departs[:10] for _, departs, _, _ in told.findall(text)})
            when = f"; there are some on {', '.join(days)}" if days else ""
            raise CallFailed(f"no flight from {origin or 'nowhere'} to {city} on {start}{when}", "refused")
        return found

    capability = _step(
        "find_flights",
        "travel.flight.search",
        "Finds flights between two cities on a day, with times and prices.",
        {"origin": ORIGIN, "city": CITY, "start": START},
        (FLIGHTS,),
        fee,
    )
    return capability, find


def _find_hotels(market: TravelMarket, fee: float) -> tuple[Capability, Handler]:
    async def find(arguments: dict[str, Any]) -> list[Offer]:
        names = market.names("get_all_hotels_in_city", arguments["city"])
        ratings = market.ratings("get_rating_reviews_for_hotels", names)
        told = market.tool("get_hotels_prices", hotel_names=names)
        # The suite gives a range; the least is what a trip can be had for.
        prices = {name: float(re.findall(r"[\d.]+", text)[0]) for name, text in told.items()}
        least = float(arguments["least_rating"])
        found: list[Offer] = [{"name": name, "price": prices[name], "rating": ratings[name]} for name in names]
        found = [offer for offer in found if offer["rating"] >= least]
        if not found:
            raise CallFailed(f"no hotel in {arguments['city']} is rated {least:g} or more", "refused")
        return found

    capability = _step(
        "find_hotels",
        "travel.hotel.search",
        "Finds hotels of a city with the price of a night and the rating of guests.",
        {"city": CITY, "least_rating": LEAST_RATING},
        (HOTELS,),
        fee,
    )
    return capability, find


def _find_tables(market: TravelMarket, fee: float) -> tuple[Capability, Handler]:
    async def find(arguments: dict[str, Any]) -> list[Offer]:
        names = market.names("get_all_restaurants_in_city", arguments["city"])
        if not arguments["evening"]:
            raise CallFailed("every evening of the trip is taken by an appointment", "refused")
        evening, diet = date.fromisoformat(arguments["evening"]), arguments["diet"]
        hours = market.tool("check_restaurant_opening_hours", restaurant_names=names)
        diets = market.tool("get_dietary_restrictions_for_all_restaurants", restaurant_names=names)
        prices = market.tool("get_price_for_restaurants", restaurant_names=names)
        ratings = market.ratings("get_rating_reviews_for_restaurants", names)
        found = [
            {"name": name, "price": float(prices[name]), "rating": ratings[name]}
            for name in names
            if serves(hours[name], evening) and diet.lower() in diets[name].lower()
        ]
        if not found:
            asked = f"{diet} " if diet else ""
            raise CallFailed(
                f"no {asked}restaurant in {arguments['city']} is open on the evening of {evening}", "refused"
            )
        return found

    capability = _step(
        "find_tables",
        "travel.restaurant.search",
        "Finds restaurants of a city for dinner on an evening, that keep to a diet.",
        {"city": CITY, "evening": EVENING, "diet": DIET},
        (TABLES,),
        fee,
    )
    return capability, find


def serves(hours: str, evening: date) -> bool:
    """Whether opening hours as the suite writes them cover dinner on that day."""
    times, _, days = hours.partition("open ")
    if "every day" not in days and f"{evening:%A}s" not in days:
        return False
    for opens, closes in re.findall(r"(\d+:\d+ [AP]M) - (\d+:\d+ [AP]M)", times):
        at, until = (datetime.strptime(text, "%I:%M %p").time() for text in (opens, closes))
        if at <= DINNER and until >= DINNER_END:
            return True
    return False


def _find_cars(prices: Path, fee: float) -> tuple[Capability, Handler]:
    capability = _step(
        "find_cars",
        "travel.car.search",
        "Finds rental cars of a city and a type with the price of a day.",
        {"city": CITY, "car_type": CAR_TYPE, "least_rating": LEAST_RATING},
        (CARS,),
        fee,
    )
    program = str(Path(__file__).with_name("legacy_cars.py"))
    old = LegacyAgent(capability, [sys.executable, "-I", "-S", program, str(prices)], codec="csv")

    async def find(arguments: dict[str, Any]) -> list[Offer]:
        return [
            {"name": row["name"], "price": float(row["price"]), "rating": float(row["rating"])}
            for row in await old.call("find_cars", arguments)
        ]

    return capability, find


def _free(market: TravelMarket, fee: float) -> tuple[Capability, Handler]:
    capability = _step(
        "free_times",
        "office.calendar.search",
        "Says which flights and which evening of a trip do not clash with appointments.",
        {"flights": FLIGHTS, "start": START, "nights": NIGHTS},
        (FITTING, EVENING),
        fee,
    )

    def clash(facts: Mapping[str, Any]) -> str:
        flight = facts["left"][0]
        return market.busy(datetime.fromisoformat(flight["departs"]), datetime.fromisoformat(flight["arrives"]))

    def taken(facts: Mapping[str, Any]) -> str:
        if not facts["evening"]:
            return ""
        day = date.fromisoformat(facts["evening"])
        return market.busy(datetime.combine(day, DINNER), datetime.combine(day, DINNER_END))

    def next_evening(facts: Mapping[str, Any]) -> dict[str, Any]:
        later = date.fromisoformat(facts["evening"]) + timedelta(days=1)
        over = later >= date.fromisoformat(facts["start"]) + timedelta(days=facts["nights"])
        return {"evening": "" if over else later.isoformat()}

    def answer(facts: Mapping[str, Any]) -> dict[str, Any]:
        if facts["flights"] and not facts["kept"]:
            raise CallFailed(f"every flight clashes with an appointment: {', '.join(facts['clashes'])}", "refused")
        return {"answer": {FITTING: facts["kept"], EVENING: facts["evening"]}}

    rules = [
        Rule(
            "begin",
            lambda facts: "left" not in facts,
            lambda facts: {"left": facts["flights"], "kept": [], "clashes": [], "evening": facts["start"]},
        ),
        Rule(
            "the next flight fits",
            lambda facts: bool(facts["left"]) and not clash(facts),
            lambda facts: {"left": facts["left"][1:], "kept": [*facts["kept"], facts["left"][0]]},
        ),
        Rule(
            "the next flight clashes",
            lambda facts: bool(facts["left"]) and bool(clash(facts)),
            lambda facts: {"left": facts["left"][1:], "clashes": [*facts["clashes"], clash(facts)]},
        ),
        Rule("the evening is taken", lambda facts: bool(taken(facts)), next_evening),
        Rule("done", lambda facts: not facts["left"] and not taken(facts), answer),
    ]
    agent = RuleAgent(capability, rules, answer="answer")

    async def free(arguments: dict[str, Any]) -> Any:
        return await agent.call(capability.name, arguments)

    return capability, free


def _choosing(fee: float) -> tuple[Capability, Handler]:
    capability = _step(
        "choose_within_budget",
        "finance.budget",
        "Chooses flight, hotel, restaurant and car of a trip so that all together keep to the budget.",
        {
            "flights": FITTING,
            "hotels": HOTELS,
            "tables": TABLES,
            "cars": CARS,
            "nights": NIGHTS,
            "budget": BUDGET,
        },
        (CHOICE,),
        fee,
    )

    async def choose(arguments: dict[str, Any]) -> dict[str, Any]:
        nights, budget = arguments["nights"], float(arguments["budget"])
        names = ("flights", "hotels", "tables", "cars")
        trips = list(itertools.product(*(arguments[name] or [None] for name in names)))
        totals = [_total(trip, nights) for trip in trips]
        affordable = SymbolicAgent(
            Capability(name="solve", agent=""),
            [
                *(("costs", number, total) for number, total in enumerate(totals)),
                *(("within budget", total) for total in set(totals) if total <= budget),
            ],
            [(("affordable", "?trip"), [("costs", "?trip", "?total"), ("within budget", "?total")])],
        )
        rows = await affordable.call("solve", {"query": ["affordable", "?trip"]})
        if not rows:
            raise CallFailed(f"the cheapest such trip costs {min(totals):g}; the budget is {budget:g}", "refused")
        best = max((row["trip"] for row in rows), key=lambda number: (_rated(trips[number]), -totals[number]))
        chosen = dict(zip(("flight", "hotel", "table", "car"), trips[best], strict=True))
        return {**chosen, "total": totals[best]}

    return capability, choose


def _total(trip: tuple[Offer | None, ...], nights: int) -> float:
    """What a trip costs: one flight and one dinner, nights in the hotel, as many days with the car."""
    flight, hotel, table, car = trip
    once = sum(float(part["price"]) for part in (flight, table) if part)
    return round(once + nights * sum(float(part["price"]) for part in (hotel, car) if part), 2)


def _rated(trip: tuple[Offer | None, ...]) -> float:
    return sum(float(offer.get("rating", 0.0)) for offer in trip if offer)


def _reserving(what: str, booked: str, market: TravelMarket, fee: float) -> list[tuple[Capability, Handler]]:
    taken = {"hotel": "a room in a hotel", "table": "a table in a restaurant", "car": "a rental car"}[what]
    when = {"table": {"evening": EVENING}}.get(what, {"start": START, "nights": NIGHTS})
    capability = _step(
        f"reserve_{what}",
        f"travel.{what}.reserve",
        f"Reserves {taken}.",
        {"choice": CHOICE, **when},
        (booked,),
        fee,
        undoable=True,
    )

    async def reserve(arguments: dict[str, Any]) -> dict[str, Any]:
        chosen = arguments["choice"][what]
        if chosen is None:
            raise CallFailed(f"the choice has no {what}", "refused")
        name = chosen["name"]
        if what == "table":
            at = f"{arguments['evening']} {DINNER:%H:%M}"
            text = market.tool("reserve_restaurant", restaurant=name, start_time=at)
        else:
            end = date.fromisoformat(arguments["start"]) + timedelta(days=arguments["nights"])
            if what == "hotel":
                text = market.tool("reserve_hotel", hotel=name, start_day=arguments["start"], end_day=end.isoformat())
            else:
                hours = {"start_time": f"{arguments['start']} 10:00", "end_time": f"{end.isoformat()} 10:00"}
                text = market.tool("reserve_car_rental", company=name, **hours)
        booking = {"what": what, "name": name, "told": str(text)}
        market.bookings[call_key.get()] = booking
        return booking

    return [(capability, reserve), _undoing(capability, market)]


def _undoing(done: Capability, market: TravelMarket) -> tuple[Capability, Handler]:
    async def undo(arguments: dict[str, Any]) -> None:
        booking = market.bookings.pop(str(arguments.get("key")), None)
        if booking is not None and "event" in booking:
            market.tool("cancel_calendar_event", event_id=booking["event"])

    return Capability(name=done.undo, agent="", inputs={"key": "call.key"}, effects="write"), undo


def _entering(market: TravelMarket, fee: float) -> list[tuple[Capability, Handler]]:
    capability = _step(
        "enter_trip",
        "travel.itinerary",
        "Plans a trip: gives its whole itinerary, with what was reserved, and enters it into the calendar.",
        {
            "choice": CHOICE,
            "hotel": HOTEL_BOOKED,
            "table": TABLE_BOOKED,
            "car": CAR_BOOKED,
            "city": CITY,
            "start": START,
            "nights": NIGHTS,
            "evening": EVENING,
        },
        (ITINERARY,),
        fee,
        undoable=True,
    )

    async def enter(arguments: dict[str, Any]) -> dict[str, Any]:
        end = date.fromisoformat(arguments["start"]) + timedelta(days=arguments["nights"])
        title = f"Trip to {arguments['city']}"
        event = market.tool(
            "create_calendar_event",
            title=title,
            start_time=f"{arguments['start']} 00:00",
            end_time=f"{end.isoformat()} 00:00",
        )
        market.bookings[call_key.get()] = {"what": "trip", "name": title, "event": event.id_}
        booked = {name: arguments[name] for name in ("hotel", "table", "car") if arguments[name]}
        return {
            "city": arguments["city"],
            "start": arguments["start"],
            "end": end.isoformat(),
            "evening": arguments["evening"],
            "choice": arguments["choice"],
            "booked": booked,
            "event": event.id_,
        }

    return [(capability, enter), _undoing(capability, market)]
