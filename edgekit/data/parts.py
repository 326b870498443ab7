"""Some images of a set, as a set."""

from collections.abc import Iterator, Sequence

from edgekit.data.images import Image, ImageSet


class Part:
    """The images of `images` at `places`, in that order, with its classes: what is trained on, or held out."""

    def __init__(self, images: ImageSet, places: Sequence[int]) -> None:
        self.classes = images.classes
        self.labels: Sequence[int | None] = [images.labels[place] for place in places]
        self._images, self._places = images, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Image:
        return self._images[self._places[index]]

    def __iter__(self) -> Iterator[Image]:
        return (self[i] for i in range(len(self)))
