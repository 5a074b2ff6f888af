"""Stage `download`: images, captions, ground truth and classes of one source, in one format.

Run: python -m stages.download. Source `scenes` reads nothing; the others read a folder: of COCO
(`coco`), of Open Images (`open_images`), or of a user's own images (`folder`). Writes to
data/download:

- categories.json, images/, captions/, ground_truth/ and report.json;
- annotations/: the base classes that people have annotated in each training image;
- narratives/: what people said about the training images while they pointed; empty files if nobody
  did.

The stage never uses the network; `python -m fetch` fills a folder of COCO or Open Images.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.common.formats.images import EncodedImage, write_images
from stages.common.formats.narratives import Narrative
from stages.common.runtime.parallel import map_in_order, num_workers
from stages.common.runtime.params import read_section, read_seed, read_shards
from stages.common.runtime.progress import track
from stages.common.runtime.storage import write_json
from stages.download.examples import CAPTIONED, SPLITS, Example, Skipped, Source, group_by_file
from stages.download.ground_truth import GroundTruth
from stages.download.integrity import LeakCheck, check_categories, check_tasks
from stages.download.narrative_shards import check_files, copy_narratives, write_narratives
from stages.download.params import DownloadParams
from stages.download.report import SplitReport, empty_reports, find_problems, notices, summarise
from stages.download.sources.coco.source import coco_source
from stages.download.sources.folder import folder_source
from stages.download.sources.open_images.source import open_images_source
from stages.download.sources.scenes.source import scene_source

FOLDER = Path("data/download")


def make_source(params: DownloadParams, seed: int, scratch: Path) -> Source:
    """Return the source that the params name; it may write files to `scratch`."""
    if params.source == "scenes":
        return scene_source(params.scenes, seed)
    if params.source == "coco":
        return coco_source(params.coco)
    if params.source == "open_images":
        return open_images_source(params.open_images, scratch, params.max_skipped_fraction)
    return folder_source(params.folder, params.max_skipped_fraction)


def write_split(
    source: Source,
    split: str,
    files: dict[str, Sequence],
    report: SplitReport,
    leaks: LeakCheck,
    scratch: Path,
) -> dict[str, list[int]]:
    """Write the images and captions of each file's tasks, and the split's ground truth.

    Images and annotations stream to disk. Only one file's captions, image labels and, if the source
    makes them with its images, narratives are in memory.

    Args:
        source: makes the examples.
        split: one of `SPLITS`.
        files: name of an image file → its tasks.
        report: counts the outcomes.
        leaks: finds training images that are held-out images too.
        scratch: an empty folder.

    Returns:
        Name of an image file → ids of the images in it.
    """
    truth = GroundTruth(scratch) if split != "pairs" else None
    base = {category.id for category in source.categories if category.split == "base"}

    def examples(name: str, tasks: Sequence) -> Iterator[Example]:
        made = map_in_order(source.make, tasks, num_workers())
        for outcome in track(made, f"download {name}", len(tasks)):
            if isinstance(outcome, Skipped):
                report.add(outcome)
            elif leaked := leaks.check(split, outcome.image):
                report.add(leaked)
            else:
                report.add(outcome.listed)
                yield outcome

    def images(
        made: Iterator[Example],
        captions: list[dict],
        labels: list[dict],
        narratives: list[Narrative],
    ) -> Iterator[EncodedImage]:
        for example in made:
            narratives += [example.narrative] if example.narrative else []
            image_id = example.image.image_id
            captions.append({"image_id": image_id, "captions": list(example.captions)})
            found = base.intersection(entry["category_id"] for entry in example.annotations)
            labels.append({"image_id": image_id, "category_ids": sorted(found)})
            yield example.image

    written = {}
    for name, tasks in files.items():
        captions: list[dict] = []
        labels: list[dict] = []
        narratives: list[Narrative] = []
        made = examples(name, tasks)
        made = truth.collect(made) if truth else made
        path = FOLDER / f"images/{name}.parquet"
        write_images(path, images(made, captions, labels, narratives))
        written[name] = [entry["image_id"] for entry in captions]
        if split in CAPTIONED:
            write_json(FOLDER / f"captions/{name}.json", captions, indent=None)
        if split == "train":
            known = labels if source.annotated else []
            write_json(FOLDER / f"annotations/{name}.json", known, indent=None)
            write_narratives(FOLDER / f"narratives/{name}.jsonl", narratives)
    if truth:
        truth.write(FOLDER / f"ground_truth/{split}.json", source)
    return written


def look_up_all(source: Source) -> dict[str, SplitReport]:
    """Return reports of what is known before images are read; `source.look_up` must not be None."""
    reports = empty_reports(source)
    assert source.look_up is not None
    for split in SPLITS:
        found = map_in_order(source.look_up, source.tasks[split], num_workers())
        for outcome in track(found, f"look up {split}", len(source.tasks[split])):
            reports[split].add(outcome)
    return reports


def check_reports(
    reports: dict[str, SplitReport], source: Source, params: DownloadParams
) -> list[str]:
    """Write report.json and return notices.

    Raises:
        ValueError: with a line for each problem, if there are any.
    """
    report = summarise(reports, source)
    write_json(FOLDER / "report.json", report)
    told, problems = notices(report), [*source.problems, *find_problems(report, params)]
    if problems:
        raise ValueError(
            "\n".join(f"{FOLDER / 'report.json'}: {line}" for line in [*told, *problems])
        )
    return told


def main() -> None:
    """Make the data set that params.yaml describes."""
    params = read_section("download", DownloadParams)
    seed, shards = read_seed(), read_shards()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".scratch-", dir=FOLDER) as scratch:
        source = make_source(params, seed, Path(scratch))
        if source.narratives:
            check_files(source.narratives)
        check_categories(source.categories)
        check_tasks(source.tasks)
        files = group_by_file(source.tasks, shards, params.shard_images)
        for name in ("images", "captions", "ground_truth", "annotations", "narratives"):
            if (FOLDER / name).exists():  # perhaps from a run with more shards
                shutil.rmtree(FOLDER / name)
        write_json(FOLDER / "categories.json", [asdict(category) for category in source.categories])
        if source.look_up:  # fail before hundreds of gigabytes are copied
            check_reports(look_up_all(source), source, params)
        reports, leaks = empty_reports(source), LeakCheck()
        for split in SPLITS:
            spools = Path(scratch, split)
            spools.mkdir()
            written = write_split(source, split, files[split], reports[split], leaks, spools)
            if split == "train" and source.narratives:
                found = copy_narratives(
                    FOLDER / "narratives", written, source.narratives, params.max_skipped_fraction
                )
                print(f"download: {found}")
    for notice in check_reports(reports, source, params):
        print(f"{FOLDER / 'report.json'}: {notice}", file=sys.stderr)


def start() -> None:
    """Run the stage; report wrong input, in a line per problem, and exit with 2."""
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        print(f"download: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    start()
