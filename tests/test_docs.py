"""What the pages name exists, and their commands are real: nothing here runs an experiment."""

import importlib
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from markdown.extensions.toc import slugify
from ruamel.yaml import YAML

from claims.readme import TABLES, pages, place
from flows.cli import app, main

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [*pages(ROOT), ROOT / "CONTRIBUTING.md"]
}
LANGUAGES = {"sh", "text", "yaml", "python", "mermaid"}
PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
FOLDERS = (
    "stages",
    "comparators",
    "fetch",
    "predict",
    "flows",
    "claims",
    "experiments",
    "benchmarks",
    "deploy",
    "tests",
    "docs",
    "data",
)
WRITTEN = ("docs/claims/", "data/predict/")  # by `make claims` and `make predict`

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w./~-])((?:{'|'.join(FOLDERS)})/[\w./<>*-]*)")
ROOT_FILE = re.compile(r"(?<![\w./-])([\w-]+\.(?:yaml|lock|toml))(?![\w/])")
PARAM = re.compile(rf"(?<![\w./-])((?:{'|'.join(PARAMS)})(?:\.[a-z_]\w*)+)(?![\w(/])")
MODULE = re.compile(rf"-m ((?:{'|'.join(FOLDERS)})[\w.]*)")
VARIABLE = re.compile(r"\b(OVIS_[A-Z_]+|DEVICE)\b")
HELD = re.compile(r"`(\w+)` of `([\w/]+\.py)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def prose(path: Path) -> str:
    """Return a page without its generated tables, each command on one line."""
    text = path.read_text(encoding="utf-8")
    for name in (*TABLES, "params"):
        text = place(name).sub("", text)
    return text.replace("\\\n", " ")


def blocks(text: str, language: str) -> list[str]:
    return [block for _, own, block in FENCE.findall(text) if own == language]


def code(text: str) -> list[str]:
    """Return the lines of all blocks, and what stands between backticks."""
    lines = [line for _, _, block in FENCE.findall(text) for line in block.splitlines()]
    return lines + re.findall(r"`([^`]+)`", FENCE.sub("", text))


def named(pattern: re.Pattern[str], text: str) -> set[str]:
    return {found for span in code(text) for found in pattern.findall(span.replace("\n", " "))}


def look_up(params: dict[str, Any], key: str) -> bool:
    for part in key.split("."):
        if not isinstance(params, dict) or part not in params:
            return False
        params = params[part]
    return True


def is_there(path: str) -> bool:
    """Say whether a path, `<name>` standing for any, is in the tree or made by a stage."""
    if path.startswith(WRITTEN) or path in {"data/", "docs/"}:
        return True
    pattern = re.sub(r"<\w+>", "*", path).rstrip("/.")
    if path.startswith("data/"):
        made = [
            out if isinstance(out, str) else next(iter(out))
            for stage in STAGES.values()
            for kind in ("outs", "metrics", "plots")
            for out in stage.get("foreach", stage).get(kind, stage.get("do", {}).get(kind, []))
        ]
        return pattern == "data/*" or any(f"{out}/".startswith(f"{pattern}/") for out in made)
    return any(ROOT.glob(pattern))


def headings(path: Path) -> set[str]:
    """Return the anchors of a page."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {slugify(title, "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


page = pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)


@page
def test_links_lead_somewhere(path):
    broken = []
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        goal = path.parent / file if file else path
        if not goal.exists() or (anchor and anchor not in headings(goal)):
            broken.append(target)
    assert broken == []


@page
def test_every_block_says_its_language(path):
    assert {language for _, language, _ in FENCE.findall(prose(path))} <= LANGUAGES


@page
def test_shell_and_python_blocks_have_no_syntax_error(path):
    for block in blocks(prose(path), "sh"):
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
    for block in blocks(prose(path), "python"):
        compile(block, str(path), "exec")


def shell_block(path: str, words: str) -> list[str]:
    """Return the lines of the one shell block of a page that has these words."""
    (block,) = [own for own in blocks(prose(PAGES[path]), "sh") if words in own]
    return block.splitlines()


def run_lines(folder: Path, *lines: str) -> None:
    subprocess.run(["bash", "-euc", "\n".join(lines)], cwd=folder, check=True)


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_lines_that_unpack_open_images_do(tmp_path, unpacked):
    make, from_archives, from_folders = shell_block("docs/own_data.md", "tar -xzf")
    for letter in "0f":
        (tmp_path / f"train_{letter}").mkdir()
        (tmp_path / f"train_{letter}/{letter}.jpg").touch()
        if not unpacked:
            name = f"train_{letter}"
            run_lines(tmp_path, f"tar -czf {name}.tar.gz {name}", f"rm -r {name}")
    run_lines(tmp_path, make, from_folders if unpacked else from_archives)
    assert {path.name for path in (tmp_path / "train").iterdir()} == {"0.jpg", "f.jpg"}


def test_the_lines_that_remove_worktrees_do(tmp_path):
    commit = "git -c user.name=x -c user.email=x@localhost commit -q --allow-empty -m x"
    run_lines(tmp_path, "git init -q", commit, "git worktree add -q .sweeps/points/a")
    run_lines(tmp_path, *shell_block("docs/sweeps.md", "rm -rf .sweeps"))
    listed = subprocess.check_output(["git", "worktree", "list"], cwd=tmp_path, text=True)
    assert listed.count("\n") == 1


def test_the_lines_that_complete_commands_do():
    lines = shell_block("docs/tutorial.md", "ovis-dag completion")
    chosen = [line for line in lines if "--help" in line or "completion" in line]
    assert len(chosen) == 2
    programs = Path(sys.executable).parent
    run_lines(ROOT, f'PATH="{programs}:$PATH"', *chosen, "complete -p ovis-dag")


@page
def test_files_exist(path):
    found = named(PATH, prose(path)) | named(ROOT_FILE, prose(path))
    assert {name for name in found if not is_there(name)} == set()


def test_the_files_that_architecture_names_hold_what_is_looked_for():
    text = prose(PAGES["docs/architecture.md"])
    held = HELD.findall(text)
    assert len(held) == text.count("` of `") >= 12
    for name, file in held:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        assert hasattr(module, name), (name, file)


def test_the_glossary_names_files_of_stages_or_of_the_root():
    glossary = prose(PAGES["docs/architecture.md"]).partition("## Glossary")[2]
    cells = [row.split("|")[3] for row in glossary.splitlines() if row.startswith("| ")]
    files = [path for cell in cells for path in re.findall(r"`([\w./-]*[/.][\w./-]*)`", cell)]
    gone = [path for path in files if not any((ROOT / p / path).exists() for p in ("stages", ""))]
    assert len(files) > 30 and gone == []


@page
def test_params_exist(path):
    text = prose(path)
    keys = named(PARAM, text)
    for axes in re.findall(r'SET="([^"]*)"', text):
        keys |= {axis.partition("=")[0] for axis in axes.split()}
    assert {key for key in keys if not look_up(PARAMS, key)} == set()


@page
def test_profiles_exist(path):
    text = prose(path)
    names = named(re.compile(r"\bNAME=([\w-]+)"), text)
    names |= named(re.compile(r"^((?:paper|coco|folder)-[\w-]+)$"), text)
    assert {name for name in names if not (ROOT / f"experiments/{name}.yaml").is_file()} == set()


@page
def test_modules_exist(path):
    def runs(module: str) -> bool:
        spec = find_spec(module)
        packages = spec is not None and spec.submodule_search_locations is not None
        return find_spec(f"{module}.__main__") is not None if packages else spec is not None

    assert {name for name in named(MODULE, prose(path)) if not runs(name)} == set()


@page
def test_make_has_the_targets_and_takes_the_variables(path):
    text = prose(path)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert named(re.compile(r"\bmake ([a-z][a-z-]*)"), text) <= targets
    for line in "".join(blocks(text, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            dry = subprocess.run(
                ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert dry.returncode == 0, f"{line}: {dry.stderr}"
            for variable in (word.partition("=")[0] for word in words if "=" in word):
                assert f"$({variable})" in makefile or f"${{{variable}}}" in makefile, line


@page
def test_variables_are_read(path):
    sources = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("stages", "flows")
        for file in (ROOT / folder).rglob("*.py")
    )
    read = set(re.findall(r"\"(OVIS_[A-Z_]+|DEVICE)\"", sources))
    assert {name for name in named(VARIABLE, prose(path)) if name not in read} == set()


def test_commands_and_their_options_exist(capsys):
    """Those of `ovis-dag <command>`, and in OPTIONS of `make`."""

    def known(command: str) -> set[str]:
        assert main([command, "--help"]) == 0
        return set(OPTION.findall(capsys.readouterr().out))

    text = "\n".join(map(prose, PAGES.values()))
    of_make = set().union(*map(OPTION.findall, re.findall(r"OPTIONS=([^`\n]+)", text)))
    assert {"--plan", "--accept-older", "--metric"} <= of_make
    assert of_make <= known("sweep") | known("claims")
    spans = [span.replace("\n", " ") for span in code(text)]
    commands = [found for span in spans for found in re.findall(r"ovis-dag ([a-z]+)([^#]*)", span)]
    assert {"run", "claims", "predict"} <= {command for command, _ in commands}
    for command, rest in commands:
        assert set(OPTION.findall(rest)) <= known(command), command


def test_make_calls_commands_that_there_are():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\(BIN\)/ovis-dag ([a-z]+)", makefile)) <= app.commands.keys()


def test_readme_is_an_entrance():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    unlinked = {path.name for path in (ROOT / "docs").glob("*.md")} - {
        target.removeprefix("docs/").partition("#")[0] for target in LINK.findall(text)
    }
    assert unlinked == set()


def test_the_table_of_stages_has_all_of_them():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| stage | what it does |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(STAGES)


def test_the_table_of_profiles_has_all_of_them():
    text = (ROOT / "docs/weights.md").read_text(encoding="utf-8")
    table = text[text.index("| profile | what it is |") :].partition("\n\n")[0]
    told = {
        name for row in table.splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])
    }
    assert told == {path.stem for path in (ROOT / "experiments").glob("*.yaml")}


@pytest.mark.parametrize(
    "path", ["stages/gone.py", "data/gone/x.json", "tests/stages/gone_<name>.py"]
)
def test_a_missing_file_is_noticed(path):
    assert not is_there(path)
