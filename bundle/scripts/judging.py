"""Whether settings are what :mod:`scripts.settings` says; torch and monai are not imported here."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from scripts.errors import DataError
from scripts.settings import RENAMED, SETTINGS, Setting

__all__ = ["allowed", "is_programmed", "judge", "nearest"]


def judge(config: str, values: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """
    Hold settings to their types and ranges, and to each other.

    Expressions (``$``, ``@``, ``%``) and components are the user's own programming and are passed over.

    Args:
        config: a key of ``SETTINGS``.
        values: the settings by key; other keys are passed over.
        given: those to look at, by default all; the others serve for the relations between them.

    Returns:
        the settings looked at, read: ``true`` as true, a comma-separated text as a list.

    Raises:
        DataError: for the first that is not allowed, naming the key.
    """
    table, looked_at = SETTINGS[config], values if given is None else given
    read = {
        key: _read(key, table[key], value)
        for key, value in looked_at.items()
        if key in table and not is_programmed(value)
    }
    for relation in _RELATIONS.get(config, ()):
        relation({**values, **looked_at, **read})
    return read


def is_programmed(value: Any) -> bool:
    """Whether a value is an expression or a component."""
    if isinstance(value, str):
        return value.startswith(("$", "@", "%"))
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(is_programmed, value.values()))
    return isinstance(value, (list, tuple)) and any(map(is_programmed, value))


def allowed(setting: Setting) -> str:
    """What a setting may be, in words: ``a number above 0 and below 1``."""
    return _in_words(_schema(setting.kind))


def nearest(name: object, names: Any) -> str:
    """`` (did you mean 'x'?)``, or what a key of an earlier version is called now; nothing where no name is near."""
    if RENAMED.get(str(name)) in names:
        return f" (it is called '{RENAMED[str(name)]}' now)"
    close = difflib.get_close_matches(str(name), [str(known) for known in names], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


@functools.cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def _schema(kind: Any) -> dict[str, Any]:
    return _adapter(kind).json_schema(mode="validation")


def _read(key: str, setting: Setting, value: Any) -> Any:
    words = allowed(setting)
    if isinstance(value, str) and value.lower() in ("null", "none") and words.endswith("or null"):
        return None
    try:
        return _adapter(setting.kind).validate_python(value)
    except ValidationError:
        shown = f"'{value}'" if isinstance(value, str) else str(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        near = nearest(_first_wrong(value, _choices(setting.kind)), _choices(setting.kind))
        raise DataError(key, f"it must be {words}, and {shown} is not{near}", f"It is: {setting.help}") from None


def _choices(kind: Any) -> list:
    def found(schema: dict) -> list:
        inner = [*schema.get("anyOf", ()), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
        own = [schema["const"]] if "const" in schema else schema.get("enum", [])
        return [choice for choice in own if isinstance(choice, str)] + [c for part in inner for c in found(part)]

    return found(_schema(kind))


def _first_wrong(value: Any, choices: list) -> Any:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    return next((str(part).strip() for part in values if str(part).strip() not in choices), "")


def _in_words(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if "words" in schema:
        return schema["words"]
    if "anyOf" in schema:
        return " or ".join(_in_words(part) for part in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "const" in schema:
        return str(schema["const"])
    if kind in ("number", "integer"):
        limits = [
            f"{word} {schema[name]}"
            for name, word in (
                ("minimum", "from"), ("exclusiveMinimum", "above"),
                ("maximum", "to"), ("exclusiveMaximum", "and below"),
            )
            if name in schema
        ]  # fmt: skip
        several = [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
        base = "a number" if kind == "number" else "a whole number"
        return ", ".join([f"{base} {' '.join(limits)}".strip(), *several])
    if kind == "array":
        return f"a list of: {_in_words(schema['items'])}" if schema.get("items") else "an empty list"
    return {"null": "null", "string": "text"}[kind]


def _plain(values: Mapping[str, Any], *keys: str) -> list | None:
    """The values of keys, None where one of them is not known before work."""
    found = [values.get(key) for key in keys]
    return None if any(value is None or is_programmed(value) for value in found) else found


def _windows_hold_crops(values: Mapping[str, Any]) -> None:
    sides = _plain(values, "window_size", "crop_size", "cache")
    if sides and sides[2] == "on" and sides[0] < sides[1]:
        what = f"windows of {sides[0]} pixels do not hold crops of {sides[1]}"
        raise DataError("window_size", what, "Give one of at least crop_size")


def _batch_holds_both(values: Mapping[str, Any]) -> None:
    found = _plain(values, "primary_share", "batch_size", "mode")
    # labelled data that are set from outside (MONAI Label) may be of one domain whatever the mode says
    data = ((values.get("train") or {}).get("dataset") or {}).get("data")
    if found and found[2] != "single" and data is None and not 0 < int(found[0] * found[1] + 0.5) < found[1]:
        what = f"{found[0]} of a batch of {found[1]} leaves no place for the primary or for the auxiliary domains"
        raise DataError("primary_share", what, "Change it or batch_size, or train with --mode single")


def _share_has_weights(values: Mapping[str, Any]) -> None:
    share = values.get("init_share")
    if share and not is_programmed(share) and values.get("init_model") is None:
        raise DataError("init_share", "there are no weights to share with", "Give --init_model, or --init_share 0")


def _norm_has_discriminator(values: Mapping[str, Any]) -> None:
    found = _plain(values, "spectral_norm", "alignment_loss", "mode")
    if found and found[0] is True and found[1] != "adversary" and found[2] != "single":
        raise DataError("spectral_norm", f"alignment_loss {found[1]} has no discriminator", "Drop one of the two")


def _shares_leave_training(values: Mapping[str, Any]) -> None:
    shares = _plain(values, "validation_share", "testing_share")
    if shares and sum(shares) >= 1:
        what = f"{shares[0]} and testing_share {shares[1]} leave nothing to train on"
        raise DataError("validation_share", what, "Make their sum less than 1")


def _variants_are_there(values: Mapping[str, Any]) -> None:
    only, variants = values.get("only"), values.get("variants")
    if only in (None, "all") or is_programmed(only) or not isinstance(variants, list):
        return
    names = [str(variant.get("name")) for variant in variants if isinstance(variant, Mapping)]
    for name in only.split(",") if isinstance(only, str) else only:
        if str(name).strip() not in names:
            what = f"there is no variant '{name}'{nearest(name, names)}"
            raise DataError("only", what, f"There are {', '.join(names)}")


_RELATIONS: dict[str, tuple[Callable[[Mapping[str, Any]], None], ...]] = {
    "train": (_windows_hold_crops, _batch_holds_both, _share_has_weights, _norm_has_discriminator),
    "prepare": (_shares_leave_training,),
    "experiment": (_variants_are_there,),
}
