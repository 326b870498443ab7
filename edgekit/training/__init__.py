"""Training from a recipe: in float, distilled, fine-tuned, and in int8 with fake quantization."""

from edgekit.training.accuracy import Accuracy as Accuracy
from edgekit.training.reading import read_recipe as read_recipe
from edgekit.training.recipe import Recipe as Recipe
from edgekit.training.run import Trained as Trained
from edgekit.training.run import train as train
