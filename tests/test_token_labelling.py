"""Token labelling and mix-token: the algebra of masks, the loss, and teachers that answer place by place."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.data import apply, open_images
from edgekit.errors import BadInput
from edgekit.models import ZOO, create_model
from edgekit.models.lvt import Lvt
from edgekit.training import train
from edgekit.training.recipe import ModelSection, TokenLabellingSection
from edgekit.training.token_labelling import TOKEN_HEADS, DenseTeacher, TokenMix, loss, token_mix

CLASSES = 10
PLAIN = TokenLabellingSection(teacher=ModelSection(name="resnet20-cifar"), weight=0, mix_token=0)
FULL = TokenLabellingSection(teacher=ModelSection(name="resnet20-cifar"))


@pytest.fixture(scope="module")
def lvt() -> Lvt:
    model = create_model("lvt", num_classes=CLASSES)
    assert isinstance(model, Lvt)
    return model


@pytest.fixture(scope="module")
def teacher() -> DenseTeacher:
    return DenseTeacher(create_model("resnet20-cifar"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([1, 7, 3, 3])


def rng(step: int = 0) -> np.random.Generator:
    return np.random.default_rng((0, step))


def a_mix(batch: int = 4) -> TokenMix:
    """One that mixes some tokens of a 3x3 grid and leaves some."""
    made = (token_mix(batch, (3, 3), 1.0, rng(step)) for step in range(100))
    return next(mix for mix in made if 0 < mix.box.sum() < 9)


# -------------------------------------------------------------------------------------------------------- masks


def test_a_mix_exchanges_the_box_with_the_neighbour_and_nothing_else() -> None:
    mix = TokenMix(torch.tensor([[True, False], [False, False]]), torch.tensor([1, 0]))
    maps = torch.arange(2 * 4 * 4).reshape(2, 4, 4, 1).float()
    mixed = mix(maps)
    assert mixed[0, :2, :2].equal(maps[1, :2, :2])
    assert mixed[1, :2, :2].equal(maps[0, :2, :2])
    assert mixed[:, 2:].equal(maps[:, 2:])
    assert mixed[:, :, 2:].equal(maps[:, :, 2:])


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_mixed_twice_is_not_mixed(batch: int) -> None:
    mix, maps = a_mix(batch), torch.randn(batch, 6, 6, 2)
    assert mix(mix(maps)).equal(maps)
    assert mix(maps).equal(maps) == (batch == 1)
    if batch % 2:
        assert mix(maps)[-1].equal(maps[-1])


def test_classes_are_mixed_by_the_share_of_the_area() -> None:
    mix = TokenMix(torch.tensor([[True, False], [False, False]]), torch.tensor([1, 0]))
    targets = mix.classes(functional.one_hot(torch.tensor([0, 2]), 3).float())
    torch.testing.assert_close(targets, torch.tensor([[0.75, 0, 0.25], [0.25, 0, 0.75]]))


def test_boxes_follow_from_the_generator_and_cover_all_areas() -> None:
    shares = [token_mix(2, (7, 7), 1.0, rng(step)).box.float().mean().item() for step in range(400)]
    again = [token_mix(2, (7, 7), 1.0, rng(step)).box.float().mean().item() for step in range(400)]
    assert shares == again
    assert len(set(shares)) > 12
    assert min(shares) == 0
    assert max(shares) > 0.8
    # Half of the area, less what the edges cut off.
    assert 0.25 < np.mean(shares) < 0.5


def test_tokens_are_exchanged_after_the_first_embedding_and_back_behind_the_head(lvt: Lvt, images: Tensor) -> None:
    mix, seen = a_mix(), {}
    embed, blocks = lvt.backbone[0].children()
    handles = [
        embed.register_forward_hook(lambda _, args, out: seen.update(embedded=out)),
        blocks.register_forward_hook(lambda _, args, out: seen.update(blocks=args[0])),
        lvt.aux_head.register_forward_hook(lambda _, args, out: seen.update(dense=out)),
    ]
    with torch.no_grad():
        _, dense = lvt.forward_dense(images, mix)
        for handle in handles:
            handle.remove()
        assert seen["blocks"].equal(mix(seen["embedded"]))
        assert not seen["blocks"].equal(seen["embedded"])
        assert dense.unflatten(1, (3, 3)).equal(mix(seen["dense"].unflatten(1, (3, 3))))
        # Without a mix it is the model as published.
        logits, dense = lvt.forward_dense(images)
        assert lvt(images).equal(logits + 0.5 * dense.amax(1))
        assert all(a.equal(b) for a, b in zip((logits, dense), lvt.forward_dense(images, lambda m: m), strict=True))


# --------------------------------------------------------------------------------------------------------- loss


def test_at_weight_0_without_a_mix_it_is_cross_entropy(lvt: Lvt, images: Tensor, teacher: DenseTeacher) -> None:
    with torch.no_grad():
        logits = lvt.forward_dense(images)[0]
        found = loss(lvt, images, LABELS, PLAIN, teacher, rng(), label_smoothing=0.1)
    torch.testing.assert_close(found, functional.cross_entropy(logits, LABELS, label_smoothing=0.1))


def test_it_is_the_papers_sum(lvt: Lvt, images: Tensor, teacher: DenseTeacher) -> None:
    """Against the other way to write it: patch logits as they come out, with dense labels that are mixed."""
    step = next(s for s in range(100) if 0 < token_mix(4, (3, 3), 1.0, rng(s)).box.sum() < 9)
    mix = token_mix(4, (3, 3), 1.0, rng(step))
    share = mix.box.float().mean()
    with torch.no_grad():
        found = loss(lvt, images, LABELS, FULL, teacher, rng(step))
        logits, back = lvt.forward_dense(images, mix)
        out = mix(back.unflatten(1, (3, 3))).flatten(0, 2)
        dense = mix(teacher(images, (3, 3)).unflatten(1, (3, 3))).flatten(0, 2)
    own, other = (functional.cross_entropy(logits, labels) for labels in (LABELS, LABELS[mix.partner]))
    parts = -(dense * out.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, (1 - share) * own + share * other + 0.5 * parts)


def test_labels_may_be_shares(lvt: Lvt, images: Tensor, teacher: DenseTeacher) -> None:
    shares = functional.one_hot(LABELS, CLASSES).float()
    with torch.no_grad():
        assert loss(lvt, images, LABELS, FULL, teacher, rng()).equal(loss(lvt, images, shares, FULL, teacher, rng()))


def test_the_same_generator_gives_the_same_gradient_in_both_heads(
    lvt: Lvt, images: Tensor, teacher: DenseTeacher
) -> None:
    def gradients(step: int) -> list[Tensor]:
        lvt.zero_grad()
        loss(lvt, images, LABELS, FULL, teacher, rng(step)).backward()
        parts = (lvt.head, lvt.aux_head, lvt.backbone[0])
        return [p.grad.clone() for part in parts for p in part.parameters() if p.grad is not None]

    first, again, other = gradients(3), gradients(3), gradients(4)
    assert len(first) == sum(1 for part in (lvt.head, lvt.aux_head, lvt.backbone[0]) for _ in part.parameters())
    assert all(g.abs().sum() > 0 for g in first)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, other, strict=True))
    assert all(p.grad is None for p in teacher.parameters())


def test_it_trains(images: Tensor, teacher: DenseTeacher) -> None:
    model = create_model("lvt", num_classes=CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values = []
    for step in range(8):
        optimizer.zero_grad()
        value = loss(model, images[:2, :, :64, :64], LABELS[:2], FULL, teacher, rng(step))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]


def test_a_recipe_trains_with_it(shared: Path, tmp_path: Path) -> None:
    """Through the loop: the teacher gets the images at its own size, and mix-token follows from seed and step."""
    data, path = shared / "data", tmp_path / "lvt.yaml"
    path.write_text(
        f"""
