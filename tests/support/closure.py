"""Checks dvc.yaml against the code: a stage's code deps are folders that hold its import closure.

It also finds which keys of params.yaml the code reads. grimp gives the import graph, file by file,
from the stage's `__main__`. Empty `__init__.py` files are left out, because they cannot change a
result. Every stage depends on the lock of the packages that stages import.
"""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
from ruamel.yaml import YAML

PACKAGES = ("stages", "comparators")
DVC_FILES = ("dvc.yaml", "comparators/dvc.yaml")
LOCK = "requirements-stages.lock"
TEMPLATE = re.compile(r"\$\{[\w.]+\}")
STAGE_COMMAND = re.compile(rf"python -m ({'|'.join(PACKAGES)}) (\w+)")  # by their __main__.py
# What the functions of stages/common/runtime/params.py read; the first takes the section's name.
SECTION_READER = "read_section"
KEY_READERS = {
    "read_seed": "seed",
    "read_split": "evaluation.split",
    "read_shards": "shards",
    "read_detector_sources": "detector.supervision",
    "read_exactness": "deterministic",
}
WHOLE_READER = "read_params"
READERS_HOME = "stages/common/runtime/params.py"


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.yaml; for a `foreach`, its `do` part."""
    content = YAML(typ="safe").load(path)
    return {name: stage.get("do", stage) for name, stage in content["stages"].items()}


def stage_module(stage: dict[str, Any]) -> str:
    """Return the `__main__` module that a stage runs."""
    package, name = STAGE_COMMAND.search(str(stage["cmd"])).groups()
    return f"{package}.{name}.__main__"


def import_closures(root: Path, modules: list[str]) -> dict[str, list[str]]:
    """Return for each module its file and those of all modules that it imports, also indirectly.

    Files are relative to `root`, sorted.
    """
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    there = [package for package in PACKAGES if (root / package).is_dir()]
    graph = grimp.build_graph(*there, cache_dir=None)
    return {
        module: sorted(
            path.as_posix()
            for upstream in {module, *graph.find_upstream_modules(module)}
            if (path := _file_of(root, upstream)) is not None
        )
        for module in modules
    }


def _file_of(root: Path, module: str) -> Path | None:
    """Return the module's file, or None for an empty `__init__.py`."""
    path = Path(*module.split("."))
    if not (root / path).is_dir():
        return path.with_suffix(".py")
    path /= "__init__.py"
    return path if (root / path).read_text(encoding="utf-8").strip() else None


def check_deps(root: Path) -> list[str]:
    """Describe files that no declared folder holds, and folders that hold nothing used."""
    told = []
    for file in (name for name in DVC_FILES if (root / name).is_file()):
        stages = read_stages(root / file)
        code = {
            name: [dep for dep in stage["deps"] if _is_code(root, dep)]
            for name, stage in stages.items()
        }
        # Nobody imports the modules of a package that params.yaml names: stages/…/${section.key}.
        chosen = {
            dep: _modules(root, dep)
            for deps in code.values()
            for dep in deps
            if TEMPLATE.search(dep)
        }
        modules = {name: stage_module(stage) for name, stage in stages.items()}
        every = {*modules.values(), *(module for own in chosen.values() for module in own)}
        closures = import_closures(root, sorted(every))
        for name, stage in stages.items():
            used = set(closures[modules[name]])
            for dep in code[name]:
                used.update(file for own in chosen.get(dep, ()) for file in closures[own])
            held = {dep: {path for path in used if _holds(dep, path)} for dep in code[name]}
            lacks = sorted(used.difference(*held.values()))
            told += [f"{file}: {name}: no dep holds {path}" for path in lacks]
            told += [f"{file}: {name}: {dep} is not used" for dep in held if not held[dep]]
            told += [] if LOCK in stage["deps"] else [f"{file}: {name}: no dep is {LOCK}"]
    return told


def _is_code(root: Path, dep: str) -> bool:
    """Say whether a dep holds modules that a stage imports; a method's hooks are loaded by name."""
    if not dep.startswith(PACKAGES) or "${key}" in dep:
        return False
    return dep.endswith(".py") or any(root.glob(f"{TEMPLATE.sub('*', dep)}/**/*.py"))


def _holds(dep: str, path: str) -> bool:
    pattern = re.escape(TEMPLATE.sub("*", dep)).replace(r"\*", r"\w+")
    return re.fullmatch(f"{pattern}(/.*)?", path) is not None


def _modules(root: Path, dep: str) -> list[str]:
    """Return all modules of the packages that a dep with a template can stand for."""
    files = root.glob(f"{TEMPLATE.sub('*', dep)}/*.py")
    relative = (path.relative_to(root).with_suffix("") for path in files)
    return sorted(".".join(path.parts) for path in relative if path.name != "__init__")


def params_read(root: Path, files: list[str]) -> set[str]:
    """Return the keys of params.yaml that these source files read, found without running them.

    A section's name must be a literal, a module constant that is one, or the default of an option.

    Raises:
        ValueError: the key of a read cannot be found out; the message names file and line.
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
    """Return `c` for the expressions `c` and `a.b.c`."""
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
    """Return the defaults of argparse options; commands in dvc.yaml do not set these options."""
    return {
        call.args[0].value.lstrip("-").replace("-", "_"): word.value.value
        for call in calls
        if _last_name(call.func) == "add_argument" and isinstance(call.args[0], ast.Constant)
        for word in call.keywords
        if word.arg == "default" and isinstance(word.value, ast.Constant)
    }
