"""The way of photos to a search: decoding on all cores, a second command, memory of two workers.

    python benchmarks/data_path.py [--images 2000] [--no-search] [--json]

Photos (smooth colours and noise, 300 to 500 pixels a side, JPEG) are drawn once into --folder.
Decoding: `load_data` with an empty cache against one thread of Pillow that opens, crops and resizes
the same files, in turns. Second command: a process that loads the same folder again, from its start
to its fingerprint. Memory: the sum over all processes of a search with two workers of what is
theirs alone (Private_Dirty and Anonymous of /proc/PID/smaps_rollup; pages of mapped files are the
system's cache, which gives way) and of shared memory (Ray's store), at its highest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim, print_claims, surroundings
from PIL import Image, ImageOps

SIZE = 224
ROUNDS = 3
_SECOND = """
import time, sys
began = time.perf_counter()
from planter.data import load_data
data = load_data("folder", root=sys.argv[1], resize=224)
data.fingerprint()
print(time.perf_counter() - began)
"""
_STUDY = """
name: memory
data: {name: folder, root: %s, resize: 224, validation: 0.1}
baselines:
  - {builder: convnet, widths: 4}
  - {builder: convnet, widths: 5}
recipe: {epochs: 1, batch: 64}
resources: {workers: 2}
"""


def draw(given: tuple[Path, int]) -> None:
    """One photo: colours that change smoothly, and noise."""
    folder, index = given
    generator = np.random.default_rng(index)
    height, width = generator.integers(300, 501, 2)
    small = generator.integers(0, 256, (12, 16, 3), np.uint8)
    smooth = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth).astype(int) + generator.normal(0, 12, (height, width, 3)).astype(int)
    file = folder / f"class{index % 10}" / f"{index:06}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def with_pillow(files: list[Path]) -> None:
    """What one thread of Pillow does."""
    held = np.empty((len(files), SIZE, SIZE, 3), np.uint8)
    for i, file in enumerate(files):
        with Image.open(file) as image:
            held[i] = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR)


def decode_in_turns(folder: Path) -> dict[str, Any]:
    """Images a second of both sides, medians of the rounds."""
    from planter.data import load_data

    files = sorted(folder.rglob("*.jpg"))
    found: dict[str, list[float]] = {"planter": [], "pillow": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["PLANTER_CACHE"] = cache
            began = time.perf_counter()
            load_data("folder", root=folder, resize=SIZE)
            found["planter"].append(len(files) / (time.perf_counter() - began))
        began = time.perf_counter()
        with_pillow(files)
        found["pillow"].append(len(files) / (time.perf_counter() - began))
    medians = {f"{side}_images_per_s": statistics.median(rates) for side, rates in found.items()}
    return {**medians, "ratio": medians["planter_images_per_s"] / medians["pillow_images_per_s"]}


def second_command(folder: Path, cache: Path) -> float:
    """Seconds of a fresh process on a folder that is in the cache; the median of the rounds."""
    environment = {**os.environ, "PLANTER_CACHE": str(cache)}
    seconds = []
    for _ in range(1 + ROUNDS):
        made = subprocess.run(
            [sys.executable, "-c", _SECOND, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        seconds.append(float(made.stdout))
    return statistics.median(seconds[1:])


def search_memory(folder: Path, cache: Path, place: Path) -> dict[str, float]:
    """Gigabytes of a search with two workers, at the highest."""
    (place / "memory.yaml").write_text(_STUDY % folder)
    environment = {**os.environ, "PLANTER_CACHE": str(cache)}
    command = [sys.executable, "-m", "planter", "search", "memory.yaml"]
    log = (place / "search.log").open("w")
    process = subprocess.Popen(
        command, cwd=place, env=environment, start_new_session=True, stdout=log, stderr=log
    )
    ended = threading.Event()
    most = {"own_gb": 0.0, "pss_gb": 0.0}
    watcher = threading.Thread(target=_watch, args=(process.pid, ended, most))
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    log.close()
    if code != 0:
        raise RuntimeError((place / "search.log").read_text()[-2000:])
    return most


def _watch(root: int, ended: threading.Event, most: dict[str, float]) -> None:
    while not ended.wait(1.0):
        own = pss = 0.0
        for pid in _family(root):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            kilobytes = {
                line.split(":")[0]: int(line.split()[1])
                for line in text.splitlines()
                if line.endswith("kB")
            }
            pss += kilobytes.get("Pss", 0) / 1e6
            own += (kilobytes.get("Pss_Anon", 0) + kilobytes.get("Pss_Shmem", 0)) / 1e6
        most["own_gb"], most["pss_gb"] = max(most["own_gb"], own), max(most["pss_gb"], pss)


def _family(root: int) -> set[int]:
    """A process and all that came of it: those of its session, and their children."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(place.name)] = int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="where photos are kept; default: a new one")
    parser.add_argument("--no-search", action="store_true", help="leave the memory out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="data_path"))
    try:
        folder = (arguments.folder or place / "photos").absolute()
        wanted = [
            (folder, i)
            for i in range(arguments.images)
            if not (folder / f"class{i % 10}" / f"{i:06}.jpg").exists()
        ]
        with ProcessPoolExecutor() as pool:
            list(pool.map(draw, wanted, chunksize=64))
        decoding = decode_in_turns(folder)
        seconds = second_command(folder, place / "cache")
        claims = [
            claim("decoding, of one thread of Pillow", decoding["ratio"], ">=", 1.8),
            claim("a second command on the same folder, s", seconds, "<=", 2.0),
        ]
        medians: dict[str, Any] = {"images": arguments.images, **decoding, "second_s": seconds}
        if not arguments.no_search:
            memory = search_memory(folder, place / "cache", place)
            medians |= memory
            claims.append(claim("memory of a search of two workers, GB", memory["own_gb"], "<=", 3))
        if arguments.json:
            print(json.dumps({"claims": claims, "medians": medians, **surroundings()}, indent=2))
        else:
            print(medians)
            print_claims(claims)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
