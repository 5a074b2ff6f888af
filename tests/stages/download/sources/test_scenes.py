import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.formats.captions import MentionFinder
from stages.common.formats.images import decode_image
from stages.common.geometry.masks import decode_mask
from stages.download.params import AnnotatorParams, NumImages, ScenesParams
from stages.download.plurals import forms_of, plural
from stages.download.sources.scenes.captions import write_caption
from stages.download.sources.scenes.classes import SCENE_CLASSES, scene_categories
from stages.download.sources.scenes.draw import (
    MIN_AREA,
    MIN_VISIBLE,
    draw_scene,
    pair_recipe,
    scene_recipe,
)
from stages.download.sources.scenes.shapes import (
    NUM_COLOURS,
    Variation,
    arc_band,
    ellipse,
    ring,
    stroke,
)
from stages.download.sources.scenes.source import SceneTask, make_example, scene_source
from stages.download.sources.scenes.textures import (
    COLOUR_DISTANCE,
    draw_colours,
    paint,
    texture_bank,
)
from tests.support.annotator import ANNOTATOR

BASE = "mushroom bird lamp cup key tree house boat flower apple guitar hat".split()
NOVEL = "umbrella fish car clock butterfly".split()
PARAMS = ScenesParams(
    num_images=NumImages(pairs=3, train=4, val=0, test=2),
    scene_side=128,
    pair_side=64,
    captions_per_image=2,
    synonym_fraction=0.1,
    omission_fraction=0.2,
    jpeg_quality=95,
    class_split=0,
    annotator=AnnotatorParams(**ANNOTATOR),
)


def generator(*keys: int) -> np.random.Generator:
    return np.random.default_rng(keys)


def test_classes_and_their_first_division_are_fixed():
    categories = scene_categories(0)
    assert [c.name for c in categories if c.split == "base"] == BASE
    assert [c.name for c in categories if c.split == "novel"] == NOVEL
    assert [c.id for c in categories] == list(range(1, 18))
    assert categories[3].forms == ("cup", "cups", "mug", "mugs")
    assert categories[13].forms == ("fish",)
    MentionFinder(categories)  # no word means two classes


def test_the_divisions_take_turns_through_all_classes():
    splits = [[c.name for c in scene_categories(k) if c.split == "novel"] for k in range(17)]
    assert splits[0] == NOVEL and splits[1] == BASE[:5] and splits[2] == BASE[5:10]
    assert Counter(name for novel in splits for name in novel) == dict.fromkeys(BASE + NOVEL, 5)
    for novel, following in itertools.pairwise(splits):
        assert not set(novel) & set(following)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cup", "cups"),
        ("bus", "buses"),
        ("couch", "couches"),
        ("toothbrush", "toothbrushes"),
        ("butterfly", "butterflies"),
        ("toy", "toys"),
        ("knife", "knives"),
        ("person", "people"),
        ("sheep", "sheep"),
        ("scissors", "scissors"),
        ("tv", "tvs"),
        ("computer mouse", "computer mice"),
        ("hot dog", "hot dogs"),
        ("wolf", "wolves"),
        ("leaf", "leaves"),
        ("bookshelf", "bookshelves"),
        ("roof", "roofs"),
        ("giraffe", "giraffes"),
        ("wisdom tooth", "wisdom teeth"),
        ("foot", "feet"),
        ("mongoose", "mongooses"),
        ("policeman", "policemen"),
        ("snowwoman", "snowwomen"),
        ("human", "humans"),
        ("ottoman", "ottomans"),
    ],
)
def test_plural(noun, expected):
    assert plural(noun) == expected


def test_forms_are_listed_once():
    assert forms_of(("fish", "trout", "fish")) == ("fish", "trout", "trouts")


def test_primitives_have_the_stated_measures():
    quarter = ellipse((1, 2), (3, 3), (0, 90), 3)
    assert np.allclose(quarter[[0, 2]], [[4, 2], [1, 5]])  # clockwise, y down
    assert np.allclose(ellipse((0, 0), (2, 1), (0, 0), 1, rotation=90), [[0, 2]])
    assert np.allclose(stroke((0, 0), (2, 0), 1), [[0, 0.5], [2, 0.5], [2, -0.5], [0, -0.5]])
    outer, inner = ring((0, 0), (1, 1), 0.25)
    assert np.allclose(np.hypot(*outer.T), 1) and np.allclose(np.hypot(*inner.T), 0.75)
    assert np.allclose(np.hypot(*arc_band((0, 0), 1, 0.5, (0, 90)).T), [1] * 12 + [0.5] * 12)


@pytest.mark.parametrize("entry", SCENE_CLASSES, ids=lambda entry: entry.name)
def test_drawings_are_made_of_several_parts_in_their_frame(entry):
    for number in range(20):
        parts = entry.draw(Variation(generator(number)))
        points = np.concatenate([contour for piece in parts for contour in piece.contours])
        assert len(parts) >= 3 and {piece.colour for piece in parts} <= set(range(NUM_COLOURS))
        assert len({piece.colour for piece in parts}) >= 2 or entry.name == "key"
        assert np.abs(points).max() < 1.25 and np.ptp(points, axis=0).min() > 0.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), is_pair=st.booleans())
