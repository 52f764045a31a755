r"""
InputGradient: a loss that small changes of the inputs do not raise
===================================================================

InputGradient penalizes the gradient of the loss with respect to the inputs. It is also known as
double backpropagation.

.. math:: R = \frac{s}{2} \operatorname*{mean}_i \, \lVert \nabla_{x_i} \ell_i \rVert^2

for the input :math:`x_i` and the loss :math:`\ell_i` of example :math:`i`.

**Take InputGradient** for classifiers that stand small perturbations, for one backward pass
more than without.

**Do not take InputGradient** for models that take tokens: there it needs the part after the
embedding. :doc:`Jacobian <plot_jacobian>` does not need the targets.

**Source:** Harris Drucker, Yann LeCun, "Improving Generalization Performance Using Double
Backpropagation", IEEE Transactions on Neural Networks 3, 1992. **Reference:**
:class:`torchreg.InputGradient`.
"""

import pictures
import torch
from torch import nn

from torchreg import InputGradient

images, labels = pictures.digits()
sizes = torch.linspace(0, 0.3, 16)


def right(model: nn.Module, size: float) -> float:
    """The share of new digits that are recognized after the worst step for the loss."""
    x = images[1000:].clone().requires_grad_()
    nn.functional.cross_entropy(model(x), labels[1000:]).backward()
    found = model(x.detach() + size * x.grad.sign()).argmax(1)
    return 100 * (found == labels[1000:]).float().mean().item()


def trained(strength: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    gradient = InputGradient(model, strength)
    criterion = gradient.penalize(nn.CrossEntropyLoss())
    pictures.train(model, lambda: criterion(model(images[:1000]), labels[:1000]), steps=300)
    return model


models = {"without": trained(0.0), "s = 1": trained(1.0), "s = 10": trained(10.0)}
pictures.lines(
    "new digits that are recognized, %",
    {name: (sizes, [right(model, size) for size in sizes]) for name, model in models.items()},
    xlabel="change of each pixel, against the model",
    ylim=(0, 100),
)
example = images[1001:1002]
for name, model in models.items():
    x = example.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), labels[1001:1002]).backward()
    pictures.matrix(x.grad.view(8, 8), f"gradient, {name}")

# %%
# Left: digits whose pixels are changed against the model. The stronger the penalty, the more of
# them are recognized, and the fewer that are not changed. Then the gradient for one image: with
# a strong penalty the pixels at the left and right, which tell nothing, have none.
#
# In a model:

from torch import nn

from torchreg import InputGradient

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
gradient = InputGradient(model, 0.1)
criterion = gradient.penalize(nn.CrossEntropyLoss())
