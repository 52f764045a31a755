r"""
GroupMCP: whole units go, the others keep their size
====================================================

GroupMCP pulls small groups as the group lasso does, large groups less, and groups beyond a length
not at all.

.. math::

    R(w) &= \sum_g r_g(\|w_g\|_2), \quad s_g = s \sqrt{n_g} \\
    r_g(u) &= \begin{cases} s_g u - u^2 / (2 \gamma) & u \le \gamma s_g \\
    \gamma s_g^2 / 2 & u > \gamma s_g \end{cases}

where :math:`n_g` is the size of group :math:`g`. It is :doc:`MCP <plot_mcp>` of the length of a
group.

**Take GroupMCP** to remove units or inputs without a bias of those that stay.

**Do not take GroupMCP** where the result must not depend on the start: it is not convex
(:doc:`GroupLasso <plot_group_lasso>`).

**Source:** Patrick Breheny, Jian Huang, "Group descent algorithms for nonconvex penalized linear
and logistic regression models with grouped predictors", Statistics and Computing, 2015.
**Reference:** :class:`torchreg.GroupMCP`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import GroupLasso, GroupMCP

pictures.before_and_after(
    {"prox of GroupLasso": GroupLasso(0.4), "prox of GroupMCP": GroupMCP(0.4)}
)

# %%
# Weights of six units (blue: positive, orange: negative) and what one proximal step makes of them.
# Both take the same units. GroupMCP leaves those that stay as large as they are, or nearly so.

pictures.plane(GroupMCP, strength=0.3, through=[(0.4, 0), (0.8, 0), (1.2, 0)])
pictures.coefficients(lambda s: GroupMCP(s, groups=pictures.TRIPLES), groups=True)

# %%
# Left: two weights of one group. Beyond a length the penalty is flat. Right: a regression with
# four groups of three inputs. A group stays at its size until it goes.
#
# In a model:

import torch
from torch import nn

from torchreg import GroupMCP, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, GroupMCP(1e-2), mode="prox").attach(optimizer)
