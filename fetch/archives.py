"""Unpacks zip archives without trusting them: no links, nothing outside the folder, whole files."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fetch.transfer import FetchError, check_free_space, writing
from stages.common.runtime.progress import track

ENCRYPTED = 0x1  # bit in a member's flags
MOST_EXPANDED = 200  # times its size in the archive; photographs hardly shrink, tables ten times


def unpack(
    archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> list[Path]:
    """Unpack the wanted members of a zip archive and return where they are.

    A member gets its final name when it is complete, and one that exists is kept. So a second call
    continues where the first was killed.

    Args:
        archive: zip.
        folder: the folder that members' names are relative to.
        wanted: says for a member's name whether to unpack it.

    Raises:
        FetchError: the archive is broken or has a member that must not be unpacked, or the disk
            has no room.
    """
    with _opened(archive) as opened:
        members = [info for info in opened.infolist() if not info.is_dir()]
        for info in members:
            _check(info, archive)
        members = [info for info in members if wanted(info.filename)]
        places = {folder / info.filename: info for info in members}
        missing = {place: info for place, info in places.items() if not place.is_file()}
        check_free_space(folder, sum(info.file_size for info in missing.values()))
        for place, info in track(missing.items(), f"unpack {archive.name}", len(missing)):
            partial = place.with_name(f".{place.name}.partial")
            place.parent.mkdir(parents=True, exist_ok=True)
            with writing(partial), opened.open(info) as source, partial.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(partial, place)
    return list(places)


def check_archive(archive: Path) -> None:
    """Check that the directory of a zip archive is readable.

    Raises:
        FetchError: it is not.
    """
    with _opened(archive):
        pass


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FetchError(f"{archive.absolute()}: {error}; remove it and fetch it again") from error


def _check(info: zipfile.ZipInfo, archive: Path) -> None:
    """Check that a member is a plain file inside the folder."""
    parts = PurePosixPath(info.filename).parts
    kind = stat.S_IFMT(info.external_attr >> 16)
    reasons: Iterable[tuple[bool, str]] = (
        (info.filename.startswith("/") or "\\" in info.filename, "an absolute path"),
        (":" in parts[0] if parts else True, "an absolute path"),
        (".." in parts, "a path out of the folder"),
        (kind not in (0, stat.S_IFREG), "a link or device"),
        (bool(info.flag_bits & ENCRYPTED), "encrypted"),
        (info.file_size > MOST_EXPANDED * max(info.compress_size, 1), "unbelievably compressed"),
    )
    for is_so, what in reasons:
        if is_so:
            raise FetchError(
                f"{archive.absolute()}: its member '{info.filename}' is {what}: nothing was"
                " unpacked; remove the archive and fetch it from the official place"
            )
