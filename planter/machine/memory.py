"""Memory: of a process that trains on the CPU, and what is left of this machine's."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

# <malloc.h> of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GROUPS = Path("/sys/fs/cgroup")


def keep_memory() -> bool:
    """Lets glibc keep what a tensor has left for the next one, instead of giving it back to the
    system and getting it again page by page in every step. Whether it does from now on.

    The process stays as large as it was at its largest. It cannot be undone, so it is for
    processes that are planter's own; where `MALLOC_...` in the environment says how memory is
    handled, and with another C library, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    options = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28}
    return all(mallopt(option, value) == 1 for option, value in options.items())


def available_bytes() -> int:
    """What this machine's memory, or a container's, has left for processes; with Linux's counting,
    files that are kept in it give way."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, *_left_to_groups(_GROUPS))
    except OSError:  # another system
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_to_groups(root: Path) -> list[int]:
    """What the limits of this process's control groups (v2), as containers and batch systems set
    them, leave of memory; what has none gives nothing."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # a Linux without them
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    found = [2**63]
    folder = root / own
    for group in (folder, *folder.parents):
        try:
            most = (group / "memory.max").read_text(encoding="utf-8").strip()
            held = dict(
                line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines()
            )
            if most != "max":
                found.append(max(int(most) - int(held["anon"]) - int(held["shmem"]), 0))
        except (OSError, KeyError, ValueError):  # not there, or of another version
            continue
    return found


def free_bytes(device: torch.device) -> int | None:
    """What a GPU's memory has left; None of a device whose memory is not counted."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
