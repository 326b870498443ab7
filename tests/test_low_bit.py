"""wXaY: what is rounded to how many bits, what is learned, and that the program written computes the same."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.data_free.clusterq import VARIANTS, ClusterQOptions, Trainer
from edgekit.data_free.matching import StoredMoments
from edgekit.errors import BadInput, UnknownName, Unsupported
from edgekit.few_bits import FewBits, batched, generative, generative_trainer, learned, learned_student
from edgekit.loading import Loaded, load
from edgekit.low_bit import PROTOCOLS, LowBitOptions, Student, is_low_bit, place, scheme_of
from edgekit.low_bit.blocks import blocks
from edgekit.low_bit.distillation import DistillationOptions
from edgekit.low_bit.quantizers import EmaMinMax, LearnedStep, LearnedWeight, MinMaxWeight, along, best_scale, ends
from edgekit.low_bit.reconstruction import ReconstructionOptions
from edgekit.low_bit.steps import _best
from edgekit.quantization import prepare
from edgekit.quantization._ops import CLAMPS
from edgekit.types import ModelRequest

FAMILIES = (
    "resnet20-cifar", "mobilenet-v2", "tiny-moat-0", "micronet-m0", "mobile-former-26m", "slab-deit-tiny", "lvt",
)  # fmt: skip
SHORT = LowBitOptions(
    reconstruction=ReconstructionOptions(steps=3, batch=2), distillation=DistillationOptions(steps=2, batch=2)
)


def decibels(y: Tensor, reference: Tensor) -> float:
    error, size = ((v / reference.abs().max()).square().sum() for v in (y - reference, reference))
    return float(-10 * torch.log10(error / size + 1e-12))


@pytest.fixture(scope="module")
def resnet(shared: Path) -> Loaded:
    return load(ModelRequest(model="resnet20-cifar", weights=str(shared / "data" / "resnet20_cifar10.safetensors")))


@pytest.mark.parametrize("text", ["w4a4", "w3a3", "w4a8", "w5a5", "w8a2"])
def test_a_scheme_says_its_bits(text: str) -> None:
    assert is_low_bit(text)
    assert str(scheme_of(text)) == text


@pytest.mark.parametrize("text", ["w1a4", "w9a8", "w4a32", "w0a0"])
def test_other_bits_are_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(BadInput, match="2 to 8 bits") as error:
        scheme_of(text)
    assert "--scheme w4a4" in str(error.value)


def test_protocols_differ_in_what_they_round(resnet: Loaded) -> None:
    program = prepare(resnet.program)
    nodes = {n.name: n for n in program.graph.nodes}
    a, b, h = (place(program, scheme_of("w4a4"), p) for p in PROTOCOLS)
    layers = list(a.weights)
    assert set(a.weights.values()) == {4}
    assert {nodes[n].target for n in a.activations} <= {torch.ops.aten.relu.default, torch.ops.aten.relu_.default}
    assert [name for name, bits in b.weights.items() if bits == 8] == [layers[0], layers[-1]]
    assert sorted(b.activations.values())[-2:] == [8, 8]
    image = next(iter(program.graph_signature.user_inputs))
    assert image in h.activations
    assert image not in {**a.activations, **b.activations}
    sums = {n.name for n in nodes.values() if n.target is torch.ops.aten.add.Tensor}
    relus = {n.args[0].name: n.name for n in nodes.values() if n.name in a.activations}  # type: ignore[union-attr]
    assert all(relus.get(name, name) in h.activations for name in sums)
    with pytest.raises(UnknownName, match="protocol"):
        place(program, scheme_of("w4a4"), "c")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_bits_the_student_is_the_float_model(name: str, protocol: str) -> None:
    size = 64 if name != "resnet20-cifar" else 32
    loaded = load(ModelRequest(model=name, image_size=size))
    program = prepare(batched(loaded, 2, deployed=True))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        reference = loaded.module.eval()(images)
        assert decibels(Student(program)(images), reference) > 60
        if protocol == "a" and not any(n.target in CLAMPS for n in program.graph.nodes):
            with pytest.raises(BadInput, match="has none"):
                place(program, scheme_of("w8a8"), protocol)
            return
        student = Student(program, place(program, scheme_of("w8a8"), protocol))
        for weight in student.weights.values():
            weight.decide()
        assert 15 < decibels(student(images), reference) < 60  # weights of 8 bits, activations in float


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_hold_every_layer_once_and_compute_the_model(name: str) -> None:
    size = 64 if name != "resnet20-cifar" else 32
    loaded = load(ModelRequest(model=name, image_size=size))
    program = prepare(batched(loaded, 2, deployed=True))
    student = Student(program, place(program, scheme_of("w4a4"), "h"))
    found = blocks(student.nodes, student.image, student.output, set(student.weights))
    assert sorted(n for block in found for n in block.layers) == sorted(student.weights)
    images = torch.randn(2, 3, size, size)
    teacher = Student(program)
    with torch.no_grad():
        value = images
        for block in found:
            value = teacher.run({block.source: value}, block.nodes, block.result)
        assert torch.allclose(value, teacher(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_lie_on_so_many_steps(bits: int) -> None:
    weight = torch.randn((6, 5, 3, 3), generator=torch.Generator().manual_seed(0))
    low, high = ends(bits)
    for quantizer in (MinMaxWeight(weight, bits), LearnedWeight(weight, bits)):
        if isinstance(quantizer, LearnedWeight):
            quantizer.decide()
        q, scale, zero = quantizer.steps()
        assert low <= int(q.min()) <= int(q.max()) <= high
        assert torch.allclose(quantizer(), (q - along(zero, q)) * along(scale, q), atol=1e-6)
    naive = weight.flatten(1).abs().amax(1) / high

    def error(scale: Tensor) -> float:
        steps = (weight / along(scale, weight)).round().clamp(low, high) * along(scale, weight)
        return float((weight - steps).abs().pow(2.4).sum())

    assert error(best_scale(weight, bits)) < error(naive)


def test_choices_become_final_and_training_starts_inside_their_cells() -> None:
    quantizer = LearnedWeight(torch.randn(4, 8), 4)
    assert quantizer.choice is not None
    with torch.no_grad():
        quantizer.choice.copy_(torch.where(torch.rand(4, 8) < 0.5, -5.0, 5.0))
    soft, (q, _, _) = quantizer().detach(), quantizer.steps()
    assert float(quantizer.indecision(2.0).detach()) == 0
    quantizer.decide()
    assert torch.equal(quantizer.steps()[0], q)
    assert torch.allclose(quantizer(), soft, atol=1e-6)


def test_ranges_follow_batches_until_they_are_frozen() -> None:
    quantizer = EmaMinMax(4)
    quantizer(torch.tensor([0.0, 1.0]))
    quantizer(torch.tensor([0.0, 2.0]))
    assert quantizer.ends.tolist() == pytest.approx([0.0, 1.1], abs=1e-5)
    quantizer.observing = False
    assert float(quantizer(torch.tensor([50.0]))) == pytest.approx(1.1, abs=1e-5)


def test_learned_steps_have_the_gradient_of_lsq() -> None:
    quantizer = LearnedStep(4, 0.1, -8)
    quantizer(torch.tensor([0.234, 9.0])).sum().backward()  # type: ignore[no-untyped-call]
    # Inside: round(x/s) - x/s; above the range: its greatest step. By the logarithm: times s.
    assert quantizer.log_ratio.grad is not None
    assert float(quantizer.log_ratio.grad) == pytest.approx(0.1 * ((2 - 2.34) + 15), rel=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_program_that_is_written_computes_what_was_learned(resnet: Loaded, protocol: str) -> None:
    wanted = FewBits(scheme="w4a8", protocol=protocol, learning=SHORT)
    images = torch.randn(4, 3, 32, 32)
    student = learned_student(resnet, images, wanted)
    program = learned(resnet, images, wanted)
    module = program.module()
    with torch.no_grad():
        alone = torch.cat([module(x[None]) for x in images])
        together = torch.cat([student(part) for part in images.split(2)])
        assert decibels(alone, together) > 30  # a sum that lies between two steps may fall on either
    weights = [v for v in program.state_dict.values() if v.dtype == torch.int8]
    assert max(int(w.abs().max()) for w in weights) == (127 if protocol == "b" else 8)


def test_reconstruction_brings_the_student_closer(resnet: Loaded) -> None:
    images = torch.randn(16, 3, 32, 32)
    reference = resnet.module.eval()(images).detach()

    def error(steps: int) -> float:
        options = ReconstructionOptions(steps=steps, batch=16, rounding_rate=1e-2)
        wanted = FewBits(scheme="w3a8", protocol="a", learning=LowBitOptions(reconstruction=options))
        return decibels(learned_student(resnet, images, wanted)(images).detach(), reference)

    assert error(30) > error(0) + 1


def test_an_interrupted_run_goes_on_and_ends_the_same(resnet: Loaded, tmp_path: Path) -> None:
    images, work = torch.randn(2, 3, 32, 32), tmp_path / "net.partial"
    wanted = FewBits(scheme="w4a4", protocol="a", learning=SHORT)

    def stop(what: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned_student(resnet, images, wanted, work, stop)
    (saved,) = tmp_path.glob("net.partial*")
    assert torch.load(saved, weights_only=True)["blocks"] == 2
    seen: list[int] = []
    resumed = learned_student(resnet, images, wanted, work, lambda what, done, total: seen.append(done))
    assert seen[0] == 7  # blocks 1 and 2, of three steps each, were not done again
    assert not list(tmp_path.iterdir())
    whole = learned_student(resnet, images, wanted)
    for name, weight in resumed.weights.items():
        assert torch.equal(weight.steps()[0], whole.weights[name].steps()[0])


def test_few_bits_of_a_program_file_are_refused(resnet: Loaded, tmp_path: Path) -> None:
    torch.export.save(resnet.program, tmp_path / "net.pt2")
    loaded = load(ModelRequest(model=str(tmp_path / "net.pt2")))
    with pytest.raises(Unsupported, match="take batches"):
        learned(loaded, torch.randn(2, 3, 32, 32), FewBits(scheme="w4a4", learning=SHORT))


def small(options: ClusterQOptions) -> ClusterQOptions:
    return ClusterQOptions(
        **{
            **vars(options),
            "epochs": 3,
            "steps": 1,
            "warm_up": 1,
            "observe": 1,
            "width": 8,
            "classes_per_batch": 5,
            "images_per_class": 2,
        }
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_and_writes_a_program(resnet: Loaded, variant: str) -> None:
    program, images = generative(resnet, small(VARIANTS[variant]), FewBits(scheme="w4a4", protocol="a"))
    with torch.no_grad():
        y = program.module()(images[:1])
    assert y.shape == (1, 10)
    assert bool(y.isfinite().all())


@pytest.fixture
def trainer(resnet: Loaded) -> Trainer:
    trainer = generative_trainer(resnet, small(VARIANTS["clusterq"]), FewBits(scheme="w4a4", protocol="a"))
    trainer.step()
    trainer.end_epoch()
    return trainer


def test_training_with_a_generator_goes_on_where_it_was_cut_off(resnet: Loaded, tmp_path: Path) -> None:
    wanted, work = FewBits(scheme="w4a4", protocol="a"), tmp_path / "net.learning"

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generative(resnet, small(VARIANTS["clusterq"]), wanted, work, stop)
    seen: list[int] = []
    resumed, images = generative(
        resnet, small(VARIANTS["clusterq"]), wanted, work, lambda what, done, total: seen.append(done)
    )
    assert seen == [3]
    assert not list(tmp_path.iterdir())
    whole, others = generative(resnet, small(VARIANTS["clusterq"]), wanted)
    assert torch.equal(images, others)
    for name, tensor in whole.state_dict.items():
        assert torch.equal(tensor, resumed.state_dict[name]), name


def test_what_stored_nothing_is_refused_by_generators(tmp_path: Path) -> None:
    loaded = load(ModelRequest(model="lvt", image_size=64))
    with pytest.raises(Unsupported, match="stored no statistics"):
        generative_trainer(loaded, VARIANTS["clusterq"], FewBits(scheme="w4a4"))


def test_terms_that_need_others_are_refused() -> None:
    with pytest.raises(ValueError, match="SFDA"):
        ClusterQOptions(sfda=0)
    with pytest.raises(ValueError, match="warming up"):
        ClusterQOptions(warm_up=0)


def test_the_start_of_a_step_is_found_on_more_values_than_float32_counts() -> None:
    scale, zero = _best(torch.rand(2**24 + 2**22), 4)
    assert scale == pytest.approx(1 / 15, rel=0.2)
    assert zero == -8


def test_centroids_move_by_the_average_of_what_is_recognized(trainer: Trainer) -> None:
    before = copy.deepcopy(trainer.mean)
    labels = trainer.labels()
    images = trainer.images(labels)
    trainer.seen.clear()
    with torch.no_grad(), trainer.seen:
        trainer.teacher(images)
    answers = nn.functional.one_hot(labels, 10).float()
    answers[0] = answers[0].roll(1)  # one image of the first class is taken for another
    trainer._move_centroids(labels, answers)
    name, layer = list(trainer._semantic_layers().items())[-1]
    x = layer.inputs[0]
    first = int(labels[0])
    assert torch.allclose(trainer.mean[name][first], 0.8 * before[name][first] + 0.2 * x[1].mean((1, 2)), atol=1e-5)
    second = int(labels[2])
    expected = 0.8 * before[name][second] + 0.2 * x[2:4].mean((0, 2, 3))
    assert torch.allclose(trainer.mean[name][second], expected, atol=1e-5)
    absent = next(c for c in range(10) if c not in labels)
    assert torch.equal(trainer.mean[name][absent], before[name][absent])


def test_each_switch_changes_the_loss_and_the_released_one_ignores_classes(trainer: Trainer) -> None:
    labels = trainer.labels()
    images = trainer.images(labels).detach()
    trainer.seen.clear()
    with torch.no_grad(), trainer.seen:
        trainer.teacher(images)

    def loss(options: ClusterQOptions, order: Tensor) -> float:
        trainer.options = small(options)
        torch.manual_seed(0)
        with torch.no_grad():
            return float(trainer._semantic(order))

    other = (labels + 1) % 10
    assert loss(VARIANTS["gdfq"], labels) == 0
    assert loss(VARIANTS["sfda"], labels) != loss(VARIANTS["sfda"], other)
    assert loss(VARIANTS["sfda+icv"], labels) > loss(VARIANTS["sfda"], labels)
    assert loss(VARIANTS["as-released"], labels) == loss(VARIANTS["as-released"], other) > 0


def test_the_released_loss_divides_by_the_layers_again_at_each(resnet: Loaded, trainer: Trainer) -> None:
    with torch.no_grad(), StoredMoments(resnet.module) as seen:
        resnet.module(torch.randn(4, 3, 32, 32))
        layers = dict(list(seen.layers.items())[-9:])
        terms = []
        for layer in layers.values():
            mean, var = layer.moments()
            terms.append(float((mean - layer.mean).square().mean() + (var - layer.var).square().mean()))
        expected = sum(term / 9 ** (9 - place) for place, term in enumerate(terms))
        assert float(trainer._as_released(layers)) == pytest.approx(expected, rel=1e-5)
