"""What the paper's experiments would cost: `python -m benchmarks.cost`, after `make repro`.

The prediction combines measurements on this machine with two assumptions:

- core seconds per item of stages that compute on the processor, on inputs of real size;
- operations per item of stages that compute on a GPU, counted in one run with the profile's params;
- bytes per item that stages write, from the files of the finished default experiment;
- assumed: the operations per second that a GPU achieves (`--tflops`), and its machine's cores.

Shards spread over all GPUs. A training uses `gpus_per_training` GPUs of one machine, each with at
least one image of the batch. Gradients that they send each other are not counted. Nor are stages
that take less than an hour of one core: `vlm`, which only converts ALBEF, `vocabulary`, `phrases`,
`phrase_labels`.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import inputs
from benchmarks.measure import core_seconds_of, table
from benchmarks.project import REPOSITORY
from flows.dvc.project import load_graph
from flows.overlay import PARAMS, apply_profile
from stages.activation.params import ActivationParams
from stages.activation.rounds import iterate_masking
from stages.common.formats.categories import Category
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.params import read_params
from stages.common.runtime.seeding import torch_generator
from stages.common.runtime.storage import read_tensors
from stages.evaluation.params import EvaluationParams
from stages.evaluation.protocols import Trial, make_trials
from stages.evaluation.summary import score
from stages.label_quality.params import LabelQualityParams, MapParams
from stages.label_quality.shard import MapsInUse, ShardInputs, measure_image
from stages.models.backbones.imagenet import freeze_stages
from stages.models.detection.coco_results import to_results
from stages.models.detection.detector import LossSettings, Prediction, build
from stages.models.detection.params import (
    InferenceParams,
    NetworkParams,
    TrainingParams,
    network_params,
)
from stages.models.proposals.base import ImageFeatures, Wspn
from stages.models.proposals.imagenet import ImagenetWspn, ImagenetWspnConfig
from stages.models.proposals.params import ViewSettings
from stages.models.proposals.ranking import rank_proposals
from stages.models.proposals.views import view_input
from stages.proposals.params import ProposalsParams
from stages.proposals.search import search_images
from stages.pseudo_boxes.select import choose_boxes
from stages.pseudo_labels.merge import make_dataset, split_masks
from stages.pseudo_labels.params import PseudoLabelsParams
from stages.pseudo_masks.params import PseudoMasksParams
from stages.pseudo_masks.segment import join_crops, make_crops, segment_crops
from stages.ranking.params import RankingParams

GPUS = (1, 8, 64)
# Boxes that selective search finds in a photograph, and the most that the paper's profiles train
# the proposal network with; ranking looks at all of them.
PROPOSALS = 4000


@dataclass(frozen=True)
class Dataset:
    """The size of a data set, and the profile that trains on it."""

    name: str
    profile: str
    train: int  # images
    test: int
    classes: tuple[int, int]  # base, novel
    captions: int  # per image
    objects: float  # per image, named by its captions
    bytes: float  # per image


# Objects as in 80 images of COCO. Open Images, of 1024 pixels a side: what our source reads. It
# trains on images with a narrative, of which google.github.io/localized-narratives has 507,444; a
# caption is a sentence, of which a narrative of 40 words has about three. It tests on all images
# of validation that have a verified label of the 300 classes: nearly all of the 41,620 that
# storage.googleapis.com/openimages/web/factsfigures_v7.html counts, or of the 125,436 of test.
COCO = Dataset("COCO 2017", "paper-coco", 118_287, 5_000, (48, 17), 5, 1.7, 163e3)
OPEN_IMAGES = Dataset(
    "Open Images", "paper-open-images", 507_444, 41_620, (200, 100), 3, 1.7, 330e3
)
DATASETS = (
    COCO,
    replace(COCO, profile="paper-coco-fast"),
    OPEN_IMAGES,
    replace(OPEN_IMAGES, profile="paper-alp", test=125_436, classes=(60, 240)),
)
ANNOTATED = 7  # objects of an image of COCO, rounded down


@dataclass(frozen=True)
class Cost:
    """One stage: its number of items, and core seconds, operations and written bytes per item.

    `parts` is the largest number of GPUs, each with its cores, that it can use at once.
    """

    stage: str
    items: float
    core_seconds: float = 0.0
    operations: float = 0.0
    written: float = 0.0
    parts: float = math.inf

    def gpu_hours(self, tflops: float) -> float:
        """Return the hours of one GPU."""
        return self.items * self.operations / (tflops * 1e12) / 3600

    def hours(self, gpus: int, cores: int, tflops: float) -> float:
        """Return the hours on `gpus` GPUs with `cores` each, which work at the same time."""
        alone = max(self.items * self.core_seconds / 3600 / cores, self.gpu_hours(tflops))
        return alone / min(gpus, self.parts)


def operations_of(function: Callable[[], object]) -> float:
    """Return the floating-point operations of matrix products and convolutions in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


