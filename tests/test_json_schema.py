"""Rewritten schemas mean what they meant."""

import json

import pytest
from jsonschema import Draft202012Validator

from jackfield.json_schema import enforceable

CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}, "required": ["kind"]}
EXCLUSIVE = {
    "types": {"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": ["null", "boolean"]}]},
    "a property": {"oneOf": [CAT, DOG]},
    "references": {
        "$defs": {"Cat": CAT, "Dog": DOG},
        "type": "object",
        "properties": {"pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "discriminator": {}}},
    },
    "values": {"oneOf": [{"enum": [1, 2]}, {"const": 3}]},
    "deep inside": {"type": "array", "items": {"oneOf": [{"type": "array"}, {"type": "object"}]}},
}
OVERLAPPING = {
    "integers are numbers": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "an optional property": {"oneOf": [CAT, {**DOG, "required": []}]},
    "the same value": {"oneOf": [CAT, {**DOG, "properties": {"kind": {"enum": ["dog", "cat"]}}}]},
    "anything": {"oneOf": [{}, {"type": "string"}]},
    "nowhere": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"type": "string"}]},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "oneOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]},
    "beside anyOf": {"oneOf": [{"type": "string"}, {"type": "null"}], "anyOf": [{"type": "string"}]},
}
INSTANCES = [
    1,
    3,
    1.5,
    "a",
    None,
    True,
    [],
    [[]],
    [{}],
    {},
    {"kind": "cat"},
    {"kind": "dog"},
    {"pet": {"kind": "wolf"}},
    {"pet": 1},
]


@pytest.mark.parametrize("schema", EXCLUSIVE.values(), ids=EXCLUSIVE)
def test_branches_that_exclude_each_other_may_be_any(schema: dict) -> None:
    before = json.dumps(schema)
    rewritten = enforceable(schema)
    assert "oneOf" not in json.dumps(rewritten)
    assert json.dumps(schema) == before
    for instance in INSTANCES:
        assert Draft202012Validator(rewritten).is_valid(instance) == Draft202012Validator(schema).is_valid(instance)


@pytest.mark.parametrize("schema", OVERLAPPING.values(), ids=OVERLAPPING)
def test_others_stay_as_they_are(schema: dict) -> None:
    assert enforceable(schema) == schema
