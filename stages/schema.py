"""`python -m stages.schema`: write the schemas of params.yaml and of profiles, and the docs' table.

The pydantic models say which values a param may have. Its comment in params.yaml gives its meaning,
unit and the paper's value: whoever changes the param sees it there, and a better comment makes no
stage stale. What params.yaml lacks, such as the params of another architecture, is explained by the
comments of a profile. Editors read all of this from the schema.
"""

import copy
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model
from pydantic.json_schema import GenerateJsonSchema
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node

from stages.common.runtime.errors import refuse
from stages.common.runtime.params import PARAMS_FILE, Exactness, Section, read_params
from stages.models.detection.params import StartParams, architectures
from stages.preflight import section_model

SCHEMA = Path("params.schema.json")
PROFILE_SCHEMA = Path("experiments/schema.json")
PAGE = Path("docs/params.md")
PLACE = re.compile(r"(<!-- params -->\n).*?(<!-- /params -->)", re.DOTALL)
TABLE_HEAD = ("| param | value | allowed | what it is |", "| --- | --- | --- | --- |")
LONGEST_VALUE = 60  # characters in the table
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class WithoutTitles(GenerateJsonSchema):
    """Leaves out titles: pydantic's are the key again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return whether to make a title from the name of a field."""
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        """Return the schema of a model."""
        return {key: own for key, own in super().model_schema(schema).items() if key != "title"}


class TopLevel(Section):
    """The keys of params.yaml outside its sections."""

    seed: int = Field(ge=0)
    shards: list[Annotated[int, Field(ge=0)]] = Field(
        min_length=1, json_schema_extra={"uniqueItems": True}
    )
    deterministic: Exactness
    gpus_per_training: int = Field(ge=1)


def make_schema(
    params: dict[str, Any],
    comments: dict[str, str],
    profiles: Iterable[tuple[dict[str, Any], dict[str, str]]],
) -> dict[str, Any]:
    """Return the JSON schema of params.yaml.

    Args:
        params: the content of params.yaml.
        comments: the comment of each dotted key.
        profiles: content and comments of each profile.
    """
    sections: dict[str, Any] = {
        name: (_variants(section_model(name)), ...)
        for name in params
        if name not in TopLevel.model_fields
    }
    model = create_model("Params", __base__=TopLevel, **sections)
    model.__doc__ = "Every value that can change a result."
    schema = model.model_json_schema(schema_generator=WithoutTitles)
    # A model may be used in several sections; its keys take the comments of the first one.
    reached = set()
    for key, node, _, _ in walk(schema, params):
        reached.add(id(node))
        if key in comments and _has_own(key, comments):
            node.setdefault("description", comments[key])
            # The comment of a list, or of a mapping of several kinds, explains what is in each.
            if "items" in node or node.get("discriminator", {}).get("propertyName") == "kind":
                for _, own in _every(schema, node):
                    own.setdefault("description", comments[key])
    # Then the same keys of other architectures, if they have a comment of their own.
    for key, node in _every(schema, schema):
        if key in comments and _has_own(key, comments) and "$ref" not in node:
            node.setdefault("description", comments[key])
    for key, node, _, _ in walk(schema, params):  # the others share that of their mapping
        if key in comments:
            node.setdefault("description", comments[key])
    for content, told in profiles:
        for key, node, _, _ in walk(schema, content):
            if key in told and id(node) not in reached:
                node.setdefault("description", told[key])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _has_own(key: str, comments: dict[str, str]) -> bool:
    return comments.get(key) != comments.get(key.rpartition(".")[0])


def _variants(model: type[Section]) -> Any:
    """Return the model, or a union of models that the key `architecture` tells apart."""
    if not issubclass(model, StartParams):
        return model
    variants = []
    for name in architectures():
        own: dict[str, Any] = {"architecture": (Literal[name], ...)}
        base = model.fitting({"architecture": name})
        variants.append(create_model(f"{model.__name__}_{name}", __base__=base, **own))
    return Annotated[Union[*variants], Field(discriminator="architecture")]


