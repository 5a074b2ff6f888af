"""Generators derived from (seed, purpose, item), so that the order of items changes nothing."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from stages.common.runtime.params import environment_number

if TYPE_CHECKING:
    import torch

# Another number of threads splits sums differently and so rounds differently. The number is
# therefore fixed, not taken from the machine. OVIS_THREADS overrides it and changes the bytes.
DEFAULT_THREADS = 2


def derive_seed(seed: int, *keys: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and the keys only."""
    text = "/".join(map(str, (seed, *keys)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *keys: str | int) -> np.random.Generator:
    """Return a NumPy generator for one item, e.g. `numpy_generator(seed, "scene", image_id)`."""
    return np.random.default_rng(derive_seed(seed, *keys))


def torch_generator(seed: int, *keys: str | int) -> "torch.Generator":
    """Return a torch generator on the CPU for one item."""
    import torch  # here because it takes 3 s, and a stage without a network does not need it

    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def make_deterministic(seed: int, stage: str, threads: int | None = None) -> None:
    """Fix the number of threads, deterministic algorithms and torch's seed for this process.

    Args:
        seed: the experiment's seed.
        stage: makes the seed of layer initialisation differ between stages.
        threads: None: OVIS_THREADS or `DEFAULT_THREADS`.
    """
    import torch

    torch.set_num_threads(threads or environment_number("OVIS_THREADS") or DEFAULT_THREADS)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills uninitialised memory, 1700 times in a training step of the
    # detector; no stage reads memory that it has not written. torch sets this through its module's
    # class, which its types do not show.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(derive_seed(seed, stage))
