"""Optimizers of others, each with one unusual habit."""

import torch


class Plain(torch.optim.Optimizer):
    """A gradient step, by the book."""

    def __init__(self, params, lr=0.1, **options):
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, group)
        return loss

    def update(self, param, group):
        param.sub_(param.grad, alpha=float(group["lr"]))


class Counting(Plain):
    """A user's subclass that keeps records and a reference to the model."""

    def __init__(self, params, lr=0.1, model=None):
        super().__init__(params, lr)
        self.model, self.calls, self.log = model, 0, []

    def step(self, closure=None):
        self.calls += 1
        self.log.append(self.param_groups[0]["lr"])
        return super().step(closure)


class Noisy(Plain):
    def update(self, param, group):
        super().update(param, group)
        param.add_(torch.randn_like(param), alpha=group["lr"] ** 0.5)


class NeedsClosure(Plain):
    def step(self, closure):
        return super().step(closure)


class Averaging(Plain):
    """The model is used with the average of all weights so far."""

    def update(self, param, group):
        state = self.state[param]
        state["k"] = state.get("k", 0) + 1
        z = state.setdefault("z", param.clone())
        z.sub_(param.grad, alpha=group["lr"])
        param.lerp_(z, 1 / (state["k"] + 1))


class CountingInGroups(Plain):
    """The same average, whose weights are counted in the groups and so travel in checkpoints."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr, total=0.0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["calls"] = group.get("calls", 0) + 1
            group["total"] += 1.0
        return super().step(closure)

    def update(self, param, group):
        z = self.state[param].setdefault("z", param.clone())
        z.sub_(param.grad, alpha=group["lr"])
        param.lerp_(z, 1 / (max(group["total"], group["calls"]) + 1))


class FromTheStart(Plain):
    """Dual averaging: the weights are the first ones minus the sum of all gradients."""

    def update(self, param, group):
        state = self.state[param]
        if not state:
            state.update(first=param.clone(), total=torch.zeros_like(param))
        state["total"].add_(param.grad)
        param.copy_(state["first"] - group["lr"] * state["total"])


class Master(Plain):
    """Steps are made on another copy of the weights."""

    def update(self, param, group):
        copied = self.state[param].setdefault("master", param.double().clone())
        copied.sub_(param.grad.double(), alpha=group["lr"])
        param.copy_(copied)


class TrainEval(Plain):
    """Two versions of the weights, and a step that needs one's own parameters."""

    def train(self):
        raise RuntimeError("only with all parameters")

    eval = train


class Restoring(Plain):
    """Evaluates the closure at perturbed weights and comes back before it steps."""

    def step(self, closure):
        for group in self.param_groups:
            for param in group["params"]:
                old = param.detach().clone()
                param.data.add_(0.01)
                with torch.enable_grad():
                    closure()
                param.data.copy_(old)
        return super().step()


class Estimated(Plain):
    def __init__(self, params, lr=0.1, d=1e-6):
        super().__init__(params, lr, d=d)

    def update(self, param, group):
        param.sub_(param.grad, alpha=group["d"] * group["lr"])


class OwnRate(Plain):
    def update(self, param, group):
        param.sub_(param.grad, alpha=0.01)


class Tiny(Plain):
    def update(self, param, group):
        param.sub_(param.grad, alpha=1e-7 * group["lr"])


class RoundedAway(Plain):
    """Steps of about half the distance between two numbers in single precision."""

    def update(self, param, group):
        param.sub_(param.grad, alpha=6e-5 * group["lr"])


class EveryThird(Plain):
    """Accumulates gradients itself."""

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        return super().step(closure) if self.calls % 3 == 0 else None


class Evaluated(Plain):
    """The model is evaluated with an average of its weights."""

    is_average = False

    def update(self, param, group):
        super().update(param, group)
        self.state[param].setdefault("average", param.clone()).lerp_(param, 0.05)

    def swap(self, to_average):
        if self.state and self.is_average is not to_average:
            for param, state in self.state.items():
                param.data, state["average"] = state["average"], param.data
        self.is_average = to_average

    def train(self):
        self.swap(False)

    def eval(self):
        self.swap(True)


class OwnGradients(Plain):
    """Takes the gradients from a place of its own, which hooks on the backward pass fill."""

    def update(self, param, group):
        if (gradient := self.state[param].get("gradient")) is not None:
            param.sub_(gradient, alpha=group["lr"])


class Lookahead(torch.optim.Optimizer):
    """Slow weights, which fast weights return to."""

    def __init__(self, params, lr=0.1, every=5):
        self.fast = torch.optim.Adam(params, lr=lr)
        super().__init__(self.fast.param_groups, {})
        self.param_groups, self.every, self.calls = self.fast.param_groups, every, 0

    @torch.no_grad()
    def step(self, closure=None):
        params = [param for group in self.param_groups for param in group["params"]]
        for param in params:
            self.state[param].setdefault("slow", param.clone())
        self.fast.step(closure)
        self.calls += 1
        if self.calls % self.every == 0:
            for param in params:
                param.copy_(self.state[param]["slow"].lerp_(param, 0.5))


class FewerAndFewer(Plain):
    """Each step moves the weights less far from an average, as follow-the-regularized-leader does."""

    def update(self, param, group):
        state = self.state[param]
        state["k"] = state.get("k", 0) + 1
        average = state.setdefault("average", param.clone())
        average.lerp_(param, 0.5 if state["k"] < 4 else 2 / state["k"] ** 2)
        param.copy_(average.sub_(param.grad, alpha=group["lr"]))


class UnitNorm(Plain):
    def update(self, param, group):
        super().update(param, group)
        param.div_(param.norm())


class Sharpness(Plain):
    """With a closure it comes back to the weights from before it; without one it makes a plain step."""

    def step(self, closure=None):
        if closure is None:
            return super().step()
        old = [param.detach().clone() for group in self.param_groups for param in group["params"]]
        for number in range(2):
            with torch.enable_grad():
                loss = closure()
            for param, value in zip((p for group in self.param_groups for p in group["params"]), old, strict=True):
                param.data.copy_(value + 0.01 * (1 - number))
        super().step()
        return loss


class SecondOrder(Plain):
    def update(self, param, group):
        with torch.enable_grad():
            (second,) = torch.autograd.grad(param.grad.sum(), param, retain_graph=True)
        param.sub_(param.grad / (second.abs() + 1), alpha=group["lr"])


class TwoSteps(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        params = list(params)
        super().__init__(params, {"lr": lr})
        self.base = torch.optim.SGD(params, lr=lr)

    def first_step(self):
        pass

    def second_step(self):
        self.base.step()

    def step(self, closure=None):
        self.second_step()


class FlatBuffer(Plain):
    """Keeps its momentum in a dict that only its own parameters are in, and ignores closures."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.buffers = {id(p): torch.zeros_like(p) for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(self.buffers[id(param)].mul_(0.9).add_(param.grad), alpha=group["lr"])
