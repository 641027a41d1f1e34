"""The old program of the travel example: reads a price list, one question as CSV, and writes CSV.

It knows nothing of peers, types or JSON, and imports nothing of ours: :class:`LegacyAgent` runs it as it is.
"""

from __future__ import annotations

import csv
import sys


def main() -> None:
    """Usage: legacy_cars.py PRICES.csv < question.csv > offers.csv."""
    with open(sys.argv[1], newline="", encoding="utf-8") as file:  # noqa: PTH123 - starts without importing pathlib
        prices = list(csv.DictReader(file))
    (question,) = csv.DictReader(sys.stdin)
    city, car_type, least = question["city"], question["car_type"], float(question["least_rating"])
    here = [row for row in prices if row["city"] == city]
    if not here:
        sys.exit(f"no rental car in {city}; there are some in {', '.join(sorted({row['city'] for row in prices}))}")
    fit = [row for row in here if car_type in ("", *row["types"].split("|")) and float(row["rating"]) >= least]
    if not fit:
        sys.exit(f"no {car_type or 'rental car'} rated {least:g} or more in {city}")
    writer = csv.DictWriter(sys.stdout, ("name", "price", "rating"), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(fit)


if __name__ == "__main__":
    main()
