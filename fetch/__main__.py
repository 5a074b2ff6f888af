"""Fetch the files that the stage `download` reads: `python -m fetch`.

The section `download` of params.yaml says what to fetch and where to put it: for the sources coco
and open_images, their folder and limits. Fetching is not part of the experiment, so DVC need not
know about the network. Run it before the experiment, as often as needed: it keeps files that are
there and resumes interrupted ones.

--mirror  a folder or the start of a URL that has the files under the same paths, such as a copy of
          images.cocodataset.org; a folder may also have them all at its top level
--workers images fetched at once (large files: at most 8); more are faster until the line is full
"""

import argparse
import fcntl
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fetch import coco_files
from fetch.archives import check_archive, unpack
from fetch.fetcher import Fetcher, read_mirror
from fetch.transfer import FetchError, Patience, Remote
from stages.common.runtime.errors import refuse
from stages.common.runtime.params import read_section
from stages.download.examples import Source
from stages.download.params import CocoParams, DownloadParams, OpenImagesParams
from stages.download.sources.coco.source import coco_source
from stages.download.sources.open_images import files as open_images_files
from stages.download.sources.open_images.source import open_images_source

STOPPED = 130  # exit code, as of all commands
# Bytes of a photograph, for the check of disk space: no table gives them.
COCO_IMAGE, OPEN_IMAGES_IMAGE = 165_000, 330_000


def fetch_coco(params: CocoParams, fetcher: Fetcher) -> None:
    """Fetch COCO 2017: a part's images as the archive, or one by one where that is fewer bytes."""
    folder = Path(params.folder).expanduser()
    wanted = coco_files.annotation_files(params.train_part)
    if any(not (folder / name).is_file() for name in wanted):
        _fetch_archive(coco_files.ANNOTATION_ARCHIVE, folder, fetcher, wanted)
    for part in coco_files.PARTS:
        (folder / part).mkdir(exist_ok=True)
    for part, names in _missing(coco_source(params)).items():
        archive = coco_files.IMAGE_ARCHIVES[part]
        if len(names) * COCO_IMAGE > archive.size / 2:
            _fetch_archive(archive, folder, fetcher, names)
        else:
            remotes = [Remote(f"{coco_files.SERVER}/{name}", folder / name) for name in names]
            fetcher.fetch_images(remotes, folder, COCO_IMAGE)


def _missing(source: Source) -> dict[str, list[str]]:
    """Return part → images ("part/file") that the tasks need and that are missing."""
    paths = {task.path for tasks in source.tasks.values() for task in tasks}
    missing: dict[str, list[str]] = {}
    for path in sorted(path for path in paths if not path.is_file()):
        missing.setdefault(path.parent.name, []).append(f"{path.parent.name}/{path.name}")
    return missing


def _fetch_archive(
    archive: coco_files.Archive, folder: Path, fetcher: Fetcher, wanted: Iterable[str]
) -> None:
    """Fetch an archive, unpack its wanted members, and remove it."""
    remote = Remote(
        f"{coco_files.SERVER}/{archive.key}",
        folder / Path(archive.key).name,
        archive.size,
        archive.md5,
    )
    fetcher.fetch_files([remote], folder, archive.unpacked)
    names = set(wanted)
    unpack(remote.path, folder, names.__contains__)
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise FetchError(
            f"{remote.path}: lacks {len(absent)} files, such as {absent[0]}; it is not the archive"
            f" of COCO 2017 that {remote.url} names"
        )
    remote.path.unlink()


def fetch_open_images(
    params: OpenImagesParams, max_broken_fraction: float, fetcher: Fetcher
) -> None:
    """Fetch tables, narratives and archives of outlines, then the images that these name."""
    folder = Path(params.folder).expanduser()
    urls = open_images_files.official_urls(params.test_part)
    fetcher.fetch_files([Remote(url, folder / name) for name, url in urls.items()], folder)
    for name in urls:
        if name.endswith(".zip"):
            check_archive(folder / name)
    with TemporaryDirectory(prefix=".scratch-", dir=folder) as scratch:
        source = open_images_source(params, Path(scratch), max_broken_fraction)
    images = {(task.part, task.name) for tasks in source.tasks.values() for task in tasks}
    names = sorted(f"{part}/{name}.jpg" for part, name in images)
    remotes = [Remote(f"{open_images_files.IMAGES}/{name}", folder / name) for name in names]
    fetcher.fetch_images(remotes, folder, OPEN_IMAGES_IMAGE)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second command from writing the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetch.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"{folder.absolute()}: another command is fetching there") from None
        yield


def run(params: DownloadParams, fetcher: Fetcher) -> None:
    """Fetch what a source needs.

    Raises:
        FetchError: a file cannot be fetched.
        ValueError: the source needs no files.
    """
    if params.source == "coco":
        with alone(Path(params.coco.folder).expanduser()):
            fetch_coco(params.coco, fetcher)
    elif params.source == "open_images":
        with alone(Path(params.open_images.folder).expanduser()):
            fetch_open_images(params.open_images, params.max_skipped_fraction, fetcher)
    else:
        raise ValueError(
            f"params.yaml: download.source is {params.source}, which needs nothing fetched; set it"
            " to coco or open_images, e.g. by `make profile NAME=paper-coco`"
        )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mirror", metavar="folder|address")
    parser.add_argument("--workers", type=int, default=32, choices=range(1, 129), metavar="1..128")
    options = parser.parse_args()
    try:
        mirror = read_mirror(options.mirror) if options.mirror else None
    except ValueError as error:
        refuse(f"--mirror {error}")
    try:
        params = read_section("download", DownloadParams)
    except (ValueError, FileNotFoundError) as error:
        refuse(str(error))
    try:
        run(params, Fetcher(mirror, options.workers, Patience()))
    except (FetchError, OSError) as error:
        sys.exit(str(error))
    except ValueError as error:  # params, or a file that they name
        refuse(str(error))
    except KeyboardInterrupt:
        print("stopped; run the same again to go on from here", file=sys.stderr, flush=True)
        os._exit(STOPPED)  # threads that still fetch would keep the process
    print("everything that download needs is there")


if __name__ == "__main__":
    main()
