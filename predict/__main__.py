"""Find and outline objects of any names in new images.

`python -m predict IMAGE_OR_FOLDER --model FOLDER [--names "a,b c,d"] [--output FOLDER]`. Writes
predictions.json (COCO: images, categories, and annotations with a score) and overlays/, and prints
a table. Needs only the predictor's folder: no params.yaml, no DVC, no training data.
"""

import argparse
import io
import shutil
import sys
import time
from pathlib import Path

import torch
from pycocotools import mask as coco_mask

from predict.images import Found, decode_images, find_images, name_some
from predict.overlay import draw_overlay, overlay_name, write_overlay
from stages.common.formats.image_files import ImageFiles
from stages.common.runtime.devices import compute_device
from stages.common.runtime.progress import track
from stages.common.runtime.storage import write_json
from stages.models.detection.coco_results import to_results
from stages.models.detection.detector import bounded_batches
from stages.models.detection.predictor import Predictor, load_predictor

AT_ONCE = 8  # images in memory, at most
PREDICTIONS, OVERLAYS = "predictions.json", "overlays"
NUMBER_WIDTH = 10  # characters of a table column


def main() -> int:
    """Run the command; return 0, 1 if nothing could be read or written, or 2 for bad input."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may know ASCII only
    options = _read_arguments()
    try:
        _check_output(options)
        files = find_images(options.images)
        predictor = load_predictor(options.model, compute_device())
        names = options.names or predictor.names
        unknown = predictor.unknown_words(names)
        if options.names and not options.allow_unknown:
            predictor.refuse_unknown_words(names)
        predictor.embed(names, allow_unknown=True)  # refuses names that cannot be read
        _clear(options.output)
    except (OSError, ValueError) as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    for name, words in unknown.items():
        print(f"predict: '{name}': unknown to the model: {', '.join(words)}", file=sys.stderr)
    try:
        return _find_all(predictor, names, files, options)
    except OSError as error:  # such as a full disk
        print(f"predict: {error}", file=sys.stderr)
        return 1


def _find_all(
    predictor: Predictor, names: list[str], files: ImageFiles, options: argparse.Namespace
) -> int:
    """Write the results of all images; return 0, or 1 if no image could be read."""
    broken: dict[str, str] = {}
    content: dict[str, list] = {
        "images": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": [],
        "broken": [],
    }
    batches = bounded_batches(
        decode_images(files.images.items(), broken),
        lambda found: found.image.shape[:2],
        predictor.detections_per_image,
        AT_ONCE,
    )
    seconds = 0.0
    for batch in track(batches, "predict", len(files.images), size=len):
        started = time.perf_counter()
        results = _predict(predictor, batch, names, options, first_id=len(content["images"]) + 1)
        seconds += time.perf_counter() - started
        for image, found in zip(batch, results, strict=True):
            _add(content, image, found)
            if options.overlays:
                by_id = dict(enumerate(names, 1))
                path = options.output / OVERLAYS / overlay_name(image.name)
                write_overlay(path, draw_overlay(image.image, found, by_id))
    content["broken"] = list(broken.values())
    write_json(options.output / PREDICTIONS, content, indent=None)
    _report(content, files.others, options.output, seconds)
    return int(not content["images"])


def _check_output(options: argparse.Namespace) -> None:
    """Raise ValueError if the next call would search the overlays of this one."""
    images, output = options.images.resolve(), options.output.resolve()
    if options.overlays and images.is_dir() and output.is_relative_to(images):
        raise ValueError(
            f"--output {options.output}: lies in {options.images}, whose images would include the"
            " overlays; give a folder elsewhere, or --no-overlays"
        )


def _clear(output: Path) -> None:
    """Create the folder, and remove overlays of an earlier call, whose list will be replaced."""
    output.mkdir(parents=True, exist_ok=True)
    if (output / PREDICTIONS).is_file() and (output / OVERLAYS).is_dir():
        shutil.rmtree(output / OVERLAYS)


def _predict(
    predictor: Predictor,
    batch: list[Found],
    names: list[str],
    options: argparse.Namespace,
    first_id: int,
) -> list[list[dict]]:
    """Return COCO results per image; class ids count from 1, image ids from the given one."""
    images = [image.image for image in batch]
    category_ids = range(1, len(names) + 1)
    return [
        to_results(image_id, prediction, category_ids, options.min_score)
        for image_id, prediction in enumerate(
            predictor.predict(images, names, allow_unknown=True), first_id
        )  # unknown words have been refused by now
    ]


def _add(content: dict[str, list], image: Found, results: list[dict]) -> None:
    """Append an image and its instances to a COCO data set."""
    height, width = image.image.shape[:2]
    image_id = len(content["images"]) + 1
    content["images"].append(
        {"id": image_id, "file_name": image.name, "height": height, "width": width}
    )
    for result in results:
        number = len(content["annotations"]) + 1
        area = int(coco_mask.area(result["segmentation"]))
        content["annotations"].append({"id": number, "area": area, "iscrowd": 0, **result})


def _report(content: dict[str, list], others: list[str], output: Path, seconds: float) -> None:
    rows = [("name", "objects", "images", "best score")]
    for category in content["categories"]:
        own = [a for a in content["annotations"] if a["category_id"] == category["id"]]
        best = f"{max(a['score'] for a in own):.2f}" if own else "–"
        images = len({a["image_id"] for a in own})
        rows.append((category["name"], str(len(own)), str(images), best))
    room = shutil.get_terminal_size().columns - 3 * (2 + NUMBER_WIDTH)
    width = min(max(len(row[0]) for row in rows), max(room, NUMBER_WIDTH))
    for name, *cells in rows:
        shown = name if len(name) <= width else f"{name[: width - 1]}…"
        print("  ".join([shown.ljust(width), *(cell.rjust(NUMBER_WIDTH) for cell in cells)]))
    count, broken = len(content["images"]), content["broken"]
    rate = f", {count / seconds:.1f} images/s" if count else ""
    print(f"{count} images, {len(broken)} broken{rate} ({torch.get_num_threads()} threads)")
    for reason in broken:
        print(f"broken: {reason}", file=sys.stderr)
    if others:
        told = f"not read, {len(others)} files of other formats: {name_some(others)}"
        print(told, file=sys.stderr)
    print(f"{output / PREDICTIONS}, {output / OVERLAYS}")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1, found {text}")
    return value


def _path(text: str) -> Path:
    """Return a path; not every shell expands the ~ of `make predict IMAGES=~/photos`."""
    return Path(text).expanduser()


def _names(text: str) -> list[str]:
    """Return the names between commas; print a note about empty and repeated ones left out."""
    given = [" ".join(part.split()) for part in text.split(",")]
    names = {name.lower(): name for name in reversed(given) if name}
    if not names:
        raise argparse.ArgumentTypeError(f"expected names with commas between, found {text!r}")
    if len(names) < len(given):
        told = ", ".join(reversed(names.values()))
        note = "empty and repeated names are left out; looking for"
        print(f"predict: --names: {note} {told}", file=sys.stderr)
    return list(reversed(names.values()))


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m predict", description=__doc__)
    parser.add_argument("images", type=_path, help="an image, or a folder of them")
    parser.add_argument("--model", type=_path, required=True, help="the predictor's folder")
    parser.add_argument("--names", type=_names, help="with commas; else those of the training")
    parser.add_argument("--output", type=_path, default=Path("data/predict"))
    parser.add_argument("--min-score", type=_fraction, default=0.3, help="of a shown instance")
    parser.add_argument("--allow-unknown", action="store_true", help="warn of unknown words only")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
