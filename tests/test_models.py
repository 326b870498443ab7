"""Laws over the zoo, and MobileNetV2's weights and padding."""

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from edgekit.errors import BadInput, UnknownName, WeightsMismatch
from edgekit.models import ZOO, Features, create_model, deploy, labels_of, list_models, load_weights
from edgekit.models._folding import affine
from edgekit.models._layers import SamePadConv2d
from edgekit.models.mobilenet import MobileNetV2, convert_state
from edgekit.types import ModelSpec
from tests.zoo import randomized, relative

every_model = pytest.mark.parametrize("spec", list_models(), ids=lambda s: s.name)


def small(spec: ModelSpec) -> tuple[int, int]:
    """The smallest image of at least 64 pixels that a model takes."""
    return (-(-64 // spec.stride) * spec.stride,) * 2


@every_model
def test_card_states_the_parameters_and_macs(spec: ModelSpec) -> None:
    model = create_model(spec.name)
    assert sum(p.numel() for p in model.parameters()) == spec.params
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *spec.input))
    assert counter.get_total_flops() / 2 == pytest.approx(spec.macs, rel=0.01)


@every_model
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_deploy_form_is_the_train_form(spec: ModelSpec, batch: int) -> None:
    """Logits and features, with every weight and batch norm statistic random."""
    model = randomized(spec.build(10, 3, small(spec)), gain=0.4)
    x = torch.randn(batch, 3, *small(spec))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert relative(deploy(model)(x), model(x)) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "deploy() changed the model"
    backbone = Features(model).eval()
    maps, deployed = backbone(x), deploy(backbone)(x)
    for actual, expected in zip(deployed, maps, strict=True):
        assert relative(actual, expected) < 1e-5
    assert [m.shape for m in maps] == [
        (batch, channels, x.shape[2] // stride, x.shape[3] // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


@every_model
@torch.no_grad()
def test_classes_channels_and_size_are_the_callers(spec: ModelSpec) -> None:
    size = (small(spec)[0] + spec.stride, small(spec)[1])
    model = create_model(spec.name, num_classes=7, in_channels=1, image_size=size)
    assert model(torch.randn(2, 1, *size)).shape == (2, 7)
    for refused in (0, spec.stride + 1) if spec.stride > 1 else (0,):
        with pytest.raises(BadInput, match=f"{spec.name} takes"):
            create_model(spec.name, image_size=refused)
    with pytest.raises(BadInput, match="takes one input"):
        create_model(spec.name, in_channels=0)


@every_model
def test_seeds_decide_the_weights(spec: ModelSpec) -> None:
    a, b, c = (list(create_model(spec.name, num_classes=3, seed=s).parameters()) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


@every_model
def test_weights_of_other_shape_or_name_are_refused(spec: ModelSpec) -> None:
    model = create_model(spec.name)
    state = model.state_dict()
    matrix = next(k for k in state if state[k].ndim == 4)
    wrong = {k: v for k, v in state.items() if k != matrix} | {"extra": torch.zeros(1)}
    with pytest.raises(WeightsMismatch) as caught:
        load_weights(model, spec.name, wrong, "here.pth")
    assert (caught.value.missing, caught.value.unexpected) == ([matrix], ["extra"])
    with pytest.raises(WeightsMismatch, match="of other shape"):
        load_weights(model, spec.name, state | {matrix: torch.zeros(1, 2, 3, 4)}, "here.pth")


@every_model
def test_labels_are_as_many_as_the_classes(spec: ModelSpec) -> None:
    labels = labels_of(spec)
    assert len(labels) == len(set(labels)) == spec.num_classes


def test_unknown_model_suggests_a_close_one() -> None:
    with pytest.raises(UnknownName, match="'mobilenet-v2'"):
        create_model("mobilenetv2")
    assert "mobilenet-v2" in ZOO


@pytest.mark.parametrize("size", [7, 8, 15, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2), (7, 4), (1, 2)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """SAME: output pixel i sees input pixels i * stride - total // 2 and on, with total the padding in all."""
    conv = SamePadConv2d(2, 3, kernel, stride, bias=False)
    x = torch.randn(1, 2, size, size)
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    expected = torch.zeros(1, 3, out, out)
    padded = F.pad(x, (total // 2, total, total // 2, total))
    for i in range(out):
        for j in range(out):
            patch = padded[0, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            expected[0, :, i, j] = (conv.weight * patch).sum((1, 2, 3))
    assert conv(x).shape == expected.shape
    assert relative(conv(x), expected) < 1e-5


@torch.no_grad()
def test_folded_weights_compute_what_they_were_folded_from() -> None:
    torch.manual_seed(0)
    model = randomized(MobileNetV2(10))
    fused = copy.deepcopy(model)
    for sequence in [m for m in fused.modules() if isinstance(m, nn.Sequential)]:
        for (_, first), (name, second) in pairwise(list(sequence.named_children())):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                gain, shift = affine(second)
                first.weight = nn.Parameter((first.weight * gain.reshape(-1, 1, 1, 1)).float())
                first.bias = nn.Parameter(shift.float())
                setattr(sequence, name, nn.Identity())
    folded = fused.state_dict()
    assert not any("running_mean" in k for k in folded)
    again = MobileNetV2(10)
    load_weights(again, "mobilenet-v2", convert_state(1e-3, folded), "folded")
    x = torch.randn(2, 3, 64, 64)
    assert relative(again.eval()(x), model(x)) < 1e-5


def test_padding_is_a_choice_that_changes_the_output() -> None:
    same, symmetric = (create_model(n, num_classes=4) for n in ("mobilenet-v2", "mobilenet-v2-symmetric"))
    symmetric.load_state_dict(same.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert relative(symmetric(x), same(x)) > 1e-2
    with pytest.raises(ValueError, match="'reflect'"):
        MobileNetV2(padding="reflect")


def test_real_weights_load_and_keep_their_accuracy(shared: Path) -> None:
    """88.0 % of the 800 photos, as the data's own README measured."""
    from edgekit.evaluation import evaluate

    data = shared / "data"
    result = evaluate(
        "mobilenet-v2", data / "imagenet_sample800.tar", weights=data / "mobilenetv2_imagenet.safetensors"
    )
    assert result.n == 800
    assert result.top1 == pytest.approx(88.0, abs=0.2)
    assert result.top5 == pytest.approx(98.0, abs=0.2)


def test_a_module_in_hand_exports(tmp_path: Path, photo: Path) -> None:
    """The Python door takes the object itself, and leaves it as it was."""
    import edgekit

    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).mean((-2, -1))

    mine = Mine().train()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    (artifact,) = edgekit.export(mine, "onnx", image_size=32, out=tmp_path)
    assert artifact.path.name == "Mine-onnx-fp32"
    assert mine.training
    with pytest.raises(BadInput, match="in memory"):  # its class gives other weights: that is no reference
        edgekit.verify(artifact, images=photo)
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())
