"""Images and labels: where they come from, how they are decoded, split and normalised."""

from planter.machine.importing import uncollected

with uncollected():
    from planter.data.account import Account, Ignored, Skipped
    from planter.data.fit import Fit
    from planter.data.loading import CACHE_GB, NAMES, OLD_FIT, load_data
    from planter.data.sources import TORCHVISION
    from planter.data.split import Data, InMemorySplit, RowSplit, Split

__all__ = [
    "CACHE_GB",
    "NAMES",
    "OLD_FIT",
    "TORCHVISION",
    "Account",
    "Data",
    "Fit",
    "Ignored",
    "InMemorySplit",
    "RowSplit",
    "Skipped",
    "Split",
    "load_data",
]
