"""The meta-learning algorithms, each a choice of slots of one `MetaLearner`.

| algorithm         | inner rule      | inner gradient | outer objective                       | learns         |
|-------------------|-----------------|----------------|---------------------------------------|----------------|
| MAML              | SGD             | exact          | query loss at theta_K                 | theta_0        |
| FOMAML            | SGD             | first order    | query loss at theta_K                 | theta_0        |
| Meta-SGD          | MetaSGD         | exact          | query loss at theta_K                 | theta_0, alpha |
| Reptile           | SGD             | first order    | gradient theta_0 - theta_K            | theta_0        |
| ANIL              | SGD on the head | exact          | query loss at theta_K                 | theta_0        |
| MAML++            | LSLR            | exact          | query losses at theta_1, ..., theta_K | theta_0, alpha |
| Meta-learner LSTM | MetaLearnerLSTM | first order    | query loss at theta_K                 | theta_0, phi   |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

from learned_optim import AdamRule, LSLRRule, MetaLearnerLSTMRule, MetaSGDRule, SGDRule, Tensors
from meta_init.learner import MetaLearner, trainable

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """What every algorithm hands on to `MetaLearner`.

    Attributes:
        loss: Of prediction and target; by default `supervised_loss`.
        strategy: How tasks are batched.
        compile: Whether the meta-gradient is compiled as one function.
        flat_memory: Whether inner steps are recomputed in the backward pass.
    """

    loss: Callable[[Any, Tensor], Tensor]
    strategy: str
    compile: bool
    flat_memory: bool | int


def reptile_objective(initial: Tensors, adapted: Tensors, query_loss: Tensor) -> Tensor:
    """1/2 ||theta_0 - theta_K||^2 with theta_K held constant: a loss whose gradient is theta_0 - theta_K.

    Source: Nichol et al. 2018, algorithm 1.
    """
    return 0.5 * sum(
        ((theta - adapted[name].detach()).square().sum() for name, theta in initial.items()), query_loss.new_zeros(())
    )


def maml(
    model: nn.Module,
    *,
    lr: float,
    steps: int = 1,
    first_order: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """Model-agnostic meta-learning: an initialisation from which a few gradient steps fit a new task.

    min over theta_0 of the mean over tasks of L_query(theta_K), theta_{k+1} = theta_k - lr grad L_support(theta_k).

    Args:
        model: Any module; it is held and trained in place.
        lr: Inner step size (alpha in the paper).
        steps: K, inner steps.
        first_order: Leaves out second derivatives (FOMAML).
        options: See `Options`.

    Source: Finn et al. 2017, algorithm 1. The paper sums over tasks, here it is their mean.
    """
    return MetaLearner(model, SGDRule(lr), steps=steps, first_order=first_order, **options)


def fomaml(model: nn.Module, *, lr: float, steps: int = 1, **options: Unpack[Options]) -> MetaLearner:
    """First-order MAML: the meta-gradient is the query gradient at theta_K. Finn et al. 2017, section 5.2."""
    return maml(model, lr=lr, steps=steps, first_order=True, **options)


def meta_sgd(
    model: nn.Module,
    *,
    lr: float | Sequence[float],
    steps: int = 1,
    first_order: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """Meta-SGD: learns an initialisation together with a rate for every coordinate.

    theta_{k+1} = theta_k - alpha o grad L_support(theta_k).

    Args:
        model: Any module; it is held and trained in place.
        lr: First value of the rates alpha, or a range to draw them from (the paper: ``(0.005, 0.1)``).
        steps: K, inner steps (the paper: 1).
        first_order: Leaves out second derivatives.
        options: See `Options`.

    Source: Li et al. 2017, algorithm 1.
    """
    rule = MetaSGDRule(trainable(model), lr)
    return MetaLearner(model, rule, steps=steps, first_order=first_order, **options)


def reptile(
    model: nn.Module,
    *,
    lr: float,
    steps: int = 5,
    rule: str = "sgd",
    minibatches: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """Reptile: moves the initialisation towards the weights that adaptation ends at.

    Only the support sets are learned from. With an outer SGD of learning rate epsilon this is the paper's algorithm 2.

    Args:
        model: Any module; it is held and trained in place.
        lr: Inner learning rate.
        steps: K, inner steps in training.
        rule: The inner optimizer: ``"sgd"``, or ``"adam"`` without momentum (betas 0 and 0.999) as in the paper's
            experiments.
        minibatches: Each inner step of a training sees another part of the support set, as in the paper's experiments,
            which train on more examples of a class than they test with. What Reptile learns beyond joint training comes
            from agreement between the steps' batches (section 5): where all are the same few examples there is little.
        options: See `Options`.

    Raises:
        ValueError: An unknown ``rule``, or see `MetaLearner`.

    Source: Nichol et al. 2018. Deviations: Adam's averages begin anew with each task, where the authors' code carries
    them on; the parts of the support set are each K-th example, where theirs are drawn.
    """
    if rule not in ("sgd", "adam"):
        raise ValueError(f"reptile: rule must be 'sgd' or 'adam', got {rule!r}")
    inner = SGDRule(lr) if rule == "sgd" else AdamRule(lr, betas=(0.0, 0.999))
    return MetaLearner(
        model,
        inner,
        steps=steps,
        first_order=True,
        objective=reptile_objective,
        minibatches=minibatches,
        **options,
    )


def anil(
    model: nn.Module,
    *,
    lr: float,
    steps: int = 5,
    head: str | Sequence[str] | None = None,
    first_order: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """Almost no inner loop: MAML whose inner steps move the head only; the body is learned across tasks.

    Args:
        model: Any module; it is held and trained in place.
        lr: Inner step size.
        steps: K, inner steps.
        head: Patterns of the head's parameter names; by default those of the last module that has parameters.
        first_order: Leaves out second derivatives.
        options: See `Options`.

    Raises:
        ValueError: ``head`` matches no parameter, or see `MetaLearner`.

    Source: Raghu et al. 2020, section 4.
    """
    if head is None:
        module = list(trainable(model))[-1].rpartition(".")[0]
        head = f"{module}.*" if module else "*"
    return MetaLearner(model, SGDRule(lr), steps=steps, first_order=first_order, adapts=head, **options)


def maml_plus_plus(
    model: nn.Module,
    *,
    lr: float,
    steps: int = 5,
    first_order: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML with learned rates per layer and step, and the query loss after every step.

    The weights of the steps begin equal; ``learner.step_weights = None`` leaves the last step alone, and
    ``learner.first_order`` may be switched at any time: `lightning_modules.MAMLModule` anneals both.

    Args:
        model: Any module; it is held and trained in place.
        lr: First value of the rates.
        steps: K, inner steps.
        first_order: Leaves out second derivatives.
        options: See `Options`.

    Source: Antoniou et al. 2019, section 4. Deviation: batch norm uses the statistics of its batch and one scale and
    shift for all steps, so BNRS and BNWB are left out.
    """
    rule = LSLRRule(trainable(model), lr, steps)
    weights = [1 / steps] * steps
    return MetaLearner(model, rule, steps=steps, first_order=first_order, step_weights=weights, **options)


