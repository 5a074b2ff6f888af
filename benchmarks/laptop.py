"""How long `coco-laptop` takes here: `python -m benchmarks.laptop ../coco`, or any such folder.

It runs every stage of the profile with random weights at full size, on photographs in COCO's
layout. If the folder has too few, they are repeated under new ids until there are as many as the
profile asks
for. By default it runs two fractions of the profile's images and training steps and extrapolates
linearly to all of it, because the time for starting a stage and loading weights does not grow.
`--parts 1` runs all of it.

It counts core seconds, which other work on the machine hardly changes. Detectors with random
weights find little, so `evaluation` takes longer with real ones. Fetching is not measured.
"""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.measure import Spent, run, table
from benchmarks.project import REPOSITORY, copy_definition
from benchmarks.random_weights import write_albef, write_clip, write_imagenet
from flows.dvc.project import load_graph
from flows.environment import stage_environment
from flows.overlay import apply_profile

PROFILE = "coco-laptop"
PARTS = (0.04, 0.12)
SPREAD = 581  # between two ids: val2017's 5,000 go up to 581781, and ids decide the shard
COCO_PARTS = ("val2017", "train2017")


def write_coco(source: Path, folder: Path, count: int) -> Path:
    """Write `count` photographs of a folder as val2017; return the file of their captions.

    Raises:
        FileNotFoundError: the folder has no photograph with annotations and captions.
    """
    found = list(_photographs(source))
    if not found:
        raise FileNotFoundError(f"{source}: no photograph that annotations/*_val2017.json name")
    (folder / "val2017").mkdir(parents=True)
    images, objects, captions = [], [], []
    for image_id, (path, image, own_objects, own_captions) in zip(
        range(SPREAD, SPREAD * count + 1, SPREAD), cycle(found), strict=False
    ):
        name = f"{image_id:012}.jpg"
        # Bytes behind a JPEG's end: equal files in train and test would be left out.
        (folder / "val2017" / name).write_bytes(path.read_bytes() + name.encode())
        images.append({**image, "id": image_id, "file_name": name})
        for entries, own in ((objects, own_objects), (captions, own_captions)):
            entries += [
                {**entry, "id": len(entries) + k, "image_id": image_id}
                for k, entry in enumerate(own, 1)
            ]
    categories = _read(source, "instances", "val2017")["categories"]
    content = {"images": images, "annotations": objects, "categories": categories}
    written = folder / "annotations/captions_val2017.json"
    written.parent.mkdir()
    (written.parent / "instances_val2017.json").write_text(json.dumps(content))
    written.write_text(json.dumps({"images": images, "annotations": captions}))
    return written


def _photographs(source: Path) -> Iterator[tuple[Path, dict, list[dict], list[dict]]]:
    """Yield each existing photograph: its file, and its image, object and caption entries."""
    for part in COCO_PARTS:
        if not (source / f"annotations/instances_{part}.json").is_file():
            continue
        instances, captions = (_read(source, kind, part) for kind in ("instances", "captions"))
        by_image: tuple[dict, dict] = {}, {}
        for found, content in zip(by_image, (instances, captions), strict=True):
            for entry in content["annotations"]:
                found.setdefault(entry["image_id"], []).append(entry)
        for image in instances["images"]:
            path = source / part / image["file_name"]
            if path.is_file():
                yield path, image, *(found.get(image["id"], []) for found in by_image)


def _read(source: Path, kind: str, part: str) -> dict[str, Any]:
    return json.loads((source / f"annotations/{kind}_{part}.json").read_text(encoding="utf-8"))


