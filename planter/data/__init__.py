"""Images and labels: where they come from, how they are decoded, split and normalised."""

from planter.data.account import Account, Ignored, Skipped
from planter.data.loading import NAMES, load_data
from planter.data.sources import TORCHVISION
from planter.data.split import Data, InMemorySplit, Split

__all__ = [
    "NAMES",
    "TORCHVISION",
    "Account",
    "Data",
    "Ignored",
    "InMemorySplit",
    "Skipped",
    "Split",
    "load_data",
]
