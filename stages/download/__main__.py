"""Stage `download`: pictures, captions, ground truth and classes of one source, in one form.

Run: python -m stages.download. Reads nothing (source scenes) or a COCO folder (source coco). Writes
under data/download: categories.json, images/, captions/, ground_truth/, report.json.
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from stages.common.captions import MentionFinder
from stages.common.images import Picture, write_pictures
from stages.common.parallel import map_in_order, num_workers
from stages.common.params import read_section, read_seed, read_shards
from stages.common.progress import track
from stages.common.storage import write_json
from stages.download.coco import coco_source
from stages.download.examples import CAPTIONED, SPLITS, Skipped, Source, dataset, group_by_file
from stages.download.params import DownloadParams
from stages.download.report import SplitReport, find_problems, summarise
from stages.download.scene_source import scene_source

FOLDER = Path("data/download")


def write_split(source: Source, split: str, files: dict[str, list], report: SplitReport) -> None:
    """Write the pictures and captions of each file's tasks, and the split's ground truth.

    Pictures stream to disk as they are made; only captions and annotations stay in memory.
    """
    images, annotations = [], []

    def stream(name: str, tasks: list, captions: list[dict]) -> Iterator[Picture]:
        made = map_in_order(source.make, tasks, num_workers())
        for outcome in track(made, f"download {name}", len(tasks)):
            report.add(outcome)
            if isinstance(outcome, Skipped):
                continue
            picture = outcome.picture
            captions.append({"image_id": picture.image_id, "captions": list(outcome.captions)})
            if split != "pairs":
                facts = {"file_name", "height", "width"}
                images.append({"id": picture.image_id} | {f: getattr(picture, f) for f in facts})
                annotations.extend(outcome.annotations)
            yield picture

    for name, tasks in files.items():
        captions: list[dict] = []
        write_pictures(FOLDER / f"images/{name}.parquet", stream(name, tasks, captions))
        if split in CAPTIONED:
            write_json(FOLDER / f"captions/{name}.json", captions, indent=None)
    if split != "pairs":
        path = FOLDER / f"ground_truth/{split}.json"
        write_json(path, dataset(images, annotations, source.categories), indent=None)


def main() -> None:
    """Make the data set that params.yaml describes."""
    params = read_section("download", DownloadParams)
    seed, shards = read_seed(), read_shards()
    source = (
        scene_source(params.scenes, seed) if params.source == "scenes" else coco_source(params.coco)
    )
    files = group_by_file(source.tasks, shards, params.shard_images)
    for name in ("images", "captions", "ground_truth"):
        if (FOLDER / name).exists():  # perhaps of a run with more shards
            shutil.rmtree(FOLDER / name)
    write_json(FOLDER / "categories.json", [asdict(category) for category in source.categories])
    finder = MentionFinder(source.categories)
    reports = {split: SplitReport(finder) for split in SPLITS}
    for split in SPLITS:
        write_split(source, split, files[split], reports[split])
    report = summarise(reports, source.categories)
    write_json(FOLDER / "report.json", report)
    problems = find_problems(report, params)
    if problems:
        sys.exit("\n".join(f"{FOLDER / 'report.json'}: {problem}" for problem in problems))


if __name__ == "__main__":
    main()
