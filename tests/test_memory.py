"""A process that keeps its memory does not ask the system for it again in every step."""

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
