"""Which sections of params.yaml source files read, found without running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

# What the functions of stages/common/params.py read; the first takes the section's name.
SECTION_READER = "read_section"
KEY_READERS = {
    "read_seed": "seed",
    "read_split": "evaluation.split",
    "read_shards": "shards",
    "read_exactness": "deterministic",
}
WHOLE_READER = "read_params"
READERS_HOME = "stages/common/params.py"


def params_read(root: Path, files: list[str]) -> set[str]:
    """Return the keys of params.yaml that these source files read, found without running them.

    A section's name must be a literal, a module constant that is one, or the default of an option.

    Raises:
        ValueError: a read whose key cannot be told; the message names file and line.
    """
    keys: set[str] = set()
    for file in files:
        if file != READERS_HOME:
            keys.update(_params_read(file, ast.parse((root / file).read_text(encoding="utf-8"))))
    return keys


def _params_read(file: str, tree: ast.Module) -> Iterator[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    known = {**_constants(tree), **_option_defaults(calls)}
    subscripts = {
        id(node.value): node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)
    }
    for call in calls:
        called = _last_name(call.func)
        if called in KEY_READERS:
            yield KEY_READERS[called]
            continue
        if called == SECTION_READER:
            key = call.args[0] if call.args else None
        elif called == WHOLE_READER:
            key = subscripts.get(id(call))
        else:
            continue
        name = key.value if isinstance(key, ast.Constant) else known.get(_last_name(key))
        if not isinstance(name, str):
            raise ValueError(
                f"{file}:{call.lineno}: cannot tell which section of params.yaml {called}() reads; "
                "give its name as a literal"
            )
        yield name


def _last_name(node: ast.AST | None) -> str | None:
    """Return `c` of the expressions `c` and `a.b.c`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _constants(tree: ast.Module) -> dict[str | None, object]:
    return {
        _last_name(target): node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
    }


def _option_defaults(calls: list[ast.Call]) -> dict[str | None, object]:
    """Return what argparse options are unless given, which in dvc.yaml they are not."""
    return {
        call.args[0].value.lstrip("-").replace("-", "_"): word.value.value
        for call in calls
        if _last_name(call.func) == "add_argument" and isinstance(call.args[0], ast.Constant)
        for word in call.keywords
        if word.arg == "default" and isinstance(word.value, ast.Constant)
    }
