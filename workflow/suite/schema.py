"""Reading a suite's YAML text and checking it against suite.schema.yaml."""

import copy
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jsonschema
import yaml
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator

from lowbit_core.runtime.errors import InputError

SCHEMA = Path(__file__).with_name("suite.schema.yaml")
# What lies in results/ besides the folders of suites.
TAKEN = (
    *("ablation_record", "benchmarks", "budget", "deploy", "jobs", "logs", "mlflow", "plots"),
    *("record", "reference", "runs"),
)
BASE = jsonschema.Draft202012Validator


def read_config(text: str | bytes, where: str) -> dict:
    """The suite that the YAML `text` (bytes: UTF-8) holds, with the schema's defaults filled in.

    Raises InputError, which begins with `where`, for the first mistake.
    """
    try:
        config = yaml.load(text, UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date or number
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(config, dict) and config.get("compile") is False:
        config["compile"] = "off"  # YAML reads an unquoted off as false
    errors = sorted(_validator().iter_errors(config), key=lambda e: list(map(str, e.absolute_path)))
    if not errors:
        if (name := config["suite"]) in TAKEN:
            raise InputError(f"{where}: suite is {name!r}: results/ has this name already")
        return config
    worst = jsonschema.exceptions.best_match(errors)
    keys = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in worst.absolute_path)
    expected = f" ({worst.validator_value})" if worst.validator == "type" else ""
    raise InputError(f"{where}: {keys.lstrip('.') or 'the file'}: {worst.message}{expected}")


class UniqueKeys(yaml.SafeLoader):
    """Refuses keys that are no text, and a key given twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                is_text = key.tag == "tag:yaml.org,2002:str"
                if not is_text or key.value in seen:
                    problem = f"key {key.value!r} is {'given twice' if is_text else 'not text'}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _properties(
    validator: Validator, properties: dict, instance: object, schema: dict
) -> Iterator[ValidationError]:
    """The keyword `properties`: an object with no other keys, whose defaults are filled in."""
    if not isinstance(instance, dict):
        yield ValidationError(f"{instance!r} is not an object: it must be a mapping of keys")
        return
    for key in instance if "additionalProperties" not in schema else ():
        if key not in properties:
            yield ValidationError(
                f"unknown key {key!r}: it must be one of {', '.join(sorted(properties))}"
            )
    for key, part in properties.items():
        if "default" in part:
            instance.setdefault(key, copy.deepcopy(part["default"]))
    yield from BASE.VALIDATORS["properties"](validator, properties, instance, schema)


@cache
def _validator() -> Validator:
    # JSON schema counts 2.0 as an integer and NaN as a number; torch accepts neither.
    types = BASE.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int).redefine(
        "number", lambda _, v: type(v) is int or (type(v) is float and math.isfinite(v))
    )
    extended = jsonschema.validators.extend(BASE, {"properties": _properties}, type_checker=types)
    return extended(_schema())


@cache
def _schema() -> dict:
    """The schema with the properties of an `option`."""
    schema = yaml.safe_load(SCHEMA.read_text())
    recipe = schema["$defs"]["recipe"]
    schema["$defs"]["option"]["properties"] = {
        key: part
        for key, part in recipe["properties"].items()
        if key not in recipe["required"] and "default" not in part
    }
    return schema


def option_names() -> tuple[str, ...]:
    """The options of a recipe: what it may have, and has not unless a suite says so."""
    return tuple(_schema()["$defs"]["option"]["properties"])
