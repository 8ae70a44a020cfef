"""The test images of a study that `budget.scale` shortens."""

from __future__ import annotations

from dataclasses import replace

import torch

from planter.data import Data
from planter.data.draw import stratified


def with_shorter_test(data: Data, scale: float) -> Data:
    """The data with a stratified share of the test images, one of each class at least."""
    if scale == 1 or data.test is None:
        return data
    labels = data.test.labels
    count = max(round(scale * len(labels)), len(torch.unique(labels)))
    generator = torch.Generator().manual_seed(0)
    kept, _ = stratified(labels, torch.arange(len(labels)), count, generator, least=1)
    test = data.test.sample(kept)
    if (account := data.account) is not None:
        counts = tuple(test.labels.bincount(minlength=data.classes).tolist())
        account = replace(account, test=counts)
    return replace(data, test=test, account=account)
