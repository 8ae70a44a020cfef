"""Time of each random change of a batch of images, beside torchvision's own of each image.

    python benchmarks/augmentation.py [--json] [--repeats 9]

One thread, batches of 128 images of 32 pixels and of 32 images of 224 pixels (smooth noise, uint8,
three channels). torchvision's transforms draw once for whatever they are given, so that draws for
each image, as everyone trains, are one call an image. Both sides alternate in one process; medians.
Mixing is torchvision's of the whole batch, of floats. Times are of the processor, whatever else the
machine does; memory is kept, as in planter's workers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import Tensor
from torchvision.transforms import v2

from planter.machine.memory import keep_memory
from planter.training.augment import Augment
from planter.training.batches import augmented, mixed

SIZES = [(128, 32), (32, 224)]
HUE = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
CASES: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "crop": ({"crop": 4}, lambda size: v2.RandomCrop(size, padding=4)),
    "flip": ({"flip": True}, lambda size: v2.RandomHorizontalFlip()),
    "resized_crop": ({"resized_crop": True}, lambda size: v2.RandomResizedCrop(size)),
    "color_jitter": ({"color_jitter": 0.4}, lambda size: v2.ColorJitter(0.4, 0.4, 0.4)),
    "color_jitter with hue": ({"color_jitter": HUE}, lambda size: v2.ColorJitter(**HUE)),
    "randaugment": ({"randaugment": True}, lambda size: v2.RandAugment()),
    "trivial": ({"trivial": True}, lambda size: v2.TrivialAugmentWide()),
    "erasing": ({"erasing": 0.25}, lambda size: v2.RandomErasing(p=0.25)),
    "mixup": ({"mixup": 0.2}, lambda size: v2.MixUp(alpha=0.2, num_classes=10)),
    "cutmix": ({"cutmix": 1.0}, lambda size: v2.CutMix(alpha=1.0, num_classes=10)),
}


def pictures(count: int, size: int) -> Tensor:
    noise = torch.rand(count, 3, 8, 8)
    smooth = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return (255 * smooth).to(torch.uint8)


def ways(name: str, images: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """planter's way and torchvision's."""
    settings, make = CASES[name]
    augment, theirs = Augment(**settings), make(images.shape[-1])
    generator = torch.Generator().manual_seed(0)
    if augment.mixes():
        floats, labels = images.float(), torch.arange(len(images)) % 10
        return (
            lambda: mixed(floats, labels, augment, generator, 10),
            lambda: theirs(floats, labels),
        )
    return (
        lambda: augmented(images, augment, generator),
        lambda: torch.stack([theirs(image) for image in images]),
    )


def medians(both: tuple[Callable[[], Any], Callable[[], Any]], repeats: int) -> list[float]:
    """Milliseconds of each."""
    times: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for way, taken in zip(both, times, strict=True):
            began = time.process_time()
            way()
            if repeat:  # the first warms up
                taken.append(1000 * (time.process_time() - began))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found, claims = {}, []
    for count, size in SIZES:
        images = pictures(count, size)
        for name in CASES:
            mine, theirs = medians(ways(name, images), given.repeats)
            what = f"{name}, {count} images of {size} pixels"
            found[what] = {"planter_ms": round(mine, 2), "torchvision_ms": round(theirs, 2)}
            # What takes a few milliseconds is not worth a claim. Images of 224 pixels are large
            # enough by themselves: there one call an image, in whole numbers, is the faster way.
            if theirs > 10:
                target = 2.0 if size < 100 else 0.5
                claims.append(claim(f"{what}: torchvision / planter", theirs / mine, ">=", target))
    if given.json:
        print(json.dumps({"claims": claims, "medians": found, **surroundings()}, indent=1))
        return
    for what, times in found.items():
        print(f"{what}: {times['planter_ms']} ms, torchvision {times['torchvision_ms']} ms")
    print_claims(claims)


if __name__ == "__main__":
    main()
