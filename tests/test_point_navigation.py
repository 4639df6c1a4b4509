"""The example of a custom loss: policy gradients through a model that acts."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from meta_init import Batch, maml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "point-navigation.json"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("point_navigation", ROOT / "docs/examples/point_navigation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(script):
    torch.manual_seed(1)
    model = script.Navigator(hidden=3).double()
    task = script.Goals(episodes=3, horizon=4).sample(1, torch.Generator().manual_seed(2))
    return model, task._replace(
        support=Batch(task.support.x.double(), task.support.y.double()),
        query=Batch(task.query.x.double(), task.query.y.double()),
    )


def scores(model, params, noise, goal):
    """Pairs of advantage and log pi(a_t | s_t) of all actions, one by one."""
    weights = {name[5:]: value for name, value in params.items() if name.startswith("mean.")}

    def mean(s):
        return torch.func.functional_call(model.mean, weights, s)

    sigma = params["log_sigma"].exp()
    log_probs, to_go = [], []
    for episode, end in zip(noise, goal, strict=True):
        s, own, rewards = torch.zeros(2, dtype=noise.dtype), [], []
        for draw in episode:
            a = (mean(s) + sigma * draw).detach()
            own.append(torch.distributions.Normal(mean(s), sigma).log_prob(a).sum())
            s = s + 0.1 * a.clamp(-1, 1)
            rewards.append(-float((s - end).square().sum()))
        log_probs.append(own)
        to_go.append([sum(rewards[t:]) for t in range(len(rewards))])
    count = len(to_go)
    return [
        (to_go[i][t] - sum(to_go[j][t] for j in range(count) if j != i) / (count - 1), log_probs[i][t])
        for i in range(count)
        for t in range(len(to_go[i]))
    ], sum(episode[0] for episode in to_go) / count


def derivatives(model, params, batch):
    """REINFORCE's gradient g and its derivative, sum of A (hess log pi + grad log pi grad log pi^T), one by one."""
    count = len(batch.x)
    pairs, value = scores(model, params, batch.x, batch.y)
    leaves = list(params.values())
    gradient, hessian = 0.0, 0.0
    for advantage, log_prob in pairs:
        parts = torch.autograd.grad(log_prob, leaves, create_graph=True, materialize_grads=True)
        score = torch.cat([part.flatten() for part in parts])
        rows = [torch.autograd.grad(one, leaves, retain_graph=True, materialize_grads=True) for one in score]
        second = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        gradient = gradient - advantage * score.detach() / count
        hessian = hessian - advantage * (second + score.outer(score)).detach() / count
    return -value, gradient, hessian


def flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_the_meta_gradient_is_that_of_reinforce_written_out(script, strategy):
    model, tasks = small(script)
    support, query = (Batch(part.x[0], part.y[0]) for part in tasks)
    params = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    value, gradient, hessian = derivatives(model, params, support)
    loss = script.policy_gradient_loss(model(support.x), support.y)
    loss.backward()
    assert_close(loss.item(), value)
    assert_close(flat(model), gradient)

    lr, stepped, start = 0.7, {}, 0
    for name, p in params.items():
        own = gradient[start : start + p.numel()].reshape(p.shape)
        stepped[name] = (p.detach() - lr * own).requires_grad_()
        start += p.numel()
    value, after, _ = derivatives(model, stepped, query)
    model.zero_grad()
    loss, _ = maml(model, lr=lr, loss=script.policy_gradient_loss, strategy=strategy).outer_loss(tasks)
    loss.backward()
    assert_close(loss.item(), value)
    assert_close(flat(model), after - lr * hessian @ after)
    assert float((hessian @ after).norm()) > 1e-3 * float(after.norm())


