"""What we ship or print never listens beyond loopback without a secret; the rest of deploy/; CI.

Docker is not needed: the Compose file is read, and the worker's script is run with stand-ins.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
COMPOSE = YAML(typ="safe").load(ROOT / "deploy/compose.yaml")
SERVICES = COMPOSE["services"]
ANYWHERE = re.compile(r"0\.0\.0\.0|(?<![\w:.])::(?![\w:])|\[::\]")
ASSIGNMENT = re.compile(r"\b([A-Z][A-Z0-9_]+)=(\S+)")


def faults(command: str, environment: dict[str, str]) -> list[str]:
    """Say why strangers could use the server that a command starts; nothing if it starts none."""
    said = f"{command} {' '.join(map(str, environment.values()))}"
    if "--host 127.0.0.1" in command and not ANYWHERE.search(said):
        return []
    if re.search(r"\bprefect,? server start\b", command):
        return [] if environment.get("PREFECT_SERVER_API_AUTH_STRING") else ["Prefect: no secret"]
    if re.search(r"\bmlflow (server|ui)\b", command):
        wrong = [] if re.search(r"--app-name[= ]basic-auth", command) else ["MLflow: no password"]
        every = re.search(r"--allowed-hosts[= ]\S*\*", command)
        hosts = re.search(r"--allowed-hosts[= ]\S", command)
        return wrong + (["MLflow: no named hosts"] if every or not hosts else [])
    return ["an unknown server listens everywhere"] if ANYWHERE.search(said) else []


def faults_of_script(text: str) -> list[str]:
    """Do so for each line of a shell block, with what it and lines above it set."""
    environment: dict[str, str] = {}
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        environment |= dict(ASSIGNMENT.findall(line))
        found += [f"{line.strip()}: {fault}" for fault in faults(line, environment)]
    return found


def blocks(page: str) -> list[str]:
    """Return the code blocks of a page, whatever their language and indentation."""
    return re.findall(r"```[^\n]*\n(.*?)```", page, re.DOTALL)


def faults_of_service(service: dict) -> list[str]:
    command = service.get("command", "")
    words = command if isinstance(command, str) else " ".join(command)
    return faults(words, service.get("environment", {}))


@pytest.mark.parametrize(
    "text",
    [
        "prefect server start --host 0.0.0.0           # on one machine that all can reach",
        "prefect server start",
        "export PREFECT_SERVER_API_HOST=0.0.0.0\nprefect server start",
        "python -m http.server --bind 0.0.0.0",
        "uvicorn flows:app --host :: --port 80",
        "mlflow server --host 127.0.0.1 --allowed-hosts x --host 0.0.0.0",
        "mlflow server --app-name basic-auth --host=0.0.0.0 --allowed-hosts=*",
        "mlflow server --app-name basic-auth --host=0.0.0.0",
    ],
)
def test_an_open_server_is_noticed(text):
    assert faults_of_script(text)


@pytest.mark.parametrize("opening", ["```", "```sh", '```sh title="from zero"', "   ```{.sh}"])
def test_an_open_server_is_noticed_in_any_block(opening):
    (block,) = blocks(f"Text\n\n{opening}\nprefect server start\n```\n")
    assert faults_of_script(block)


def test_an_open_service_is_noticed():
    prefect = ["python", "-m", "prefect", "server", "start", "--host", "0.0.0.0"]
    assert faults_of_service({"command": prefect})
    assert faults_of_service({"command": ["flask", "run"], "environment": {"HOST": "0.0.0.0"}})


def test_nothing_that_we_print_opens_a_server_to_strangers():
    printed = {"Makefile": (ROOT / "Makefile").read_text(encoding="utf-8")}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]
    for path in pages:
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8"))):
            printed[f"{path.relative_to(ROOT)} {number}"] = block
    for path in ROOT.glob("deploy/*.sh"):
        printed[path.name] = path.read_text(encoding="utf-8")
    assert any(
        "prefect server start" in text for place, text in printed.items() if "docs/" in place
    )
    assert {
        place: found for place, text in printed.items() if (found := faults_of_script(text))
    } == {}


def test_services_ask_for_a_secret_and_only_the_proxy_is_reached():
    assert {
        name: found for name, one in SERVICES.items() if (found := faults_of_service(one))
    } == {}
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]


def test_the_proxy_serves_all_that_it_publishes_by_tls():
    text = (ROOT / "deploy/Caddyfile").read_text(encoding="utf-8")
    sites = re.findall(r"^\{\$HOST_NAME\}:(\d+) \{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    published = [port.split(":")[0] for port in SERVICES["proxy"]["ports"]]
    assert [port for port, _ in sites] == published
    for _, site in sites:
        assert "import tls" in site
        behind = re.search(r"reverse_proxy (\w+):\d+", site)[1]
        secrets = ("AUTH", "SECRET")
        assert any(key in name for name in SERVICES[behind]["environment"] for key in secrets)


def test_every_variable_of_the_compose_file_is_explained_at_its_head():
    text = (ROOT / "deploy/compose.yaml").read_text(encoding="utf-8")
    head, _, body = text.partition("\nname:")
    assert set(re.findall(r"\$\{(\w+)", body)) - set(re.findall(r"[A-Z][A-Z0-9_]+", head)) == set()


def test_images_have_a_tag_and_programs_are_there():
    for name, service in SERVICES.items():
        assert re.search(r":[\w.]+$", service["image"]), name
        if "build" in service:
            words = service["command"]
            assert all((ROOT / word).is_file() for word in words if word.startswith("deploy/"))


def test_the_image_runs_as_a_user_who_reaches_private_repositories():
    lines = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8").splitlines()
    assert any("openssh-client" in line.split() for line in lines)  # for git@… and its key
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")


def test_a_workers_clone_is_made_and_brought_up_to_date_at_each_start(tmp_path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        command = ["git", *who, "-C", str(tmp_path / "origin"), *arguments]
        return subprocess.check_output(command, text=True).strip()

    def start() -> str:
        script = ["sh", str(ROOT / "deploy/worker.sh"), "gpu"]
        return subprocess.check_output(script, env=environment, text=True)

    (tmp_path / "bin").mkdir()
    for name in ("dvc", "python"):
        program = tmp_path / "bin" / name
        program.write_text('#!/bin/sh\necho "$(basename "$0") $* in $(git rev-parse HEAD)"\n')
        program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CLONE": str(tmp_path / "clone"),
        "GIT_URL": str(tmp_path / "origin"),
        "S3_BUCKET": "bucket",
        "S3_ENDPOINT": "http://store",
    }
    subprocess.run(["git", "init", "--quiet", str(tmp_path / "origin")], check=True)
    for _ in range(2):
        git("commit", "--quiet", "--allow-empty", "--message", "x")
        last = start().splitlines()[-1]
        assert last == f"python -m flows worker --pool gpu in {git('rev-parse', 'HEAD')}"


def test_workers_that_are_restarted_wait_before_they_end_as_unfit():
    """Else an unfit one would come back at once, and take and fail the same stage again."""
    workers = [one for one in SERVICES.values() if "deploy/worker.sh" in one.get("command", "")]
    assert workers
    for one in workers:
        assert one["restart"] != "no" and float(one["environment"]["OVIS_REST"]) >= 60


def test_the_image_gets_nothing_that_git_ignores():
    """Such as the worktrees of a sweep, which take gigabytes."""
    git = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    docker = (ROOT / "deploy/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = {line.strip("/") for line in git if not line.startswith(("#", "!"))}
    assert ignored <= {line.removeprefix("**/") for line in docker}


def test_ci_runs_the_tests_at_each_push_and_those_of_real_workers_by_night():
    workflow = YAML(typ="safe").load(ROOT / ".github/workflows/ci.yml")
    when = {
        "github.event_name != 'schedule'": {"push", "pull_request"},
        "github.event_name == 'schedule'": {"schedule"},
    }
    commands: dict[str, list[str]] = {event: [] for event in workflow["on"]}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for event in when[job["if"]]:
            commands[event] += [step["run"] for step in job["steps"] if "run" in step]
    usual = ["bash .ci/run"]
    assert commands == {"push": usual, "pull_request": usual, "schedule": ["make test-workers"]}
    assert [len(one["cron"].split()) for one in workflow["on"]["schedule"]] == [5]
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^test-workers:.*\n.* -m workers ", rules, re.MULTILINE)
