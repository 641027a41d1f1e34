"""The network: training, blocks, other distances, checkpoints."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import LabelledShots, PreDecoder, SurfaceMemory, verify
from heliograph.graphs.surface_predecoder.checkpoint import load_convolutions
from heliograph.graphs.surface_predecoder.network import PUBLISHED
from heliograph.graphs.surface_predecoder.training import Lion


def lively(filters=(6, 6), seed=0, **options):
    """An untrained network whose answers are neither all yes nor all no."""
    network = PreDecoder(filters, seed=seed, **options).eval()
    with torch.no_grad():
        list(network.parameters())[-1].zero_()
    return network


@pytest.mark.parametrize("variant", ["plain", "residual", "bottleneck"])
@pytest.mark.parametrize("block", [(1, 2, 3), (4, 5, 2), (100, 100, 100)])
def test_blocks_give_the_logits_of_the_whole(variant, block):
    experiment = SurfaceMemory(5, 6)
    detectors, _ = experiment.sample(20, 0)
    network = lively(variant=variant)
    whole = network.logits(detectors, experiment.layout)
    parts = network.logits(detectors, experiment.layout, block=block)
    assert (whole > 0).any()
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    spread = network.logits(detectors, experiment.layout, block=block, devices=("cpu", "cpu"))
    torch.testing.assert_close(spread, whole, atol=1e-5, rtol=1e-4)


def test_a_site_sees_its_receptive_field_and_no_more():
    network = lively((4,))
    assert network.receptive_field == 5
    grid = torch.zeros(1, 4, 9, 9, 9, requires_grad=True)
    network(grid)[0, 0, 4, 4, 4].backward()
    touched = (grid.grad[0].abs().sum(0) > 0).nonzero()
    assert touched.min() == 2
    assert touched.max() == 6


def test_shots_do_not_influence_each_other():
    experiment = SurfaceMemory(3, 3)
    detectors, _ = experiment.sample(40, 0)
    network = lively()
    together = network.logits(detectors, experiment.layout)
    alone = torch.cat([network.logits(detectors[i : i + 1], experiment.layout) for i in range(40)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    order = np.random.default_rng(0).permutation(40)
    torch.testing.assert_close(
        network.logits(detectors[order], experiment.layout), together[order], atol=1e-5, rtol=1e-4
    )


def test_training_lowers_loss_and_density_at_distances_it_never_saw():
    experiment = SurfaceMemory(3, 3, noise=0.01)
    seen = []
    network = PreDecoder((12,), dropout=0.0).fit(
        experiment,
        shots=4_000,
        batch=32,
        learning_rate=3e-3,
        callback=lambda step, done, loss: seen.append((step, loss)),
    )
    losses = network.fit_report.losses
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    assert [step for step, _ in seen] == list(range(1, len(losses) + 1))
    other = SurfaceMemory(5, 4, "z", noise=0.01)
    detectors, _ = other.sample(500, 3)
    proposal = network.propose(detectors, other.layout)
    assert verify(detectors, proposal).all()
    assert proposal.residual.float().mean() < 0.9 * detectors.mean()


def test_labels_of_other_shots_teach_nothing():
    experiment = SurfaceMemory(3, 3, noise=0.01)

    def other_labels(experiment, shots, seed):
        drawn = experiment.sample_labels(shots, seed)
        return LabelledShots(drawn.detectors, drawn.observables, drawn.data.roll(1, 0), drawn.measured.roll(1, 0))

    network = PreDecoder((12,)).fit(experiment, shots=1_500, batch=32, learning_rate=3e-3, labels=other_labels)
    detectors, _ = experiment.sample(500, 3)
    assert np.array_equal(network.reduce(detectors, experiment)[0], detectors)


def test_the_same_seed_gives_the_same_weights():
    def train(seed):
        return PreDecoder((4,), seed=seed).fit(SurfaceMemory(3, 1), shots=256, batch=32, seed=seed)

    first, second, third = train(1), train(1), train(2)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    PreDecoder((4,)).fit(SurfaceMemory(3, 1), shots=64, batch=32)
    assert torch.equal(torch.rand(3), expected)


def test_both_bases_train_in_turn_and_seconds_are_kept():
    network = PreDecoder((4,)).fit([SurfaceMemory(3, 2, b) for b in "xz"], seconds=0.3, batch=8)
    assert network.fit_report.shots == 16 * len(network.fit_report.losses)
    assert network.fit_report.seconds < 5


def test_lion_steps_by_the_sign():
    weight = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    weight.grad = torch.tensor([0.5, -3.0])
    Lion([weight], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, -0.9]))


def test_published_shapes_have_the_published_fields():
    fields = {model: PreDecoder((4,) * len(f), k).receptive_field for model, (f, k) in PUBLISHED.items()}
    assert fields == {1: 9, 2: 9, 3: 17, 4: 13, 5: 13}
    with pytest.raises(BadInput, match="got 6"):
        PreDecoder.published(6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filters": ()}, "one or more"),
        ({"kernel": 4}, "must be odd.*got 4"),
        ({"dropout": 1.0}, "below 1; got 1.0"),
        ({"variant": "wide"}, "got 'wide'"),
        ({"filters": (4, 8), "variant": "residual"}, r"one width; got \(4, 8\)"),
    ],
)
def test_bad_networks_are_refused_with_the_numbers(options, words):
    with pytest.raises(BadInput, match=words):
        PreDecoder(**options)


def test_bad_calls_are_refused_with_the_numbers():
    experiment, network = SurfaceMemory(3, 1), PreDecoder((4,))
    with pytest.raises(BadInput, match="shots or seconds"):
        network.fit(experiment)
    with pytest.raises(BadInput, match="at least one experiment"):
        network.fit([], shots=1)
    with pytest.raises(BadInput, match=r"\[shots, 8\]; got \[2, 9\]"):
        network.reduce(np.zeros((2, 9)), experiment)
    with pytest.raises(BadInput, match="block is positive"):
        network.logits(np.zeros((2, 8)), experiment.layout, block=(0, 1, 1))
    with pytest.raises(BadInput, match=r"reads \[B, 4, S, D, D\]"):
        network(torch.zeros(1, 3, 2, 3, 3))


@pytest.mark.parametrize("variant", ["plain", "residual"])
def test_a_checkpoint_brings_back_the_same_answers(tmp_path, variant):
    experiment = SurfaceMemory(3, 2)
    network = lively(variant=variant)
    network.save(tmp_path / "net")
    network.save(tmp_path / "net")  # replaces its own kind
    detectors, _ = experiment.sample(30, 0)
    again = PreDecoder.load(tmp_path / "net")
    assert torch.equal(again.logits(detectors, experiment.layout), network.logits(detectors, experiment.layout))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["config.json", "weights.safetensors"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.999])
def test_truncated_weights_are_refused(tmp_path, keep):
    lively().save(tmp_path / "net")
    path = tmp_path / "net" / "weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(BadInput, match="truncated or altered"):
        PreDecoder.load(tmp_path / "net")


def test_other_damage_is_refused_too(tmp_path):
    lively().save(tmp_path / "net")
    config = tmp_path / "net" / "config.json"
    good = json.loads(config.read_text())
    for bad, words in (
        ({**good, "filters": [5, 6]}, "do not fit"),
        ({**good, "format": "other/9"}, "other/9"),
        ([], "format 'list'"),
    ):
        config.write_text(json.dumps(bad))
        with pytest.raises(BadInput, match=words):
            PreDecoder.load(tmp_path / "net")
    config.write_text(json.dumps(good)[:30])
    with pytest.raises(BadInput, match="no readable"):
        PreDecoder.load(tmp_path / "net")
    with pytest.raises(BadInput, match="no readable"):
        PreDecoder.load(tmp_path / "nowhere")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("precious")
    with pytest.raises(BadInput, match="is not replaced"):
        lively().save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").read_text() == "precious"


def test_convolutions_from_elsewhere_are_taken_by_shape(tmp_path):
    network = lively()
    weights = {
        f"body.{n}.{k}": v.clone()
        for n, m in enumerate(network.modules())
        if isinstance(m, torch.nn.Conv3d)
        for k, v in m.state_dict().items()
    }
    save_file(weights, tmp_path / "theirs.safetensors")
    experiment = SurfaceMemory(3, 1)
    detectors, _ = experiment.sample(20, 0)
    taken = load_convolutions(tmp_path / "theirs.safetensors")
    torch.testing.assert_close(taken.logits(detectors, experiment.layout), network.logits(detectors, experiment.layout))
    save_file({"a": torch.zeros(3)}, tmp_path / "none.safetensors")
    with pytest.raises(BadInput, match="holds no stack"):
        load_convolutions(tmp_path / "none.safetensors")


def test_a_pickled_network_leaves_its_circuits_behind():
    network = PreDecoder((4,)).fit(SurfaceMemory(3, 1), shots=32, batch=32)
    assert pickle.loads(pickle.dumps(network)).experiment is None
    assert network.experiment is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_answers_like_the_cpu():
    experiment = SurfaceMemory(5, 5)
    detectors, _ = experiment.sample(64, 0)
    network = lively((16, 16))
    here = network.logits(detectors, experiment.layout)
    there = network.to("cuda").logits(detectors, experiment.layout).cpu()
    torch.testing.assert_close(there, here, atol=2e-3, rtol=2e-3)
    labels = experiment.sample_labels(64, 0, canonical=False)
    moved, stayed = labels.to("cuda").canonical(experiment.layout).to("cpu"), labels.canonical(experiment.layout)
    assert torch.equal(moved.data, stayed.data)
    assert torch.equal(moved.measured, stayed.measured)
