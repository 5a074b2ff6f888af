"""The 300 segmentable classes of the Open Images Challenge 2019, 200 base and 100 novel.

The names are published. The division is a reconstruction: the papers with the 200/100 split have
not released their lists. The 300 names are in the order of the released list of all 500 challenge
classes (hbdat/cvpr22_cross_modal_pseudo_labeling), which looks like falling frequency; the first
200 are base. So results are close to the papers' protocol, but not comparable.
"""

from collections.abc import Iterable
from typing import Literal

from stages.common.formats.categories import Category, Split
from stages.download.plurals import forms_of
from stages.download.sources.open_images.words import OTHERS, SYNONYMS


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


BASE = _names(
    """
    Man, Woman, Person, Girl, Car, Wheel, Flower, Boy, Suit, Dress, Jeans, Human mouth,
    Skyscraper, Dog, Bird, Sculpture, Guitar, Toy, Drink, Bicycle wheel, Cat, Airplane, Bottle,
    Train, Hat, Flag, Human ear, Truck, Book, Tie, Flowerpot, Bus, Horse, Motorcycle, Shorts,
    Picture frame, Laptop, Fish, Rose, Van, Vehicle registration plate, Shirt, Camera, Wine,
    Trousers, Duck, Beer, Football, Mobile phone, Sun hat, Coffee cup, Cake, Ball, Swimwear,
    Computer keyboard, Couch, Balloon, Christmas tree, Cattle, Fedora, Traffic sign, Goose,
    Cocktail, Bronze sculpture, Carnivore, Box, Monkey, Canoe, Scarf, Cowboy hat, Handbag,
    Coffee, Lizard, Squirrel, Mushroom, Traffic light, Juice, Elephant, Bread, Pumpkin,
    Surfboard, Baseball glove, Mug, Saucer, Sunflower, Vase, High heels, Skull, Falcon, Eagle,
    Bowl, Lighthouse, Taxi, Watch, Boot, Chicken, Parrot, Frog, Swan, Muffin, Owl, Platter,
    Cello, Tortoise, Tomato, Strawberry, Pizza, Pillow, Piano, Coin, Candle, Lion, Snake, Sheep,
    Rabbit, Tap, Sparrow, Chest of drawers, Aircraft, Studio couch, Sofa bed, Goat, Skateboard,
    Baseball bat, Apple, Bull, Tea, Hamburger, Tank, Spoon, Tiger, Waste container, Teddy bear,
    Pen, Cookie, Skirt, Luggage and bags, Sea lion, Giraffe, Clock, Orange, Whiteboard, Bust,
    Penguin, Dolphin, Harbor seal, Toilet, Saxophone, Pig, Tennis racket, Sandwich, Tablet
    computer, Grape, Camel, Miniskirt, Sea turtle, Roller skates, Glove, Banana, Crocodile,
    Backpack, Whale, Mouse, Computer mouse, Leopard, Sock, Lemon, Billiard table, Barrel,
    Rocket, Zebra, Knife, Carrot, Table tennis racket, Mule, Volleyball, Door handle, Cheetah,
    Handgun, Rhinoceros, Plastic bag, Loveseat, Jaguar, Oven, Sombrero, Shark, Teapot, Oyster,
    Brown bear, Polar bear, Otter, Fox, Reptile, Broccoli, Chopsticks, Wok, Kettle, Jet ski,
    Kangaroo, Hamster
    """
)
NOVEL = _names(
    """
    Cucumber, Alpaca, Starfish, Missile, Grapefruit, Microwave oven, Raven, Woodpecker, Barge,
    Tart, Watermelon, Suitcase, Fire hydrant, Goldfish, Doughnut, Jug, Sword, Bat, Tennis ball,
    Bell pepper, Waffle, Stop sign, Turkey, Kite, Ostrich, Pancake, Hot dog, Bear, Corded phone,
    Belt, Ambulance, Limousine, Swim cap, Washing machine, Seat belt, Asparagus, Raccoon,
    Potato, Frying pan, Scissors, Pitcher, Zucchini, Cabbage, Filing cabinet, Kitchen knife,
    Segway, Rugby ball, Radish, Dagger, Pear, Bagel, Flute, Racket, Dog bed, Ruler, Blue jay,
    Submarine sandwich, Canary, Toilet paper, Pomegranate, Lynx, Peach, Dice, Printer,
    Croissant, Shower, Snowmobile, Harpsichord, Drinking straw, Guacamole, Digital clock,
    Pretzel, Burrito, Power plugs and sockets, Paper towel, Towel, Alarm clock, Turtle, Food
    processor, Mango, Nail, Squash, Punching bag, Envelope, Dumbbell, Briefcase, Binoculars,
    Adhesive tape, Slow cooker, Common fig, Beaker, Light switch, Flashlight, Wrench, Toaster,
    Screwdriver, Spatula, Winter melon, Torch, Pressure cooker
    """
)

# The 60 that COCO has too, some by another name. The ALP paper takes 60 of the 300 as base classes
# and trains on COCO's masks; it has not released its lists.
IN_COCO = frozenset(
    _names(
        """
    Airplane, Apple, Backpack, Ball, Banana, Baseball bat, Baseball glove, Bear, Bird, Book, Bottle,
    Bowl, Broccoli, Bus, Cake, Car, Carrot, Cat, Cattle, Clock, Coffee cup, Computer keyboard,
    Computer mouse, Couch, Dog, Doughnut, Elephant, Fire hydrant, Giraffe, Handbag, Horse, Hot dog,
    Kite, Knife, Laptop, Microwave oven, Mobile phone, Motorcycle, Orange, Oven, Person, Pizza,
    Sandwich, Scissors, Sheep, Skateboard, Spoon, Stop sign, Suitcase, Surfboard, Teddy bear, Tennis
    racket, Tie, Toaster, Toilet, Traffic light, Train, Truck, Vase, Zebra
"""
    )
)


def open_images_categories(
    division: Literal["frequency", "coco"] = "frequency",
) -> tuple[Category, ...]:
    """Return the 300 classes with ids from 1, base before novel, and then the excluded classes.

    Excluded classes are not annotated; their words keep captions from naming one of the 300.

    Args:
        division: which classes are base: "frequency", the first 200; "coco", the 60 of COCO.
    """
    base, novel = BASE, NOVEL
    if division == "coco":
        base = tuple(name for name in BASE + NOVEL if name in IN_COCO)
        novel = tuple(name for name in BASE + NOVEL if name not in IN_COCO)
    parts: tuple[tuple[Split, Iterable[str]], ...] = (
        ("base", base),
        ("novel", novel),
        ("excluded", OTHERS),
    )
    named = [(name, part) for part, names in parts for name in names]
    words = SYNONYMS | OTHERS
    return tuple(
        Category(number, name, part, forms_of((name.lower(), *words.get(name, ()))))
        for number, (name, part) in enumerate(named, 1)
    )