model: {{name: lvt, image_size: 64}}
data: {{train: {data}/cifar10_test.npz, train_limit: 20, batch_size: 4}}
token_labelling: {{teacher: {{name: resnet20-cifar, weights: {data}/resnet20_cifar10.safetensors}}}}
optimizer: {{name: adamw, lr: 1e-3}}
schedule: {{steps: 3}}
log_every: 1
out: {tmp_path}/run
""",
        encoding="utf-8",
    )
    assert train(path) is not None
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    # Of the class token, and half of the patch tokens', at first as wide as ten classes are.
    assert losses[0] == pytest.approx(1.5 * np.log(10), rel=0.15)
    model = create_model("lvt", weights=tmp_path / "run" / "last.safetensors")
    fresh = create_model("lvt", num_classes=CLASSES)
    assert not model.aux_head.weight.equal(fresh.aux_head.weight)
    assert not model.head.weight.equal(fresh.head.weight)


# ----------------------------------------------------------------------------------------------------- teachers


def test_a_linear_head_on_places_averages_to_the_whole_image(shared: Path) -> None:
    """MobileNetV1 with its weights on photos: the mean over places of its scores is its answer."""
    weights = shared / "data" / "mobilenetv1_025_imagenet.safetensors"
    model = create_model("mobilenet-v1-025", weights=weights)
    photos = open_images(shared / "data" / "imagenet_sample800.tar")
    preprocess = ZOO["mobilenet-v1-025"].preprocess
    assert preprocess is not None
    batch = torch.stack([torch.from_numpy(apply(preprocess, photos[i].pixels)) for i in (0, 100, 200)])
    with torch.no_grad():
        whole, dense = model(batch), DenseTeacher(model)(batch, (7, 7))
        assert dense.shape == (3, 49, 1000)
        torch.testing.assert_close(dense.sum(-1), torch.ones(3, 49))
        # Shares are scores less the logarithm of their sum at each place.
        scores = dense.double().log().mean(1)
        torch.testing.assert_close(
            scores - scores.mean(1, True), (whole - whole.mean(1, True)).double(), atol=1e-3, rtol=0
        )
        # Coarser places see what the finer ones below them see, and the class is mostly the image's.
        coarse = DenseTeacher(model)(batch, (3, 3))
        assert coarse.shape == (3, 9, 1000)
        assert coarse.mean(1).argmax(1).equal(dense.mean(1).argmax(1))


FAMILIES = (
    "lvt-gap", "tiny-moat-0", "micronet-m0", "slab-deit-tiny", "slab-pvtv2-b0", "slab-swin-tiny", "mobilenet-v1-025",
    "mobilenet-v2", "mobilenet-v3-small", "resnet20-cifar",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_on_the_last_map_is_the_model(name: str) -> None:
    size = 224 if "swin" in name else 64
    model = create_model(name, num_classes=5, image_size=size)
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert model.forward_head(model.forward_features(image)[-1]).equal(model(image))
        dense = DenseTeacher(model)(image, (2, 2))
    assert dense.shape == (2, 4, 5)
    torch.testing.assert_close(dense.sum(-1), torch.ones(2, 4))


def test_a_model_with_a_token_head_teaches_with_it(lvt: Lvt, images: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(DenseTeacher(lvt)(images, (3, 3)), lvt.forward_dense(images)[1].softmax(-1))


def test_images_are_prepared_for_the_teacher_which_stays_in_eval_mode(images: Tensor) -> None:
    model = create_model("resnet20-cifar")
    prepared = DenseTeacher(model, lambda x: functional.interpolate(x, (32, 32)) * 2).train()
    assert not any(module.training for module in prepared.modules())
    expected = DenseTeacher(model)(functional.interpolate(images, (32, 32)) * 2, (3, 3))
    assert prepared(images, (3, 3)).equal(expected)


# ------------------------------------------------------------------------------------------------------ refusals


def test_the_models_with_a_token_head_are_those_that_are_named() -> None:
    for name in {*TOKEN_HEADS, *{spec.family: name for name, spec in ZOO.items()}.values()}:
        assert hasattr(create_model(name), "forward_dense") == (name in TOKEN_HEADS)


def test_a_model_without_a_token_head_is_refused(images: Tensor, teacher: DenseTeacher) -> None:
    with pytest.raises(BadInput, match=r"LvtGap has no logits of its patch tokens\n.*: lvt\."):
        loss(create_model("lvt-gap", num_classes=CLASSES), images, LABELS, FULL, teacher, rng())


def test_a_teacher_without_answers_for_places_is_refused() -> None:
    for model in (nn.Linear(1, 1), create_model("mobile-former-26m")):
        with pytest.raises(BadInput, match="no answers for places"):
            DenseTeacher(model)


def test_a_teacher_of_other_classes_is_refused(lvt: Lvt, images: Tensor) -> None:
    other = DenseTeacher(create_model("resnet20-cifar", num_classes=7))
    with pytest.raises(BadInput, match="it knows 7 classes, and the model 10"):
        loss(lvt, images, LABELS, FULL, other, rng())
