"""DVC projects with trivial commands, to measure the overhead of running stages.

`default` has the shape of this repository's DAG: its dvc.yaml, sources and params, each command
replaced by a shell script that notes its time, waits if wanted, and writes the stage's outputs.
`fan` is one sharded stage between two single ones, with as many source files in its deps as a real
stage, because dvc.lock lists all of them for every shard.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from flows.dvc.project import load_graph
from flows.graph import Graph

REPOSITORY = Path(__file__).parents[1]
TIMES = "times.log"  # lines "<stage> <start> <end>", seconds since 1970
SHAPES = ("default", "fan")

# Every output contains the seed, JSON as a number of spaces: with a new seed all stages must run.
SCRIPT = """\
set -e
name=$DVC_STAGE
start=$(date +%s.%N)
seed=$(sed -n 's/^seed: *\\([0-9]*\\).*/\\1/p' params.yaml)
while read -r path; do
  mkdir -p "${path%/*}"
  case $path in
    *.json) printf '{}%*s\\n' "$seed" '' > "$path" ;;
    *) echo "$name $seed" > "$path" ;;
  esac
done < "work/$name"
sleep $(cat work/seconds)
echo "$name $start $(date +%s.%N)" >> times.log
"""

TIMED = """\
name=$DVC_STAGE
start=$(date +%s.%N)
"$@" || exit
echo "$name $start $(date +%s.%N)" >> times.log
"""

FAN = """\
stages:
  first:
    cmd: sh work.sh
    params: [seed]
    outs:
      - data/first/out.txt
  middle:
    matrix: {shard: "${shards}"}
    cmd: sh work.sh
    deps:
      - data/first/out.txt
    outs:
      - data/middle/${item.shard}.txt
  last:
    cmd: sh work.sh
    deps:
      - data/middle
    params: [last]
    outs:
      - data/last/out.txt
"""


def make_project(root: Path, shape: str, shards: int, seconds: float = 0.0) -> Graph:
    """Make the project in an empty folder, committed to git, and return its graph.

    Args:
        root: the folder.
        shape: "default" or "fan".
        shards: number of shards of each sharded stage.
        seconds: how long each command waits.
    """
    yaml = YAML()
    copy_definition(root)
    if shape == "fan":
        content = yaml.load(FAN)
        real = yaml.load(root / "dvc.yaml")["stages"]["pseudo_masks"]["deps"]
        content["stages"]["middle"]["deps"] += [dep for dep in real if dep.startswith("stages/")]
        yaml.dump(content, root / "dvc.yaml")
        (root / "params.yaml").write_text(f"seed: 0\nshards: {list(range(shards))}\nlast: {{}}\n")
    else:
        content = yaml.load(root / "dvc.yaml")
        for stage in content["stages"].values():
            stage["cmd"] = "sh work.sh"
        yaml.dump(content, root / "dvc.yaml")
        params = yaml.load(root / "params.yaml")
        params["shards"] = list(range(shards))
        for method in (REPOSITORY / "comparators").iterdir():
            params.pop(method.name, None)  # no stage of the experiment reads it
        yaml.dump(params, root / "params.yaml")
    (root / "work.sh").write_text(SCRIPT)
    with (root / ".gitignore").open("a") as file:
        file.write(f"{TIMES}\n")
    (root / "work").mkdir()
    graph = load_graph(root)
    for name, paths in written_files(graph).items():
        (root / "work" / name).write_text("".join(f"{path}\n" for path in paths))
    (root / "work" / "seconds").write_text(f"{seconds}\n")
    _git(root, "add", "-A")
    _git(root, "commit", "-qm", "benchmark")
    return graph


def copy_definition(root: Path) -> None:
    """Make a git and DVC repository in a new folder with this one's stages, graph and params."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "stages", root / "stages", ignore=ignored)
    (root / ".dvc").mkdir()
    files = (
        "dvc.yaml",
        "params.yaml",
        "prefect.yaml",
        "pyproject.toml",
        "requirements-stages.lock",
        ".gitignore",
        ".dvcignore",
    )
    for name in (*files, ".dvc/config"):
        shutil.copy(REPOSITORY / name, root / name)
    _git(root, "init", "-q")


def written_files(graph: Graph) -> dict[str, list[str]]:
    """Return the files that each stage has to write: its outputs, or the files that others read.

    An output is a folder if another stage depends on something inside it.
    """
    wanted = {path for stage in graph.values() for path in stage.inputs}
    files: dict[str, list[str]] = {}
    for name, stage in graph.items():
        files[name] = []
        for output in stage.outputs:
            inside = sorted(path for path in wanted if path.startswith(f"{output}/"))
            leaves = [p for p in inside if not any(q.startswith(f"{p}/") for q in inside)]
            # A folder that is read as a whole has no suffix, and must not be empty.
            files[name] += [p if Path(p).suffix else f"{p}/file" for p in leaves or [output]]
    return files


def time_commands(root: Path) -> None:
    """Make the commands of a project's dvc.yaml note their times, as the trivial ones do."""
    yaml = YAML()
    content = yaml.load(root / "dvc.yaml")
    for stage in content["stages"].values():
        stage["cmd"] = f"sh timed.sh {stage['cmd']}"
    yaml.dump(content, root / "dvc.yaml")
    (root / "timed.sh").write_text(TIMED)


def replace_param(root: Path, section: str, value: int) -> None:
    """Set the seed, or the last whole number of another section, so that its stages must run."""
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    if section == "seed":
        params["seed"] = value
    else:
        numbers = [key for key, old in params[section].items() if type(old) is int]
        params[section][numbers[-1] if numbers else "number"] = value
    yaml.dump(params, root / "params.yaml")


def own_seconds(root: Path) -> dict[str, float]:
    """Return how long each stage's last command took by itself, and clear the log."""
    lines = (root / TIMES).read_text().splitlines() if (root / TIMES).exists() else []
    (root / TIMES).unlink(missing_ok=True)
    return {name: float(end) - float(start) for name, start, end in map(str.split, lines)}


def sole_section(graph: Graph) -> str:
    """Return a section of params.yaml that only one stage reads, one with no stage downstream."""
    needed = {need for stage in graph.values() for need in stage.needs}
    for stage in reversed(graph.values()):
        for key in stage.params:
            readers = [other for other in graph.values() if key in other.params]
            if stage.name not in needed and len(readers) == 1 and "." not in key:
                return key
    raise ValueError("dvc.yaml: no section of params.yaml is read by one last stage alone")


def make_outputs(root: Path) -> None:
    """Run every command without DVC."""
    for path in sorted((root / "work").iterdir()):
        if path.name != "seconds":
            environment = {**os.environ, "DVC_STAGE": path.name}
            subprocess.run(["sh", "work.sh"], cwd=root, env=environment, check=True)


def _git(root: Path, *arguments: str) -> None:
    name = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost"]
    subprocess.run(["git", *name, *arguments], cwd=root, check=True)


def dvc(*arguments: str) -> list[str]:
    """Return the command line of DVC in this environment."""
    return [sys.executable, "-m", "dvc", *arguments]
