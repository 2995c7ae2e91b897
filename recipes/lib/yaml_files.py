"""YAML files with overrides from the command line, and dataclasses built from what they say."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException


T = TypeVar("T")
# What YAML 1.1 sees in words: switches, octal numbers, times such as 12:30, dates
SEEN_IN_WORDS = ("bool", "int", "float", "timestamp")
# Git's abbreviations have seven digits or more
COMMIT = "[0-9e]{7,}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core: 1e-4 is a number. `no`, a date and 0123 are words, of which OmegaConf makes False or 123 where
    a dataclass has a `bool` or an `int`, and so is 12e45678, which may be a commit.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in SEEN_IN_WORDS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^([-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        rf"^(?!{COMMIT}$)[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def read_yaml(
    file: str | Path, overrides: Sequence[str] = (), path_of: Callable[[str], str] = str, **fixed: Any
) -> dict[str, Any]:
    """Read a YAML file. Variables such as `${STDLIB}` stay as they are; see [`expanded`].

    Args:
        file (`str`): The file.
        overrides (`Sequence[str]`): `key=value`, `--key=value` or `--key value`; a key such as `data.sources.0.path`
            names a value inside others. A mapping takes the place of what was there.
        path_of (`Callable`): Makes a key's whole path of what the command line calls it. Defaults to the key itself.
        **fixed: More overrides, by key with `__` in place of dots.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"The file {str(file)!r} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"The file {str(file)!r} is not UTF-8: {error}.") from error
    values = OmegaConf.create(_parsed(text, f"The file {str(file)!r}") or {})
    given = [(path_of(key), _parsed(text, f"The override `{key}`")) for key, text in _pairs(overrides)]
    given += [(key.replace("__", "."), value) for key, value in fixed.items()]
    for path, value in given:
        try:
            OmegaConf.update(values, path, value, merge=False, force_add=True)
        except (OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"The override `{path}` does not fit {str(file)!r}: {_first_line(error)}.") from error
    found: Any = OmegaConf.to_container(values)
    return found


def read_config(file: str, overrides: Sequence[str], needed: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file in which an entry without a value counts as left out.

    Raises:
        ValueError: if one of the `needed` entries is not there or is empty, or for what [`read_yaml`] refuses.
    """
    values = {name: value for name, value in read_yaml(file, overrides).items() if value is not None}
    for name in needed:
        if not values.get(name):
            raise ValueError(
                f"`{name}` is missing in {file!r}; see recipes/evaluations and recipes/ablations for complete ones."
            )
    return values


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}.") from error


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                raise ValueError(f"An override must be `key=value` or `--key value`, got {word!r}.")
            text = rest.pop(0)
        pairs.append((key.removeprefix("--"), text))
    return pairs


def expanded(value: Any) -> Any:
    """With environment variables in place of their names; `${STDLIB}` is the folder of the standard library."""
    if isinstance(value, dict):
        return {key: expanded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if isinstance(value, str):
        return os.path.expandvars(value.replace("${STDLIB}", sysconfig.get_paths()["stdlib"]))
    return value


def build(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from a mapping. Names and types are checked, and words that are numbers or switches become these.

    Args:
        kind (`type`): The dataclass.
        values (`Mapping`): Its fields. Those that are left out have their defaults.
        where (`str`): What the mapping is, for messages: "focus". Defaults to the whole configuration.

    Raises:
        ValueError: for a name that is no field, a value of another type, or a field that is missing.
    """
    every: Any = kind
    needed = [f.name for f in fields(every) if f.init and f.default is MISSING and f.default_factory is MISSING]
    try:
        merged: Any = OmegaConf.merge(OmegaConf.structured(kind), values)
        if lacking := [name for name in needed if name not in values]:
            raise ValueError(f"`{'.'.join(filter(None, [where, lacking[0]]))}` is missing; give it.")
        given = {name: merged[name] for name in values}
        return kind(**{name: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for name, v in given.items()})
    except OmegaConfBaseException as error:
        *inside, name = str(error.full_key).split(".")
        place = ".".join(filter(None, [where, *inside]))
        if not isinstance(error, ConfigKeyError):
            raise ValueError(f"`{'.'.join(filter(None, [place, name]))}` cannot be: {_first_line(error)}.") from error
        owner: Any = error.object_type or kind
        known = ", ".join(field.name for field in fields(owner) if field.init)
        subject = f"`{place}`" if place else "The configuration"
        raise ValueError(f"{subject} has the unknown entry `{name}`; it takes {known}.") from error


def check_names(where: str, names: Any, known: Any) -> None:
    """Raise a ValueError for a name that is not known; the message says which ones are."""
    for name in names:
        if name not in known:
            raise ValueError(f"{where} has the unknown entry `{name}`; there are {', '.join(map(str, known))}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
