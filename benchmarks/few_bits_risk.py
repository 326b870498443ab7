"""What answers on made images say of few bits: divergence from float by family of images, beside the drop on photos.

    python benchmarks/few_bits_risk.py

ResNet-20 on CIFAR-10, w4a4 learned without data and others rounded naively, which cost more and more. The limits of
`edgekit/data_free/verdict.py` for few bits are set between these rows. Needs the weights and images beside the project
(EDGEKIT_SHARED).
"""

import warnings
from typing import Any

import torch
from _measure import save
from few_bits import DATA, MODELS, naive, photos
from torch import nn

from edgekit.data_free import calls
from edgekit.data_free.held_out import FITTING, IN_FAMILY, Family, affordable, others
from edgekit.data_free.layer_errors import answer_errors
from edgekit.few_bits import PRIOR, FewBits, synthetic_images, without_data
from edgekit.loading import Loaded, load
from edgekit.types import ModelRequest

NAME, PHOTOS = "resnet20-cifar", 1000
NAIVE = (("w4a8", "a"), ("w6a6", "h"), ("w4a4", "a"), ("w5a5", "h"), ("w4a4", "h"), ("w3a3", "a"))


@torch.no_grad()
def row(loaded: Loaded, quantized: nn.Module, families: list[Family]) -> dict[str, Any]:
    """Points lost on photos, and KL in nats by family."""
    test = MODELS[NAME][2]
    images, labels = photos(loaded, DATA / test, PHOTOS)
    exact, found = (torch.cat([m(x[None]).argmax(1) for x in images]) for m in (loaded.module, quantized))
    hits = [float((answers == labels).float().mean()) for answers in (exact, found)]
    errors = {family.name: answer_errors(loaded.module, quantized, family.samples) for family in families}
    nats = {name: e.nats / e.rows for name, e in errors.items()}
    return {"drop": 100 * (hits[0] - hits[1]), "agreement": float((exact == found).float().mean()), "kl": nats}


def main() -> None:
    loaded = load(ModelRequest(model=NAME, weights=str(DATA / MODELS[NAME][0])))
    loaded.module.eval()
    images = synthetic_images(loaded, count=affordable(loaded), seed=1)
    families = [Family(FITTING, IN_FAMILY, calls(loaded, images)), *others(loaded, images, (PRIOR,), 1)]
    results = {}
    for key in [*(f"{scheme} {protocol} naive" for scheme, protocol in NAIVE), "w4a4 a learned"]:
        scheme, protocol, how = key.split()
        if how == "naive":
            quantized: nn.Module = naive(loaded, scheme, protocol, 0, 1)
        else:
            program, _ = without_data(loaded, "images", FewBits(scheme=scheme, protocol=protocol))
            quantized = program.module()
        results[key] = found = row(loaded, quantized, families)
        kl = ", ".join(f"{family} {nats:.2g}" for family, nats in found["kl"].items())
        print(f"{key:<16} drop {found['drop']:5.1f}, agreement {found['agreement']:.0%}, KL: {kl}", flush=True)
        save("few_bits_risk", {"results": results})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