def make_profile_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an overlay: that of params.yaml with every key optional."""
    schema = copy.deepcopy(schema)
    schema["title"] = "Profile"
    schema["description"] = "The values that differ from params.yaml or from the extended profile."
    schema["properties"]["extends"] = {
        "description": "Name of the profile that this one changes.",
        "type": "string",
    }
    _loosen(schema)
    return schema


def _loosen(node: Any) -> None:
    if isinstance(node, dict):
        node.pop("discriminator", None)
        if isinstance(node.get("required"), list):
            del node["required"]
        if "oneOf" in node:
            node["anyOf"] = node.pop("oneOf")
        for inner in node.values():
            _loosen(inner)
    elif isinstance(node, list):
        for inner in node:
            _loosen(inner)


def walk(
    schema: dict[str, Any], params: dict[str, Any], prefix: str = "", node: Any = None
) -> Iterator[tuple[str, dict[str, Any], Any, str]]:
    """Yield (dotted key, node of the schema, value, allowed values) of each section and param.

    A mapping whose keys no model names, such as `loss_weights`, is a single param.
    """
    defs = schema.get("$defs", {})
    choices = [own["properties"] for own in _choices(node or schema, defs) if "properties" in own]
    properties: dict[str, Any] = next((own for own in choices if _is_for(own, params)), {})
    for key, own in properties.items():
        if key not in params:
            continue
        fixed = [other[key]["const"] for other in choices if "const" in other.get(key, {})]
        allowed = _quoted(fixed) if "const" in own else _allowed(own, defs)
        yield f"{prefix}{key}", own, params[key], allowed
        if isinstance(params[key], dict):
            yield from walk(schema, params[key], f"{prefix}{key}.", own)


def _every(
    schema: dict[str, Any], node: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (dotted key, node) of all keys below a node, also in lists and all alternatives."""
    for choice in _choices(node.get("items", node), schema.get("$defs", {})):
        for key, own in choice.get("properties", {}).items():
            yield f"{prefix}{key}", own
            yield from _every(schema, own, f"{prefix}{key}.")