class Profile:
    """The costs of one profile's stages."""

    def __init__(self, dataset: Dataset, sizes: "Sizes") -> None:
        """Read the profile's params."""
        self.dataset = dataset
        self.sizes = sizes
        with tempfile.TemporaryDirectory() as folder:
            copy(REPOSITORY / PARAMS, folder)
            Path(folder, "experiments").symlink_to(REPOSITORY / "experiments")
            apply_profile(Path(folder), dataset.profile)
            self.params = read_params(Path(folder, PARAMS))
        self.objects = dataset.train * dataset.objects

    def costs(self) -> Iterator[Cost]:
        """Yield the stages in the DAG's order; those of pseudo-masks only if they are learned."""
        data = self.dataset
        yield Cost("download", data.train + data.test, self._copying(), written=data.bytes)
        sources = self.params["detector"]["supervision"]["sources"]
        if any(source["name"] == "pseudo_masks" for source in sources):
            yield self._proposals()
            yield from self.proposal_network()
            yield self._activation()
            yield self._boxes()
            yield from self._masks()
            yield self.quality()
        yield from self._detector()

    def processes(self, batch_size: int) -> int:
        """Return how many processes train together if there are enough GPUs."""
        return min(self.params["gpus_per_training"], batch_size)

    def _copying(self) -> float:
        """Return the core seconds to read an image and check that it decodes."""
        images = inputs.images(8)
        return core_seconds_of(lambda: [image.decode() for image in images]) / len(images)

    def _proposals(self) -> Cost:
        settings = ProposalsParams.model_validate(self.params["proposals"])
        images = inputs.images(4)
        seconds = core_seconds_of(lambda: list(search_images(images, settings, 0, 1)))
        size = self.sizes.proposal * PROPOSALS
        return Cost("proposals", self.dataset.train, seconds / len(images), written=size)

    def proposal_network(self) -> Iterator[Cost]:
        """One image of a view's size on the meta device, where shapes are enough."""
        wspn = self.params["wspn"]
        backbone, training = wspn["model"]["backbone"], wspn["end_to_end"]
        config = ImagenetWspnConfig(
            category_ids=list(range(self.dataset.classes[0])),
            backbone=backbone["kind"],
            dropout=wspn["model"]["dropout"],
            refinements=len(training["refinement_weights"]),
            regions_at_once=backbone["regions_at_once"],
        )
        with torch.device("meta"):
            model = ImagenetWspn(config)
        freeze_stages(model.trunk, backbone["frozen_stages"])
        images = training["steps"] * training["batch_size"]
        seen = min(PROPOSALS, wspn["proposals_per_image"])
        views = training["views"]
        learnt = np.mean([learn_regions(model, view, seen) for view in shapes_of(views)])
        parts = self.processes(training["batch_size"])
        yield Cost("wspn", images, operations=float(learnt), parts=parts)
        ranking = RankingParams.model_validate(self.params["ranking"])
        passes, views = passes_of(ranking), self.params["ranking"]["views"]
        looks = [see_regions(model, view, round(passes * PROPOSALS)) for view in shapes_of(views)]
        size = self.sizes.ranked_box * ranking.top_k
        operations = float(sum(looks)) * (1 + ranking.views.flip)
        yield Cost("ranking", self.dataset.train, 0.0, operations, size)

    def _activation(self) -> Cost:
        params = ActivationParams.model_validate(self.params["activation"])
        model, tokenizer = inputs.base_albef()
        images = torch.randn(1, 3, params.image_size, params.image_size)
        objects = 2
        targets = inputs.captioned(tokenizer, 1, self.dataset.captions, objects)
        operations = operations_of(lambda: iterate_masking(model, images, targets, params))
        cells = (params.image_size // 16) ** 2 * (params.rounds + 1)
        return Cost("activation", self.dataset.train, 0.0, operations, self.sizes.cell * cells)

    def _boxes(self) -> Cost:
        side = self.params["activation"]["image_size"] // 16
        maps, image_hw = inputs.maps(2, (side, side)), (inputs.HEIGHT, inputs.WIDTH)
        candidates = inputs.boxes(self.params["pseudo_boxes"]["top_k"])
        power = self.params["pseudo_boxes"]["area_power"]
        seconds = core_seconds_of(lambda: choose_boxes(maps, candidates, image_hw, power))
        seconds /= len(maps)
        return Cost("pseudo_boxes", self.objects, seconds, written=self.sizes.chosen_box)

    def _masks(self) -> Iterator[Cost]:
        params = PseudoMasksParams.model_validate(self.params["pseudo_masks"])
        few = params.model_copy(update={"steps": 4})
        image, objects = inputs.images(1)[0].decode(), 4
        boxes = np.tile(np.array([[200, 120, 400, 360]], np.float32), (objects, 1))
        crops = join_crops(
            [make_crops(image, np.tile(inputs.maps(1, (16, 16)), (objects, 1, 1)), boxes, few)]
        )
        counted = operations_of(lambda: segment_crops(crops, few, torch_generator(0, "masks")))
        large = inputs.maps(16) > 0.3
        seconds = core_seconds_of(lambda: [encode_mask(mask) for mask in large]) / len(large)
        size = self.sizes.mask * inputs.WIDTH / self.sizes.image_side
        operations = counted / objects * params.steps / few.steps
        yield Cost("pseudo_masks", self.objects, seconds, operations, size)
        entries = inputs.mask_entries(large)
        labels = PseudoLabelsParams.model_validate(self.params["pseudo_labels"])
        seconds = core_seconds_of(lambda: make_dataset(split_masks(entries, labels)[0], [], []))
        yield Cost("pseudo_labels", self.objects, seconds / len(entries), written=size, parts=1)

    def quality(self) -> Cost:
        """Return the cost of comparing two labels per image with all annotations."""
        params = LabelQualityParams.model_validate(self.params["label_quality"])
        in_use = MapsInUse(
            boxes=MapParams.model_validate(self.params["pseudo_boxes"]),
            masks=MapParams.model_validate(self.params["pseudo_masks"]),
        )
        count, labels, names = 4, 2, list(range(ANNOTATED))
        hw = {"height": inputs.HEIGHT, "width": inputs.WIDTH}
        masks = inputs.mask_entries(inputs.maps(ANNOTATED) > 0.3)
        objects = [{**mask, "category_id": name} for name, mask in zip(names, masks, strict=True)]
        proposals = inputs.boxes(PROPOSALS)
        rounds = self.params["activation"]["rounds"] + 1
        cells = self.params["activation"]["image_size"] // 16
        shard = ShardInputs(
            images=[{"id": number, **hw} for number in range(count)],
            annotations=dict.fromkeys(range(count), objects[:labels]),
            truth=dict.fromkeys(range(count), objects),
            target_image_ids=np.arange(count).repeat(labels),
            target_category_ids=np.tile(names[:labels], count),
            maps=np.random.default_rng(0)
            .random((count * labels, rounds, cells, cells))
            .astype(np.float16),
            proposals=dict.fromkeys(range(count), proposals),
            ranking=dict.fromkeys(range(count), proposals[: self.params["ranking"]["top_k"]]),
        )
        images = [*shard.image_inputs()]
        seconds = core_seconds_of(
            lambda: [measure_image(p, names, params, in_use, 0) for p in images]
        )
        seconds /= count
        return Cost("label_quality", self.dataset.train, seconds, parts=1)

    def _detector(self) -> Iterator[Cost]:
        section = self.params["detector"]
        network = network_params(section["architecture"]).model_validate(section["network"])
        classes = sum(self.dataset.classes)
        operations = train_operations(section["architecture"], network, classes)
        decoding = self._copying()
        for stage in ("detector", "finetune"):
            training = TrainingParams.model_validate(self.params[stage]["training"])
            items = training.steps * training.batch_size
            parts = self.processes(training.batch_size)
            yield Cost(stage, items, decoding, operations, parts=parts)
        yield self._evaluation(section["architecture"], network)

    def _evaluation(self, architecture: str, network: NetworkParams) -> Cost:
        """Return the cost of the largest number of detections, per image and trial."""
        params = EvaluationParams.model_validate(self.params["evaluation"])
        trials = make_trials(_truth(self.dataset, 1), _categories(self.dataset), params.metric)
        classes = sum(self.dataset.classes)
        detected = detect_operations(architecture, network, params.inference, classes, len(trials))
        seconds = self._copying() + self._writing_results(params, len(trials))
        few, more = 8, 24
        spent = {count: self._scoring(params, count) for count in (few, more)}
        seconds += max(0.0, spent[more] - spent[few]) / (more - few)
        return Cost("evaluation", 2 * self.dataset.test, seconds, detected, parts=1)

    def _writing_results(self, params: EvaluationParams, trials: int) -> float:
        """Return the core seconds of one image's run lengths."""
        count = 20
        prediction = Prediction(
            inputs.boxes(count),
            np.zeros(count, np.int64),
            np.linspace(1, 0.5, count, dtype=np.float32),
            inputs.maps(count) > 0.3,
        )
        seconds = core_seconds_of(lambda: to_results(1, prediction, [1]))
        return seconds / count * params.inference.detections_per_image * trials

    def _scoring(self, params: EvaluationParams, images: int) -> float:
        """Return the core seconds of comparing the results on `images` images with the truth."""
        truth, categories = _truth(self.dataset, images), _categories(self.dataset)
        trials = make_trials(truth, categories, params.metric)
        found = [
            [
                result
                for image_id in sorted(trial.image_ids)
                for result in _results(trial, image_id, params.inference.detections_per_image)
            ]
            for trial in trials
        ]
        return core_seconds_of(lambda: score(trials, found, params, truth))


def train_operations(architecture: str, network: NetworkParams, classes: int) -> float:
    """Return the operations to learn from an image with one object, forwards and backwards."""
    model = build(architecture, network, torch.randn(classes, 512)).train()
    image = torch.rand(3, inputs.HEIGHT, inputs.WIDTH)
    target = {
        "boxes": torch.tensor([[200.0, 120, 400, 360]]),
        "labels": torch.ones(1).long(),
        "masks": torch.from_numpy((inputs.maps(1) > 0.3).astype(np.uint8)),
    }
    settings = LossSettings(vocabulary=None, background_weight=1.0)

    def learn() -> None:
        sum(model.losses([image], [target], settings).values()).backward()

    return operations_of(learn)


def detect_operations(
    architecture: str,
    network: NetworkParams,
    inference: InferenceParams,
    classes: int,
    vocabularies: int,
) -> float:
    """Return the operations for an image with the largest possible number of detections.

    Whatever random weights find counts as a detection, with any score and any overlap.
    """
    every = inference.model_copy(update={"score_threshold": 0.0, "nms_iou": 1.0})
    model = build(architecture, network, torch.randn(classes, 512)).eval()
    image = torch.rand(3, inputs.HEIGHT, inputs.WIDTH)

    def detect() -> None:
        found = model.detect([image], [range(classes)] * vocabularies, every)
        assert [len(own[0].scores) for own in found] == [every.detections_per_image] * vocabularies

    with torch.no_grad():
        return operations_of(detect)


def shapes_of(views: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the pixels of each view of an image, without values."""
    image = np.zeros((inputs.HEIGHT, inputs.WIDTH, 3), np.uint8)
    for side in views["shorter_sides"]:
        yield view_input(image, side, views["longer_side"], False)[0].to("meta")


def see_regions(model: ImagenetWspn, pixels: torch.Tensor, count: int) -> float:
    """Return the operations of looking at `count` regions in one view."""
    boxes = torch.empty(count, 4, device="meta")
    with torch.no_grad():
        return operations_of(
            lambda: model.heads(model.region_features(model.feature_map(pixels), boxes))
        )


def learn_regions(model: ImagenetWspn, pixels: torch.Tensor, count: int) -> float:
    """Return the operations of learning from `count` regions, forwards and backwards."""
    boxes = torch.empty(count, 4, device="meta")

    def learn() -> None:
        found = model.heads(model.region_features(model.feature_map(pixels), boxes))
        parts = [found.class_logits, found.detection_logits, *found.refined_logits, *found.offsets]
        sum(part.sum() for part in parts).backward()

    return operations_of(learn)


def passes_of(ranking: RankingParams) -> float:
    """Return how many times ranking looks at the regions of each proposal."""
    proposals, model = inputs.boxes(8), _CountingWspn()
    rank_proposals(model, np.zeros((inputs.HEIGHT, inputs.WIDTH, 3), np.uint8), proposals, ranking)
    return model.seen / len(proposals)


class _CountingWspn(Wspn):
    """Replaces a proposal network and counts the boxes that it is called with."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def extract_features(self, image: np.ndarray, views: ViewSettings) -> ImageFeatures:
        return ImageFeatures(None, np.ones(4, np.float32), image.shape[:2])

    def assess(
        self, features: ImageFeatures, boxes_xyxy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.seen += len(boxes_xyxy)
        count = len(boxes_xyxy)
        return torch.rand(count, 2), torch.rand(count), torch.zeros(count, 4)

    def score_classes(self, features: ImageFeatures, boxes_xyxy: torch.Tensor) -> torch.Tensor:
        return self.assess(features, boxes_xyxy)[0]

    def score_objects(
        self, features: ImageFeatures, boxes_xyxy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.assess(features, boxes_xyxy)[1:]


def _categories(dataset: Dataset) -> list[Category]:
    base, novel = dataset.classes
    return [
        Category(number, f"class {number}", "base" if number <= base else "novel", ())
        for number in range(1, base + novel + 1)
    ]


def _truth(dataset: Dataset, images: int) -> dict[str, Any]:
    """Return ground truth with objects of the first base and the last novel classes."""
    ids = [category.id for category in _categories(dataset)]
    masks = inputs.mask_entries(inputs.maps(ANNOTATED) > 0.3)
    objects = [
        {**mask, "category_id": ids[-1 - place // 2] if place % 2 else ids[place], "iscrowd": 0}
        for place, mask in enumerate(masks)
    ]
    hw = {"height": inputs.HEIGHT, "width": inputs.WIDTH, "verified_category_ids": ids}
    return {
        "images": [{"id": number, **hw} for number in range(1, images + 1)],
        "annotations": [
            {**entry, "id": ANNOTATED * number + place, "image_id": number}
            for number in range(1, images + 1)
            for place, entry in enumerate(objects)
        ],
        "categories": [{"id": category_id} for category_id in ids],
    }


def _results(trial: Trial, image_id: int, count: int) -> list[dict]:
    """Return that many detections in an image, of the trial's classes in turn."""
    masks = islice(cycle(_detected_masks()), count)
    ids = [category.id for category in trial.categories]
    return [
        {
            **mask,
            "image_id": image_id,
            "category_id": ids[place % len(ids)],
            "score": 1 / (1 + place),
        }
        for place, mask in enumerate(masks)
    ]


@cache
def _detected_masks() -> list[dict]:
    return inputs.mask_entries(inputs.maps(20) > 0.3)


@dataclass(frozen=True)
class Sizes:
    """Bytes per item in the files of the finished default experiment."""

    proposal: float
    ranked_box: float
    cell: float  # of one object's activation map
    chosen_box: float
    mask: float  # in an image of `image_side` pixels; an outline grows as the side does
    image_side: int

    @classmethod
    def of(cls, data: Path) -> "Sizes":
        """Measure the files of a `data` folder.

        Raises:
            FileNotFoundError: the default experiment has not run.
        """

        def rows(stage: str) -> tuple[float, int]:
            files = sorted((data / stage).glob("*.parquet"))
            if not files:
                raise FileNotFoundError(f"{data / stage}: no results; run `make repro` first")
            return sum(f.stat().st_size for f in files), sum(
                parquet.read_metadata(f).num_rows for f in files
            )

        (proposals, found), (ranking, ranked) = rows("proposals"), rows("ranking")
        boxes, chosen = rows("pseudo_boxes")
        maps = sorted((data / "activation").glob("*.safetensors"))
        cells = sum(read_tensors(path)[0]["maps"].numel() for path in maps)
        masks = sum(path.stat().st_size for path in (data / "pseudo_masks").glob("*.json"))
        return cls(
            proposals / found,
            ranking / ranked,
            sum(path.stat().st_size for path in maps) / cells,
            boxes / chosen,
            masks / chosen,
            inputs.section("download")["scenes"]["scene_side"],
        )


def fetched(costs: list[Cost], dataset: Dataset) -> dict[str, float]:
    """Return the bytes that each stage's workers fetch from the remote, each shard its part."""
    written = {cost.stage: cost.items * cost.written for cost in costs}
    images = {"train": dataset.train * dataset.bytes, "test": dataset.test * dataset.bytes}
    graph = load_graph(REPOSITORY)
    shards = len(inputs.section("shards"))
    found = dict.fromkeys(written, 0.0)
    for stage in graph.values():
        for path in stage.inputs:
            if stage.group not in found or not path.startswith("data/"):
                continue
            part = 1 / shards if Path(path).stem.isdigit() else 1
            _, group, *rest = path.split("/")
            if group != "download":
                found[stage.group] += part * written.get(group, 0.0)
            elif rest[0] == "images":
                found[stage.group] += part * images[Path(rest[1]).stem]
    return found


def main() -> None:
    """Print a table per data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--tflops", type=float, default=60.0, help="that a GPU really does, 1e12/s")
    parser.add_argument("--cores", type=int, default=16, help="beside each GPU")
    parser.add_argument("--data", type=Path, default=Path("data"), help="of the default experiment")
    options = parser.parse_args()
    torch.set_num_threads(1)  # seconds are measured on one core
    torch.manual_seed(0)
    sizes = Sizes.of(options.data)
    for dataset in DATASETS:
        costs = list(Profile(dataset, sizes).costs())
        traffic = fetched(costs, dataset)
        rows = [
            {
                "stage": cost.stage,
                "GPU-hours": f"{cost.gpu_hours(options.tflops):.1f}",
                **{_on(n): f"{cost.hours(n, *_machine(options)):.1f} h" for n in GPUS},
                "writes": _gigabytes(cost.items * cost.written),
                "fetches": _gigabytes(traffic[cost.stage]),
            }
            for cost in costs
        ]
        total = {
            "stage": "all, one after the other",
            "GPU-hours": f"{sum(cost.gpu_hours(options.tflops) for cost in costs):.0f}",
            **{
                _on(n): f"{sum(cost.hours(n, *_machine(options)) for cost in costs):.0f} h"
                for n in GPUS
            },
            "writes": _gigabytes(sum(cost.items * cost.written for cost in costs)),
            "fetches": _gigabytes(sum(traffic.values())),
        }
        title = (
            f"{dataset.name}, profile {dataset.profile}, predicted for GPUs that do"
            f" {options.tflops:g} TFLOP/s and have {options.cores} cores each"
        )
        print(table(title, [*rows, total]), end="\n\n", flush=True)


def _on(count: int) -> str:
    return f"{count} GPU{'s' * (count > 1)}"


def _machine(options: argparse.Namespace) -> tuple[int, float]:
    return options.cores, options.tflops


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
