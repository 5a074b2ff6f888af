"""Changes params.yaml by an overlay that has only the changed keys; keeps comments and order.

A profile is such an overlay in experiments/<name>.yaml; `extends: <other>` puts it on top of
another profile. A sweep makes one overlay per point. Params and metrics are nested mappings, named
by dotted keys.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tag import Tag

PARAMS = "params.yaml"
PROFILES = Path("experiments")
EXTENDS = "extends"
KIND = "kind"  # key of a mapping that decides which other keys it has
REPLACE = "!replace"  # tag of a mapping whose keys depend on something else, such as architecture


def apply_profile(root: Path, name: str) -> list[str]:
    """Merge experiments/<name>.yaml into params.yaml and return descriptions of the changes.

    Raises:
        ValueError: there is no such profile, or a key that params.yaml does not have.
    """
    return apply_overlay(root / PARAMS, read_profile(root, name), f"{PROFILES}/{name}.yaml")


def read_profile(root: Path, name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what a profile changes, on top of what it extends; `above` are those that extend it.

    Raises:
        ValueError: there is no such profile, or it extends itself.
    """
    if name in above:
        circle = " → ".join((*above[above.index(name) :], name))
        raise ValueError(f"{PROFILES}/{name}.yaml: {EXTENDS}: a circle, {circle}")
    path = root / PROFILES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in (root / PROFILES).glob("*.yaml"))) or "none"
        raise ValueError(f"{PROFILES}/{name}.yaml: no such profile; there are: {there}")
    return extend(root, dict(_read(editor(), path)), (*above, name))


def extend(root: Path, changes: dict[str, Any], above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an overlay on top of the profile that its key `extends` names, if it has one."""
    extended = changes.pop(EXTENDS, None)
    return join(read_profile(root, extended, above), changes) if extended else changes


def join(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return both overlays as one; if both change a value, the upper one wins."""
    joined = lower.copy()  # with its tag
    for key, value in upper.items():
        old = lower.get(key)
        if isinstance(old, dict) and not _replaces(old, value):
            value = join(old, value)
        joined[key] = value
    return joined


def apply_overlay(params_path: Path, changes: dict[str, Any], source: str) -> list[str]:
    """Write the changed values into the file atomically; return descriptions of the changes.

    A mapping is merged key by key. But a mapping of another `kind` or with the tag `!replace`
    replaces the old one, as any other value does, including lists.

    Raises:
        ValueError: the file lacks a key of `changes`, or one of them has a section where the other
            has a value; the message names `source` and the key.
    """
    writer = editor()
    content = _read(writer, params_path)
    changed = list(_merge(content, changes, source, params_path.name, ""))
    partial = params_path.with_name(f".{params_path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        writer.dump(content, file)
    partial.replace(params_path)
    return changed


def read_params(root: Path) -> dict[str, Any]:
    """Return params.yaml as plain values, or raise ValueError."""
    return _read(YAML(typ="safe"), root / PARAMS)


def check_overlay(root: Path, changes: dict[str, Any], source: str) -> None:
    """Raise the error that `apply_overlay` on params.yaml would raise; write nothing."""
    list(_merge(read_params(root), changes, source, PARAMS, ""))


def _merge(content: Any, changes: Any, source: str, target: str, prefix: str) -> Iterator[str]:
    for key, value in changes.items():
        dotted = f"{prefix}{key}"
        if key not in content:
            near = difflib.get_close_matches(str(key), map(str, content), 1)
            hint = f"; did you mean '{prefix}{near[0]}'?" if near else f"; it has {list(content)}"
            raise ValueError(f"{source}: {dotted}: {target} has no such key{hint}")
        old = content[key]
        if isinstance(old, dict) != isinstance(value, dict):
            what = "a section" if isinstance(old, dict) else f"a value ({old!r})"
            raise ValueError(f"{source}: {dotted}: {target} has {what} here, found {value!r}")
        if isinstance(value, dict) and not _replaces(old, value):
            yield from _merge(old, value, source, target, f"{dotted}.")
        elif old != value:
            if is_replacement(value):
                value = value.copy()
                value.yaml_set_ctag(Tag())
            content[key] = value
            yield f"{dotted}: {_plain(old)} → {_plain(value)}"


def _replaces(old: Any, new: Any) -> bool:
    """Say whether `new` replaces `old` instead of being merged: mappings of one kind are merged."""
    if not isinstance(new, dict) or is_replacement(new):
        return True
    return new.get(KIND, old.get(KIND)) != old.get(KIND)


def is_replacement(value: Any) -> bool:
    """Say whether a value has the tag `!replace`."""
    return isinstance(value, CommentedMap) and value.tag.value == REPLACE


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value


class _Representer(RoundTripRepresenter):
    """Writes null as params.yaml has it; ruamel.yaml would leave the value out."""

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def editor() -> YAML:
    """Return a reader and writer that keeps comments, order, quotes, tags and null."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 10_000  # never fold a line
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def load_yaml(reader: YAML, source: Path | str, name: object) -> Any:
    """Return the content of a YAML file or text, or raise a ValueError that begins with `name`."""
    try:
        # Else the comments of a file that was edited on Windows would keep their carriage returns.
        text = source.read_bytes().replace(b"\r\n", b"\n") if isinstance(source, Path) else source
        return reader.load(text)
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror}") from error
    except ReaderError as error:
        raise ValueError(
            f"{name}: {error.reason} at character {error.position}; save the file as UTF-8"
        ) from error
    except MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{name}: not valid YAML: {place}{error.problem}") from error
    except (YAMLError, ValueError) as error:  # such as a date in month 13
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _read(reader: YAML, path: Path) -> Any:
    content = load_yaml(reader, path, path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of params to values, found {content!r:.60}")
    return content


def flatten(values: dict[Any, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of every leaf, with the keys on its way joined by the separator."""
    for key, value in values.items():
        inner = f"{prefix}{key}"
        if isinstance(value, dict) and not is_replacement(value):
            yield from flatten(value, separator, inner + separator)
        else:
            yield inner, value


def nest(values: dict[Any, Any]) -> dict[str, Any]:
    """Return dotted keys as nested mappings: {"a.b": 1} becomes {"a": {"b": 1}}.

    Raises:
        ValueError: a key and a part of it have values, such as a and a.b.
    """
    nested: dict[str, Any] = {}
    for dotted, value in values.items():
        *sections, key = str(dotted).split(".")
        inner = nested
        for depth, section in enumerate(sections, 1):
            if (above := ".".join(sections[:depth])) in values:
                raise ValueError(f"{dotted}: {above} has a value too; leave out one of both")
            inner = inner.setdefault(section, {})
        inner[key] = value
    return nested


def look_up(values: dict[str, Any], dotted: str) -> Any:
    """Return the value of a dotted key in nested mappings; None if there is no such key."""
    inner: Any = values
    for key in dotted.split("."):
        inner = inner.get(key) if isinstance(inner, dict) else None
    return inner
