"""torch.nn.LSTM and what goes into its place, on the same task with the same training.

The 8 x 8 digits of scikit-learn, read row by row: 8 steps of 8 numbers, and a class from the top
layer's last output.  Two layers of 128, Adam at 3e-3 with a cosine, 15 epochs, for all alike.

    python examples/digits_by_rows.py                    # a table over three seeds, some minutes
    python examples/digits_by_rows.py --seeds 1 --epochs 2
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from spikebridge import SNU, SoftSNU

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "LSTM": nn.LSTM,
    "SNU, recurrent=True": lambda *sizes: SNU(*sizes, recurrent=True),
    "SoftSNU, recurrent=True": lambda *sizes: SoftSNU(*sizes, recurrent=True),
    "SNU": SNU,
    "SoftSNU": SoftSNU,
}


class Classifier(nn.Module):
    """As it stands in many a tutorial on nn.LSTM; the layer is all that changes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x (T, B, 8) to (B, 10)."""
        _, (h, _) = self.layer(x)  # output, (h, c); of an SNU output, (y, s)
        return self.head(h[-1])


def digits(validate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (8, n, 8) and classes to train on, and 397 to test on, or some of the first instead."""
    file = load_digits()
    x, y = torch.tensor(file.images / 16).float(), torch.tensor(file.target)
    x, x_test, y, y_test = train_test_split(x, y, test_size=397, random_state=0, stratify=y)
    if validate:
        x, x_test, y, y_test = train_test_split(x, y, test_size=350, random_state=0, stratify=y)
    return x.transpose(0, 1), y, x_test.transpose(0, 1), y_test


def accuracy(name: str, seed: int, epochs: int, validate: bool) -> float:
    """Percent right after training."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = digits(validate)
    model = Classifier(LAYERS[name](8, 128, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = epochs * -(-len(y) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[:, batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (model(x_test).argmax(1) == y_test).float().mean().item() * 100


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--validate", action="store_true", help="test on a part of training")
    given = parser.parse_args()
    for name in given.layers:
        found = [accuracy(name, s, given.epochs, given.validate) for s in range(given.seeds)]
        spread = statistics.stdev(found) if len(found) > 1 else float("nan")
        count = sum(p.numel() for p in Classifier(LAYERS[name](8, 128, 2)).parameters())
        print(f"{name:24} {statistics.mean(found):6.2f} ± {spread:.2f} %  {count:8,} parameters")


if __name__ == "__main__":
    main()
