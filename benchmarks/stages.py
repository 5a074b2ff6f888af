"""How fast the core of each stage is on inputs of real size: `python -m benchmarks.stages`.

If the official code has the same algorithm, or one for the same purpose, a plain implementation of
it (tests/reference) runs on the same input, and the ratio is compared with a goal. Images have 640
× 480 pixels; the vision-language model has the size of ALBEF-base, with random weights.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.measure import medians, table
from flows.resources import count_cores
from stages.activation.params import ActivationParams
from stages.activation.rounds import iterate_masking
from stages.common.geometry.masks import encode_mask
from stages.common.runtime.seeding import numpy_generator, torch_generator
from stages.common.runtime.storage import write_json
from stages.download.sources.scenes.draw import draw_scene, scene_recipe
from stages.models.detection.detector import build, predict
from stages.models.detection.params import InferenceParams, network_params
from stages.models.proposals.params import RankingSettings
from stages.models.proposals.ranking import rank_proposals
from stages.proposals.params import ProposalsParams
from stages.proposals.search import search_images
from stages.pseudo_boxes.select import choose_boxes
from stages.pseudo_labels.merge import make_dataset, split_masks
from stages.pseudo_labels.params import PseudoLabelsParams
from stages.pseudo_masks.params import PseudoMasksParams
from stages.pseudo_masks.segment import join_crops, make_crops, paste_mask, segment_crops
from stages.wspn.examples import make_examples
from tests.reference import activation as plain_activation
from tests.reference import boxes as plain_boxes
from tests.reference import masks as plain_masks

OFFICIAL_STEPS = 400
CELLS = (16, 16)  # of ALBEF's activation maps


@dataclass(frozen=True)
class Case:
    """One line of the table: items of `unit` in one call of `ours` and of `plain`."""

    stage: str
    unit: str
    items: int
    ours: Callable[[], object]
    plain: Callable[[], object] | None = None
    plain_items: float = 0.0  # items in one call of `plain`
    aim: float | None = None
    note: str = ""


def download(options: argparse.Namespace) -> Iterator[Case]:
    """Scenes of the default size."""

    def draw() -> None:
        for number in range(options.items * 8):
            draw_scene(scene_recipe(128), numpy_generator(0, "benchmark", number))

    yield Case("download", "scenes of 128 px", options.items * 8, draw)


def proposals(options: argparse.Namespace) -> Iterator[Case]:
    """Selective search at full size, on one core and on all."""
    settings = ProposalsParams.model_validate(inputs.section("proposals") | {"longer_side": 640})
    count = max(2 * options.items, 2 * count_cores())
    images = inputs.images(count)
    search = partial(search_images, images, settings, 0)
    yield Case(
        "proposals",
        f"images, {count_cores()} processes (plain: one)",
        count,
        lambda: list(search(count_cores())),
        lambda: list(search(1)),
        count,
        aim=0.8 * count_cores(),
    )


def proposal_network(options: argparse.Namespace) -> Iterator[Case]:
    """Features for training, and ranking, of 2,000 proposals per image."""
    model, images = inputs.wspn(WIDEST), inputs.images(options.items)
    proposals = {image.image_id: inputs.boxes(2000) for image in images}
    yield Case(
        "wspn",
        "images, features of 2,000 proposals",
        len(images),
        lambda: list(make_examples(model, images, proposals, {}, 2000, 0)),
    )
    settings = RankingSettings.model_validate(inputs.section("ranking"))
    decoded = [image.decode() for image in images]
    yield Case(
        "ranking",
        "images, 2,000 proposals",
        len(decoded),
        lambda: [rank_proposals(model, image, proposals[0], settings) for image in decoded],
    )


def activation(options: argparse.Namespace) -> Iterator[Case]:
    """Two images with five captions and two objects each, three rounds."""
    model, tokenizer = inputs.base_albef()
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    targets = inputs.captioned(tokenizer, len(images), 5, 2)
    for scope in ("image", "object"):
        given = {"image_size": 256, "fusion_layer": 2, "reach": 0.0, "mask_scope": scope}
        params = ActivationParams.model_validate(inputs.section("activation") | given)
        arguments = (model, images, targets, params)
        yield Case(
            "activation",
            f"images, 5 captions, 3 rounds, hidden per {scope}",
            len(images),
            partial(iterate_masking, *arguments),
            partial(plain_activation.activation_maps, *arguments),
            len(images),
            aim=4,
        )


def pseudo_boxes(options: argparse.Namespace) -> Iterator[Case]:
    """The best of 2,000 proposals for each of three objects of an image."""
    maps, cells, candidates = inputs.maps(3), inputs.maps(3, CELLS), inputs.boxes(2000)
    yield Case(
        "pseudo_boxes",
        "objects, 2,000 proposals",
        len(maps),
        lambda: choose_boxes(cells, candidates, maps.shape[1:], 0.5),
        lambda: [plain_boxes.choose_box(one, candidates) for one in maps],
        len(maps),
        aim=3,
    )


def pseudo_masks(options: argparse.Namespace) -> Iterator[Case]:
    """Objects of 200 × 240 pixels; the plain network runs some of its 400 steps."""
    params = PseudoMasksParams.model_validate(inputs.section("pseudo_masks"))
    image, count = inputs.images(1)[0].decode(), max(params.batch_size, options.items)
    objects = np.tile(np.array([[200, 120, 400, 360]], np.float32), (count, 1))
    activation = np.tile(inputs.maps(1, CELLS), (count, 1, 1))
    crops = join_crops([make_crops(image, activation, objects, params)])

    def ours() -> None:
        logits = segment_crops(crops, params, torch_generator(0, "masks"))
        for box, logit in zip(objects, logits, strict=True):
            paste_mask(logit, box, image.shape[:2], params.context, params.largest_component)

    active = inputs.maps(1)[0][120:360, 200:400] > 0.5
    labels = plain_masks.seed_labels(active, 1000, np.random.default_rng(0))
    crop = torch.randn(3, *active.shape)
    steps = options.plain_steps
    yield Case(
        "pseudo_masks",
        "objects of 200 × 240 px",
        count,
        ours,
        lambda: plain_masks.segment_crop(crop, labels, steps, stop_early=False),
        steps / OFFICIAL_STEPS,
        aim=100,
        note=f"plain: {steps} of {OFFICIAL_STEPS} steps, scaled",
    )


def writing(options: argparse.Namespace) -> Iterator[Case]:
    """Run-length encoding and JSON of full-size masks, and merging them into COCO's format."""
    large = inputs.maps(64) > 0.3

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder, "masks.json"), [encode_mask(mask) for mask in large], None)

    yield Case("pseudo_masks", "masks written as RLE in JSON", len(large), write)
    entries = inputs.mask_entries(large)
    params = PseudoLabelsParams.model_validate(inputs.section("pseudo_labels"))
    yield Case(
        "pseudo_labels",
        "masks measured and merged",
        len(entries),
        lambda: make_dataset(split_masks(entries, params)[0], [], []),
    )


