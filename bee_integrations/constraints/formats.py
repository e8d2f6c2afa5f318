"""The formats of strings: which are enforced by a pattern, which by the engine, which are annotations."""

from __future__ import annotations

__all__ = ["ENFORCED_FORMATS", "FORMAT_PATTERNS", "NAME_PATTERNS", "OTHER_FORMATS"]

_YEAR = r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    rf"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
_TIME = rf"{_CLOCK}(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"^{_BYTE}(?:\.{_BYTE}){{3}}$"
_HEX = "[0-9a-fA-F]"
_UUID = f"^{_HEX}{{8}}-{_HEX}{{4}}-%s{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
# Of RFC 3339, with few digits: parsers of durations have bounds.
_N = "[0-9]{1,4}"
_DURATION_TIME = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DURATION_DATE = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"

# The engine's own patterns let in 30 February, the year 0 and leap seconds, at which parsers of dates stumble.
FORMAT_PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "naive-date-time": f"^{_DATE}T{_CLOCK}$",
    "duration": f"^P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|{_N}W)$",
    # Pydantic's
    **dict.fromkeys(("ipv4network", "ipv4interface", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork"), _IPV4),
    **{f"uuid{version}": _UUID % version for version in range(1, 9)},
    "base64": "^(?:[A-Za-z0-9+/]{4})*$",
    "base64url": "^(?:[A-Za-z0-9_-]{4})*$",
}
ENFORCED_FORMATS = frozenset({"email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
"""Which the engine has."""
OTHER_FORMATS = frozenset(
    {
        "idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template", "json-pointer",
        "relative-json-pointer", "regex",
    }
)  # fmt: skip
"""Formats of JSON schema that nobody enforces here. All others, such as OpenAPI's int32, are annotations."""

NAME_PATTERNS = {
    "date": FORMAT_PATTERNS["date"],
    "time": FORMAT_PATTERNS["time"],
    "date-time": FORMAT_PATTERNS["date-time"],
    "duration": FORMAT_PATTERNS["duration"],
    "ipv4": _IPV4,
    "uuid": f"^{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
    **{f"uuid{version}": _UUID % version for version in range(1, 9)},
}
"""Patterns for names of properties."""
