import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from heliograph.data.mesh import INFLOW, NORMAL, OUTFLOW, WALL, mesh_trajectory
from heliograph.errors import BadInput
from heliograph.graphs.core.fit import DivergenceError
from heliograph.graphs.mesh_transformer import MeshGraphNet, MeshSimulator, MeshTransformer, RolloutDivergence
from heliograph.graphs.mesh_transformer.normaliser import RunningNormaliser
from heliograph.graphs.mesh_transformer.supports import global_nodes, khop, random_edges
from heliograph.graphs.mesh_transformer.training import warm_cosine


def flow(wide=6, high=4, frames=8, seed=0):
    """A wave that moves over a grid of triangles; its boundary is given."""
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(wide), np.arange(high)))
    corner = (row * wide + column)[(column < wide - 1) & (row < high - 1)]
    cells = np.concatenate(
        [np.stack([corner, corner + 1, corner + wide + 1], 1), np.stack([corner, corner + wide + 1, corner + wide], 1)]
    )
    kind = np.where((row == 0) | (row == high - 1), WALL, np.where(column == 0, INFLOW, NORMAL))
    kind = np.where((column == wide - 1) & (kind == NORMAL), OUTFLOW, kind)
    shift = np.random.default_rng(seed).uniform(0, 3)
    times = 0.2 * np.arange(frames)[:, None]
    fields = np.stack([np.sin(column - times + shift), np.cos(row + times - shift)], axis=-1)
    return mesh_trajectory(np.stack([column, row], 1), cells, fields, kind, name=f"wave {seed}")


def simulator(one, model=None, **options):
    torch.manual_seed(0)
    width = one.schema.input_width(history=options.get("history", False), positions=options.get("positions", False))
    made = model or MeshTransformer(width, 2, hidden=16, layers=2, heads=2)
    return MeshSimulator(made, one.schema, **options)


HELD = (WALL, INFLOW)


def test_training_lowers_both_errors_below_those_of_a_field_that_stays():
    train, test = [flow(seed=s) for s in range(10)], [flow(seed=11)]
    made = simulator(train[0], noise_std=0.01, positions=True)
    report = made.fit(train, steps=250, batch=2, learning_rate=3e-3)
    score = made.score(test)
    assert report.steps == 250
    assert np.mean(report.losses[-20:]) < 0.3 * np.mean(report.losses[:20])
    assert score.one_step_rmse < 0.6 * score.one_step_persistence
    assert score.all_rollout_rmse < 0.6 * score.persistence_rmse
    assert len(score.by_step) == 7
    assert score.diverged == ()


@pytest.mark.parametrize("history", [False, True])
def test_the_boundary_is_true_at_every_step_and_stays_beyond_the_end(history):
    one = flow()
    made = simulator(one, history=history, positions=True, support=khop(2) | global_nodes(2))
    made.fit([one], steps=3)
    first = int(history)
    held = np.isin(one.node_type, HELD)
    frames = made.rollout(one, steps=12)
    truth = torch.from_numpy(one.fields[first + 1 :])
    assert torch.equal(frames[: len(truth), held], truth[:, held])
    assert torch.equal(frames[len(truth) :, held], truth[-1:, held].expand(12 - len(truth), -1, -1))
    assert torch.equal(frames, made.rollout(one, steps=12))


def test_a_rollout_feeds_predictions_back_with_their_own_history():
    one = flow()
    made = simulator(one, history=True)
    made.fit([one], steps=3)
    frames = made.rollout(one, steps=3, start=2)
    mesh, truth = made.mesh_of(one), torch.from_numpy(one.fields)
    before, now = truth[1], truth[2]
    with torch.no_grad():
        for number in range(3):
            ahead = torch.where(mesh.held, truth[3 + number], made.step(mesh, now, now - before))
            before, now = now, ahead
            torch.testing.assert_close(frames[number], ahead)


def test_noise_falls_on_normal_vertices_only_and_the_target_stays_clean(monkeypatch):
    one = flow()
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, edge_index):
            seen.append(x.detach().clone())
            return self.scale * x[:, :2]

    made = simulator(one, Spy(), noise_std=[0.5, 0.0])
    made.fit([one], steps=1)
    made.eval()
    _, deviation = made.input_normaliser.statistics()
    mean, _ = made.input_normaliser.statistics()
    fields = seen[0][:, :2].double() * deviation + mean
    gaps = [(fields - torch.from_numpy(frame)).abs() for frame in one.fields]
    gap = min(gaps, key=lambda g: float(g[np.isin(one.node_type, HELD)].sum()))
    normal = one.node_type == NORMAL
    assert gap[~normal].max() < 1e-5
    assert gap[normal, 0].max() > 0.1
    assert gap[:, 1].max() < 1e-5


