"""Photos, labelled image sets, and the one preprocessing that every room shares."""

from edgekit.data.images import Image as Image
from edgekit.data.images import ImageSet as ImageSet
from edgekit.data.images import open_images as open_images
from edgekit.data.images import read_image as read_image
from edgekit.data.images import spread as spread
from edgekit.data.photos import sample_photos as sample_photos
from edgekit.data.preprocess import apply as apply
from edgekit.data.preprocess import normalize as normalize
from edgekit.data.preprocess import resampling as resampling
from edgekit.data.preprocess import upright as upright
