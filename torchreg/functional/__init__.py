"""FORMULAS on plain tensors, without models, optimizers or strengths."""

from torchreg.functional.dropping import (
    channel_dropout,
    drawn_rate,
    drop,
    drop_by_member,
    dropout,
    is_small,
    keep,
    mask_shape,
)
from torchreg.functional.hierarchy import hierarchical_threshold
from torchreg.functional.internals import is_differentiated, is_transformed
from torchreg.functional.losses import losses_at_once
from torchreg.functional.masks import (
    check_generator,
    check_probability,
    drawn,
    is_plain,
    keep_mask,
    mixed,
    replaying,
    representable,
)
from torchreg.functional.measures import (
    as_tensor,
    distance_beyond_kink,
    half_square,
    is_half,
    l1_norm,
    l2_norm,
    largest,
    magnitude,
    nan_of,
    real_dtype,
    row_lengths,
    row_norms,
    wide,
)
from torchreg.functional.members import Generators, Source, computing
from torchreg.functional.projections import (
    are_largest,
    normalize,
    project_l1_ball,
    project_l2_ball,
    project_simplex,
)
from torchreg.functional.shrinkage import (
    axpy_,
    clip,
    exclusive_threshold,
    group_soft_threshold,
    kept_share,
    scaled_sign,
    shrink,
    singular_value_threshold,
    soft_threshold,
    soft_threshold_,
    soft_threshold_towards,
)
from torchreg.functional.singular import singular_values, svd
from torchreg.functional.sorting import isotonic, sorted_distance, sorted_shares, sorted_threshold
from torchreg.functional.tracking import leading_triples, low_rank_threshold
from torchreg.functional.variants import (
    alpha_dropout,
    drop_blocks,
    drop_paths,
    gaussian_dropout,
    interpolate_gate,
)

__all__ = [
    "Generators",
    "Source",
    "alpha_dropout",
    "are_largest",
    "as_tensor",
    "axpy_",
    "channel_dropout",
    "check_generator",
    "check_probability",
    "clip",
    "computing",
    "distance_beyond_kink",
    "drawn",
    "drawn_rate",
    "drop",
    "drop_blocks",
    "drop_by_member",
    "drop_paths",
    "dropout",
    "exclusive_threshold",
    "gaussian_dropout",
    "group_soft_threshold",
    "half_square",
    "hierarchical_threshold",
    "interpolate_gate",
    "is_differentiated",
    "is_half",
    "is_plain",
    "is_small",
    "is_transformed",
    "isotonic",
    "keep",
    "keep_mask",
    "kept_share",
    "l1_norm",
    "l2_norm",
    "largest",
    "leading_triples",
    "losses_at_once",
    "low_rank_threshold",
    "magnitude",
    "mask_shape",
    "mixed",
    "nan_of",
    "normalize",
    "project_l1_ball",
    "project_l2_ball",
    "project_simplex",
    "real_dtype",
    "replaying",
    "representable",
    "row_lengths",
    "row_norms",
    "scaled_sign",
    "shrink",
    "singular_value_threshold",
    "singular_values",
    "soft_threshold",
    "soft_threshold_",
    "soft_threshold_towards",
    "sorted_distance",
    "sorted_shares",
    "sorted_threshold",
    "svd",
    "wide",
]


def __dir__() -> list[str]:
    return [*__all__, "__doc__"]
