"""A small DVC project in the shape of the real one, for the tests of the flows.

download → cut@0, cut@1 → merge → evaluation; side depends on download only. Each stage is one small
Python command that also appends its name to runs.log, which DVC does not track, so that a test can
count real executions. TOY_FOLDER is the folder of that file, and of files that make a stage slow or
fail, for stages that run in another checkout.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 400  # seconds; ten would do on an idle machine

# Runs a stage as in the repository: it fails if its inputs change meanwhile.
RUNTIME = "common/runtime"
RUNNER = (
    *("__main__.py", "guard.py", "common/__init__.py"),
    *(f"{RUNTIME}/{name}.py" for name in ("__init__", "errors", "params")),
)
DVC_YAML = """\
vars:
  - shards: [0, 1]
stages:
  download:
    cmd: python -m stages download
    deps:
      - stages/download/__main__.py
    params: [download]
    outs:
      - data/download/parts
  cut:
    matrix: {shard: "${shards}"}
    cmd: python -m stages cut ${item.shard}
    deps:
      - data/download/parts/a.txt
      - stages/cut/__main__.py
    params: [cut]
    outs:
      - data/cut/${item.shard}.txt
    meta: {cores: 1}
  merge:
    cmd: python -m stages merge
    deps:
      - data/cut
      - stages/merge/__main__.py
    params: [merge]
    outs:
      - data/merge/all.txt
    plots:
      - data/merge/curve.csv:
          x: step
    meta: {cores: 64}
  evaluation:
    cmd: python -m stages evaluation
    deps:
      - data/merge/all.txt
      - stages/evaluation/__main__.py
    outs:
      - data/evaluation/montage.png
    metrics:
      - data/evaluation/metrics.json
  side:
    cmd: python -m stages side
    deps:
      - data/download/parts/b.txt
      - stages/side/__main__.py
    params: [side.factor]
    outs:
      - data/side/out.txt
"""

PARAMS_YAML = """\
# How the toy is made.
download: {lines: 3}  # lines
cut:
  by: 1  # seconds are no param
merge:
  rate: 0.5
side:
  factor: 2
"""

HEADER = """\
import os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
P = YAML(typ="safe").load(Path("params.yaml"))
def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
name, folder = Path(__file__).parent.name, Path(os.environ.get("TOY_FOLDER", "."))
with open(folder / "runs.log", "a") as log:
    log.write(" ".join([name, *sys.argv[1:]]) + "\\n")
if (folder / f"slow.{name}").exists():
    print("sleeping", flush=True)
    time.sleep(float((folder / f"slow.{name}").read_text()))
while (folder / f"hold.{name}").exists():
    time.sleep(0.05)
if (folder / f"fail.{name}").exists():
    print("about to fail", flush=True)
    raise SystemExit((folder / f"fail.{name}").read_text() or "the disk is on fire")
print("working", name, *sys.argv[1:])
"""

STAGES = {
    "download": """
write("data/download/parts/a.txt", "a\\n" * P["download"]["lines"])
write("data/download/parts/b.txt", "b\\n" * P["download"]["lines"])
""",
    "cut": """
shard = sys.argv[1]
text = Path("data/download/parts/a.txt").read_text()
write(f"data/cut/{shard}.txt", f"{shard} {P['cut']['by']} {text}")
""",
    "merge": """
text = "".join(Path(f"data/cut/{k}.txt").read_text() for k in (0, 1))
write("data/merge/all.txt", text * int(P["merge"]["rate"] * 2))
write("data/merge/curve.csv", "loss,step\\n3.5,1\\n2.5,2\\n,3\\n")
""",
    "evaluation": """
import json
size = len(Path("data/merge/all.txt").read_text())
value = {kind: {"AP50": float(size), "AP": 1.25} for kind in ("bbox", "segm")}
metrics = {"detector": {"generalized": {"base": value, "novel": value, "all": value},
                        "constrained": {"base": value, "novel": value}}}
write("data/evaluation/metrics.json", json.dumps(metrics))
write("data/evaluation/montage.png", "image")
""",
    "side": """
