"""Time of a training step with channels last (what `planter.fit` uses) against contiguous.

    python benchmarks/memory_layout.py [--json]

Both layouts in one process, alternating, one thread; medians of 30 steps.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from torch.nn import functional

from planter.arch import Architecture
from planter.backbones import full_widths, with_data_options
from planter.networks.assembly import build_network

CASES = [
    ("convnet", 8, (1, 8, 8), 32),
    ("convnet", 32, (1, 8, 8), 32),
    ("convnet", 16, (3, 32, 32), 32),
    ("convnet", 32, (3, 32, 32), 32),
    ("toy", None, (3, 32, 32), 64),
    ("vgg16", 16, (3, 32, 32), 64),
]
STEPS = 30


def stepper(builder, width, image, batch, layout):
    architecture = with_data_options(
        Architecture(builder, full_widths(builder, width)), 10, list(image)
    )
    network = build_network(architecture).to(memory_format=layout)
    images = torch.randn(batch, *image).to(memory_format=layout)
    labels = torch.randint(0, 10, (batch,))
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        return 1000 * (time.perf_counter() - began)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    torch.manual_seed(0)
    medians, claims = {}, []
    for builder, width, image, batch in CASES:
        name = f"{builder} {width or 'default'} {'x'.join(map(str, image))} batch {batch}"
        layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        steps = {
            key: stepper(builder, width, image, batch, layout) for key, layout in layouts.items()
        }
        times = {key: [] for key in layouts}
        for number in range(STEPS + 5):
            for key, step in steps.items():
                taken = step()
                if number >= 5:
                    times[key].append(taken)
        medians[name] = {key: statistics.median(values) for key, values in times.items()}
        ratio = medians[name]["channels_last"] / medians[name]["contiguous"]
        claims.append(
            {"name": f"{name}: channels last / contiguous", "value": round(ratio, 3),
             "target": 1.0, "holds": ratio <= 1.0}
        )  # fmt: skip
    found = {
        "claims": claims,
        "step_ms": medians,
        "machine": {"processor": platform.processor() or platform.machine(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for claim in claims:
        print(f"{claim['value']:6.3f}  {claim['name']}")


if __name__ == "__main__":
    main()
