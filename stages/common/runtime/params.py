"""Read sections of params.yaml into frozen pydantic models, once, at a stage's boundary."""

import difflib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PARAMS_FILE = Path("params.yaml")

Split = Literal["test", "val"]  # held-out images to measure on
Exactness = Literal["bytes", "device", "band"]  # see stages.common.runtime.devices.prepare_device


class Section(BaseModel):
    """Base of every params section: frozen and strict, without unknown keys or defaults.

    NaN and infinity are rejected, except by a field that allows infinity as "no limit".
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def fitting(cls, content: Any) -> type[Self]:
        """Return the model for a section with this content; a subclass if one of its keys decides.

        Raises:
            ValueError: no model fits the key; the message begins with the key.
        """
        return cls

    def check_references(self, key: str, params: Mapping[str, Any], elsewhere: bool) -> None:
        """Check the files, modules and other sections that this section refers to.

        `stages.preflight` calls this before a run. Whoever refers to something overrides it.

        Args:
            key: the section's place in params.yaml, for messages.
            params: the content of params.yaml.
            elsewhere: the stages run on other machines, so files of this one do not matter.

        Raises:
            ValueError: something does not fit the section.
            FileNotFoundError: a file is missing.
            ModuleNotFoundError: a package is not installed.
        """


SectionType = TypeVar("SectionType", bound=Section)


def environment_number(name: str) -> int | None:
    """Return the whole number above 0 in an environment variable, or None if it is not set.

    Raises:
        ValueError: the variable holds something else.
    """
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}={text!r}: expected a whole number above 0, or unset it")
    return int(text)


def shard_argument() -> str:
    """Return the shard that the command line names, as its only argument.

    Raises:
        ValueError: it names none, several, or something else.
    """
    given = sys.argv[1:]
    if len(given) != 1 or not given[0].isdecimal():
        told = " ".join(given) or "nothing"
        raise ValueError(f"expected the number of a shard of {PARAMS_FILE}, found {told}")
    return given[0]


def read_params(path: Path = PARAMS_FILE) -> dict:
    """Return the whole file as plain Python values.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, is not YAML, or is not a mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.absolute()}: no such file; run from the repository's root")
    try:
        content = YAML(typ="safe").load(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (YAMLError, ValueError) as error:  # ValueError: for example a date in month 13
        told = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML, or not in UTF-8: {told}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping of sections, found {content!r:.60}")
    return content


def read_section(
    name: str, model: type[SectionType], path: Path = PARAMS_FILE, method: Path | None = None
) -> SectionType:
    """Return section `name` of params.yaml as `model`.

    Args:
        name: the section.
        model: its model.
        path: params.yaml.
        method: comparators/<method>/method.yaml, whose `params` are merged into those of `path`.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: the section is missing, or one of its keys is unknown, missing or invalid; the
            message has a line per key with file, key, problem and value.
    """
    content = read_params(path)
    if name not in content:
        raise ValueError(f"{path}: section '{name}' is missing; it has {sorted(content)}")
    section, place = content[name], str(path)
    if method is not None:
        section, place = _merge(section, _read_method(method, name)), f"{path} with {method}"
    try:
        model = model.fitting(section)
    except ValueError as error:
        raise ValueError(f"{place}: {name}.{error}") from None
    try:
        return model.model_validate(section)
    except ValidationError as error:
        raise ValueError(_explain(error, name, model, place)) from None


def _read_method(path: Path, name: str) -> Any:
    changes = read_params(path).get("params")
    if not isinstance(changes, dict) or set(changes) - {name}:
        raise ValueError(f"{path}: params: expected {{{name}: …}} or {{}}, found {changes!r}")
    return changes.get(name, {})


def _merge(content: Any, changes: Any) -> Any:
    """Return the content with the changes; mappings are merged, other values replaced."""
    if not (isinstance(content, dict) and isinstance(changes, dict)):
        return changes
    return {**content, **{key: _merge(content.get(key), new) for key, new in changes.items()}}


def read_seed(path: Path = PARAMS_FILE) -> int:
    """Return the experiment's seed, the key `seed`.

    Raises:
        ValueError: it is missing, or not a whole number >= 0.
    """
    seed = read_params(path).get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"{path}: seed: expected a whole number >= 0, found {seed!r}")
    return seed


