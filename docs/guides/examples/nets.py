"""A network for studies: model = { class = "nets:Residual", args = { width = 64 } }."""

from torch import Tensor, nn

from torchreg.nn import Dropout, StochasticDepth


class Residual(nn.Module):
    """Two residual blocks on flattened images, with dropout."""

    def __init__(self, pixels: int = 64, classes: int = 10, width: int = 64, p: float = 0.2) -> None:
        super().__init__()
        self.inputs = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width))
        self.blocks = nn.ModuleList(
            StochasticDepth(nn.Sequential(nn.Linear(width, width), nn.ReLU(), Dropout(p)), p=0.1) for _ in range(2)
        )
        self.outputs = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.inputs(images)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.outputs(hidden)
