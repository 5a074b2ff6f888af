"""Stage `evaluation`: measure detectors on held-out images.

Run: python -m stages.evaluation detector=data/detector/model.safetensors [more=…] [--output folder]
[--training-objects detector]. Takes any number of name=weights. `--training-objects` also measures
that model on training images. A name=file.json gives detections instead, in the format of
`stages.common.formats.result_files`; the file names its images, and those of another split are
refused. If nobody has annotated the images, predictions are written but not measured. Writes
metrics.json, report.json, per_class.csv, pr_<kind>.csv, predictions_<name>.json and montage.png.
"""

import argparse
import re
from functools import partial
from pathlib import Path

from stages.common.drawing.montage import write_png
from stages.common.formats.categories import ALL_SPLITS, read_categories
from stages.common.formats.coco import group_by_image
from stages.common.formats.ground_truth import SKIPPED, is_annotated
from stages.common.formats.images import read_images
from stages.common.formats.outlines import ignore_unoutlined
from stages.common.formats.result_files import read_results, write_results
from stages.common.formats.stored_images import find_images
from stages.common.runtime.devices import prepare_device
from stages.common.runtime.params import read_exactness, read_section, read_seed, read_shards
from stages.common.runtime.seeding import make_deterministic, numpy_generator
from stages.common.runtime.storage import read_json, write_json, write_rows
from stages.evaluation import figure, self_training, summary, unannotated
from stages.evaluation.average_precision import KINDS
from stages.evaluation.detections import Predict, detect, split_by_trial
from stages.evaluation.params import EvaluationParams
from stages.evaluation.protocols import (
    check_truth,
    describe_trials,
    make_trials,
    unannotated_trial,
)
from stages.models.detection.detector import load, predict

DATA = Path("data")
DOWNLOAD = DATA / "download"
TRAINING_TRUTH = DOWNLOAD / "ground_truth/train.json"


def main() -> None:
    """Evaluate every model named on the command line."""
    models, output, training_model = _read_arguments()
    params, seed = read_section("evaluation", EvaluationParams), read_seed()
    make_deterministic(seed, "evaluation")
    device = prepare_device(read_exactness())
    categories = read_categories(DOWNLOAD / "categories.json")
    path = DOWNLOAD / f"ground_truth/{params.split}.json"
    truth, annotated = read_json(path), is_annotated(path)
    if not truth["images"]:
        raise ValueError(
            f"{path}: no image to evaluate on; params.yaml: evaluation.split: choose the other"
            " split, or give the source images of this one"
        )
    check_truth(truth, read_categories(DOWNLOAD / "categories.json", ALL_SPLITS), str(path))
    trials = [unannotated_trial(truth, categories)]
    if annotated:
        trials = make_trials(truth, categories, params.metric)
    shard = DOWNLOAD / f"images/{params.split}.parquet"

    detections, scores, metrics = {}, {}, {}
    for name, weights in models.items():
        if weights.suffix == ".json":
            listed = [image["id"] for image in truth["images"]]
            given = read_results(weights, params.split, listed, trials[0].image_ids)
            found = split_by_trial(given, trials, params.max_detections)
        else:
            predictor = partial(predict, load(weights).to(device), inference=params.inference)
            found = detect(
                predictor, read_images(shard), trials, params, what=f"evaluation, {name}"
            )
        detections[name] = found[0]
        predictions = output / f"predictions_{name}.json"
        write_results(predictions, params.split, trials[0].image_ids, found[0])
        if not annotated:
            metrics[name] = unannotated.evaluation_metrics(found[0], len(truth["images"]))
            continue
        scores[name] = summary.score(trials, found, params, truth)
        metrics[name] = summary.evaluation_metrics(scores[name])
        if name == training_model and is_annotated(TRAINING_TRUTH):
            metrics[name]["training_objects"] = _measure_training(predictor, params, seed)
    write_json(output / "metrics.json", metrics)
    if annotated:
        write_json(output / "report.json", describe_trials(truth, trials))
        write_rows(output / "per_class.csv", summary.per_class_rows(scores, categories))
        curves = {kind: summary.precision_recall_rows(scores, kind) for kind in KINDS}
    else:
        write_json(output / "report.json", {"skipped": SKIPPED, "images": len(truth["images"])})
        write_rows(output / "per_class.csv", unannotated.per_class_rows(detections, categories))
        curves = dict.fromkeys(KINDS, unannotated.precision_recall_rows(list(models)))
    for kind, rows in curves.items():
        write_rows(output / f"pr_{kind}.csv", rows)
    random = numpy_generator(seed, "evaluation montage")
    chosen = figure.choose_images(trials[0], params.montage_images, random)
    images = {p.image_id: (p.file_name, p.decode()) for p in find_images(set(chosen), shard)}
    examples = figure.make_examples(images, trials[0], detections, params.montage_min_score)
    sheet = figure.draw_montage(examples, categories, params.montage_min_score, annotated)
    write_png(output / "montage.png", sheet)
    for name, own in metrics.items():
        print(f"{name}: {_in_words(own)}")


def _in_words(metrics: dict) -> str:
    if "skipped" in metrics:
        counts = f"{metrics['detections']} detections on {metrics['images']} images"
        return f"{metrics['skipped']}; {counts} are in its predictions file"
    novel = metrics["generalized"]["novel"]
    return f"novel AP50 {novel['bbox']['AP50']} box, {novel['segm']['AP50']} mask"


def _measure_training(predictor: Predict, params: EvaluationParams, seed: int) -> dict:
    sources = sorted((DATA / "supervision").glob("*.json"))
    labels = [own for path in sources for own in read_json(path)["annotations"]]
    labels = [own for own in labels if own.get("segmentation")]
    truth = ignore_unoutlined(read_json(TRAINING_TRUTH)["annotations"])
    annotations = group_by_image(labels)
    random = numpy_generator(seed, "evaluation on training objects")
    chosen = self_training.choose_images(annotations, params.training_images, random)
    shards = [DOWNLOAD / f"images/train/{shard}.parquet" for shard in read_shards()]
    return self_training.measure_training_objects(
        predictor,
        find_images(chosen, *shards),
        annotations,
        group_by_image(truth),
        read_categories(DOWNLOAD / "categories.json"),
        params,
    )


def _read_arguments() -> tuple[dict[str, Path], Path, str | None]:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluation")
    parser.add_argument("models", nargs="+", metavar="name=weights")
    parser.add_argument("--output", type=Path, default=DATA / "evaluation")
    parser.add_argument("--training-objects", metavar="name")
    arguments = parser.parse_args()
    models: dict[str, Path] = {}
    for given in arguments.models:
        name, _, weights = given.partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not weights or name in models:
            parser.error(f"'{given}': expected name=weights, each name once, of letters a-z 0-9 _")
        models[name] = Path(weights)
    trained = sorted(name for name, file in models.items() if file.suffix != ".json")
    if arguments.training_objects not in (None, *trained):
        parser.error(f"--training-objects {arguments.training_objects}: one of {trained}")
    return models, arguments.output, arguments.training_objects


if __name__ == "__main__":
    main()