def detector(options: argparse.Namespace) -> Iterator[Case]:
    """The default detector on images at 480 pixels."""
    section = inputs.section("detector")
    settings = section["network"] | {"resize": {"shorter_side": 480, "longer_side": 640}}
    network = network_params(section["architecture"]).model_validate(settings)
    model = build(section["architecture"], network, torch.randn(65, 128))
    inference = InferenceParams.model_validate(inputs.section("evaluation")["inference"])
    images = [image.decode() for image in inputs.images(options.items)]
    yield Case(
        "evaluation",
        "images detected by the default network, 65 classes",
        len(images),
        lambda: predict(model, images, [list(range(65))], inference),
    )


WIDEST = 640  # pixels of the longer side that the proposal network sees
CASES = (
    download,
    proposals,
    proposal_network,
    activation,
    pseudo_boxes,
    pseudo_masks,
    writing,
    detector,
)


def main() -> None:
    """Print the table, and the cases that miss their goal."""
    names = [case.__name__ for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {', '.join(names)}")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is shown")
    parser.add_argument("--items", type=int, default=8, help="images of a run, about")
    parser.add_argument("--plain-steps", type=int, default=20, help="of the official mask network")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(names))
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}")
    torch.manual_seed(0)
    torch.set_num_threads(count_cores())
    rows, missed = [], []
    for make in CASES:
        if options.cases and make.__name__ not in options.cases:
            continue
        for case in make(options):
            row, ratio = measure(case, options.repeats)
            rows.append(row)
            if case.aim is not None and ratio < case.aim:
                missed.append(f"{case.stage}, {case.unit}: {ratio:.2f}, aim {case.aim:g}")
            print(" | ".join(row.values()), flush=True)
    print("\n" + table(f"Stages, medians of {options.repeats}", rows))
    print("\n".join(["", *(f"Missed aim: {line}" for line in missed)]))


def measure(case: Case, repeats: int) -> tuple[dict[str, str], float]:
    """Return a row of the table, and the ratio to the plain implementation's throughput."""
    case.ours()  # warm caches; the plain implementation has none
    functions = {"ours": case.ours} | ({"plain": case.plain} if case.plain else {})
    seconds = medians(functions, repeats)
    rate = case.items / seconds["ours"]
    plain_rate = case.plain_items / seconds["plain"] if case.plain else 0.0
    ratio = rate / plain_rate if plain_rate else 0.0
    row = {
        "stage": case.stage,
        "what": case.unit,
        "per second": f"{rate:.3g}",
        "plain implementation": f"{plain_rate:.3g}" if plain_rate else "–",
        "ratio": f"{ratio:.3g}" if plain_rate else "–",
        "aim": f"≥ {case.aim:g}" if case.aim else "–",
        "note": case.note,
    }
    return row, ratio


if __name__ == "__main__":
    main()
