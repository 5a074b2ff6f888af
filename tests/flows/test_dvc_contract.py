"""What the flows use of DVC's insides is there, and no other module uses any.

That it also means what we think it means is tests/flows/test_dag.py's to show.
"""

import ast
import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

from flows import plan

FLOWS = Path(plan.__file__).parent
# Modules that may import anything of DVC.
INSIDERS = {"dag.py", "fast_lock.py", "records.py", "remote.py"}
ENTRY_POINT = {"dvc.cli"}  # what the `dvc` command calls; any module may

CALLED = {  # "module:function": parameters that we pass, by position or name
    "dvc.repo:Repo": ["root_dir", "_wait_for_lock"],
    "dvc.repo:lock_repo": ["repo"],
    "dvc.repo.graph:check_acyclic": ["graph"],
    "dvc.dependency.param:read_param_file": ["fs", "path", "key_paths", "flatten"],
    "dvc.dependency:Dependency._get_hash_meta": ["self"],
    "dvc.dependency:Dependency.get_hash": ["self"],
    "dvc.dependency:Dependency.status": ["self"],
    "dvc.dependency:ParamsDependency.read_params": ["self"],
    "dvc.output:Output.get_obj": ["self"],
    "dvc.output:Output.status": ["self"],
    "dvc.stage:Stage.changed_stage": ["self"],
    "dvc.stage:Stage.outs_cached": ["self"],
    "dvc.stage.cache:StageCache._load": ["self", "stage"],
    "dvc.stage.cache:_can_hash": ["stage"],
    "dvc.stage.cache:_get_cache_hash": ["cache"],
    "dvc.stage.cache:_get_stage_hash": ["stage"],
    "dvc.stage:Stage.save_deps": ["self"],
    "dvc.stage:Stage.changed": ["self"],
    "dvc.repo.stage:StageLoad.load_one": ["self", "path", "name"],
    "dvc.repo:Repo.pull": ["self", "targets"],
    "dvc.data_cloud:DataCloud.get_remote": ["self"],
    "dvc.data_cloud:DataCloud.pull": ["self"],
    "dvc.data_cloud:DataCloud.push": ["self"],
    "dvc.stage.loader:StageLoader.fill_from_lock": ["stage", "lock_data"],
    "dvc.stage.serialize:to_single_stage_lockfile": ["stage"],
    "dvc.stage.serialize:to_lockfile": ["stage"],
    "dvc.dvcfile:Lockfile._load_yaml": ["self"],
    "dvc.dvcfile:Lockfile.dump_stages": ["self", "stages"],
    "dvc.dvcfile:Lockfile.remove_stage": ["self", "stage"],
    "dvc.ignore:DvcIgnoreFilter.find": ["self", "fs", "path"],
    "dvc.utils.serialize:dumps_yaml": ["d"],
    "dvc.utils.serialize:parse_yaml": ["text", "path"],
    "dvc_data.hashfile.tree:Tree.add": ["self", "key", "meta", "oid"],
    "dvc_data.hashfile.db.local:LocalHashFileDB.oid_to_path": ["self", "oid"],
    "dvc_data.hashfile.tree:Tree.digest": ["self"],
    "dvc.cli:main": ["argv"],
}
NAMED = {  # "module:name": attributes of it that we read
    "dvc.exceptions:DvcException": [],
    "dvc.exceptions:NotDvcRepoError": [],
    "dvc.scm:SCMError": [],
    "dvc.dependency:param": ["read_param_file"],
    "dvc.repo:graph": ["check_acyclic"],
    "dvc.repo:Repo": ["index"],
    "dvc.repo.index:Index": ["graph", "outs"],
    "dvc.config:NoRemoteError": [],
    "dvc.dvcfile:logger": ["info"],
    "dvc.fs:LocalFileSystem": [],
    "dvc.fs:generic": ["copy"],
    "dvc.stage:Stage": ["path_in_repo"],
    "dvc.stage:PipelineStage": [],
    "dvc_data.hashfile.hash_info:HashInfo": ["isdir"],
    "dvc_data.hashfile.meta:Meta": ["PARAM_SIZE", "PARAM_NFILES"],
}


def look_up(place: str) -> object:
    module, names = place.split(":")
    found: object = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def imports(path: Path) -> set[str]:
    """Return "module:name" of everything that a module imports of DVC."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}:{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {f"{alias.name}:" for alias in node.names}
    return {place for place in found if place.split(":")[0].split(".")[0] in ("dvc", "dvc_data")}


@pytest.mark.parametrize("place", CALLED)
def test_functions_take_what_we_pass(place):
    given = set(CALLED[place])
    assert given <= set(inspect.signature(look_up(place)).parameters)


@pytest.mark.parametrize("place", NAMED)
def test_names_and_attributes_are_there(place):
    found = look_up(place)
    assert [name for name in NAMED[place] if not hasattr(found, name)] == []


def test_the_contract_names_every_import():
    known = set(NAMED)
    for place in CALLED:
        module, names = place.split(":")
        known.add(f"{module}:{names.split('.')[0]}")
    used = set().union(*(imports(FLOWS / name) for name in INSIDERS))
    assert used - known == set()


def test_no_other_module_knows_the_insides():
    outsiders = {
        (path.relative_to(FLOWS).as_posix(), place)
        for path in FLOWS.rglob("*.py")
        if path.name not in INSIDERS
        for place in imports(path)
        if place.split(":")[0] not in ENTRY_POINT
    }
    assert outsiders == set()


def test_the_pin_is_the_known_version(repository):
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    low, high = re.search(r'"dvc>=(\d+\.\d+),<(\d+\.\d+)"', text).groups()
    assert f"{low}." == plan.KNOWN
    major, minor = map(int, low.split("."))
    assert high == f"{major}.{minor + 1}"
    assert importlib.metadata.version("dvc").startswith(plan.KNOWN)
