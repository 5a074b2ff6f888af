"""The points of a sweep: a grid of params, a list in a file, or the product of both.

A point in a file is an overlay, like a profile, and may extend a profile. Its `name` stands for its
params wherever it is shown. A value is YAML, so `-S pseudo_boxes.smoothing=0,0.1` gives numbers and
`-S shards=[0],[0,1]` lists. `-S seed,download.scenes.class_split=0,1` changes both keys together.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.overlay import (
    check_overlay,
    editor,
    extend,
    flatten,
    join,
    load_yaml,
    look_up,
    nest,
    read_params,
)

NAME = "name"  # key of a point in a file that is no param
LONGEST_NAME = 100  # characters, for a folder, a DVC experiment and an MLflow run
ILLEGAL = re.compile(r"[^\w=,.+-]|\.(?=\.)|\.$")  # in a git reference or a file name


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep: what it changes in params.yaml, and its targets."""

    name: str
    values: dict[str, Any]  # by dotted key
    targets: tuple[str, ...] | None = None  # stages, with all that they need; None: the default
    label: dict[str, Any] = field(default_factory=dict)  # shown instead of the values

    @property
    def shown(self) -> dict[str, Any]:
        """What tells the point from others: its label, or all that it changes."""
        return self.label or self.values


def make_points(
    root: Path,
    settings: Iterable[str],
    file: Path | None = None,
    targets: Iterable[str] | None = None,
) -> list[Point]:
    """Return every combination of the settings ("key=value,value") and the file's points.

    If only some points of the file have a key, the others take its value from params.yaml. What
    cannot be read, or is not in params.yaml, raises ValueError.
    """
    grid = [_read_setting(setting) for setting in settings]
    axes = [_read_file(root, file), *grid] if file else grid
    if not axes:
        raise ValueError("a sweep needs params: -S key=value,value … or --points file.yaml")
    overlays = [reduce(join, parts) for parts in itertools.product(*axes)]
    names = [overlay.pop(NAME, None) for overlay in overlays]
    if wrong := [name for name in names if not isinstance(name, str | int | float | None)]:
        raise ValueError(f"{file}: {NAME}: expected a text, found {wrong[0]!r:.60}")
    if None in names and any(names):
        raise ValueError(f"{file}: some points have a {NAME} and some have none")
    params = read_params(root)
    for overlay in overlays:
        check_overlay(root, overlay, "sweep")
        _check_values(overlay)
    points = [dict(flatten(overlay, ".")) for overlay in overlays]
    keys = list(dict.fromkeys(key for point in points for key in point))
    if not keys:
        raise ValueError(f"{file}: no point has params; expected a list such as '- {{seed: 1}}'")
    filled = [_fill(point, keys, params) for point in points]
    stages = tuple(targets) if targets is not None else None
    given = {key for axis in grid for key, _ in flatten(axis[0], ".")}
    labels = _labels(names, filled, given) if any(names) else [{}] * len(filled)
    made = [
        Point(point_name(label or values), values, stages, label)
        for label, values in zip(labels, filled, strict=True)
    ]
    return list({point.name: point for point in made}.values())


def _check_values(overlay: dict[str, Any]) -> None:
    """Raise ValueError for a date, which YAML reads from a text without quotes."""
    for key, value in flatten(overlay, "."):
        try:
            json.dumps(value)
        except TypeError:
            told = f"found {value}" if isinstance(value, date) else f"found {value!r:.60}"
            raise ValueError(f"{key}: no param is a date, {told}; a text needs quotes") from None


def _fill(point: dict[str, Any], keys: Sequence[str], params: dict[str, Any]) -> dict[str, Any]:
    """Return the point with the values in params.yaml of what others change and it does not.

    A section that another point changes as a whole is left alone if this one changes a part of it,
    and a part is not filled beside its section: two values for one key would be in the point.
    """
    filled = {}
    for key in keys:
        beside = any(_is_part(key, own) or _is_part(own, key) for own in point)
        if key in point:
            filled[key] = point[key]
        elif not beside and not any(_is_part(key, section) for section in keys):
            filled[key] = look_up(params, key)
    return filled


def _is_part(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _labels(
    names: list[str], filled: list[dict[str, Any]], given: set[str]
) -> list[dict[str, Any]]:
    """Return each point's name, with the values that tell it from others of that name.

    They are those of `given` keys, in which another sweep may differ, and those that differ here.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for name, values in zip(names, filled, strict=True):
        by_name.setdefault(name, []).append(values)
    differing = {
        name: [
            key
            for key in own[0]
            if key in given or any(values.get(key) != own[0][key] for values in own)
        ]
        for name, own in by_name.items()
    }
    return [
        {NAME: name, **{key: values.get(key) for key in differing[name]}}
        for name, values in zip(names, filled, strict=True)
    ]


def point_name(values: dict[str, Any]) -> str:
    """Return a readable name for the values that is valid for files and git references."""
    return _legal(
        ",".join(
            _text(value) if key == NAME else f"{key}={_text(value)}"
            for key, value in values.items()
        )
    )


def sweep_name(points: Sequence[Point], given: str | None = None) -> str:
    """Return a sweep's name, valid for a folder: the given one, or the params that it changes."""
    return _legal(given or "+".join(points[0].values))


def _legal(text: str) -> str:
    name = ILLEGAL.sub("_", text)
    if name == text and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _read_setting(setting: str) -> list[dict[str, Any]]:
    key, equals, text = setting.partition("=")
    keys = key.split(",")
    if not all(keys) or not equals or not text.strip():
        raise ValueError(f"-S {setting}: expected key=value or key=value,value …")
    values = load_yaml(YAML(typ="safe"), f"[{text}]", f"-S {setting}")
    return [nest(dict(flatten(dict.fromkeys(keys, value), "."))) for value in values]


def _read_file(root: Path, path: Path) -> list[dict[str, Any]]:
    """Return the points of a file, each an overlay that may extend a profile."""
    content = load_yaml(editor(), path, path)
    if not isinstance(content, list) or not all(isinstance(point, dict) for point in content):
        raise ValueError(f"{path}: expected a list of points, each a mapping of params to values")
    return [extend(root, nest(dict(flatten(point, ".")))) for point in content]
