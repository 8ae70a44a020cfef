"""timm's models as backbones; timm is an extra: `pip install "planter[timm]"`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import nn

from planter.backbones.outside.own import whole

PREFIX = "timm:"
# A saved network of somebody else's names its options, and timm unpickles checkpoints.
_REFUSED = {
    "cache_dir", "checkpoint_path", "features_only", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_strict",
}  # fmt: skip


def timm_net(name: str) -> Callable[..., nn.Module]:
    """A builder function of `timm.create_model(name)` without pre-trained weights, which takes
    timm's own options (`drop_rate`, `img_size`, ...).

    Raises ValueError where timm is not installed, and for a name that it does not have.
    """
    timm = timm_package()
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        near = difflib.get_close_matches(plain, timm.list_models(), n=5)
        raise ValueError(
            f"timm has no model {name!r}; it has {', '.join(near or ['resnet18'])}, ..."
        )
    if tag and name not in timm.list_pretrained(f"{plain}.*"):
        raise ValueError(
            f"timm has no weights {tag!r} of {plain}; it has "
            f"{', '.join(timm.list_pretrained(f'{plain}.*')) or 'none'}"
        )

    def build(
        widths: Mapping[str, int],
        *,
        classes: int = 1000,
        image: Sequence[int] = (3, 224, 224),
        **options: Any,
    ) -> nn.Module:
        if refused := sorted(_REFUSED & set(options)):
            raise ValueError(
                f"{PREFIX}{name}: option {', '.join(refused)} reads files or changes what is "
                "returned; a study's `weights` loads weights"
            )
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=image[0], **options
        )
        return whole(network)

    return build


def timm_package() -> Any:
    """The package. Raises ValueError where it is not installed."""
    try:
        import timm  # takes seconds, which only those who ask for it wait
    except ImportError as error:
        raise ValueError(
            f'{PREFIX}NAME needs timm: pip install "planter[timm]" ({error})'
        ) from error
    return timm


def installed_version() -> str:
    """The version of timm, without importing it."""
    return metadata.version("timm")
