"""One learner for all algorithms: adapt a model to tasks, and differentiate through it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from learned_optim import Rule, RuleState, Tensors, Unrolled, differentiable_twice, meta_loss, unroll
from meta_init.compiled import CompiledGradient
from meta_init.normalisation import norms_by, norms_with_statistics
from meta_init.tasks import Batch, Inputs, Task, as_tasks, check_batch, check_labels, count_tasks, supervised_loss

Objective = Callable[[Tensors, Tensors, Tensor], Tensor]
"""``objective(theta_0, theta_K, query_loss)``: what one task contributes to the outer loss."""

STRATEGIES = ("auto", "vmap", "loop")

_LOOP_ABOVE_IMAGES = 32
"""On CPU a batched convolution with weights per task loses against a loop above about so many images per task."""

_LOOP_ABOVE_PARAMETERS = 500_000
"""On CPU weights per task no longer stay in the cache above about so many; a loop's overhead is small beside them."""


def query_objective(initial: Tensors, adapted: Tensors, query_loss: Tensor) -> Tensor:
    """The query loss at theta_K: the objective of MAML and Meta-SGD."""
    return query_loss


def trainable(model: nn.Module, adapts: str | Sequence[str] = "*") -> Tensors:
    """The parameters that adapt, by name: those that require a gradient and match one of the patterns.

    Raises:
        ValueError: There is none.
    """
    patterns = [adapts] if isinstance(adapts, str) else list(adapts)
    learned = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not learned:
        raise ValueError("MetaLearner: the model has no parameter that requires a gradient, so nothing can adapt")
    chosen: Tensors = {n: param for n, param in learned.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}
    if not chosen:
        raise ValueError(f"MetaLearner: no parameter matches adapts={adapts!r}; there are {list(learned)}")
    return chosen


class Evaluation(NamedTuple):
    """How adaptation goes on each task.

    Attributes:
        losses: Query loss after 0, 1, ..., S steps, shape (T, S + 1).
        accuracies: Share of right query labels, likewise, or None where targets are no labels.
    """

    losses: Tensor
    accuracies: Tensor | None


class Adapted:
    """A model that has been adapted to one task.

    Attributes:
        params: theta_K of the trainable parameters, by name.
        losses: Support loss before each step, shape (K,).
    """

    def __init__(self, learner: MetaLearner, params: Tensors, losses: Tensor) -> None:
        self._learner = learner
        self.params = params
        self.losses = losses

    def __call__(self, x: Inputs) -> Any:
        """The adapted model's output for inputs x of shape (N, ...), without a graph; `module` has one."""
        with _adaptable(self._learner.model), torch.no_grad():
            return self._learner.predict(self.params, _cloned(self._learner.model), x)

    def module(self) -> nn.Module:
        """The adapted network as a plain module of its own; its norms go on to use the statistics of their batch."""
        # Outside inference mode, whose tensors could not be trained any further.
        with torch.inference_mode(False), torch.no_grad():
            module = copy.deepcopy(self._learner.model)
            own = dict(module.named_parameters())
            for name, value in self.params.items():
                own[name].copy_(value)
        for norm in norms_with_statistics(module):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        return module


