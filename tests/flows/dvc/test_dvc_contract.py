"""What flows/dvc uses of DVC's insides is there; pyproject.toml forbids others to import DVC.

That it also means what we think it means is tests/flows/dvc/test_dag.py's to show.
"""

import ast
import importlib
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

KNOWN = "3.67"  # that flows/dvc was written for

CALLED = {  # "module:function": parameters that we pass, by position or name
    "dvc.repo:Repo": ["root_dir", "_wait_for_lock"],
    "dvc.repo:lock_repo": ["repo"],
    "dvc.dependency:Dependency.get_hash": ["self"],
    "dvc.dependency:Dependency.status": ["self"],
    "dvc.dependency:ParamsDependency.read_params": ["self"],
    "dvc.output:Output.get_obj": ["self"],
    "dvc.output:Output.status": ["self"],
    "dvc.output:Output.changed": ["self"],
    "dvc.output:Output.changed_cache": ["self"],
    "dvc.output:Output.checkout": ["self", "force"],
    "dvc.output:Output.remove": ["self"],
    "dvc.output:Output.get_dir_cache": ["self"],
    "dvc.output:Output.get_used_objs": ["self", "kwargs"],
    "dvc.stage:Stage.changed_stage": ["self"],
    "dvc.stage:Stage.outs_cached": ["self"],
    "dvc.stage.cache:StageCache._load": ["self", "stage"],
    "dvc.stage.cache:_can_hash": ["stage"],
    "dvc.stage.cache:_get_cache_hash": ["cache", "key"],
    "dvc.stage.cache:_get_stage_hash": ["stage"],
    "dvc.stage:Stage.ignore_outs": ["self"],
    "dvc.stage:Stage.dump": ["self", "kwargs"],
    "dvc.dvcfile:ProjectFile.dump": ["self", "stage", "update_pipeline"],
    "dvc.stage:Stage.get_used_objs": ["self", "kwargs"],
    "dvc.config:Config.load_one": ["self", "level"],
    "dvc.config:Config.edit": ["self", "level"],
    "dvc.stage:Stage.changed": ["self"],
    "dvc.repo.stage:StageLoad.load_one": ["self", "path", "name"],
    "dvc.repo:Repo.pull": ["self", "targets"],
    "dvc.data_cloud:DataCloud.get_remote": ["self"],
    "dvc.data_cloud:DataCloud.pull": ["self"],
    "dvc.data_cloud:DataCloud.push": ["self"],
    "dvc.stage.loader:StageLoader.fill_from_lock": ["stage", "lock_data"],
    "dvc.stage.serialize:to_single_stage_lockfile": ["stage"],
    "dvc.dvcfile:Lockfile.remove_stage": ["self", "stage"],
    "dvc.ignore:DvcIgnoreFilter.find": ["self", "fs", "path"],
    "dvc_data.hashfile.tree:Tree.add": ["self", "key", "meta", "oid"],
    "dvc_data.hashfile.db.local:LocalHashFileDB.oid_to_path": ["self", "oid"],
    "dvc_data.hashfile.tree:Tree.digest": ["self"],
    "dvc_data.hashfile.tree:Tree.load": ["odb", "hash_info"],
    "dvc_objects.db:ObjectDB.list_oids_exists": ["self", "oids"],
    "dvc.cli:main": ["argv"],
}
NAMED = {  # "module:name": attributes of it that we read
    "dvc.exceptions:DvcException": [],
    "dvc.exceptions:NotDvcRepoError": [],
    "dvc.lock:LockError": [],
    "dvc.scm:SCMError": [],
    "dvc.repo:Repo": ["index"],
    "dvc.repo.index:Index": ["graph", "outs"],
    "dvc.config:NoRemoteError": [],
    "dvc.config:Config": [],
    "dvc.cachemgr:CacheManager": ["local_cache_dir"],
    "dvc.data_cloud:Remote": ["legacy_odb", "odb"],
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


def test_the_contract_names_every_import(repository):
    known = set(NAMED)
    for place in CALLED:
        module, names = place.split(":")
        known.add(f"{module}:{names.split('.')[0]}")
    used = set().union(*map(imports, (repository / "flows/dvc").glob("*.py")))
    assert used - known == set()


def test_the_pin_is_the_known_version(repository):
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    low, high = re.search(r'"dvc>=(\d+\.\d+),<(\d+\.\d+)"', text).groups()
    assert low == KNOWN
    major, minor = map(int, low.split("."))
    assert high == f"{major}.{minor + 1}"
    assert importlib.metadata.version("dvc").startswith(f"{KNOWN}.")
