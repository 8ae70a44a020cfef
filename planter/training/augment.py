"""What a study says under `recipe.augment`: settings of the table of augmentations, and views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from planter.training.augmentation import AUGMENTATIONS, Mixing, checked, schema_of
from planter.training.transforms.settings import STRICT, Crop, Flip


def _listed(schema: dict[str, Any]) -> None:
    """Adds the table's other entries to the schema, and that nothing else may be said."""
    others = {name: schema_of(name) for name in AUGMENTATIONS if name not in schema["properties"]}
    schema["properties"] |= others
    schema["additionalProperties"] = False


def _line(error: ErrorDetails, *place: str) -> InitErrorDetails:
    """An error again, further in."""
    kind = PydanticCustomError(error["type"], "{told}", {"told": error["msg"]})
    return {"type": kind, "loc": (*place, *error["loc"]), "input": error["input"]}


class Augment(BaseModel):
    """Random changes of the training images, drawn anew for each batch, or once for a pool."""

    # Beside its fields it holds settings of the other entries of AUGMENTATIONS, in that table's
    # order and only where they are not off: what a study does not use changes no key of content.
    model_config = ConfigDict(**STRICT, frozen=True, extra="allow", json_schema_extra=_listed)

    crop: Crop = 0
    flip: Flip = False
    views: Annotated[
        int | None,
        Field(
            ge=2,
            description="draw from a fixed pool of this many views of each image, itself among "
            "them: a teacher then answers once for all trainings, and planting keeps what is "
            "frozen; default: new views in every epoch",
        ),
    ] = None

    @model_validator(mode="wrap")
    @classmethod
    def _with_others(cls, given: Any, read: ModelWrapValidatorHandler[Augment]) -> Augment:
        """Checks the settings that are no fields; what is wrong with either is told together."""
        fields, others = cls.model_fields, {}
        if isinstance(given, dict):
            others = {k: v for k, v in given.items() if isinstance(k, str) and k not in fields}
        if not others:
            return read(given)
        known = {key: value for key, value in given.items() if key not in others}
        settings: dict[str, Any] = {}
        wrong: list[InitErrorDetails] = []
        for name, value in others.items():
            try:
                settings[name] = checked(name, value)
            except ValidationError as error:
                wrong += [_line(one, name) for one in error.errors()]
        if not wrong:
            on = {n: settings[n] for n in AUGMENTATIONS if n in settings}
            return read(known | {n: v for n, v in on.items() if v != AUGMENTATIONS[n].off})
        try:
            read(known)
        except ValidationError as error:  # what the whole lacks may follow from what is wrong
            wrong = [_line(one) for one in error.errors() if one["loc"]] + wrong
        raise ValidationError.from_exception_data(cls.__name__, wrong)

    @model_validator(mode="after")
    def _has_views(self) -> Augment:
        if self.views is None:
            return self
        if self.mixes():
            named = " and ".join(self.mixes())
            raise ValueError(
                f"views {self.views} of each image beside {named}: a pool holds views of one "
                f"image, not of two mixed; leave out views or {named}"
            )
        if not self.chosen():
            names = [*type(self).model_fields, *AUGMENTATIONS]
            mixing = [name for name, entry in AUGMENTATIONS.items() if isinstance(entry, Mixing)]
            *most, last = (n for n in dict.fromkeys(names) if n not in ("views", *mixing))
            raise ValueError(
                f"views {self.views} of each image, but neither {', '.join(most)} nor {last} is set"
            )
        return self

    def changes(self) -> bool:
        """Whether a step sees images that no other step sees."""
        return self.views is None and bool(self.chosen())

    def chosen(self) -> dict[str, Any]:
        """All that changes an image, in the order in which it does: every setting that is not off
        but `views`, which says how often."""
        # By hand: asked for in each step, and pydantic's dump takes 0.2 ms.
        fields = {name: (getattr(self, name), f) for name, f in type(self).model_fields.items()}
        own = {n: v for n, (v, f) in fields.items() if n != "views" and v != f.default}
        return own | (self.model_extra or {})

    def mixes(self) -> dict[str, Any]:
        """What of it mixes the images of a batch, and their labels."""
        known = ((name, AUGMENTATIONS.get(name), to) for name, to in self.chosen().items())
        return {name: to for name, entry, to in known if isinstance(entry, Mixing)}

    def misfits(
        self, image: tuple[int, int, int], dtype: torch.dtype
    ) -> Iterator[tuple[str, Any, str]]:
        """What of it cannot change raw images of this shape (channels, height, width) and type:
        its name, its setting, and what it expected."""
        for name, to in self.chosen().items():
            if name in AUGMENTATIONS and (told := AUGMENTATIONS[name].misfit(to, image, dtype)):
                yield name, to, told
