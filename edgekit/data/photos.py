"""Two real photos that come with scikit-learn, so that every export is verified on real input."""

from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageOps

from edgekit.errors import MissingDependency

NAMES = ("china.jpg", "flower.jpg")


def sample_photos() -> tuple[Image.Image, ...]:
    """Four real photos: a temple and a dahlia (CC BY 2.0), upright and mirrored with another framing.

    Raises `MissingDependency` where scikit-learn, which ships them, is absent.
    """
    # find_spec of the top package does not import it: importing scikit-learn costs more than a second.
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("scikit-learn", "verification on real photos", "all")
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "images"
    photos = []
    for name in NAMES:
        with Image.open(folder / name) as file:
            photo = file.convert("RGB")
        photos += [photo, ImageOps.mirror(photo.crop((0, 0, photo.height, photo.height)))]
    return tuple(photos)
