"""What the networks of a run answered, image by image, as it stands beside them."""

from __future__ import annotations

from pathlib import Path

from planter.training.answers import TEST_FILE, VALIDATION_FILE, Answers

_FILES = {"validation": VALIDATION_FILE, "test": TEST_FILE}


def answers_of(run: Path, point: str) -> dict[str, Answers]:
    """A point's answers on "validation" and, where they were read, "test" images.

    Raises ValueError where there are none on the validation images, with the reason.
    """
    folder = run / "models" / point
    if not folder.is_dir():
        raise ValueError(
            f"the network of {point} was not kept, nor its answers; a study with keep: all keeps "
            "those of every point"
        )
    found = {}
    for images, name in _FILES.items():
        if (folder / name).is_file():
            found[images] = Answers.read(folder / name)
    if "validation" not in found:
        raise ValueError(
            f"{folder} has no {VALIDATION_FILE}: {point} was trained by a planter that kept no "
            "answers; a new run of study.yaml does"
        )
    return found


def paired_answers(run: Path, first: str, second: str) -> dict[str, tuple[Answers, Answers]]:
    """The answers of two points on the images that both were asked about. Raises ValueError as
    `answers_of` does."""
    one, other = answers_of(run, first), answers_of(run, second)
    return {images: (one[images], other[images]) for images in one if images in other}
