"""The command line: help, exit codes, completion, and that it imports little."""

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from flows import cli, environment
from flows.__main__ import main as program
from flows.cli import app, main
from flows.execution import EXPERIMENTS, mlflow_page

ROOT = Path(__file__).parents[2]
HEAVY = {"dvc", "prefect", "mlflow", "torch", "pydantic", "rich", "ruamel", "networkx"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Leave this process's environment as it is."""
    monkeypatch.setattr(environment, "apply_settings", lambda root: None)


@pytest.fixture
def done(monkeypatch):
    """Give what modules this process becomes, in the place of becoming them."""
    commands = []
    monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command[2:]))
    return commands


def raiser(error: BaseException) -> Callable[[Path], None]:
    def raise_it(root: Path) -> None:
        raise error

    return raise_it


def complete(words: str, folder: Path = ROOT) -> list[str]:
    """Return what bash would offer for the last word."""
    asked = {"_OVIS_DAG_COMPLETE": "bash_complete", "COMP_WORDS": words}
    found = subprocess.run(
        [sys.executable, "-m", "flows"],
        cwd=folder,
        env={**os.environ, **asked, "COMP_CWORD": str(words.count(" ")), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == ""
    return [line.partition(",")[2] for line in found.stdout.split()]


def test_the_installed_program_is_this_command_line():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"][cli.PROGRAM].partition(":")
    assert getattr(import_module(module), function) is program


@pytest.mark.parametrize("command", [None, *app.commands])
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"] if command else ["--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: {' '.join(filter(None, [cli.PROGRAM, command]))} ")
    assert "..." not in out.partition("Commands:")[2]  # each says what it does in one line


def run_program(code: str, *words: str) -> subprocess.CompletedProcess:
    """Run the code, which may call `main` of the program, as a process with these arguments."""
    return subprocess.run(
        [sys.executable, "-c", f"import os, sys\nfrom flows.__main__ import main\n{code}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("package", ["click", "dvc"])
def test_without_the_packages_of_flows_it_says_how_to_get_them(package):
    """`pip install -e .` gives the program and not what it imports."""
    done = run_program(f"sys.modules[{package!r}] = None\nsys.exit(main())", "plan")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("it needs the packages of flows: pip install -e '.[flows]'")


DRIVER = """
import flows.cli
def project():
    import engine
flows.cli._project = project
sys.path.append(sys.argv.pop())
sys.exit(main())
"""


def test_a_driver_that_another_package_lacks_is_no_package_of_flows(tmp_path):
    (tmp_path / "engine.py").write_text("import psycopg_of_nobody")
    done = run_program(DRIVER, "verify", str(tmp_path))
    told = "ovis-dag: No module named 'psycopg_of_nobody'; install it\n"
    assert (done.returncode, done.stderr) == (2, told)


LOST = """
import flows.cli, signal
class Import:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(9): pass
def project():
    Import()
    print("went on")
flows.cli._project = project
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, wherever tests run
sys.exit(main())
"""


def test_ctrl_c_is_not_lost_where_python_ignores_exceptions():
    done = run_program(LOST, "verify")
    assert (done.returncode, done.stdout) == (130, "")
    told = "ovis-dag: stopped; run the same again to go on from here"
    assert done.stderr.split("\n") == ["", told, ""]


@pytest.mark.parametrize("command", sorted(app.commands.keys() - {"completion"}))
def test_a_missing_file_of_params_is_told_by_every_command(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tmp_path)
    words = {"profile": ["smoke"], "predict": ["a.jpg"], "worker": ["--pool=cpu"]}
    assert main([command, *words.get(command, [])]) == 2
    told = "params.yaml: is missing; `git checkout params.yaml` brings it back"
    assert capsys.readouterr().err.strip() == f"ovis-dag: {told}"


@pytest.mark.parametrize("command", sorted(app.commands.keys() - {"completion"}))
def test_another_folder_is_told_by_every_command(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "clone/docs").mkdir(parents=True)
    (tmp_path / "clone/dvc.yaml").write_text("stages: {}")
    words = {"profile": ["smoke"], "predict": ["a.jpg"], "worker": ["--pool=cpu"]}
    for folder, root in (("clone/docs", tmp_path / "clone"), ("", "a clone of it")):
        monkeypatch.chdir(tmp_path / folder)
        assert main([command, *words.get(command, [])]) == 2
        told = f"has no dvc.yaml; run from the repository's root, {root}"
        assert capsys.readouterr().err.strip() == f"ovis-dag: {Path.cwd()}: {told}"


def test_a_model_of_elsewhere_needs_no_project(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert main(["predict", "a.jpg", "--model", "model"]) == 0
    assert done == [["predict", "a.jpg", f"--model={tmp_path / 'model'}"]]


def test_help_imports_little():
    code = (
        "import json, sys; from flows.cli import main; main(['run', '--help']);"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = set(json.loads(ran.stderr))
    assert "click" in modules
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (ValueError("params.yaml: wrong"), 2, "params.yaml: wrong"),
        (RuntimeError("stage x failed"), 1, "stage x failed"),
        (OSError(errno.ENOSPC, "full"), 1, "[Errno 28] full; make room and run the same again"),
        (KeyboardInterrupt(), 130, "stopped; run the same again to go on from here"),
    ],
)
def test_faults_become_a_line_and_an_exit_code(raised, code, told, monkeypatch, capsys):
    monkeypatch.setattr(environment, "apply_settings", raiser(raised))
    assert main(["verify"]) == code
    assert capsys.readouterr().err.strip() == f"ovis-dag: {told}"


def test_other_faults_are_not_hidden(monkeypatch):
    monkeypatch.setattr(environment, "apply_settings", raiser(FileNotFoundError("own.py")))
    with pytest.raises(FileNotFoundError):
        main(["verify"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing command; see ovis-dag --help"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "--pool"], "No such option '--pool'"),
        (["run", "--cores", "0"], "0 is not in the range x>=1; see ovis-dag run --help"),
        (["run", "--pools", "--cores", "2"], "--cores has no effect with --pools"),
        (["sweep", "--direction", "up"], "'up' is not one of 'max', 'min'"),
        (["claims", "one"], "'one' is not a valid integer"),
        (["claims", "--table", "1"], "--table measures no seeds"),
        (["fetch", "--workers", "129"], "129 is not in the range 1<=x<=128"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(arguments, told, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_another_clone_is_not_run_by_this_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "flows").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "smoke"]) == 2
    assert f"{tmp_path} has code of its own" in capsys.readouterr().err


def test_options_are_handed_over_as_given(done, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("flows.predictor.find", lambda root, model: root / "found" / str(model))
    given = ["--names", "a,b", "--min-score", "0.5", "--no-overlays"]
    assert main(["predict", "a b.jpg", *given]) == 0
    assert main(["fetch", "--workers", "4"]) == 0
    assert main(["fetch"]) == 0
    module, image, *options = done[0]
    assert (module, image) == ("predict", "a b.jpg")
    found = f"--model={ROOT / 'found' / 'None'}"
    assert options == [found, "--names=a,b", "--min-score=0.5", "--no-overlays"]
    assert done[1:] == [["fetch", "--workers=4"], ["fetch"]]


def test_pages_are_for_this_machine_alone(done, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert main(["ui"]) == main(["prefect"]) == 0
    assert ["--host=127.0.0.1" in words for words in done] == [True, True]


def test_the_page_of_a_server_is_told_instead_of_served(done, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := "https://mlflow.example/team/")
    assert main(["ui"]) == 2
    told = f"MLFLOW_TRACKING_URI={uri}: this server has the page; open it there"
    assert capsys.readouterr().err.strip() == f"ovis-dag: {told}"
    assert done == []
    assert mlflow_page() == f"https://mlflow.example/team{EXPERIMENTS}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example/team/")
    assert main(["ui"]) == 2
    assert "secret" not in capsys.readouterr().err + mlflow_page()


@pytest.mark.parametrize(("command", "module"), [("predict", "predict"), ("fetch", "fetch")])
def test_the_options_are_those_of_the_module(command, module, capsys):
    own = subprocess.check_output([sys.executable, "-m", module, "--help"], cwd=ROOT, text=True)
    assert main([command, "--help"]) == 0
    assert set(OPTION.findall(capsys.readouterr().out)) == set(OPTION.findall(own))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("ovis-dag swe", "sweep"),
        ("ovis-dag run --co", "--cores"),
        ("ovis-dag run evaluat", "evaluation"),
        ("ovis-dag profile paper-coco-f", "paper-coco-fast"),
        ("ovis-dag sweep -S vlm.batch", "vlm.batch_size="),
        ("ovis-dag predict --model fin", "finetune"),
        ("ovis-dag completion z", "zsh"),
    ],
)
def test_a_shell_completes_words(words, offered):
    assert offered in complete(words)


def test_nothing_is_completed_where_nothing_can_be_read(tmp_path):
    assert complete("ovis-dag run evaluat", tmp_path) == []


def test_bash_understands_the_completion(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "_OVIS_DAG_COMPLETE=bash_complete" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
