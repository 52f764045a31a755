r"""
CoupledGroupLasso: the group lasso across layers
================================================

CoupledGroupLasso is the group lasso on units that can only go together, such as a channel of a
residual stream, which several layers write.

.. math::

    R(w) &= s \sum_u \sqrt{n_u} \, \|w_u\|_2 \\
    \operatorname{prox}_{tR}(w)_u &= w_u \max\!\left(1 - \frac{ts \sqrt{n_u}}{\|w_u\|_2}, 0\right)

where :math:`w_u` are the :math:`n_u` weights that make unit :math:`u`, in all layers that write it.

**Take CoupledGroupLasso** to make residual networks, and others whose layers share their units,
really smaller, with :func:`torchreg.compress`.

**Do not take CoupledGroupLasso** for a chain of layers: there :doc:`GroupLasso
<plot_group_lasso>` does the same without a run of the model.

**Source:** Ming Yuan, Yi Lin, "Model Selection and Estimation in Regression with Grouped
Variables", Journal of the Royal Statistical Society B, 2006; Gongfan Fang, Xinyin Ma, Mingli
Song, Michael Bi Mi, Xinchao Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023.
**Reference:** :class:`torchreg.CoupledGroupLasso`.
"""

import pictures
import torch
from torch import nn

from torchreg import CoupledGroupLasso, GroupLasso, Regularizer, compress

images, labels = pictures.digits()


class Residual(nn.Module):
    """Two layers that write the same 16 units."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.first(x).relu()
        return self.head(x + self.second(x).relu())


def trained(regularize):
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    regularize(model, optimizer)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def coupled(model, optimizer):
    CoupledGroupLasso(model, images[:1], 0.006).attach(optimizer)


def each(model, optimizer):
    layers = {"first.*": GroupLasso(0.006), "second.*": GroupLasso(0.006)}
    Regularizer(model, layers, mode="prox").attach(optimizer)


models = {"a group lasso on each layer": trained(each), "coupled": trained(coupled)}
for title, model in models.items():
    lengths = [layer.weight.detach().norm(dim=1) for layer in (model.first, model.second)]
    left = compress(model, images[:1]).head.in_features
    pictures.matrix(
        torch.stack(lengths),
        f"{title}: {left} of 16 units left",
        rows=("first", "second"),
        size=(4.4, 1.2),
        xlabel="units of the stream",
    )

# %%
# The size of each unit's weights in the two layers that write it. With a group lasso on each
# layer, other units are empty in each of them. A unit that is empty in one only must stay. With
# the coupled one they are empty in both, and ``compress`` takes them out.
#
# In a model:

import torch
from torch import nn
from torchvision.models import resnet18

from torchreg import CoupledGroupLasso, compress

model, example = resnet18(num_classes=10), torch.zeros(1, 3, 32, 32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = CoupledGroupLasso(model, example, 1e-3).attach(optimizer)
# ... training ...
smaller = compress(model, example)