def test_statistics_are_counted_in_training_frozen_afterwards_and_part_of_the_state():
    counted = RunningNormaliser(3)
    values = torch.tensor([[0.0, 5.0, 0.1], [2.0, 5.0, 0.1], [4.0, 5.0, 0.1]])
    counted(values)
    mean, deviation = counted.statistics()
    torch.testing.assert_close(mean, torch.tensor([2.0, 5.0, 0.1]).double(), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(deviation, torch.tensor([(8 / 3) ** 0.5, 1, 1]).double())
    counted.eval()
    counted(values * 100)
    assert torch.equal(counted.statistics()[0], mean)
    other = RunningNormaliser(3)
    other.load_state_dict(counted.state_dict())
    torch.testing.assert_close(other.eval().inverse(counted(values)), values)
    short = RunningNormaliser(1, batches=1)
    short(torch.ones(2, 1))
    short(torch.full((2, 1), 9.0))
    assert float(short.statistics()[0]) == 1.0


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    train = [flow(seed=s) for s in range(2)]
    whole = simulator(train[0], noise_std=0.1, support=random_edges(0.5))
    wanted = whole.fit(train, steps=12, seed=3)
    part = simulator(train[0], noise_std=0.1, support=random_edges(0.5))

    def stop(step, done, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fit(train, steps=12, seed=3, folder=tmp_path, save_every_s=0.0, callback=stop)
    fresh = simulator(train[0], noise_std=0.1, support=random_edges(0.5))
    report = fresh.fit(train, steps=12, seed=3, folder=tmp_path, resume=True)
    assert report.resumed_at == 4
    assert report.losses == wanted.losses
    for a, b in zip(fresh.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(BadInput, match="other trajectories"):
        fresh.fit(train[:1], steps=12, seed=3, folder=tmp_path, resume=True)
    (tmp_path / "training.pt").write_bytes(b"junk")
    with pytest.raises(BadInput, match="no state of a training run"):
        fresh.fit(train, steps=12, seed=3, folder=tmp_path, resume=True)


def test_training_stops_at_its_seconds_by_the_clock_given():
    one, now = flow(), iter(np.arange(0.0, 100.0, 1.0))
    report = simulator(one).fit([one], seconds=5.0, clock=lambda: float(next(now)))
    assert report.steps == 4
    assert report.seconds == 5.0


def test_equal_seeds_give_equal_simulators():
    one = flow()
    losses = [simulator(one, noise_std=0.1).fit([one], steps=4, seed=1).losses for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] != simulator(one, noise_std=0.1).fit([one], steps=4, seed=2).losses


def test_random_edges_are_redrawn_in_training_and_fixed_in_rollouts():
    one = flow()
    made = simulator(one, support=random_edges(1.0))
    assert not torch.equal(made.mesh_of(one, 1).support.source, made.mesh_of(one, 2).support.source)
    made.fit([one], steps=2)
    assert torch.equal(made.rollout(one), made.rollout(one))


def test_meshes_side_by_side_are_answered_as_alone():
    flows = [flow(seed=0), flow(wide=5, seed=1), flow(high=5, seed=2)]
    for kind in (MeshTransformer, MeshGraphNet):
        made = simulator(flows[0], kind(11, 2, hidden=8, layers=2))
        made.fit(flows, steps=3)
        score = made.score(flows)
        squares = [(made.rollout(one) - torch.from_numpy(one.fields[1:])).square().mean((1, 2)) for one in flows]
        assert score.all_rollout_rmse == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-5)
        assert score.by_step == pytest.approx(torch.stack(squares).mean(0).sqrt().tolist(), rel=1e-5)


class Growing(torch.nn.Module):
    """Doubles a field at every step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, edge_index):
        return x[:, :2] + 0 * self.weight


def growing(one):
    made = simulator(one, Growing())
    made.fit([one], steps=1)
    for part in (made.input_normaliser, made.change_normaliser):
        part.count.fill_(1.0), part.total.zero_(), part.squares.fill_(1.0)
    return made


def test_a_rollout_that_diverges_stops_and_names_the_step():
    one = flow(frames=20)
    with pytest.raises(RolloutDivergence, match="diverged at step") as caught:
        growing(one).rollout(one)
    stop = caught.value
    assert stop.frames.shape == (stop.step - 1, one.num_vertices, 2)
    assert 3 <= stop.step <= 5
    assert stop.value > stop.limit
    assert stop.frames.isfinite().all()
    again = pickle.loads(pickle.dumps(stop))
    assert again.step == stop.step


def test_a_diverged_rollout_is_scored_with_its_last_frame_and_spares_the_others():
    one = flow(frames=20)
    still = replace(one, fields=np.zeros_like(one.fields))
    score = growing(one).score([still, one])
    assert [number for number, _ in score.diverged] == [1]
    assert np.isfinite(score.all_rollout_rmse)
    step = score.diverged[0][1]
    with pytest.raises(RolloutDivergence) as caught:
        growing(one).rollout(one)
    assert caught.value.step == step


def test_a_model_that_gives_no_number_diverges_at_the_first_step():
    one = flow()
    made = growing(one)
    made.change_normaliser.total.fill_(torch.nan)
    with pytest.raises(RolloutDivergence) as caught:
        made.rollout(one)
    assert caught.value.step == 1


def test_a_simulator_comes_back_from_its_folder_whole_or_not_at_all(tmp_path):
    one = flow()
    for number, kind in enumerate((MeshTransformer, MeshGraphNet)):
        made = simulator(one, kind(11, 2, hidden=8, layers=1), noise_std=0.02, support=khop(2) | global_nodes(1))
        made.fit([one], steps=3)
        folder = tmp_path / str(number)
        made.save(folder)
        again = MeshSimulator.load(folder)
        assert torch.equal(again.rollout(one), made.rollout(one))
        assert (again.support, again.noise_std, again.schema) == (made.support, made.noise_std, made.schema)
        with pytest.raises(BadInput, match="exists already"):
            made.save(folder)
        made.save(folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    (tmp_path / "0" / "weights.pt").write_bytes(b"cut")
    with pytest.raises(BadInput, match="no simulator"):
        MeshSimulator.load(tmp_path / "0")
    with pytest.raises(BadInput, match="cannot be rebuilt"):
        growing(one).save(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    (tmp_path / "1" / "weights.pt").unlink()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not overwritten"):
        made.save(tmp_path / "2", overwrite=True)


def test_bad_input_is_refused_before_work_starts():
    one = flow()
    other = replace(one, names=("u", "v"))
    trained = simulator(one)
    trained.fit([one], steps=1)
    for call, message in (
        (lambda: simulator(one, MeshTransformer(5, 2)), "maps 5 channels"),
        (lambda: simulator(one, noise_std=-1.0), "noise_std"),
        (lambda: simulator(one, noise_std=[0.1]), "noise_std"),
        (lambda: simulator(one, loss_types=()), "loss_types"),
        (lambda: simulator(one).rollout(one), "not trained"),
        (lambda: simulator(one).score([one]), "not trained"),
        (lambda: simulator(one).fit([], steps=1), "no trajectories"),
        (lambda: simulator(one).fit([other], steps=1), "has MeshSchema"),
        (lambda: simulator(one).fit([one]), "steps or seconds"),
        (lambda: simulator(one).fit([one], steps=1, seconds=1.0), "steps or seconds"),
        (lambda: simulator(one).fit([one], steps=1, resume=True), "folder"),
        (lambda: simulator(one, loss_types=(2,)).fit([one], steps=1), "no vertex of the types"),
        (lambda: trained.rollout(one, start=8), "start must lie"),
        (lambda: trained.rollout(one, steps=0), "1 step or more"),
    ):
        with pytest.raises(BadInput, match=message):
            call()


def test_a_loss_that_is_no_number_ends_training_without_an_update():
    one = flow()
    made = simulator(one)
    with torch.no_grad():
        next(made.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError, match="step 1"):
        made.fit([one], steps=2)


def test_the_rate_rises_falls_and_keeps_a_floor():
    rates = [warm_cosine(share, 0.1) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert rates == pytest.approx([1e-3, 0.5, 1.0, 0.5, 1e-3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_simulator_steps_on_a_gpu_as_on_a_cpu():
    one = flow()
    made = simulator(one, support=khop(2))
    made.fit([one], steps=3)
    here = made.rollout(one)
    torch.testing.assert_close(made.cuda().rollout(one), here, atol=1e-4, rtol=1e-3)
