"""A process that keeps its memory does not ask the system for it again in every step, and does not
grow by what it has scored."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_STEPS = """
import resource, sys
import torch
from planter.machine.memory import keep_memory

kept = keep_memory() if sys.argv[1] == "keep" else None

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(16, 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults(10)
print(kept, faults(10))
"""


def steps(how: str, **environment: str) -> tuple[str, int]:
    """What `keep_memory` said, and the page faults of ten tensors of 64 MB, 16,384 pages each."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, how],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_is_kept_is_not_fetched_again() -> None:
    kept, faults = steps("keep")
    assert kept == "True"
    assert faults < 1000
    # Also with pages of 2 MB there are as many faults as pages where nothing is kept.
    assert steps("leave")[1] > max(10 * 30, 3 * faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_what_the_environment_says_of_memory_stands() -> None:
    assert steps("keep", MALLOC_TOP_PAD_="131072")[0] == "False"


# Of the process itself: `ru_maxrss` begins with what the process had that started it.
_LARGEST = """
def largest_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))

"""
_SCORED = """
import sys
import torch
from torch import nn
from planter.data import InMemorySplit
from planter.machine.memory import keep_memory
from planter.training.scores import answers, predict

keep_memory()
torch.set_num_threads(1)
network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
photo = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)

def largest(photos):
    images, mean = photo.expand(photos, -1, -1, -1), torch.zeros(3, 1, 1)  # one photo's memory
    split = InMemorySplit(images, torch.zeros(photos, dtype=torch.long), mean, mean + 1)
    {"answers": answers, "predict": predict}[sys.argv[1]](network, split)
    return largest_kb()

print(largest(1100), largest(3300))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("how", ["answers", "predict"])
def test_scoring_many_photos_takes_no_more_than_scoring_few(how: str) -> None:
    """Sixty batches of 55 photos as much as twenty, by which time memory has found its places; a
    batch has 33 MB, and one more of each was held where answers were gathered."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _LARGEST + _SCORED, how],
        env=plain,
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = (int(kilobytes) for kilobytes in done.stdout.split())
    assert many - few < 6 * 33_000, (few, many)


_DECODED = """
import io
import numpy as np
from PIL import Image
from planter.data.cache.decoding import Decoding, decode_all

drawn = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
photo = io.BytesIO()
Image.fromarray(drawn).resize((480, 360), Image.Resampling.BICUBIC).save(photo, "jpeg")

class Held:
    ending = ".jpg"
    def read(self):
        return photo.getvalue()

def largest(photos):
    decode_all([Held()] * photos, [bytes(32)] * photos, Decoding((224, 224), "crop"), 2, len)
    return largest_kb()

print(largest(300), largest(2000))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_decoding_many_photos_takes_no_more_than_decoding_few() -> None:
    """45 KB a photo, 75 MB here, were left where each photo's moments were kept by themselves."""
    done = subprocess.run(
        [sys.executable, "-c", _LARGEST + _DECODED], capture_output=True, text=True, check=True
    )
    few, many = (int(kilobytes) for kilobytes in done.stdout.split())
    assert many - few < 25_000, (few, many)
