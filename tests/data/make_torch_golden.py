"""Make `torch_golden.npz`: state dicts of PyTorch's own modules and their outputs in float64.

Run it where PyTorch is installed: `python tests/data/make_torch_golden.py`. The tests read the file
and need no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

SHAPES = {  # as in `tests/ports/_block.py`
    "linear": (3, 5),
    "linear without bias": (3, 5),
    "conv 1d": (2, 9, 4),
    "conv 2d": (2, 8, 7, 4),
    "conv 2d in groups": (2, 8, 7, 4),
    "conv 2d dilated": (2, 8, 7, 4),
    "conv 3d": (2, 5, 4, 6, 3),
    "depthwise": (2, 8, 7, 4),
    "transposed 1d": (2, 5, 4),
    "transposed 2d": (2, 5, 4, 4),
    "embedding": (2, 6),
    "batch norm": (2, 5, 4, 6),
    "layer norm": (3, 5),
    "group norm": (2, 5, 4, 6),
    "rms norm": (3, 5),
    "lstm": (2, 6, 4),
    "gru": (2, 6, 4),
    "attention": (2, 5, 8),
    # Beside the rows: whole models, and what PyTorch has in more than one way.
    "cnn": (2, 12, 10, 3),
    "encoder": (2, 5, 8),
    "weight norm": (3, 5),
    "old weight norm": (2, 8, 7, 4),
    "transposed in groups": (2, 5, 4, 4),
    "stacked lstm": (2, 6, 4),
    "bidirectional gru": (2, 6, 4),
    "separate attention": (2, 5, 8),
}


class Attention(nn.Module):
    """One input for all three, of which key and value may get some features only."""

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.attention = nn.MultiheadAttention(8, 2, kdim=features, vdim=features, batch_first=True)

    def forward(self, x: Any) -> Any:
        some = x[..., : self.features]
        return self.attention(x, some, some, need_weights=False)[0]


class Outputs(nn.Module):
    """What a recurrent module says at every step, without its last state."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Any) -> Any:
        return self.rnn(x)[0]


MODULES: dict[str, Any] = {
    "linear": lambda: nn.Linear(5, 5),
    "linear without bias": lambda: nn.Linear(5, 5, bias=False),
    "conv 1d": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "conv 2d": lambda: nn.Conv2d(4, 4, 3, 2),
    "conv 2d in groups": lambda: nn.Conv2d(4, 4, 3, 2, groups=2),
    "conv 2d dilated": lambda: nn.Conv2d(4, 4, 3, dilation=2),
    "conv 3d": lambda: nn.Conv3d(3, 3, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "transposed 1d": lambda: nn.ConvTranspose1d(4, 4, 3, 2),
    # SAME would be the pads (2, 1), which PyTorch can't say: these are (1, 2).
    "transposed 2d": lambda: nn.ConvTranspose2d(4, 4, 3, 2, padding=1, output_padding=1),
    "embedding": lambda: nn.Embedding(7, 5),
    "batch norm": lambda: nn.BatchNorm2d(6),
    "layer norm": lambda: nn.LayerNorm(5),
    "group norm": lambda: nn.GroupNorm(3, 6),
    "rms norm": lambda: nn.RMSNorm(5, eps=1e-5),
    "lstm": lambda: Outputs(nn.LSTM(4, 4, batch_first=True)),
    "gru": lambda: Outputs(nn.GRU(4, 4, batch_first=True)),
    "attention": Attention,
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(8 * 3 * 2, 8),
        nn.LayerNorm(8),
    ),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu"),
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Conv2d(4, 4, 3)),
    "transposed in groups": lambda: nn.ConvTranspose2d(4, 6, 3, 2, padding=1, groups=2),
    "stacked lstm": lambda: Outputs(nn.LSTM(4, 4, num_layers=2, batch_first=True)),
    "bidirectional gru": lambda: Outputs(nn.GRU(4, 4, bidirectional=True, batch_first=True)),
    "separate attention": lambda: Attention(6),
}
IMAGES = {name for name, shape in SHAPES.items() if len(shape) > 3 or "1d" in name}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    found = {}
    for name, make in MODULES.items():
        rng = np.random.default_rng(7)
        shape = SHAPES[name]
        example = rng.integers(0, 7, shape) if name == "embedding" else rng.normal(size=shape)
        module = make()
        with torch.no_grad():
            # Values that every library can hold, whatever it keeps in float32.
            for parameter in module.parameters():
                parameter.copy_((torch.randn_like(parameter) * 0.5).float())
            x = torch.as_tensor(example)
            x = x.movedim(-1, 1) if name in IMAGES else x
            if any("norm" in type(inner).__name__.lower() for inner in module.modules()):
                for _ in range(3):
                    module.train()(torch.randn_like(x) * 2 + 1)
            for buffer in module.buffers():
                buffer.copy_(buffer.float())
            y = module.eval()(x)
            y = y.movedim(1, -1) if name in IMAGES and y.ndim > 2 else y
        found |= {
            f"{name}/state/{key}": value.detach().numpy()
            for key, value in module.state_dict().items()
        }
        found |= {f"{name}/x": example, f"{name}/y": y.detach().numpy()}
    np.savez_compressed(Path(__file__).parent / "torch_golden.npz", **found)


if __name__ == "__main__":
    main()
