"""Export a model to every runtime, and classify one photo with each: the same classes everywhere.

python recipes/four_runtimes_one_photo.py PHOTO.jpg [MODEL [WEIGHTS]]
"""

import sys

import edgekit


def main(photo: str, model: str = "lvt", weights: str | None = None) -> None:
    for artifact in edgekit.export(model, "all", weights=weights, force=True):
        (proof,) = artifact.manifest.verification
        ((best, *_),) = edgekit.predict(artifact, [photo], top=1)
        print(f"{artifact.manifest.target:<11} SQNR {proof.sqnr_db:5.1f} dB  {best.probability:.4%}  {best.label}")


if __name__ == "__main__":
    main(*sys.argv[1:])
