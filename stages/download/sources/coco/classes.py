"""The 80 object classes of COCO: their place in the open-vocabulary split, and their synonyms.

Source of the 48 base and 17 novel names: alirezazareian/ovr-cnn `mscoco_seen_classes.json` and
`mscoco_unseen_classes.json`, the same sets as in facebookresearch/Detic
`detic/data/datasets/coco_zeroshot.py`. The other 15 are excluded: never trained, never scored.
Their words are listed so that a "hot dog" is not taken for a dog.

The synonyms are ours. A word is listed only if COCO's captions hardly use it for anything else: not
"bike" (bicycle or motorcycle), "baby" or "adult" (animals too), or "ski" (a ski slope). Some words
are listed so that a part of them does not name another class: a "truck bed" is a truck, not a bed.
"""

from difflib import get_close_matches

from stages.common.formats.categories import Category, Split
from stages.download.plurals import forms_of

# Name → synonyms in the singular; `plurals` makes the plurals.
BASE: dict[str, tuple[str, ...]] = {
    "person": (
        *("man", "woman", "boy", "girl", "child", "kid", "guy", "lady", "gentleman", "toddler"),
        *("skier", "snowboarder", "skateboarder", "surfer", "cyclist", "bicyclist", "motorcyclist"),
        *("pedestrian", "umpire", "tennis player", "baseball player"),
    ),
    "bicycle": ("mountain bike",),
    "car": ("automobile", "sedan", "suv", "minivan", "taxi", "taxi cab"),
    "motorcycle": ("motorbike", "motor bike", "dirt bike", "moped"),
    "train": ("locomotive", "train car"),
    "truck": ("pickup", "lorry", "firetruck", "semi trailer", "truck bed"),
    "boat": (
        *("sailboat", "sail boat", "rowboat", "motorboat", "speedboat", "canoe", "kayak"),
        *("ship", "yacht", "ferry"),
    ),
    "bench": ("park bench",),
    "bird": ("seagull", "gull", "pigeon", "parrot", "sparrow", "duck", "goose", "owl", "eagle"),
    "horse": ("pony",),
    "sheep": ("lamb", "ewe"),
    "bear": ("polar bear", "grizzly"),
    "zebra": (),
    "giraffe": (),
    "backpack": ("back pack", "rucksack", "knapsack"),
    "handbag": ("hand bag", "purse"),
    "suitcase": ("suit case", "luggage"),
    "frisbee": ("frisbie",),
    "skis": (),
    "kite": (),
    "surfboard": ("surf board",),
    "bottle": (),
    "fork": (),
    "spoon": (),
    "bowl": (),
    "banana": (),
    "apple": (),
    "sandwich": ("hamburger", "cheeseburger", "panini"),
    "orange": ("tangerine", "clementine"),
    "broccoli": (),
    "carrot": (),
    "pizza": (),
    "donut": ("doughnut",),
    "chair": ("armchair", "recliner"),
    "bed": (),
    "toilet": ("toilet bowl", "toilet seat"),
    "tv": ("television", "tv set", "television set", "computer monitor"),
    "laptop": ("laptop computer",),
    "mouse": ("computer mouse",),
    "remote": ("remote control", "tv remote", "wii remote", "wiimote"),
    "microwave": ("microwave oven",),
    "oven": ("stove", "stove top oven"),
    "toaster": (),
    "refrigerator": ("fridge",),
    "book": (),
    "clock": ("clock tower",),
    "vase": (),
    "toothbrush": ("tooth brush",),
}
NOVEL: dict[str, tuple[str, ...]] = {
    "airplane": ("plane", "aeroplane", "jet", "airliner", "jetliner", "jumbo jet", "biplane"),
    "bus": ("double decker", "minibus"),
    "cat": ("kitten", "kitty"),
    "dog": ("puppy", "pup"),
    "cow": ("cattle",),
    "elephant": (),
    "umbrella": ("parasol",),
    "tie": ("necktie", "neck tie", "bowtie"),
    "snowboard": ("snow board",),
    "skateboard": ("skate board",),
    "cup": ("mug", "teacup"),
    "knife": (),
    "cake": ("cupcake", "cheesecake"),
    "couch": ("sofa", "loveseat", "love seat"),
    "keyboard": ("computer keyboard",),
    "sink": ("washbasin", "wash basin"),
    "scissors": (),
}
EXCLUDED: dict[str, tuple[str, ...]] = {
    "traffic light": ("traffic signal", "stoplight", "stop light"),
    "fire hydrant": ("hydrant",),
    "stop sign": (),
    "parking meter": (),
    "sports ball": ("ball", "tennis ball", "soccer ball", "baseball", "basketball", "football"),
    "baseball bat": ("bat",),
    "baseball glove": ("mitt", "catchers mitt"),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "wine glass": ("wineglass",),
    "hot dog": ("hotdog",),
    "potted plant": ("pot plant", "house plant", "houseplant"),
    "dining table": ("dinner table", "kitchen table"),
    "cell phone": ("cellphone", "mobile phone", "smartphone", "smart phone", "iphone"),
    "teddy bear": ("teddy", "stuffed bear"),
    "hair drier": ("hair dryer", "hairdryer", "blow dryer"),
}
PARTS: dict[Split, dict[str, tuple[str, ...]]] = {
    "base": BASE,
    "novel": NOVEL,
    "excluded": EXCLUDED,
}


def coco_category(category_id: int, name: str) -> Category:
    """Return one of COCO's classes with its split and its forms.

    Raises:
        ValueError: COCO has no class `name`.
    """
    for split, classes in PARTS.items():
        if name in classes:
            return Category(category_id, name, split, forms_of((name, *classes[name])))
    near = get_close_matches(name.lower(), [*BASE, *NOVEL, *EXCLUDED], 1)
    meant = f"write '{near[0]}', or " if near else ""
    raise ValueError(
        f"class '{name}' is none of COCO's 80; {meant}for your own classes use source folder of"
        " params.yaml"
    )
