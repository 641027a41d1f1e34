import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, global_add_pool

from heliograph.errors import BadInput
from heliograph.graphs import GNNPlus, evaluate, fit, load_model, predict
from heliograph.graphs.core import train as module
from heliograph.graphs.core.fit import DivergenceError, one_cycle, train_supervised
from heliograph.graphs.core.tasks import load_task


def counted(count=24, seed=0):
    """Graphs whose target is their number of vertices, plus something."""
    random = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        size = int(torch.randint(2, 9, (), generator=random))
        out.append(
            Data(
                x=torch.rand(size, 2, generator=random),
                edge_index=torch.randint(size, (2, 10), generator=random),
                y=torch.tensor([size * 10.0 + 500]),
            )
        )
    return out


def small(seed=0, **options):
    torch.manual_seed(seed)
    return GNNPlus(1, in_dim=2, layers=2, hidden=8, pe=None, pool="sum", **options)


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_a_model_learns_and_answers_in_the_unit_of_the_target():
    graphs = counted(40)
    fitted = fit(small(), graphs[:30], graphs[30:], epochs=30, batch_size=8, learning_rate=0.01)
    metrics = evaluate(fitted, graphs[30:])
    assert metrics.mae < 6
    assert predict(fitted, graphs[:3]).shape == (3, 1)
    assert abs(float(predict(fitted, graphs).mean()) - 550) < 30
    assert not fitted.model.training
    assert len(fitted.curve) == 30
    assert fitted.stopped == "all 30 epochs done"


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    graphs = counted()
    first, again, other = (
        weights(fit(small(dropout=0.3), graphs, epochs=2, batch_size=8, seed=seed).model) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fit(small(), counted(), epochs=1, seed=3)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path):
    graphs = counted()
    options = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01}
    whole = fit(small(dropout=0.2), graphs[:16], graphs[16:], **options)

    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(small(dropout=0.2), graphs[:16], graphs[16:], folder=tmp_path, watch=stop, **options)
    resumed = fit(small(seed=9, dropout=0.2), graphs[:16], graphs[16:], folder=tmp_path, resume=True, **options)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert [r.train_loss for r in resumed.curve] == [r.train_loss for r in whole.curve]
    assert resumed.best_epoch == whole.best_epoch


def test_the_weights_of_the_best_epoch_are_kept():
    graphs = counted()
    seen = {}

    def watch(record):
        seen[record.epoch] = (record.valid_loss, weights(model).clone())

    model = small()
    fitted = fit(model, graphs[:16], graphs[16:], epochs=8, batch_size=4, learning_rate=0.3, watch=watch)
    best = min(seen, key=lambda epoch: seen[epoch][0])
    assert fitted.best_epoch == best
    assert torch.equal(weights(fitted.model), seen[best][1])


def test_training_stops_early_and_says_why():
    graphs = counted()
    torch.manual_seed(0)
    noise = [Data(x=g.x, edge_index=g.edge_index, y=torch.randn(1)) for g in graphs]
    fitted = fit(small(), noise[:16], noise[16:], epochs=60, learning_rate=0.05, patience=2)
    assert len(fitted.curve) < 60
    assert fitted.stopped == "no better validation loss for 2 epochs"


def test_mixed_precision_trains():
    fitted = fit(small(), counted(), epochs=2, precision="bf16")
    assert all(math.isfinite(record.train_loss) for record in fitted.curve)
    assert next(fitted.model.parameters()).dtype == torch.float32


def test_any_module_of_pyg_trains_too():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = GCNConv(2, 8), nn.Linear(8, 1)

        def forward(self, data):
            return self.out(global_add_pool(self.conv(data.x, data.edge_index).relu(), data.batch))

    fitted = fit(Plain(), counted(), epochs=2)
    with pytest.raises(BadInput, match="state_dict"):
        fitted.save("/tmp/never")


@pytest.mark.parametrize("name", ["minesweeper", "sbm.cluster"])
def test_vertex_tasks_train(name):
    task = load_task(name, train=4, valid=2, test=2)
    model = GNNPlus(**task.inputs(), layers=2, hidden=32, pool=None)
    fitted = fit(model, task.train, task.valid, task.target, epochs=1, batch_size=2)
    assert 0 <= evaluate(fitted, task.test).balanced_accuracy <= 1


def test_a_model_folder_comes_back_whole(tmp_path):
    graphs = counted()
    fitted = fit(small(), graphs[:16], graphs[16:], epochs=2)
    folder = tmp_path / "models" / "mine"
    fitted.save(folder)
    again = load_model(folder)
    assert torch.equal(predict(again, graphs), predict(fitted, graphs))
    assert (again.target, again.curve, again.best_epoch) == (fitted.target, fitted.curve, fitted.best_epoch)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.pt"]
    with pytest.raises(BadInput, match="exists already"):
        fitted.save(folder)
    fitted.save(folder, overwrite=True)
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    graphs = counted()
    first = fit(small(), graphs, epochs=1)
    first.save(tmp_path / "m")
    second = fit(small(seed=4), graphs, epochs=1)
    monkeypatch.setattr(module.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        second.save(tmp_path / "m", overwrite=True)
    monkeypatch.undo()
    assert torch.equal(predict(load_model(tmp_path / "m"), graphs), predict(first, graphs))
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["m"]


def test_what_is_no_model_is_not_overwritten_and_not_loaded(tmp_path):
    fitted = fit(small(), counted(), epochs=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(BadInput, match="no model"):
        fitted.save(tmp_path / "photos", overwrite=True)
    with pytest.raises(BadInput, match="no model folder"):
        load_model(tmp_path / "photos")
    fitted.save(tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    data = json.loads(path.read_text())
    for change in ({"model": "os:system"}, {"format": 99}):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(BadInput, match="cannot be read"):
            load_model(tmp_path / "m")
    arguments = {**data["arguments"], "hidden": 16}
    path.write_text(json.dumps({**data, "arguments": arguments}))
    with pytest.raises(BadInput, match="do not fit"):
        load_model(tmp_path / "m")


def test_divergence_names_the_step():
    graphs = counted()
    graphs[0].x[0, 0] = math.inf
    with pytest.raises(DivergenceError, match="step 1"):
        fit(small(), graphs, epochs=1, batch_size=64)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"resume": True}, "folder"),
        ({"precision": "16"}, "GPU"),
    ],
)
def test_bad_options_are_refused(options, text):
    if options.get("precision") == "16" and torch.cuda.is_available():
        pytest.skip("a GPU takes it")
    with pytest.raises(BadInput, match=text):
        fit(small(), counted(4), **options)


def test_options_are_all_documented():
    doc = module.FitOptions.__doc__
    for field in dataclasses.fields(module.FitOptions):
        assert f"``{field.name}``" in doc or f"{field.name}:" in doc or field.name in doc


def test_the_comparison_loop_trains_for_seconds_and_follows_a_schedule():
    model = nn.Linear(1, 1)
    shares = []
    history = train_supervised(
        model,
        [torch.ones(1, 1)],
        lambda m, b: m(b).square().sum(),
        seconds=0.05,
        schedule=lambda share: shares.append(share) or one_cycle(share),
        clip_value=None,
        clip_norm=1.0,
    )
    assert len(history) > 1
    assert shares == sorted(shares)
    assert shares[-1] < 1
    assert one_cycle(0.0) == pytest.approx(0.04)
    assert one_cycle(0.15) == pytest.approx(1.0)
    assert one_cycle(1.0) == pytest.approx(0.0)