def meta_learner_lstm(
    model: nn.Module,
    *,
    lr: float | None = None,
    steps: int = 5,
    first_order: bool = True,
    **options: Unpack[Options],
) -> MetaLearner:
    """The meta-learner LSTM: learns an initialisation together with the optimizer that leaves from it.

    Memory grows with tasks, steps and 20 units per parameter of the model: take few tasks at once.

    Args:
        model: Any module; it is held and trained in place.
        lr: Where the rule's rate starts, in (0, 1), as sigma(b_I); by default drawn as in the authors' code, near 0.01.
        steps: K, inner steps (the authors' code: 12 for one example of each class, 5 for five).
        first_order: Treats inner gradients as constants, as the paper does.
        options: See `Options`.

    Raises:
        ValueError: ``lr`` is out of range.

    Source: Ravi & Larochelle 2017; see `MetaLearnerLSTMRule`.
    """
    rule = MetaLearnerLSTMRule()
    if lr is not None:
        if not 0 < lr < 1:
            raise ValueError(f"meta_learner_lstm: lr must be in (0, 1), got {lr}")
        with torch.no_grad():
            rule.gate_bias[0] = math.log(lr / (1 - lr))
    return MetaLearner(model, rule, steps=steps, first_order=first_order, **options)


ALGORITHMS: dict[str, Callable[..., MetaLearner]] = {
    "maml": maml,
    "fomaml": fomaml,
    "meta_sgd": meta_sgd,
    "reptile": reptile,
    "anil": anil,
    "maml_plus_plus": maml_plus_plus,
    "meta_learner_lstm": meta_learner_lstm,
}
"""The algorithms by name."""
