"""HOW STRONG: the strength is chosen, not guessed."""

from torchreg.stacked import Stacked
from torchreg.tuning.auto import AutoStrength

__all__ = ["AutoStrength", "Stacked"]
