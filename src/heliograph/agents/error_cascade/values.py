"""When two values say the same: numbers after unit conversion and within a tolerance, text after normalisation."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

__all__ = ["UNITS", "base_number", "norm", "parse_value", "same_value"]

UNITS: Mapping[str, tuple[str, float]] = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("s", 1.0)),
    "ms": ("s", 1e-3),
    **dict.fromkeys(("min", "minute", "minutes"), ("s", 60.0)),
    **dict.fromkeys(("h", "hour", "hours"), ("s", 3600.0)),
    **dict.fromkeys(("day", "days"), ("s", 86400.0)),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("m", 1.0)),
    "mm": ("m", 1e-3),
    "cm": ("m", 1e-2),
    "km": ("m", 1e3),
    **dict.fromkeys(("kg", "kilogram", "kilograms"), ("kg", 1.0)),
    **dict.fromkeys(("g", "gram", "grams"), ("kg", 0.001)),
    "t": ("kg", 1e3),
    **dict.fromkeys(("b", "byte", "bytes"), ("b", 1.0)),
    "kb": ("b", 1e3),
    "mb": ("b", 1e6),
    "gb": ("b", 1e9),
    "%": ("", 1e-2),
    "percent": ("", 1e-2),
}
"""Units that are converted: name, casefolded, to the base unit and the factor. Any other unit only equals itself."""

_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([^\W\d_]+|%)?")


def norm(text: str) -> str:
    """NFKC, casefolded, without zero-width characters, runs of white space as one blank."""
    if text.isascii():
        return " ".join(text.lower().split())
    plain = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(plain.casefold().split())


def base_number(value: float, unit: str) -> tuple[float, str]:
    """A number in its base unit, and that unit."""
    base, factor = UNITS.get(norm(unit), (norm(unit), 1.0))
    return value * factor, base


def parse_value(text: str) -> tuple[float | str, str]:
    """A number with its unit if the whole text is one, else the text and no unit."""
    found = _NUMBER.fullmatch(unicodedata.normalize("NFKC", text).strip().rstrip("."))
    if found is None or len(text) > 64:
        return text.strip(), ""
    number = float(found.group(1).replace(",", ""))
    return (number, found.group(2) or "") if math.isfinite(number) else (text.strip(), "")


def same_value(a: object, a_unit: str, b: object, b_unit: str, tolerance: float = 1e-6) -> bool:
    """Whether two objects of claims are the same value."""
    if isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        x, x_unit = base_number(float(a), a_unit)
        y, y_unit = base_number(float(b), b_unit)
        return x_unit == y_unit and math.isclose(x, y, rel_tol=tolerance, abs_tol=0.0)
    if isinstance(a, str) and isinstance(b, str):
        return norm(a) == norm(b) and norm(a_unit) == norm(b_unit)
    return False
