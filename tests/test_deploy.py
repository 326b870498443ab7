"""`deploy` leaves a user's modules alone, and the graph's fold takes what it may."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from edgekit.errors import BadInput
from edgekit.graph import REWRITES, rewrite
from edgekit.graph.capture import capture
from edgekit.models import deploy


class ActivatedNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class Backwards(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(list(self)):
            x = layer(x)
        return x


class Tapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seq = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        between = self.seq[0](x)
        return self.seq[1](between) + between.relu()


class Resnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x))) + x


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.a, self.b = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


# What it is, a builder, and how many norms the folded graph still has.
CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "activated norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), ActivatedNorm(4)), 0),
    "standardized convolution": (lambda: nn.Sequential(StandardizedConv(4, 4, 1 + 2), nn.BatchNorm2d(4)), 0),
    "own forward": (lambda: Backwards(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), 1),
    "tapped": (Tapped, 1),
    "parametrized": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)), 0),
    "plain": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), 0),
    "resnet": (Resnet, 0),
    "shared": (Shared, 0),
}


@pytest.mark.parametrize("target", REWRITES)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_users_norms_keep_their_function(name: str, target: str) -> None:
    torch.manual_seed(0)
    build, left = CASES[name]
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    x = torch.randn(2, 4, 6, 6)
    expected = model(x)
    program = rewrite(capture(deploy(model), (x,)), target)
    assert float((program.module()(x) - expected).norm() / expected.norm()) < 1e-5
    assert sum("batch_norm" in str(n.target) for n in program.graph.nodes if n.op == "call_function") == left


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight_norm's own
def test_the_old_weight_norm_is_no_obstacle() -> None:
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 4, 5, 5)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model(x)  # leaves the weight without a history
    with torch.no_grad():
        assert torch.allclose(deploy(model)(x), model(x), atol=1e-6)


class Itself(nn.Linear):
    def deploy(self) -> nn.Module:
        return self


class AnotherOfItsKind(nn.Linear):
    def deploy(self) -> nn.Module:
        return AnotherOfItsKind(self.in_features, self.out_features)


class Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deploy = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.deploy(x)


class Wants(nn.Linear):
    def deploy(self, path: str) -> None:
        raise AssertionError(path)


class OfTheClass(nn.Linear):
    @classmethod
    def deploy(cls) -> nn.Module:
        raise AssertionError


class Nothing(nn.Linear):
    def deploy(self) -> None:
        self.deployed = True


class Doubled(nn.Linear):
    def deploy(self) -> nn.Module:
        return nn.Sequential(Itself(3, 3), nn.Identity())


@pytest.mark.parametrize("kind", [Itself, Wants, OfTheClass])
def test_other_things_of_the_name_leave_a_module_as_it_is(kind: type[nn.Linear]) -> None:
    model = nn.Sequential(kind(3, 3)).eval()
    x = torch.randn(2, 3)
    assert torch.equal(deploy(model)(x), model(x))
    assert type(deploy(model)[0]) is kind  # type: ignore[index]


def test_a_child_of_the_name_is_a_child() -> None:
    model = nn.Sequential(Child()).eval()
    x = torch.randn(2, 3)
    assert torch.equal(deploy(model)(x), model(x))


def test_a_deploy_form_of_its_own_kind_ends() -> None:
    assert isinstance(deploy(AnotherOfItsKind(3, 3)), AnotherOfItsKind)


def test_what_deploy_returns_is_walked_and_shared_modules_stay_shared() -> None:
    shared = Doubled(3, 3)
    model = nn.Sequential(nn.Sequential(shared), shared)
    deployed = deploy(model)
    assert isinstance(deployed[1], nn.Sequential)  # type: ignore[index]
    assert deployed[0][0] is deployed[1]  # type: ignore[index]
    assert isinstance(model[1], Doubled)


def test_no_module_from_deploy_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"Nothing\.deploy\(\) returned NoneType"):
        deploy(nn.Sequential(Nothing(3, 3)))


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.guard = threading.Lock()


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.twice = self.scale * 2


@pytest.mark.parametrize(("kind", "what"), [(Locked, "0.guard"), (Remembers, "0.twice")])
def test_what_cannot_be_copied_is_named(kind: type[nn.Module], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        deploy(nn.Sequential(kind()))
