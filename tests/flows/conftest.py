import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.toy import Toy, make_toy


@pytest.fixture
def toy(tmp_path: Path, fresh: Toy) -> Iterator[Toy]:
    """Give a copy of the toy project, where nothing ran yet."""
    toy = _copy(fresh, tmp_path)
    yield toy
    toy.end()


@pytest.fixture
def done_toy(tmp_path: Path, done: Toy) -> Iterator[Toy]:
    """Give a copy of the toy project after `dvc repro`."""
    toy = _copy(done, tmp_path)
    yield toy
    toy.end()


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, fresh: Toy) -> Toy:
    toy = _copy(fresh, tmp_path_factory.mktemp("done"))
    toy.dvc("repro")
    toy.ran()
    return toy


def _copy(toy: Toy, folder: Path) -> Toy:
    shutil.copytree(toy.root, folder / "toy")
    return Toy(folder / "toy")