class MetaLearner(nn.Module):
    """Adapts a model to tasks with an inner rule, and learns where to start and, with some rules, how to step.

    For each task, theta_0 = the model's trainable parameters and theta_{k+1} = theta_k + u_k with u_k from ``rule`` and
    the gradient of the support loss. ``outer_loss`` is the mean over tasks of ``objective(theta_0, theta_K, query
    loss)``; an ordinary optimizer over ``parameters()`` minimises it::

        loss, logs = learner.outer_loss(tasks)
        loss.backward()

    Frozen parameters and buffers do not adapt, and parameters outside ``adapts`` are learned but stay the same for all
    tasks. Batch and instance norm always use the statistics of the batch at hand, as the papers do, in training and
    evaluation mode, and running statistics are left alone; Dropout follows ``train()`` / ``eval()`` and draws anew for
    each task. Attention uses its mathematical form, which has second derivatives.

    Args:
        model: Any module; it is held, not copied.
        rule: The inner rule.
        loss: Of prediction and target.
        steps: K >= 1 inner steps.
        first_order: Treats inner gradients as constants.
        objective: What a task contributes to the outer loss.
        adapts: Patterns of the names of the parameters that adapt, as in the shell: ``"head.*"`` for ANIL.
        minibatches: In ``outer_loss`` step k sees every K-th example of the support set, beginning at the k-th, so that
            the steps share it out among them, as in Reptile's experiments. Otherwise, and in `evaluate` and `adapt`
            always, each step sees the whole set.
        step_weights: K numbers w: the query loss becomes sum_k w_k L_query(theta_k), k = 1..K (multi-step loss). By
            default it is that of theta_K alone.
        strategy: ``"vmap"``: all tasks at once; ``"loop"``: one after the other, for models that vmap cannot batch;
            ``"auto"``: a loop for a single task, for recurrent layers, and on CPU where it is faster: for convolutions
            with more than 32 images per task, and for more than 500,000 parameters that adapt; vmap otherwise. Lists of
            tasks of different sizes are always looped over.
        compile: Computes value and gradient of ``outer_loss`` by one function that is traced and compiled for the first
            tasks of each size, which takes seconds to minutes; ``compiled.seconds`` tells. Results are those of
            ``compile=False`` within rounding; the gradient cannot be differentiated any further. `evaluate` and `adapt`
            are not compiled. Without a compiler the traced graph itself is run, with a warning.
        flat_memory: Recomputes inner steps in the backward pass, ten at a time, so that memory grows with K by what is
            kept between these alone; another number than ten for a number; see `unroll`. Not with ``compile``,
            which would undo it, nor with ``step_weights``, for which all query losses are kept.

    Raises:
        ValueError: Nothing to adapt, ``steps`` below 1, weights of another number than K, an unknown strategy, or
            options that exclude each other.

    Source: multi-step loss: Antoniou et al. 2019 (MAML++), section 4.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        *,
        loss: Callable[[Any, Tensor], Tensor] = supervised_loss,
        steps: int = 1,
        first_order: bool = False,
        objective: Objective = query_objective,
        adapts: str | Sequence[str] = "*",
        minibatches: bool = False,
        step_weights: Sequence[float] | None = None,
        strategy: str = "auto",
        compile: bool = False,
        flat_memory: bool | int = False,
    ) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"MetaLearner: steps must be a whole number >= 1, got {steps!r}")
        if strategy not in STRATEGIES:
            raise ValueError(f"MetaLearner: unknown strategy {strategy!r}; there are {STRATEGIES}")
        if compile and flat_memory:
            raise ValueError("MetaLearner: compile and flat_memory exclude each other; take one of them")
        trainable(model, adapts)
        self.flat_memory = flat_memory
        self.model = model
        self.rule = rule
        self.loss = loss
        self.steps = steps
        self.first_order = first_order
        self.objective = objective
        self.adapts = adapts
        self.minibatches = minibatches
        # A buffer, so that new values need no new graph where the gradient is compiled.
        self.register_buffer("_step_weights", None, persistent=False)
        self._step_weights: Tensor | None
        self.step_weights = step_weights
        self.strategy = strategy
        self.compiled = CompiledGradient() if compile else None

    @property
    def step_weights(self) -> Sequence[float] | None:
        """What the query loss after each inner step counts for; None where that of the last one is all."""
        return None if self._step_weights is None else list(self._step_weights.tolist())

    @step_weights.setter
    def step_weights(self, weights: Sequence[float] | None) -> None:
        if weights is not None and len(weights) != self.steps:
            raise ValueError(f"MetaLearner: step_weights must hold {self.steps} numbers, one a step, got {weights}")
        if weights is not None and self.flat_memory:
            raise ValueError("MetaLearner: step_weights keep every step's query loss; they need flat_memory=False")
        self._step_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """What is learned: the model's trainable parameters and the rule's."""
        return ((name, p) for name, p in super().named_parameters(*args, **kwargs) if p.requires_grad)

    def requires_grad_(self, requires_grad: bool = True) -> MetaLearner:
        """Switches all parameters of model and rule, the frozen ones included, as any module does."""
        self.model.requires_grad_(requires_grad)
        self.rule.requires_grad_(requires_grad)
        return self

    def outer_loss(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and what to log.

        Args:
            tasks: Stacked tasks, or a list of single ones whose sizes may differ.

        Returns:
            The mean over tasks of the objective, and detached means over tasks: ``support_loss`` and
            ``query_loss_before`` at theta_0, ``query_loss`` at theta_K (or weighted), and at theta_K ``accuracy`` where
            targets are labels.

        Raises:
            ValueError: Shapes that do not fit; the message names the part.
            RuntimeError: vmap cannot batch the model, or ``compile`` cannot trace it; the message says what to do.
        """
        tasks = as_tasks(tasks)
        count_tasks(tasks)
        if self.compiled is not None and torch.is_grad_enabled():
            return self.compiled(self, tasks)
        return self.forward(tasks)

    def forward(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, dict[str, Tensor]]:
        """`outer_loss`, never compiled."""
        values, logs = self._over_tasks(self._task_loss, tasks)
        return values.mean(), {name: value.detach().mean() for name, value in logs.items()}

    def adapt(self, support: Batch, steps: int | None = None) -> Adapted:
        """Adapts to one task. The result carries no graph; it works under ``no_grad`` and ``inference_mode`` too.

        Args:
            support: One task's examples, without a task axis.
            steps: Inner steps, K by default, 0 for none.

        Raises:
            ValueError: A negative ``steps``, or x and y that differ in their number of examples.
        """
        check_batch(support, "support")
        with torch.no_grad(), _adaptable(self.model):
            initial = self._initial()
            state = self.rule.init_state(initial)
            unrolled = self._unroll(initial, state, [support] * self._steps(steps), _cloned(self.model))
        return Adapted(self, {name: value.detach() for name, value in unrolled.params.items()}, unrolled.losses)

    def evaluate(self, tasks: Task | Sequence[Task], steps: int | None = None) -> Evaluation:
        """Query losses before adaptation and after each of ``steps`` inner steps (K by default); carries no graph.

        Raises:
            ValueError: Shapes that do not fit, or a label that the query set has and the support set has not.
        """
        steps, tasks = self._steps(steps), as_tasks(tasks)
        count_tasks(tasks)
        check_labels(tasks)
        with torch.no_grad():
            losses, logs = self._over_tasks(lambda task, buffers: self._task_curve(task, buffers, steps), tasks)
        return Evaluation(losses, logs.get("accuracy"))

    def predict(self, params: Tensors, buffers: Tensors, x: Inputs) -> Any:
        """The model's output with ``params`` and ``buffers`` in place of its own."""
        args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
        with differentiable_twice.where_needed():
            return functional_call(self.model, (params, buffers), args, kwargs)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, first_order={self.first_order}, strategy={self.strategy!r}"

    # One task

    def _initial(self) -> Tensors:
        return trainable(self.model, self.adapts)

    def _task_loss(self, task: Task, buffers: Tensors) -> tuple[Tensor, dict[str, Tensor]]:
        initial = self._initial()
        state = self.rule.init_state(initial)
        support_losses, query_losses = [], []
        params = initial
        batches = self._batches(task.support)
        # With weights the query is looked at after each step, else after all of them.
        stages = [batches] if self._step_weights is None else [[batch] for batch in batches]
        for stage in stages:
            params, state, losses = self._unroll(params, state, stage, buffers)
            support_losses.append(losses)
            prediction = self.predict(params, _copies(buffers), task.query.x)
            query_losses.append(self.loss(prediction, task.query.y))
        query_loss = meta_loss(torch.stack(query_losses), self._step_weights)
        with torch.no_grad():
            before = self.loss(self.predict(initial, _copies(buffers), task.query.x), task.query.y)
        logs = {"support_loss": support_losses[0][0], "query_loss_before": before, "query_loss": query_loss}
        return self.objective(initial, params, query_loss), logs | _accuracy(prediction, task.query.y)

    def _task_curve(self, task: Task, buffers: Tensors, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        params = self._initial()
        state = self.rule.init_state(params)
        losses, logs = [], []
        for k in range(steps + 1):
            if k:
                params, state, _ = self._unroll(params, state, [task.support], buffers)
            prediction = self.predict(params, _copies(buffers), task.query.x)
            losses.append(self.loss(prediction, task.query.y))
            logs.append(_accuracy(prediction, task.query.y))
        return torch.stack(losses), {name: torch.stack([log[name] for log in logs]) for name in logs[0]}

    def _batches(self, support: Batch) -> list[Batch]:
        """What each inner step of a training sees."""
        if not self.minibatches:
            return [support] * self.steps
        if len(support.y) < self.steps:
            raise ValueError(
                f"MetaLearner: {self.steps} steps cannot share out a support set of {len(support.y)} examples; take "
                "more examples, fewer steps or minibatches=False"
            )
        return [tree_map(lambda leaf, k=k: leaf[k :: self.steps], support) for k in range(self.steps)]

    def _unroll(self, params: Tensors, state: RuleState, batches: list[Batch], buffers: Tensors) -> Unrolled:
        """One step on each of the batches."""

        def loss(theta: Tensors, batch: Batch) -> Tensor:
            # What is recomputed is so when the context around all tasks has been left.
            with _adaptable(self.model) if self.flat_memory else nullcontext():
                value: Tensor = self.loss(self.predict(theta, _copies(buffers), batch.x), batch.y)
            return value

        steps = len(batches)
        return unroll(
            self.rule,
            loss,
            params,
            state,
            steps=steps,
            batches=batches,
            first_order=self.first_order,
            flat_memory=self.flat_memory,
        )

    def _steps(self, steps: int | None) -> int:
        if steps is None:
            return self.steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"MetaLearner: steps must be a whole number >= 0, got {steps!r}")
        return steps

    # All tasks

    def _over_tasks(
        self, one: Callable[[Task, Tensors], tuple[Tensor, dict[str, Tensor]]], tasks: Task | Sequence[Task]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tasks = as_tasks(tasks)
        count = count_tasks(tasks)
        with _adaptable(self.model):
            if isinstance(tasks, Task) and self._vectorised(tasks):
                # Every task gets buffers of its own to write to.
                buffers = {n: b.expand(count, *b.shape) for n, b in self.model.named_buffers()}
                try:
                    return torch.vmap(one, randomness="different")(tasks, buffers)
                except RuntimeError as error:
                    # An error that a single task makes too is not vmap's, and says more by itself.
                    one(_unstacked(tasks, count)[0], dict(self.model.named_buffers()))
                    raise RuntimeError(
                        f"vmap cannot run {type(self.model).__name__} on all tasks at once; use strategy='loop'. "
                        f"It said: {error}"
                    ) from error
            single = _unstacked(tasks, count) if isinstance(tasks, Task) else tasks
            results = [one(task, dict(self.model.named_buffers())) for task in single]
        logs = {name: torch.stack([log[name] for _, log in results]) for name in results[0][1]}
        return torch.stack([value for value, _ in results]), logs

    def _vectorised(self, tasks: Task) -> bool:
        if self.strategy != "auto":
            return self.strategy == "vmap"
        if len(tasks.support.y) == 1:
            return False
        modules = list(self.model.modules())
        if any(isinstance(module, nn.RNNBase) for module in modules):
            return False
        if tasks.support.y.device.type != "cpu":
            return True
        if sum(param.numel() for param in self._initial().values()) > _LOOP_ABOVE_PARAMETERS:
            return False
        convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in modules)
        images = max(tasks.support.y.shape[1], tasks.query.y.shape[1])
        return not (convolutional and images > _LOOP_ABOVE_IMAGES)


def _unstacked(tasks: Task, count: int) -> list[Task]:
    """Stacked tasks as a list of single ones."""
    return [tree_map(lambda leaf, i=i: leaf[i], tasks) for i in range(count)]


def _accuracy(prediction: Any, target: Tensor) -> dict[str, Tensor]:
    # Logits (K, C) with labels (K,), or (K, C, ...) with (K, ...), have one; the forms of other losses have not.
    logits = isinstance(prediction, Tensor) and prediction.dim() >= 2 and prediction.shape[1] > 1
    if target.is_floating_point() or not logits or prediction.argmax(dim=1).shape != target.shape:
        return {}
    return {"accuracy": (prediction.argmax(dim=1) == target).float().mean()}


def _copies(buffers: Tensors) -> Tensors:
    # A module may write its buffers in place, which torch.func cannot follow on tensors from outside.
    return {name: value.clone() for name, value in buffers.items()}


def _cloned(model: nn.Module) -> Tensors:
    return _copies(dict(model.named_buffers()))


@contextmanager
def _adaptable(model: nn.Module) -> Iterator[None]:
    """Lets every layer be differentiated twice: norms by their batch, attention in its mathematical form."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with norms_by(model, batch=True), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
