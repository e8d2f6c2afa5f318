"""The JSON schema of a Pydantic class, as narrow as the class: Pydantic's own lets in texts that the class refuses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

__all__ = ["class_schema"]

_INTEGER = "^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,6})?$"
_KEYS = {"int": _INTEGER, "float": _NUMBER, "decimal": _NUMBER, "bool": "^(true|false)$"}


class _Narrow(GenerateJsonSchema):
    """Numbers for decimals, keys that are what they stand for, and date-times without an offset where none is taken."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        if self.mode == "serialization":
            return {"type": "string", "pattern": _NUMBER}
        json_schema = self.float_schema(core_schema.float_schema())
        bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        for given, word in bounds.items():
            if schema.get(given) is not None:
                json_schema[word] = float(schema[given])  # type: ignore[literal-required]
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if digits is not None:
            whole = float(10 ** (digits - (places or 0)) - 1)
            json_schema["minimum"] = max(json_schema.get("minimum", -whole), -whole)
            json_schema["maximum"] = min(json_schema.get("maximum", whole), whole)
        if schema.get("multiple_of") is not None:
            json_schema["multipleOf"] = float(schema["multiple_of"])
        elif places is not None:
            json_schema["multipleOf"] = float(f"1e-{places}") if places else 1
        return json_schema

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        json_schema = super().dict_schema(schema)
        pattern = _KEYS.get(str(schema.get("keys_schema", {}).get("type")))
        if pattern is not None:
            json_schema["propertyNames"] = {"pattern": pattern}
        if "patternProperties" in json_schema:  # Pydantic takes no other keys
            json_schema.setdefault("additionalProperties", False)
        return json_schema

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        json_schema = super().datetime_schema(schema)
        if schema.get("tz_constraint") == "naive":
            json_schema["format"] = "naive-date-time"
        return json_schema


def class_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What an object of the class may be made of, as JSON schema."""
    return model.model_json_schema(schema_generator=_Narrow)
