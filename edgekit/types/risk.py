"""What is known, without labels, of a model that no data calibrated."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a quantized model and float agree on `images` images, which no camera took or which stand in for the user's.

    `relation` is "in-family" for images made as those that it was calibrated with, "cross-family" for others.
    `top1` (a fraction) and `kl` (nats an image) are None where the first output is no row of class scores.
    """

    family: str
    relation: str
    images: int
    top1: float | None
    kl: float | None
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class NormFit:
    """What a batch norm has stored, against what arrives there where the norms before it give what they have stored.

    `mean` is the root mean square, over channels, of the difference of means, in stored deviations, `channel` that of
    the worst channel; `scale` is how many times the stored deviation what arrives deviates, the median of the channels.
    """

    name: str
    mean: float
    scale: float
    channel: float


@dataclass(frozen=True, kw_only=True)
class TensorRisk:
    """An activation that int8 quantizes, as held-out images show it; `layer` computes it.

    `range` is what its 256 steps represent, `ranges` what each estimator says it should be. `disagreement` is how many
    times the widest estimate spans the narrowest, `prior_spread` the same among families that were not calibrated with.
    `saturation` is the share of values outside, `steps` how many steps hold all but a thousandth. SQNRs: `own_db` of
    these 256 steps alone, `sqnr_db` with all that int8 did before, `weight_db` of the layer's rounded weights. All are
    those of the worst family of images, `steps` that of the best. `stored`: see `Risk`. `why` says what looks wrong.
    """

    layer: str
    tensor: str
    range: tuple[float, float]
    ranges: Mapping[str, tuple[float, float]]
    disagreement: float
    prior_spread: float
    saturation: float
    steps: int
    own_db: float
    sqnr_db: float
    weight_db: float | None
    stored: bool
    why: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Risk:
    """What can be said, without a label or a photo of the user's, of a quantized model that no data calibrated.

    `level` is "low", "raised" or "high", `reasons` why in plain words, `advice` what to do. `stored_share` is the share
    of quantized activations whose statistics batch norms have stored; the others are guessed. `norms` counts norms by
    kind. `tensors` are in the order of the graph; `worst` names those to look at first. `trusted` is False where
    calibration saw that what is stored is not of these weights and did without. `accuracy` says what was measured on
    real data. Of `scheme`s in few bits, whose ranges are learned, answers and norms alone are known: no tensors.
    """

    level: str
    reasons: tuple[str, ...]
    advice: str
    agreements: tuple[Agreement, ...]
    stored_share: float
    norms: Mapping[str, int]
    norm_fits: tuple[NormFit, ...]
    tensors: tuple[TensorRisk, ...]
    worst: tuple[str, ...]
    trusted: bool = True
    scheme: str = "int8"
    accuracy: str = "not measured"

    @property
    def verdict(self) -> str:
        """One line: level and reasons."""
        return f"{self.level} risk: {'; '.join(self.reasons)}"
