"""What a training form answers: which layers it may stand on, and how one of them is expanded."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import nn


class TrainingForm(Protocol):
    """The settings of a form: a frozen dataclass that subclasses this and takes its defaults where
    it has nothing to add. `str(form)` is its short name.

    What undoes an expansion comes with what it puts in: `Factors` (`filters.py`) on a layer's
    tensors, or a `Block` (`blocks.py`) in the layer's place.
    """

    keeps_function: ClassVar[bool] = False
    """Whether an expanded layer starts as the function it has, as the layers of a network that is
    grown must."""
    makes: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """Tensors of a layer that the form makes anew: they have to train."""

    @property
    def is_plain(self) -> bool:
        """Whether these settings leave every layer as it is."""
        return False

    def takes(self, model: nn.Module, layer: nn.Module, name: str) -> bool:
        """Whether it is for a layer whose tensors train, where nothing says which layers."""
        ...

    def unsuited(self, model: nn.Module, layer: nn.Module) -> str | None:
        """Why a convolution or linear layer whose tensors train cannot get this form, as said after
        its name ("is a Linear: ..."); None where it can."""
        ...

    def check(self, model: nn.Module) -> None:
        """Raises ValueError for a model of which no layer can be expanded so."""
        return

    def expand_(self, model: nn.Module, layer: nn.Module) -> None:
        """Expands a layer that is suited, wherever it stands in the model. What has no value at the
        start is drawn from torch's default generator."""
        ...
