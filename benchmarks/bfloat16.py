"""How long torch takes in bfloat16 and in float32 on this processor.

`python -m benchmarks.bfloat16` prints the ratio. Where it is far above 1, trainings should compute
in float32; stages.common.runtime.devices decides that by the kernels that torch names.
"""

import time
from statistics import median

import torch
from torch import nn


def ratio(pairs: int = 5) -> float:
    """Return the seconds of one convolution, forward and backward, in bfloat16 over float32."""
    convolution, images = nn.Conv2d(64, 64, 3, padding=1), torch.rand(8, 64, 32, 32)

    def seconds(bfloat16: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            convolution(images).float().sum().backward()
        return time.perf_counter() - started

    return median(seconds(True) / seconds(False) for _ in range(pairs))


if __name__ == "__main__":
    kernels, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    print(f"bfloat16 takes {ratio():.1f} times as long as float32: {kernels}, {threads} threads")