def read_split(path: Path = PARAMS_FILE) -> Split:
    """Return the split of all measurements, the key `evaluation.split`.

    Raises:
        ValueError: it is missing or unknown.
    """
    section = read_params(path).get("evaluation")
    split = section.get("split") if isinstance(section, dict) else None
    if split not in get_args(Split):
        raise ValueError(
            f"{path}: evaluation.split: expected one of {', '.join(get_args(Split))},"
            f" found {split!r}"
        )
    return cast(Split, split)


def read_exactness(path: Path = PARAMS_FILE) -> Exactness:
    """Return how exact results must be, the key `deterministic`.

    Raises:
        ValueError: it is missing or unknown.
    """
    exactness = read_params(path).get("deterministic")
    if exactness not in get_args(Exactness):
        raise ValueError(
            f"{path}: deterministic: expected one of {', '.join(get_args(Exactness))},"
            f" found {exactness!r}"
        )
    return cast(Exactness, exactness)


def read_detector_sources(path: Path = PARAMS_FILE) -> list[dict[str, str]]:
    """Return name, annotations and classes of each source in `detector.supervision.sources`.

    Stage `detector` checks the other keys.

    Raises:
        ValueError: there is no list of sources, or one of them lacks a key.
    """
    section = read_params(path).get("detector")
    content = section.get("supervision") if isinstance(section, dict) else None
    sources = content.get("sources") if isinstance(content, dict) else None
    keys = ("name", "annotations", "classes")
    if not isinstance(sources, list) or not all(
        isinstance(own, dict) and all(isinstance(own.get(key), str) for key in keys)
        for own in sources
    ):
        raise ValueError(
            f"{path}: detector.supervision.sources: expected mappings with {', '.join(keys)},"
            f" found {sources!r}"
        )
    return [{key: own[key] for key in keys} for own in sources]


def read_shards(path: Path = PARAMS_FILE) -> list[int]:
    """Return the experiment's shards, the key `shards`, in the order of params.yaml.

    Raises:
        ValueError: it is not a list of distinct whole numbers >= 0.
    """
    shards = read_params(path).get("shards")
    whole = isinstance(shards, list) and all(type(shard) is int and shard >= 0 for shard in shards)
    if not whole or not shards or len(set(shards)) != len(shards):
        raise ValueError(f"{path}: shards: expected distinct whole numbers, found {shards!r}")
    return shards


def _explain(error: ValidationError, name: str, model: type[Section], place: str) -> str:
    """Return a line per wrong key; a misspelt key is one line, not also a missing one."""
    lines: list[str] = []
    meant: set[tuple] = set()  # where a misspelt key belongs
    for item in sorted(error.errors(), key=lambda item: item["type"] == "missing"):
        if item["loc"] in meant:
            continue
        line = f"{place}: {'.'.join([name, *map(str, item['loc'])])}: {item['msg']}"
        if item["type"] == "extra_forbidden":
            *parent, key = item["loc"]
            allowed = sorted(_fields_at(model, tuple(parent)))
            near = difflib.get_close_matches(str(key), allowed, n=1)
            meant.update((*parent, other) for other in near)
            hint = f"did you mean '{near[0]}'?" if near else f"allowed keys: {allowed}"
            line += f"; {hint}"
        elif item["type"] != "missing" and not isinstance(item["input"], dict):
            line += f", found {item['input']!r}"
        lines.append(line)
    return "\n".join(lines)


def in_one_line(error: ValidationError) -> str:
    """Return which settings of a file are wrong, where no params.yaml is to be mended."""
    told = [f"{'.'.join(map(str, own['loc'])) or 'all'}: {own['msg']}" for own in error.errors()]
    return "; ".join(told)


def _fields_at(model: type[BaseModel], location: tuple) -> dict:
    choices: tuple = (model,)
    for key in location:
        if len(choices) > 1:  # a union told apart by `kind`, which is pydantic's next key
            choices = tuple(
                m for m in choices if key in get_args(m.model_fields["kind"].annotation)
            )
            continue
        field = choices[0].model_fields.get(key) if choices else None
        inner = (get_args(field.annotation) or (field.annotation,)) if field else ()
        choices = tuple(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return choices[0].model_fields if choices else {}