def test_an_episode_ends_at_the_goal(script):
    positions = torch.tensor([[[0.05, 0.0], [0.095, 0.0], [0.2, 0.0]]])
    reward, running = script.rewards(positions, torch.tensor([[0.1, 0.0]]))
    assert_close(reward, torch.tensor([[-0.0025, -0.000025, 0.0]]))
    assert running.tolist() == [[1.0, 1.0, 0.0]]
    assert_close(script.straight(torch.tensor([[0.2, -0.1]])), torch.tensor([-0.01]))


def test_episodes_are_pure_and_seeded(script):
    one, again = (script.Goals().sample(3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert_close(one, again, rtol=0, atol=0)
    assert one.support.x.shape == (3, 20, 20, 2)
    assert one.support.y.shape == (3, 20, 2)
    assert (one.support.y == one.query.y).all()
    assert (one.support.x != one.query.x).all()
    model = script.Navigator()
    weights, state = {name: p.clone() for name, p in model.state_dict().items()}, torch.get_rng_state()
    first, second = (model(one.support.x[0]) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert not first.positions.requires_grad
    assert (torch.get_rng_state() == state).all()
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    velocities = first.positions.diff(dim=1)
    assert velocities.abs().max() <= 0.1 + 1e-6


def test_the_policy_sees_positions_and_never_the_goal(script):
    model, noise = script.Navigator(hidden=8), torch.randn(20, 5, 2, generator=torch.Generator().manual_seed(5))
    seen = []
    handle = model.mean.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    episodes = model(noise)
    handle.remove()
    states = torch.cat([torch.zeros(20, 1, 2), episodes.positions[:, :-1]], 1)
    assert_close(seen, [*states.unbind(1), states])
    learner = maml(model, lr=0.1, loss=script.policy_gradient_loss)
    ends = [torch.tensor(goal).expand(20, 2) for goal in ([0.4, 0.4], [-0.4, -0.4])]
    before, after = ([learner.adapt(Batch(noise, end), k)(noise).positions for end in ends] for k in (0, 1))
    assert_close(before[0], before[1], rtol=0, atol=0)
    assert (after[0][:, -1] - after[1][:, -1]).mean() > 0


def test_the_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["point_navigation.py", "--iterations", "2", "--goals", "3", "--out", str(tmp_path)]
    )
    monkeypatch.setattr(script, "RATES", (0.01,))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    script.main()
    record = json.loads((tmp_path / "point-navigation.json").read_text())
    assert record["iterations"] == 2
    assert list(record["return"]) == ["MAML", "first-order MAML", "pretrained", "random"]
    assert (tmp_path / "point-navigation.png").stat().st_size > 10_000
    assert "Straight to the goal" in capsys.readouterr().out


def test_what_the_page_says_was_measured():
    page, record = (ROOT / "docs" / "custom_loss.md").read_text(), json.loads(RESULTS.read_text())
    for name, row in record["return"].items():
        cells = " | ".join(f"{mean:.2f} +- {half:.2f}" for mean, half in row)
        assert f"| {name} | {cells} |" in page, name
    assert f"gives {record['straight']:.2f}." in page
    (maml_mean, maml_half), (mean, half) = (record["return"][name][1] for name in ("MAML", "pretrained"))
    assert maml_mean - maml_half > mean + half


def test_the_code_of_the_page_runs_and_is_that_of_the_script(script):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "custom_loss.md").read_text(), flags=re.DOTALL)
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/custom_loss.md", "exec"), namespace)
    torch.manual_seed(0)
    model, noise = script.Navigator(), torch.randn(20, 20, 2)
    same = namespace["Navigator"]()
    same.load_state_dict(model.state_dict())
    far = torch.full((20, 2), 9.0)  # never reached, which the page leaves out
    assert_close(same(noise), tuple(model(noise)), rtol=0, atol=0)
    for loss, own in ((namespace["policy_gradient_loss"], same), (script.policy_gradient_loss, model)):
        loss(own(noise), far).backward()
    assert_close([p.grad for p in same.parameters()], [p.grad for p in model.parameters()])
    assert namespace["positions"].shape == (5, 20, 2)
