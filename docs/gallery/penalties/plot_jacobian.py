r"""
Jacobian: outputs that change slowly with the inputs
====================================================

Jacobian penalizes the derivatives of a model's outputs with respect to its inputs.

.. math::

    R &= \frac{s}{2} \operatorname*{mean}_i \, \lVert J_i \rVert_F^2 \\
    J_i &= \frac{\partial z_i}{\partial x_i}

for the input :math:`x_i` and the outputs :math:`z_i` of example :math:`i`. By default the norm
is estimated by one random projection, for one more backward pass.

**Take Jacobian** for outputs that do not follow the noise of the inputs: smooth functions,
classifiers that stand small perturbations.

**Do not take Jacobian** where outputs must jump, or for models that take tokens: there it needs
the part after the embedding.

**Source:** Judy Hoffman, Daniel A. Roberts, Sho Yaida, "Robust Learning with Jacobian
Regularization", 2019. **Reference:** :class:`torchreg.Jacobian`.
"""

import pictures
import torch
from torch import nn

from torchreg import Jacobian

images, labels = pictures.digits()
new, sizes = images[1000:], torch.linspace(0, 1, 11)


def trained(strength: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    jacobian = Jacobian(model, strength)
    criterion = jacobian.penalize(nn.CrossEntropyLoss())
    pictures.train(model, lambda: criterion(model(images[:1000]), labels[:1000]), steps=300)
    return model


def norms(model: nn.Module) -> torch.Tensor:
    """The norm of each new digit's Jacobian."""
    jacobians = torch.func.vmap(torch.func.jacrev(model))(new)
    return jacobians.flatten(1).norm(dim=1).sort().values.detach()


def right(model: nn.Module, size: float) -> float:
    """The share of new digits that are recognized with noise on each pixel."""
    noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(0))
    return 100 * (model(new + size * noise).argmax(1) == labels[1000:]).float().mean().item()


models = {"without": trained(0.0), "s = 0.01": trained(0.01), "s = 0.1": trained(0.1)}
pictures.lines(
    "norm of the Jacobian",
    {name: (torch.linspace(0, 100, len(new)), norms(model)) for name, model in models.items()},
    xlabel="new digits, the smallest first, %",
    ylim=(0, None),
)
pictures.lines(
    "new digits that are recognized, %",
    {name: (sizes, [right(model, size) for size in sizes]) for name, model in models.items()},
    xlabel="standard deviation of noise",
    ylim=(0, 100),
)

# %%
# Left: a network that has learned 1000 digits, and how much its outputs change near others.
# Right: what becomes of them if noise is added to their pixels.
#
# The penalty acts at the training inputs. Between few that are far apart slopes may be steep.
#
# In a model:

from torch import nn

from torchreg import Jacobian

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
jacobian = Jacobian(model, 0.01)
criterion = jacobian.penalize(nn.CrossEntropyLoss())
