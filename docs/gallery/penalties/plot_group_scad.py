r"""
GroupSCAD: a group lasso that fades out
=======================================

GroupSCAD is the group lasso for small groups, fades out, and does not pull large groups at all.

.. math::

    R(w) &= \sum_g r_g(\|w_g\|_2), \quad r_g(0) = 0, \quad s_g = s \sqrt{n_g} \\
    r_g'(u) &= \begin{cases} s_g & u \le s_g \\ (a s_g - u) / (a - 1) & s_g < u \le a s_g \\
    0 & u > a s_g \end{cases}

where :math:`n_g` is the size of group :math:`g`. It is :doc:`SCAD <plot_scad>` of the length of a
group.

**Take GroupSCAD** to remove units or inputs without a bias of those that stay, if the force shall
be that of the group lasso until a group is clearly not zero.

**Do not take GroupSCAD** where the result must not depend on the start: it is not convex
(:doc:`GroupLasso <plot_group_lasso>`).

**Source:** Patrick Breheny, Jian Huang, "Group descent algorithms for nonconvex penalized linear
and logistic regression models with grouped predictors", Statistics and Computing, 2015. Lifeng
Wang, Guang Chen, Hongzhe Li, "Group SCAD Regression Analysis for Microarray Time Course Gene
Expression Data", Bioinformatics, 2007. **Reference:** :class:`torchreg.GroupSCAD`.
"""

# sphinx_gallery_thumbnail_number = 3

import pictures

from torchreg import GroupLasso, GroupSCAD

pictures.before_and_after(
    {"prox of GroupLasso": GroupLasso(0.4), "prox of GroupSCAD": GroupSCAD(0.4)}
)

# %%
# Weights of six units (blue: positive, orange: negative) and what one proximal step makes of them.
# Both take the same units. GroupSCAD shrinks short units as the group lasso does, and leaves long
# ones as they are.

pictures.plane(GroupSCAD, strength=0.25, through=[(0.4, 0), (0.8, 0), (1.2, 0)])
pictures.coefficients(lambda s: GroupSCAD(s, groups=pictures.TRIPLES), groups=True)

# %%
# Left: two weights of one group. Beyond a length the penalty is flat. Right: a regression with
# four groups of three inputs. The group that is in use stays until late.
#
# In a model:

import torch
from torch import nn

from torchreg import GroupSCAD, Regularizer

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
regularizer = Regularizer(model, GroupSCAD(1e-2), mode="prox").attach(optimizer)