write("data/side/out.txt", Path("data/download/parts/b.txt").read_text() * P["side"]["factor"])
""",
}


@dataclass(frozen=True)
class Toy:
    """The toy project at `root`."""

    root: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        cleared = {"MLFLOW_TRACKING_URI", "PREFECT_HOME", "PYTHONPATH"}
        kept = {key: value for key, value in os.environ.items() if key not in cleared}
        return {**kept, "PYTHONPATH": str(REPOSITORY), "DVC_NO_ANALYTICS": "1"}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**self.environment(), **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill processes that a failed test left running."""
        for process in self.started:
            with process:  # closes its output
                process.kill()

    def call(self, *arguments: str, seconds: float = PATIENCE, **more: str) -> tuple[int, str]:
        """Run `python <arguments>`, with `more` environment, and return (exit code, output)."""
        process = self.start(*arguments, **more)
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{arguments} took over {seconds} s:\n{output}") from None
        return process.returncode, output

    def flows(self, *arguments: str) -> tuple[int, str]:
        return self.call("-m", "flows", *arguments)

    def dvc(self, *arguments: str) -> str:
        # Plain DVC wants the environment to be activated, the flows do not.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        code, output = self.call("-m", "dvc", *arguments, PATH=path)
        assert code == 0, output
        return output

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=toy", "-c", "user.email=toy@localhost", *arguments]
        return subprocess.check_output(command, cwd=self.root, text=True)

    def ran(self) -> list[str]:
        """Return the stages that really executed since the last call, sorted."""
        log = self.root / "runs.log"
        lines = sorted(log.read_text().splitlines()) if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def until_it_runs(self, stage: str) -> None:
        """Return once the stage has started, which a mark `hold.<stage>` may hold."""
        log = self.root / "runs.log"
        wait_until(lambda: log.exists() and stage in log.read_text())

    def replace(self, old: str, new: str, file: str = "params.yaml") -> None:
        path = self.root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def mark(self, name: str, text: str = "") -> Path:
        path = self.root / name
        path.write_text(text)
        return path

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)


def write_empty_project(root: Path) -> None:
    """Write the files by which `ovis-dag` knows a project; it has no stage."""
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").touch()


def make_toy(root: Path, stages: dict[str, str] = STAGES) -> Toy:
    """Make the project in an empty folder, committed to git."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(PARAMS_YAML)
    (root / "stages").mkdir()
    (root / "stages" / "__init__.py").touch()
    for name, code in stages.items():
        folder = root / "stages" / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "__main__.py").write_text(HEADER + code)
    (root / "stages" / RUNTIME).mkdir(parents=True)
    for name in RUNNER:
        shutil.copy(REPOSITORY / "stages" / name, root / "stages" / name)
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, root / name)
    with (root / ".gitignore").open("a") as file:
        file.write("runs.log\nslow.*\nhold.*\nfail.*\n")
    toy = Toy(root)
    toy.git("init", "-q")
    toy.dvc("init", "-q")
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    toy.git("add", "-A")
    toy.git("commit", "-qm", "toy")
    return toy


TRAINING = """
state, steps = Path(".resume/abc/state.txt"), 40
done = state.read_text() if state.exists() else ""
with open(folder / "starts.log", "a") as log:
    log.write(f"{len(done)}\\n")
while len(done) < steps:
    time.sleep(float(os.environ.get("TOY_STEP", 0)))
    done += "ab"[len(done) % 2]
    write(".resume/abc/.new.partial", done)
    os.replace(".resume/abc/.new.partial", state)
    write(folder / "slow.step", str(len(done)))
    while len(done) == 10 and (folder / "hold.step").exists():
        time.sleep(0.05)
state.unlink()
for part in "ab":
    write(f"data/download/parts/{part}.txt", part + done)
"""


def make_training(toy: Toy) -> None:
    """Make `download` train: forty steps of TOY_STEP seconds, with a resume point after each.

    While there is a mark `hold.step` it stays at step 10.
    """
    code = toy.root / "stages/download/__main__.py"
    head, _, _ = code.read_text().partition('write("data')
    code.write_text(f"{head}{TRAINING}# {toy.root}\n")
    toy.git("commit", "-qam", "training")


def until_step(toy: Toy, step: int) -> None:
    """Return once the training has done `step` steps."""
    path = toy.root / "slow.step"
    wait_until(lambda: path.is_file() and int(path.read_text() or 0) >= step)