def test_every_scene_keeps_its_promises(seed, is_pair):
    recipe = pair_recipe(64, 128) if is_pair else scene_recipe(128)
    scene = draw_scene(recipe, generator(seed))
    side = recipe.side
    assert scene.image.shape == (side, side, 3) and scene.image.dtype == np.uint8
    assert scene.masks.shape == (len(scene.classes), side, side) and scene.masks.dtype == bool
    assert len(scene.colours) == len(scene.classes) in range(1, 3 if is_pair else 5)
    assert scene.masks.sum(axis=0).max() == 1, "a pixel shows one object"
    assert scene.masks.sum(axis=(1, 2)).min() >= int(MIN_VISIBLE * MIN_AREA)
    again = draw_scene(recipe, generator(seed))
    assert np.array_equal(scene.image, again.image) and np.array_equal(scene.masks, again.masks)


def test_scenes_have_the_tuned_statistics():
    scenes = [draw_scene(scene_recipe(128), generator(k)) for k in range(200)]
    areas = [mask.sum() for scene in scenes for mask in scene.masks]
    assert 2.2 < np.mean([len(scene.classes) for scene in scenes]) < 2.6  # prototype: 2.41
    assert 480 < np.median(areas) < 620  # pixels
    smallest, largest = np.quantile(areas, [0.05, 0.95])
    assert largest > 10 * smallest  # the side of an object is no constant
    assert {kind for scene in scenes for kind in scene.classes} == set(range(17))


def test_objects_scale_with_the_scene():
    areas = [
        np.mean([draw_scene(scene_recipe(s), generator(k)).masks.sum() for k in range(40)])
        for s in (64, 128)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.15)


def test_object_colours_can_be_told_apart():
    for number in range(50):
        colours = draw_colours(4, generator(number))[1]
        distances = np.abs(colours[:, None] - colours).sum(axis=2) + np.diag([1e3] * 4)
        assert distances.min() >= COLOUR_DISTANCE


def test_paint_changes_covered_pixels_only():
    canvas, coverage = np.zeros((40, 40, 3), np.float32), np.zeros((40, 40), np.uint8)
    paint(canvas, coverage, np.full(3, 100, np.float32), 0.0, generator(0))
    assert not canvas.any(), "nothing covered, nothing painted"
    coverage[10:20, 5:8], coverage[20, 5] = 255, 51
    paint(canvas, coverage, np.full(3, 100, np.float32), 0.0, generator(0))
    assert np.allclose(canvas[10:20, 5:8], 100) and np.allclose(canvas[20, 5], 20, atol=1e-4)
    assert not canvas[coverage == 0].any()


def test_texture_bank_leaves_a_margin():
    textures, clouds = texture_bank(256)
    assert textures.shape == (72, 352, 352) and clouds.shape == (32, 352, 352)
    assert texture_bank(64)[0] is texture_bank(128)[0]


@settings(max_examples=100, deadline=None)
@given(
    kinds=st.lists(st.integers(0, 16), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
    synonym_fraction=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_captions_name_what_is_there_and_nothing_else(kinds, seed, synonym_fraction):
    finder = MentionFinder(scene_categories(0))
    colours = ("red", "orange", "black", "teal")[: len(kinds)]
    words = (tuple(kinds), colours, synonym_fraction)
    present = {kind + 1 for kind in kinds}
    whole = write_caption(*words, 0.0, generator(seed))
    assert finder.classes([whole]) == present
    named = finder.classes([write_caption(*words, 1.0, generator(seed))])
    assert named <= present and len(named) == max(1, len(present) - 1)
    assert whole.isascii() and whole == whole.lower() and "  " not in whole
    assert whole == whole.strip()


def test_captions_read_like_english():
    captions = [write_caption((3,), ("orange",), 0.0, 0.0, generator(k)) for k in range(40)]
    assert any("an orange cup" in caption for caption in captions)
    assert not any("a orange" in caption or "an cup" in caption for caption in captions)
    several = [write_caption((14, 14), ("red", "red"), 1.0, 0.0, generator(k)) for k in range(40)]
    assert any("two automobiles" in caption for caption in several)
    assert any("some" in caption for caption in several)
    three = write_caption((0, 1, 2), ("red",) * 3, 0.0, 0.0, generator(1))
    assert three.count(",") == 1


def test_image_depends_on_seed_split_and_number_alone():
    more = PARAMS.model_copy(
        update={"num_images": NumImages(pairs=9, train=90, val=5, test=50), "synonym_fraction": 1.0}
    )
    task = SceneTask("train", 3)
    first, second = (make_example(params, 0, task).image for params in (PARAMS, more))
    assert first == second
    assert make_example(PARAMS, 1, task).image.encoded != first.encoded
    assert make_example(PARAMS, 0, SceneTask("test", 3)).image.encoded != first.encoded


def test_example_is_complete():
    source = scene_source(PARAMS, 0)
    assert [len(source.tasks[s]) for s in ("pairs", "train", "val", "test")] == [3, 4, 0, 2]
    assert [task.image_id for task in source.tasks["train"]] == [0, 1, 2, 3]
    assert source.make(source.tasks["pairs"][0]).image.width == 64
    example = source.make(source.tasks["train"][1])
    image = example.image
    assert (image.image_id, image.file_name) == (1, "train_000001.jpg")
    assert decode_image(image.encoded, "").shape == (128, 128, 3)
    assert len(example.captions) == 2
    for annotation in example.annotations:
        mask = decode_mask(annotation["segmentation"], (128, 128))
        left, top, width, height = map(int, annotation["bbox"])
        assert mask.sum() == annotation["area"]
        assert mask[top : top + height, left : left + width].sum() == annotation["area"]
