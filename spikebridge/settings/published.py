"""Published figures to stand beside ours: data with their sources, and nothing from memory.

Every figure here was read in the source that it names.  Accuracy is a share of 1, NLL is nats per
frame (sum over 88 notes, mean over frames), perplexity is per word, and characters are in bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from spikebridge.settings.config import Config, data_name, variant_of
from spikebridge.settings.learning import LearningConfig
from spikebridge.settings.names import BINARY, SPIKING
from spikebridge.settings.tasks import DigitsConfig, EcgConfig, TextConfig, is_own

_WOZNIAK = (
    "Woźniak, Pantazi, Bohnstingl, Eleftheriou 2020, Nature Machine Intelligence 2:325, "
    "result chart as shown in IBM/neuroaikit"
)
_BAI = "Bai, Kolter, Koltun 2018, result table; about 300,000 parameters"
_BAI_NOTTINGHAM = "Bai, Kolter, Koltun 2018, result table; about 1 million parameters"
_BAI_PTB = "Bai, Kolter, Koltun 2018, result table; 13 million parameters"
_BAI_CHARACTERS = "Bai, Kolter, Koltun 2018, result table; about 3 million parameters"
_TOOLKIT = "IBM/neuroaikit, printed output of its notebook"
_YIN = (
    "Yin, Venkataramanaiah, Chen, Krishnamurthy, Cao, Chakrabarti, Seo 2017, arXiv 1709.06206, "
    "abstract: over 98 % on MNIST; which network reached what is unknown to us"
)

_HIGUCHI = (
    "Higuchi, Kairat, Bohté, Otte 2024, Balanced Resonate-and-Fire Neurons: mean of five seeds in "
    "the logs of its repository, sd 0.7, at the best validation epoch of 400; 36 spiking neurons; "
    "steps without a class count as class 0"
)


@dataclass(frozen=True)
class Published:
    """A published number to stand beside a result."""

    value: float
    source: str


@dataclass(frozen=True)
class Printed:
    """A line of a published table that stands below one of ours."""

    label: str
    values: dict[str, float]
    """By column, in the scale of the metric: accuracies are shares of 1."""


_SPIKING_UNITS = tuple(unit for unit in SPIKING if unit != "softsnu")

# Data, unit, figure, source; of several the first is shown.  MNIST: rate-coded, feed-forward; L =
# layers of weights.  The chart's stand beside networks of four or seven layers only.
_CHARTED = "mnist, 4 or 7 layers"
_TOOLKIT_MLP = "mnist, 784-100-10"
_ELASTIC = "mnist convolutions, elastic"
_ROWS = (
    ("jsb", "snu", 8.72, f"{_WOZNIAK}: SNU"),
    ("jsb", "softsnu", 8.39, f"{_WOZNIAK}: sSNU"),
    ("jsb", "lstm", 8.55, f"{_WOZNIAK}: LSTM (its reference 71)"),
    ("jsb", "lstm", 8.67, f"{_WOZNIAK}: LSTM (its reference 72)"),
    ("jsb", "lstm", 8.45, f"{_BAI}: LSTM"),
    ("jsb", "gru", 8.54, f"{_WOZNIAK}: GRU (its reference 72)"),
    ("jsb", "gru", 8.43, f"{_BAI}: GRU"),
    ("jsb", "rnn", 9.10, f"{_WOZNIAK}: RNN (its reference 72)"),
    ("jsb", "rnn", 8.91, f"{_BAI}: RNN"),
    ("nottingham", "lstm", 3.29, f"{_BAI_NOTTINGHAM}: LSTM"),
    ("nottingham", "gru", 3.46, f"{_BAI_NOTTINGHAM}: GRU"),
    ("nottingham", "rnn", 4.05, f"{_BAI_NOTTINGHAM}: RNN"),
    (_CHARTED, "snu", 0.9847, f"{_WOZNIAK}: SNU, 7 L"),
    (_CHARTED, "softsnu", 0.9850, f"{_WOZNIAK}: sSNU, 4 L"),
    (_CHARTED, "rnn", 0.9772, f"{_WOZNIAK}: RNN, 4 L"),
    (_CHARTED, "lstm", 0.9748, f"{_WOZNIAK}: LSTM, 4 L"),
    (_CHARTED, "gru", 0.9645, f"{_WOZNIAK}: GRU, 4 L"),
    (_TOOLKIT_MLP, "snu", 0.9451, f"{_TOOLKIT}: SNU 784-100-10, 1,128 spikes a digit"),
    (_TOOLKIT_MLP, "li-snu", 0.9382, f"{_TOOLKIT}: LI-SNU 784-100-10, 45.9 spikes a digit"),
    ("mnist", "binary-di", 0.98, _YIN),
    ("mnist", "binary-ci", 0.98, _YIN),
    ("mnist convolutions", "snu", 0.9921, f"{_WOZNIAK}: CNN of SNUs, sd 0.07"),
    (_ELASTIC, "snu", 0.9953, f"{_WOZNIAK}: CNN of SNUs with elastic distortions, sd 0.03"),
    *(("qtdb", unit, 0.855, _HIGUCHI) for unit in _SPIKING_UNITS),
    ("ptb char", "lstm", 1.36, f"{_BAI_CHARACTERS}: LSTM"),
    ("ptb char", "gru", 1.37, f"{_BAI_CHARACTERS}: GRU"),
    ("ptb char", "rnn", 1.48, f"{_BAI_CHARACTERS}: RNN"),
    ("ptb word", "snu", 137.7, f"{_WOZNIAK}: FF-SNU"),
    ("ptb word tied", "snu", 137.7, f"{_WOZNIAK}: FF-SNU"),
    ("ptb word tied", "recurrent-softsnu", 108.4, f"{_WOZNIAK}: recurrent sSNU with weight tying"),
    ("ptb word", "lstm", 114.5, f"{_WOZNIAK}: small LSTM"),
    ("ptb word", "lstm", 78.93, f"{_BAI_PTB}: LSTM"),
    ("ptb word tied", "lstm", 112.4, f"{_WOZNIAK}: small LSTM with weight tying"),
    ("ptb word tied", "lstm", 78.93, f"{_BAI_PTB}: LSTM"),
)
PUBLISHED: dict[tuple[str, str], tuple[Published, ...]] = {
    (data, unit): tuple(Published(*row[2:]) for row in _ROWS if row[:2] == (data, unit))
    for data, unit, *_ in _ROWS
}


def figures(config: Config) -> tuple[Published, ...]:
    """What has been published for a config's data and unit, the headline first.

    The chart for JSB does not say whether its SNU and sSNU are recurrent, so those figures stand
    beside both; the ones for MNIST are feed-forward with rate coding and stand beside nothing else.
    """
    # The papers' own figures on hardware, and with weights of few bits, are not known to us; and a
    # folder of the user's may be called mnist.
    if config.cells.used or config.model.weight_bits or is_own(config.task):
        return ()
    data, model = data_name(config), config.model
    recurrent = variant_of(model).startswith("recurrent-")
    if isinstance(config.task, EcgConfig) and config.task.unlabelled != "class0":
        return ()  # counted otherwise
    if isinstance(config.task, DigitsConfig):
        if config.task.coding != "rate" or recurrent:
            return ()
        if model.channels:
            data += " convolutions" + (", elastic" if config.task.elastic else "")
        elif data == "mnist":
            data = _of_shape(model.hidden, model.unit, config.task.elastic > 0)
    if isinstance(config.task, TextConfig):
        data += f" {config.task.level}" + (" tied" if model.tied else "")
        return PUBLISHED.get((data, variant_of(model)), ())
    return PUBLISHED.get((data, model.unit), ())


def _of_shape(hidden: tuple[int, ...], unit: str, distorted: bool) -> str:
    """The key of a fully connected network on MNIST, whose figures are of certain shapes.

    Elastic distortions are not mentioned beside them: they stand beside plain training alone.
    """
    if unit in BINARY:
        return "mnist"
    if distorted:
        return ""
    if hidden == (100,):
        return _TOOLKIT_MLP
    return _CHARTED if len(hidden) + 1 in (4, 7) else ""


def headline(config: Config) -> Published | None:
    """The one figure to show beside a config's result, or None.

    All of them are of backpropagation.
    """
    if config.learning != LearningConfig() or config.sequence.used:
        return None
    return next(iter(figures(config)), None)
