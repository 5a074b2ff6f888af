"""Keep dvc.yaml true to the code: deps are data and imported modules, params the sections read.

The lock of the packages that stages import is a dep of each, for another torch makes another
result. The import graph is grimp's, file by file, from the stage's `__main__`; empty `__init__.py`
files are left out, for nothing in them can change a result.
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
FOLDERS = tuple(f"{package}/" for package in PACKAGES)
DVC_FILE = "dvc.yaml"
LOCK = "requirements-stages.lock"
TEMPLATE = re.compile(r"\$\{[\w.]+\}")
STAGE_COMMAND = re.compile(rf"python -m ({'|'.join(PACKAGES)}) (\w+)")  # by stages/__main__.py
# What the functions of stages/common/runtime/params.py read; the first takes the section's name.
SECTION_READER = "read_section"
KEY_READERS = {
    "read_seed": "seed",
    "read_split": "evaluation.split",
    "read_shards": "shards",
    "read_exactness": "deterministic",
}
WHOLE_READER = "read_params"
READERS_HOME = "stages/common/runtime/params.py"


def import_closures(root: Path, modules: list[str]) -> dict[str, list[str]]:
    """Return, for each module, its file and those of all modules it imports, directly or not.

    Files are relative to `root`, sorted.

    Raises:
        ValueError: there is no such module.
    """
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    there = [package for package in PACKAGES if (root / package).is_dir()]
    graph = grimp.build_graph(*there, cache_dir=None)
    unknown = sorted(set(modules) - graph.modules)
    if unknown:
        raise ValueError(f"{DVC_FILE}: there is no module {', '.join(unknown)} under {root}")
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
    """Return what is wrong with the source files among the deps of dvc.yaml, in words."""
    return [
        f"{file}: {name}: deps {what} {path}; `make deps` mends it"
        for file in _dvc_files(root)
        for name, _, lacks, stale in _differences(root, _read(root / file)[1])
        for what, paths in (("lack", lacks), ("have the unused", stale))
        for path in paths
    ]


def write_deps(root: Path) -> list[str]:
    """Bring the source files among the deps of dvc.yaml up to date; return what changed, in words.

    Data deps, comments and everything else stay.
    """
    return [change for file in _dvc_files(root) for change in _write_deps(root, root / file)]


def _write_deps(root: Path, path: Path) -> list[str]:
    editor, content = _read(path)
    changes = []
    for name, deps, lacks, stale in _differences(root, content):
        for source in stale:
            deps.remove(source)
        for source in lacks:
            deps.insert(_position(deps, source), source)
        changes += [f"{name}: - {source}" for source in stale]
        changes += [f"{name}: + {source}" for source in lacks]
    if changes:
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            editor.dump(content, file)
        partial.replace(path)
    return changes


def _dvc_files(root: Path) -> list[str]:
    """Return the experiment's dvc.yaml and those of folders below, such as comparators/dvc.yaml."""
    below = sorted(path.relative_to(root).as_posix() for path in root.glob(f"*/{DVC_FILE}"))
    return [DVC_FILE, *below]


def _read(path: Path) -> tuple[YAML, Any]:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 10_000
    editor.indent(mapping=2, sequence=4, offset=2)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return editor, editor.load(path)


def _differences(root: Path, content: Any) -> Iterator[tuple[str, Any, list[str], list[str]]]:
    """Yield (stage, its deps, source files they lack, source files they should not have)."""
    modules = stage_modules(content)
    chosen = {dep for name in modules for dep in _chosen(content["stages"][name].get("deps", []))}
    packages = {dep: _package_modules(root, dep) for dep in chosen}
    every = [*modules.values(), *(module for own in packages.values() for module in own)]
    closures = import_closures(root, list(dict.fromkeys(every)))
    for name, module in modules.items():
        deps = content["stages"][name].setdefault("deps", [])
        code = [dep for dep in deps if isinstance(dep, str) and _is_source(dep)]
        wanted = set(closures[module])
        for dep in _chosen(deps):
            own = {path for inner in packages[dep] for path in closures[inner]}
            within = re.compile(re.escape(TEMPLATE.sub("*", dep)).replace(r"\*", r"\w+") + "/")
            wanted |= {path for path in own if not within.match(path)}
        wanted = [*([LOCK] if (root / LOCK).is_file() else []), *sorted(wanted)]
        lacks = [path for path in wanted if path not in code]
        stale = [path for path in code if path not in wanted]
        if lacks or stale:
            yield name, deps, lacks, stale


def _chosen(deps: Any) -> list[str]:
    """Return the deps on a package that params.yaml names: stages/…/${section.key}."""
    deps = [dep for dep in deps if isinstance(dep, str)]
    return [dep for dep in deps if dep.startswith(FOLDERS) and TEMPLATE.search(dep)]


def _package_modules(root: Path, dep: str) -> list[str]:
    """Return all modules of the packages that such a dep can be; nobody imports them by name."""
    files = root.glob(f"{TEMPLATE.sub('*', dep)}/*.py")
    relative = (path.relative_to(root).with_suffix("") for path in files)
    return sorted(".".join(path.parts) for path in relative if path.name != "__init__")


def stage_modules(content: Any) -> dict[str, str]:
    """Return the `__main__` module of each stage of dvc.yaml that is Python code of ours."""
    modules = {}
    for name, stage in content["stages"].items():
        found = STAGE_COMMAND.search(str(stage["cmd"]))
        if found:
            modules[name] = f"{found[1]}.{found[2]}.__main__"
    return modules


def _is_source(dep: str) -> bool:
    return dep == LOCK or (dep.startswith(FOLDERS) and dep.endswith(".py"))


def _position(deps: Any, path: str) -> int:
    """Return where `path` belongs: sorted among the source files, which follow the data."""
    for position, dep in enumerate(deps):
        if isinstance(dep, str) and _is_source(dep) and dep > path:
            return position
    return len(deps)


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