def make_project(root: Path, part: float) -> None:
    """Make a project of a part of the profile, beside the folders `coco` and `weights`."""
    copy_definition(root)
    shutil.copytree(REPOSITORY / "experiments", root / "experiments")
    apply_profile(root, PROFILE)
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["vlm"]["pretrained"] |= {
        "checkpoint": "../weights/ALBEF.pth",
        "vocabulary": "../weights/vocab.txt",
    }
    params["vocabulary"]["clip"]["folder"] = "../weights/clip"
    params["wspn"]["model"]["backbone"] |= {"weights": "../weights/vgg16.pth", "sha256": None}
    params["detector"]["imagenet"] |= {"weights": "../weights/resnet50.pth", "sha256": None}
    params["download"]["coco"]["folder"] = "../coco"
    # Checks of real data that a few photographs cannot pass.
    params["download"] |= {"max_missing_class_fraction": 1.0, "max_unmatched_fraction": 1.0}
    params["pseudo_labels"] |= {"min_labelled_fraction": 0.0, "max_untargeted_fraction": 1.0}
    images = params["download"]["coco"]["max_images"]
    counted = [
        (images, "train"),
        (images, "test"),
        (params["wspn"]["end_to_end"], "steps"),
        (params["detector"]["training"], "steps"),
        (params["finetune"]["training"], "steps"),
        (params["evaluation"], "training_images"),
    ]
    for section, key in counted:
        section[key] = max(1, round(part * section[key]))
    yaml.dump(params, root / "params.yaml")


def measure(root: Path) -> dict[str, Spent]:
    """Run each stage, and return what each group took, all its shards together."""
    found: dict[str, Spent] = {}
    for stage in load_graph(root).values():
        command = shlex.split(stage.command)
        spent = run([sys.executable, *command[1:]], root, **stage_environment())
        before = found.get(stage.group, Spent(0.0, 0.0, 0.0))
        found[stage.group] = Spent(
            before.seconds + spent.seconds,
            max(before.peak_mib, spent.peak_mib),
            before.cpu_seconds + spent.cpu_seconds,
        )
        print(f"{stage.name} {spent.seconds:.0f} s, {spent.cpu_seconds:.0f} CPU s", flush=True)
    return found


def whole(parts: dict[float, float]) -> float:
    """Return what the whole profile takes, extrapolated from one or two parts."""
    (low, least), (high, most) = min(parts.items()), max(parts.items())
    return most if low == high else most + (1 - high) * max(0.0, most - least) / (high - low)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.laptop", description=__doc__)
    parser.add_argument("coco", type=Path, help="has val2017/ or more, and annotations/")
    parser.add_argument("--parts", type=float, nargs="+", default=PARTS, help="two, or 1: all")
    parser.add_argument("--weights", type=Path, help="folder of random weights to make, or to use")
    options = parser.parse_args()
    if len(set(options.parts)) < 2 and options.parts != [1]:
        parser.error("--parts: a line needs two different parts; or give 1, and all of it is run")
    found: dict[float, dict[str, Spent]] = {}
    with tempfile.TemporaryDirectory(prefix="ovis-laptop-") as name:
        folder = Path(name)
        counts = YAML(typ="safe").load(REPOSITORY / f"experiments/{PROFILE}.yaml")["download"]
        number = sum(counts["coco"]["max_images"].values())
        captions = write_coco(options.coco, folder / "coco", 2 * number)
        weights = (options.weights or folder / "weights").absolute()
        if not weights.exists():
            write_albef(weights, captions)
            write_clip(weights / "clip")
            write_imagenet(weights)
        if options.weights:
            (folder / "weights").symlink_to(weights)
        for part in options.parts:
            root = folder / f"{part:g}"
            make_project(root, part)
            found[part] = measure(root)
    rows = [
        {
            "stage": group,
            **{
                f"{part:.0%}: s (CPU s)": f"{own[group].seconds:.0f} ({own[group].cpu_seconds:.0f})"
                for part, own in found.items()
            },
            "all: CPU minutes": _minutes({k: own[group].cpu_seconds for k, own in found.items()}),
            "peak MiB": f"{max(own[group].peak_mib for own in found.values()):.0f}",
        }
        for group in next(iter(found.values()))
    ]
    print("\n" + table(f"{PROFILE} with random weights", rows))
    totals = {k: sum(s.cpu_seconds for s in own.values()) for k, own in found.items()}
    seconds = {k: sum(s.seconds for s in own.values()) for k, own in found.items()}
    print(f"\nAll stages, one after the other: {_minutes(totals)} CPU minutes;", end=" ")
    print(f"{_minutes(seconds)} minutes as busy as this machine was")


def _minutes(parts: dict[float, float]) -> str:
    return f"{whole(parts) / 60:.1f}"


if __name__ == "__main__":
    main()
