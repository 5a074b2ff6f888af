"""One seed; generators derived from (seed, purpose, item), so that order changes nothing."""

import hashlib

import numpy as np
import torch

from stages.common.runtime.params import environment_number

# Reductions split over another number of threads round differently, so this number is fixed rather
# than read off the machine; OVIS_THREADS overrides it at the price of other bytes.
DEFAULT_THREADS = 2


def derive_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every key, and on nothing else."""
    text = "/".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *keys: str | int) -> np.random.Generator:
    """Return NumPy's generator for one item, e.g. `numpy_generator(seed, "scene", image_id)`."""
    return np.random.default_rng(derive_seed(seed, *keys))


def torch_generator(seed: int, *keys: str | int) -> torch.Generator:
    """Return torch's CPU generator for one item."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def make_deterministic(seed: int, stage: str, threads: int | None = None) -> None:
    """Fix threads, algorithms and the seed of layer initialisation for a whole stage process."""
    torch.set_num_threads(threads or environment_number("OVIS_THREADS") or DEFAULT_THREADS)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills fresh memory, 1700 times in a training step of the detector;
    # no stage reads memory that it has not written.
    # torch sets it through its module's class, which its types do not show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(derive_seed(seed, stage))
