"""SLAB: backbones whose norms fold away and whose attention is linear. See `prepbn` and `attention`."""

from edgekit.models.slab import deit, pvt, swin
from edgekit.models.slab.attention import SimplifiedLinearAttention as SimplifiedLinearAttention
from edgekit.models.slab.prepbn import PRepBN as PRepBN
from edgekit.models.slab.prepbn import RepBN as RepBN
from edgekit.models.slab.prepbn import recalibrate as recalibrate
from edgekit.models.slab.prepbn import set_schedule as set_schedule

MODELS = (*deit.MODELS, *pvt.MODELS, *swin.MODELS)