def _choices(node: dict[str, Any], defs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the node, references resolved, or all alternatives of a union."""
    if "$ref" in node:
        return _choices(defs[node["$ref"].rpartition("/")[2]], defs)
    own = node.get("oneOf") or node.get("anyOf")
    return [inner for choice in own for inner in _choices(choice, defs)] if own else [node]


def _is_for(properties: dict[str, Any], value: dict[str, Any]) -> bool:
    """Return whether a mapping has the values of a model's fixed keys, such as `kind`."""
    fixed = {key: own["const"] for key, own in properties.items() if "const" in own}
    return fixed.items() <= value.items()


def read_comments(path: Path) -> dict[str, str]:
    """Return the comment of each dotted key of a YAML file.

    A key's comment is in the lines above it, after its value, or both. Keys in braces share the
    comment of their mapping.
    """
    text = path.read_text(encoding="utf-8")
    root = YAML(typ="safe", pure=True).compose(text)
    return dict(_comments(root, text.splitlines(), "", None))


def _comments(
    node: MappingNode, lines: list[str], prefix: str, shared: str | None
) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        comment = shared if node.flow_style else _comment(key, value, lines)
        if comment:
            yield f"{prefix}{key.value}", comment
        if isinstance(value, MappingNode):
            yield from _comments(value, lines, f"{prefix}{key.value}.", comment)


def _comment(key: Node, value: Node, lines: list[str]) -> str:
    """Return the comment of a key in a block: the lines above it, then the text after its value."""
    first = key.start_mark.line
    above = first
    while above and re.match(rf" {{{key.start_mark.column}}}#", lines[above - 1]):
        above -= 1
    told = [line.strip() for line in lines[above:first]]
    is_block = isinstance(value, CollectionNode) and not value.flow_style
    end = key.end_mark if is_block else value.end_mark
    told.append(lines[end.line][end.column :].partition("#")[2])
    words = " ".join(line.lstrip("#").strip() for line in told if line.strip())
    return "" if words.startswith("yaml-language-server:") else words


def make_table(schema: dict[str, Any], params: dict[str, Any], comments: dict[str, str]) -> str:
    """Return the Markdown tables of all params, one per section."""
    sections: dict[str, list[str]] = {"": [*TABLE_HEAD]}
    last = None
    for key, node, value, allowed in walk(schema, params):
        name = key.partition(".")[0]
        if name == key and isinstance(value, dict):
            told = [f"{comments[key]}\n"] if key in comments else []
            sections[name] = [f"### {name}\n", *told, *TABLE_HEAD]
        elif _is_param(schema, node, value):
            said = comments.get(key) or node["description"]
            cells = (f"`{key}`", _value(value), allowed, said)
            cells = cells if said != last else (*cells[:-1], "as above")
            row = " | ".join(cell.replace("|", "\\|") for cell in cells)
            sections[name if name in sections else ""].append(f"| {row} |")
            last = said
    return "\n\n".join("\n".join(rows) for rows in sections.values())


def _is_param(schema: dict[str, Any], node: dict[str, Any], value: Any) -> bool:
    """Return whether a node is a value or a mapping whose keys no model names."""
    return not isinstance(value, dict) or not any(walk(schema, value, node=node))


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`" if len(text) <= LONGEST_VALUE else "see `params.yaml`"


def _allowed(node: dict[str, Any], defs: dict[str, Any]) -> str:
    """Return the allowed values of a node in words."""
    choices = _choices(node, defs)
    if len(choices) > 1:
        return " or ".join(_allowed(choice, defs) for choice in choices)
    (node,) = choices
    if "enum" in node or "const" in node:
        return _quoted(node.get("enum", [node.get("const")]))
    if node["type"] == "array":
        return f"list of {_allowed(node['items'], defs)}"
    if node["type"] == "object":
        values = node.get("additionalProperties")
        return f"mapping to {_allowed(values, defs)}" if values else "mapping"
    bounds = [f"{sign} {node[name]:g}" for name, sign in BOUNDS.items() if name in node]
    return " ".join([node["type"], ", ".join(bounds)]).strip()


def _quoted(choices: list[Any]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def make_files(root: Path) -> dict[Path, str]:
    """Return the content of each generated file.

    Raises:
        ValueError: a param has no comment, a profile cannot be read, or the page lacks the marks
            around the table.
    """
    params, comments = read_params(root / PARAMS_FILE), read_comments(root / PARAMS_FILE)
    paths = sorted((root / PROFILE_SCHEMA.parent).glob("*.yaml"))
    schema = make_schema(params, comments, map(_read_profile, paths))
    untold = [
        key
        for key, node in _every(schema, schema)
        if not any("description" in own for own in (node, *_choices(node, schema["$defs"])))
    ]
    if untold:
        raise ValueError(
            f"{PARAMS_FILE}: {', '.join(dict.fromkeys(untold))}: add a comment that explains it,"
            " there or in a profile that has it"
        )
    page = (root / PAGE).read_text(encoding="utf-8")
    if not PLACE.search(page):
        raise ValueError(f"{PAGE}: add <!-- params --> and <!-- /params --> around the table")
    table = make_table(schema, params, comments)
    return {
        SCHEMA: _dump(schema),
        PROFILE_SCHEMA: _dump(make_profile_schema(schema)),
        PAGE: PLACE.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page),
    }


def _read_profile(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content of a profile and its comments."""
    try:
        content = YAML().load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return (content, read_comments(path)) if isinstance(content, dict) else ({}, {})


def _dump(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def main() -> None:
    """Write the generated files and print which of them changed."""
    try:
        files = make_files(Path())
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    changed = [path for path, text in files.items() if _read(path) != text]
    for path in changed:
        path.write_text(files[path], encoding="utf-8")
    print(f"Generated: {', '.join(map(str, changed)) or 'nothing'} changed")


if __name__ == "__main__":
    main()
