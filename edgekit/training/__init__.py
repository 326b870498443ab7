"""Training from a recipe: fine-tuning of int8 models with fake quantization."""

from edgekit.training.recipe import Recipe as Recipe
from edgekit.training.recipe import read_recipe as read_recipe
from edgekit.training.run import Accuracy as Accuracy
from edgekit.training.run import Trained as Trained
from edgekit.training.run import train as train
