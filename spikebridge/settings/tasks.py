"""One frozen record per task: which data, and how they become sequences.  Loads no torch.

Unannotated names in capitals belong to the class, not to the settings; see `TaskSettings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from spikebridge.base.records import Amount, Bound, Count, Positive, Size, check_types, require
from spikebridge.settings.names import is_place
from spikebridge.settings.task_settings import DataSet, TaskSettings

FromTwo = Annotated[int, Bound("[2, inf)", or_zero=True)]
# Images of three colours.
COLOUR = ("cifar10", "cifar10-small")


# How long a memory must be is not known of data of one's own; a reset by the gate may cut it off.
_OWN_MEMBRANES: dict[str, Any] = {
    "decay_to": [0.0, 0.9, 0.98, 0.995],
    "reset": ["gate", "none"],
    "norm": ["none", "batch"],
}
# For unknown data rate, schedule and size of a batch matter most.
_OWN_SPACE: dict[str, Any] = {
    "lr": (1e-3, 5e-2),
    "schedule": ["constant", "onecycle"],
    "batch_size": [16, 32, 64],
    "dropout": [0.0, 0.1, 0.3, 0.5],
}


@dataclass(frozen=True)
class DigitsConfig(TaskSettings):
    """Images, handwritten digits above all, each as a sequence of T time steps."""

    NAME = "digits"
    CLASS = "spikebridge.data.images:Digits"
    SAMPLE, COUNTED = "image", "image"
    METRIC = "accuracy"
    SETS = {
        "digits8x8": DataSet("8 × 8 digits", "1,797 handwritten digits of 8 × 8 pixels"),
        "mnist": DataSet("MNIST", "MNIST, 70,000 handwritten digits of 28 × 28 pixels", "mnist/"),
        "cifar10": DataSet(
            "CIFAR-10",
            "CIFAR-10, 60,000 things and animals of 32 × 32 pixels in colour",
            "cifar10/",
        ),
        "cifar10-small": DataSet(
            "CIFAR-10 (small)",
            "11,000 images of CIFAR-10, things and animals of 32 × 32 pixels in colour",
        ),
    }
    OWN_DATA, OWN_TITLE = "idx", "images of your own, {}"
    SPACE = {
        "lr": (1e-3, 3e-2),
        "dropout": [0.1, 0.2, 0.3, 0.4, 0.5],
        "dropout_in": [0.0, 0.1],
        "ema": [0.0, 0.99, 0.999],
    }

    data: Literal["digits8x8", "mnist", "cifar10", "cifar10-small", "idx"] = "digits8x8"
    """Which images: digits8x8 (1,797 of 8 x 8 pixels, comes with scikit-learn), mnist (70,000 of
    28 x 28, from idx files), cifar10 (60,000 things and animals of 32 x 32 in colour),
    cifar10-small (10,000 of these to train, 1,000 to test) or idx (the idx files in --data-dir)."""
    data_dir: str = ""
    """Folder with images and labels in the idx format, for training and test, gzipped or not, such
    as train-images-idx3-ubyte and t10k-images-idx3-ubyte; labels of any whole numbers, or of
    QMNIST's eight columns."""
    coding: Literal["rate", "threshold", "current", "rows", "pixels", "permuted"] = "rate"
    """How a pixel p in [0, 1] becomes a sequence: rate (a spike with probability gain x p, drawn
    afresh at each step), threshold (a spike at each step where gain x p is 0.5 or more, without
    chance), current (the value gain x p at every step), rows (step t is image row t, times the
    gain), pixels (step t is pixel t, row by row) or permuted (the pixels in an order that is drawn
    once for all images)."""
    permutation: Count = 0
    """Which order --coding permuted has; it hangs on no other seed."""
    steps: Size = 20
    """Time steps per image, at least 1; coding rows has one step per row instead, pixels and
    permuted one per pixel."""
    steps_test: Count = 0
    """Time steps per image in validation and test; 0 = as many as --steps."""
    gain: Positive = 1.0
    """Factor on pixel values, above 0; with coding rate it is the spike probability of a pixel of
    full brightness, so at most 1."""
    elastic: Amount = 0.0
    """Elastic distortions of the training images: displacement in pixels (root mean square), 0 for
    none; with them go small rotations and changes of scale (Simard, Steinkraus, Platt 2003)."""
    flip: bool = False
    """Whether training images are mirrored, left to right, every other one by chance."""
    transpose: bool = False
    """Whether rows and columns of the images in idx files are exchanged: EMNIST's are stored so."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.coding != "rate" or self.gain <= 1,
            f"gain={self.gain}: with coding rate the gain is a probability, so at most 1; "
            "pass --gain 1 or --coding current",
        )
        if self.data in COLOUR:
            require(
                not self.serial,
                f"coding={self.coding}, data={self.data}: a step of pixels has one colour only; "
                "pass --coding current, rate or threshold",
            )
            require(
                self.elastic == 0,
                f"elastic={self.elastic}, data={self.data}: images in colour are not distorted; "
                "leave --elastic out, or pass --flip",
            )
        _own_data(self.data, self.data_dir, self.OWN_DATA)
        require(
            self.data == self.OWN_DATA or not self.transpose,
            f"transpose=True, data={self.data}: images of {self.data} stand upright; leave "
            "--transpose out, or pass --data idx --data-dir D",
        )
        require(
            self.coding == "permuted" or not self.permutation,
            f"permutation={self.permutation}, coding={self.coding}: the pixels keep their order; "
            "pass --coding permuted, or leave --permutation out",
        )

    @property
    def serial(self) -> bool:
        """Whether each step shows another part of the image."""
        return self.coding in ("rows", "pixels", "permuted")


_NEXT_FRAME = "predicting the notes of the next frame"


@dataclass(frozen=True)
class MusicConfig(TaskSettings):
    """Polyphonic music, next-frame prediction over 88 notes."""

    NAME = "music"
    SAMPLE, COUNTED = "piece", "frame"
    METRIC = "nll"
    CLASS = "spikebridge.data.music:Music"
    SETS = {
        "jsb": DataSet(
            "JSB chorales", f"382 chorales by J. S. Bach, {_NEXT_FRAME}", "polymusic/JSB"
        ),
        "nottingham": DataSet("Nottingham", f"1,037 folk tunes, {_NEXT_FRAME}", "polymusic/Nott"),
        "musedata": DataSet(
            "MuseData", f"783 pieces of orchestral and piano music, {_NEXT_FRAME}", "polymusic/Muse"
        ),
        "piano": DataSet(
            "Piano-midi.de", f"124 pieces of Piano-midi.de, {_NEXT_FRAME}", "polymusic/Piano"
        ),
    }
    OWN_DATA, OWN_TITLE = "mat", f"pieces of your own, {{}}, {_NEXT_FRAME}"
    SPACE = {
        "lr": (2e-3, 6e-2),
        "dropout": [0.1, 0.2, 0.3, 0.4, 0.5],
        "dropout_in": [0.0, 0.1, 0.2],
        "batch_size": [8, 16],
        "ema": [0.0, 0.99, 0.995],
    }
    # Boulanger-Lewandowski, Bengio, Vincent 2012: frames of an eighth note, in JSB of a quarter.
    FRAMES_PER_QUARTER = {"jsb": 1, "nottingham": 2, "musedata": 2, "piano": 2}
    # Column k of a file is said to be the MIDI note 21 + k.  In JSB_Chorales.mat every chorale has
    # been moved to C, and that by 6 to 17 semitones up, to between 43 and 96.  The same chorales in
    # the keys of their scores (jsb-chorales-16th of czhuang/JSB-Chorales-dataset, all 382 matched
    # by their chords) lie between 36 and 81.  An octave lower every one is within 6 semitones of
    # its score.
    LOWEST = {"jsb": 9}

    data: Literal["jsb", "nottingham", "musedata", "piano", "mat"] = "jsb"
    """Which pieces: jsb (Bach chorales, 229 to train, 76 to validate, 77 to test), nottingham (folk
    tunes), musedata (orchestral and piano music), piano (Piano-midi.de) or mat (the one .mat file
    in --data-dir, laid out like theirs)."""
    data_dir: str = ""
    """Folder with a .mat file that holds the cell arrays traindata, validdata and testdata."""
    frames: FromTwo = 0
    """Longest training excerpt in frames: longer pieces are cut into parts for training, never for
    validation and test; 0 = whole pieces."""

    def __post_init__(self) -> None:
        check_types(self)
        _own_data(self.data, self.data_dir, self.OWN_DATA)

    @property
    def frames_per_quarter(self) -> int:
        """Frames in a quarter note; a frame of one's own pieces is taken for a quarter note."""
        return self.FRAMES_PER_QUARTER.get(self.data, 1)

    @property
    def lowest(self) -> int:
        """MIDI note at which column 0 of a frame sounds; of one's own pieces a piano's lowest."""
        return self.LOWEST.get(self.data, 21)


@dataclass(frozen=True)
class TextConfig(TaskSettings):
    """Language modelling: predict the next word or character of a running text."""

    NAME = "text"
    SAMPLE, COUNTED = "stream", "word"
    METRIC = "perplexity"
    CLASS = "spikebridge.data.text:Text"
    SETS = {
        "ptb": DataSet(
            "Penn Treebank",
            "the Penn Treebank, newspaper text, predicting what comes next",
            "ptb/",
        )
    }
    OWN_DATA, OWN_TITLE = "files", "a text of your own, {}"
    SPACE = {
        "lr": (1e-3, 1e-2),
        "dropout": [0.3, 0.4, 0.5],
        "dropout_in": [0.2, 0.3, 0.4, 0.5],
        "embedding_scale": [2.0, 4.0, 8.0],
    }
    CHARACTERS = {
        "lr": (4e-3, 6.4e-2),
        "dropout": [0.0, 0.1, 0.2, 0.3],
        "dropout_in": [0.0, 0.1],
        "weight_decay": [0.0, 0.03, 0.1],
    }
    """In place of those, where characters are predicted."""
    # A text needs a longer memory; what a soft unit keeps hangs on its threshold too.
    MEMBRANES = {"decay_to": [0.0, 0.9, 0.98, 0.995], "threshold": [1.0, 2.5]}

    data: Literal["ptb", "files"] = "ptb"
    """Which text: ptb (Penn Treebank, 929,589 words to train) or files (the three text files in
    --data-dir)."""
    data_dir: str = ""
    """Folder with three plain text files (UTF-8) whose names hold train, valid and test."""
    level: Literal["word", "char"] = "word"
    """What is predicted: words, parted by white space, with one for the end of a line, or
    characters."""
    steps: Size = 35
    """Steps of truncated backpropagation through time, at least 1; the state is carried on."""
    vocabulary: FromTwo = 0
    """Most frequent symbols to keep, the others become <unk>; 0 = all that training holds."""

    def __post_init__(self) -> None:
        check_types(self)
        _own_data(self.data, self.data_dir, self.OWN_DATA)

    def step_name(self) -> str:
        return "character" if self.level == "char" else self.COUNTED

    def metric(self) -> str:
        return "bpc" if self.level == "char" else self.METRIC

    def space(self) -> dict[str, Any]:
        return self.CHARACTERS if self.level == "char" else self.SPACE


@dataclass(frozen=True)
class EventsConfig(TaskSettings):
    """Recordings of an event camera (N-MNIST), binned to frames."""

    NAME = "events"
    SAMPLE, COUNTED = "recording", "recording"
    METRIC = "accuracy"
    CLASS = "spikebridge.data.events:Events"
    SETS = {
        "nmnist": DataSet(
            "N-MNIST", "digits before a moving event camera, 34 × 34 pixels of two polarities"
        )
    }
    OWN_TITLE = "recordings of an event camera, {}"
    SPACE = {"lr": (1e-3, 3e-2), "dropout": [0.1, 0.3, 0.5], "ema": [0.0, 0.99]}

    data: Literal["nmnist"] = "nmnist"
    """Which recordings: nmnist (34 x 34 pixels, two polarities, three saccades of 100 ms)."""
    data_dir: str = ""
    """Folder with Train/<digit>/*.bin and Test/<digit>/*.bin; by default nmnist in the data
    folder."""
    steps: Size = 20
    """Frames per recording, at least 1; each covers an equal share of its time."""
    coding: Literal["binary", "count"] = "binary"
    """What a pixel of a frame holds: binary (1 where there was an event) or count (how many)."""
    shrink: Size = 1
    """Side of the squares of pixels that are taken together, at least 1."""
    folds: Annotated[int, Bound("[2, inf)")] = 10
    """Equal parts of each class's training recordings, at least 2; one of them validates."""
    fold: int = 0
    """The part that validates, from 0 to below --folds; `search --folds` takes each in turn."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            0 <= self.fold < self.folds,
            f"fold={self.fold}: it must lie in [0, {self.folds}), the number of folds; "
            "pass --fold 0",
        )


@dataclass(frozen=True)
class EcgConfig(TaskSettings):
    """Heartbeats of the QT Database as spikes, with a class at each of 1,301 steps."""

    NAME = "ecg"
    SAMPLE, COUNTED = "recording", "step"
    METRIC = "accuracy"
    CLASS = "spikebridge.data.ecg:Ecg"
    SETS = {
        "qtdb": DataSet(
            "QTDB", "heartbeats of the QT Database as spikes, a class at each step", "qtdb/"
        )
    }
    OWN_TITLE = "heartbeats as spikes, {}"
    SPACE, MEMBRANES = _OWN_SPACE, _OWN_MEMBRANES

    data: Literal["qtdb"] = "qtdb"
    """Which recordings: qtdb (618 to train and validate, 141 to test; two leads as four trains of
    spikes)."""
    data_dir: str = ""
    """Folder with QTDB_train.mat and QTDB_test.mat; by default qtdb in the data folder."""
    coding: Literal["signed", "binary"] = "signed"
    """What stands where a file has -1, which it has once in a recording: signed (-1, as published)
    or binary (0, so that all inputs are spikes, as the chip takes them)."""
    unlabelled: Literal["class0", "masked"] = "class0"
    """What a step without a class is in training, validation and test: class0, as in the published
    figures, or masked, which means that it is not judged.  A finished run is judged both ways."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class SpeechConfig(TaskSettings):
    """Spoken words: .wav files by way of an ear, or recordings that are spikes already."""

    NAME = "speech"
    SAMPLE, COUNTED = "recording", "recording"
    METRIC = "accuracy"
    CLASS = "spikebridge.data.speech:Speech"
    OWN_DATA, OWN_TITLE, OWN_ONLY = "speech", "spoken words, {}", True
    SPACE, MEMBRANES = _OWN_SPACE, _OWN_MEMBRANES

    data: Literal["speech"] = "speech"
    """The recordings in --data-dir."""
    data_dir: str = ""
    """Folder with train.csv, valid.csv and test.csv, whose columns file and class name .wav files
    below it and their words; or with .h5 files whose names hold train, test and perhaps valid
    (spikes/times, spikes/units, labels).  By default the folder speech under $SPIKEBRIDGE_DATA."""
    front: Literal["mel", "cochlea"] = "mel"
    """What makes sequences of sound: mel (log energies in bands) or cochlea (band-pass filters,
    half-wave, leaky integrate-and-fire: spikes, 0 or 1)."""
    bands: Annotated[int, Bound("[1, 512]")] = 40
    """Bands of the ear, at equal distances on the mel scale."""
    step_ms: Positive = 10.0
    """Milliseconds of a step."""
    rate_hz: Annotated[int, Bound("[1000, 384000]")] = 8000
    """Samples a second; recordings of another rate are resampled to it."""
    readout: Literal["mean", "last"] = "mean"
    """What the answer is read from: the mean over time or the last step; over the real steps."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class AddingConfig(TaskSettings):
    """The adding problem: what stands at a few marked steps of a long sequence, in all."""

    NAME = "adding"
    CLASS = "spikebridge.data.adding:Adding"
    SAMPLE, COUNTED = "sequence", "sequence"
    SETS = {
        "adding-bits": DataSet(
            "adding, bits", "sequences of bits, how many ones there are at nine marked steps"
        ),
        "adding-numbers": DataSet(
            "adding, numbers", "sequences of numbers, the sum of those at two marked steps"
        ),
    }
    OWN_TITLE = "the adding problem, {}"
    SPACE, MEMBRANES = _OWN_SPACE, _OWN_MEMBRANES

    data: Literal["adding-bits", "adding-numbers"] = "adding-bits"
    """What is added: adding-bits (nine marked bits, ten classes; the public benchmark's binary
    adding) or adding-numbers (two marked numbers in [0, 1), their sum; Hochreiter and Schmidhuber
    1997)."""
    steps: Annotated[int, Bound("[20, inf)")] = 100
    """Length of a sequence, at least 20."""
    sequences: Annotated[int, Bound("[1000, inf)")] = 50_000
    """Sequences to train, at least 1000; 2,000 validate and 2,000 test."""
    draw_seed: Count = 0
    """Seed of all sequences; it hangs on no run's seed."""

    def __post_init__(self) -> None:
        check_types(self)

    def metric(self) -> str:
        return "accuracy" if self.data == "adding-bits" else "rmse"


@dataclass(frozen=True)
class NpzConfig(TaskSettings):
    """Your own sequences: .npz files that hold x (n, T, I) and y."""

    NAME = "npz"
    CLASS = "spikebridge.data.npz:Npz"
    OWN_DATA, OWN_TITLE, OWN_ONLY = "npz", "sequences of your own, {}", True
    SPACE, MEMBRANES = _OWN_SPACE, _OWN_MEMBRANES

    data: Literal["npz"] = "npz"
    """The files in --data-dir."""
    data_dir: str = ""
    """Folder with train.npz, test.npz and perhaps valid.npz, each with x (n, T, I) and y: classes
    (n,) or (n, T), -1 for none, or numbers to predict (n, O) or (n, T, O).  Sequences of several
    lengths are padded, and lengths (n,) says how long each is, or mask (n, T) which steps are
    real; padding counts nowhere."""
    answers: Literal["auto", "classes", "numbers"] = "auto"
    """What y holds: classes, numbers to predict, or what its type says (auto: whole numbers are
    classes), where one-hot rows are refused because either could be meant."""
    readout: Literal["mean", "last"] = "mean"
    """Where y is one per sample: what it is read from, the mean over time or the last step; over
    the real steps."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class ForecastConfig(TaskSettings):
    """Time series: predict the values of some columns of a table some rows ahead."""

    NAME = "forecast"
    SAMPLE, COUNTED = "stream", "row"
    METRIC = "rmse"
    CLASS = "spikebridge.data.forecast:Forecast"
    OWN_DATA, OWN_ONLY = "csv", True
    OWN_TITLE = "the table {}, predicting its values some rows ahead"
    SPACE = _OWN_SPACE | {"batch_size": [4, 8, 16], "dropout": [0.0, 0.1, 0.3]}
    MEMBRANES = _OWN_MEMBRANES

    data: Literal["csv"] = "csv"
    """The table in --file."""
    file: str = ""
    """A table as text, with a header line and one row per time step; columns that are not numbers,
    such as dates, are left out.  Encoding, what parts the fields, decimal commas and thousands
    follow from the file."""
    missing: tuple[str, ...] = ()
    """Further marks of a missing value, such as -9999, beside empty fields, ?, -, NA and NaN."""
    decimal: Literal["auto", ".", ","] = "auto"
    """What marks fractions where the numbers do not say, as of 1,234 alone."""
    targets: tuple[str, ...] = ()
    """Columns to predict; by default all that are numbers."""
    horizon: Size = 1
    """Rows ahead, at least 1."""
    look_back: FromTwo = 0
    """Above 0: each sample is a window of so many rows, after which all of the next --horizon rows
    are predicted at once, as is customary with ETTh1 (336, 96 and --rows 8640 2880 2880); 0 = one
    stream, where the row that lies --horizon ahead is predicted at every row."""
    rows: tuple[int, ...] = ()
    """Rows to train, validate and test, one after the other from the first; by default shares."""
    anchor: Literal["last", "none"] = "last"
    """Of windows: whether values are relative to the last row seen (last), or as they are."""
    steps: Size = 50
    """Steps of truncated backpropagation through time, at least 1; the state is carried on."""
    valid_share: Positive = 0.15
    """Share of the rows for validation, after those for training."""
    test_share: Positive = 0.15
    """Share of the rows for the test: the last ones."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.valid_share + self.test_share < 0.9,
            f"valid_share={self.valid_share}, test_share={self.test_share}: the two together must "
            "be below 0.9; pass --valid-share 0.15 --test-share 0.15",
        )
        require(
            not self.rows or (len(self.rows) == 3 and min(self.rows) > 0),
            f"rows={list(self.rows)}: three numbers above 0, to train, validate and test; pass "
            "--rows 8640 2880 2880, or leave it out",
        )

    def place(self) -> str:
        return "spikebridge.data.windows:Windows" if self.look_back else self.CLASS

    def sample_name(self) -> str:
        return "window" if self.look_back else self.SAMPLE

    def metric(self) -> str:
        return "mse" if self.look_back else self.METRIC


@dataclass(frozen=True)
class OwnConfig(TaskSettings):
    """A task of your own: a class in a module of yours, or an object that `run` is given."""

    NAME, OWN_ONLY = "own", True
    SPACE, MEMBRANES = _OWN_SPACE, _OWN_MEMBRANES

    data: str = "own"
    """What tables and pages call it."""
    task_class: str = ""
    """Its class, mypackage:MyTask, made without arguments; none where an object is given."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            not self.task_class or is_place(self.task_class),
            f"task_class={self.task_class!r}: it names a class in a module; pass --task-class "
            "mypackage:MyTask",
        )


TaskConfig = (
    DigitsConfig
    | MusicConfig
    | TextConfig
    | EventsConfig
    | EcgConfig
    | SpeechConfig
    | AddingConfig
    | NpzConfig
    | ForecastConfig
    | OwnConfig
)


TASKS: dict[str, type[TaskConfig]] = {kind.NAME: kind for kind in get_args(TaskConfig)}
DATA_SETS = {data: known for kind in TASKS.values() for data, known in kind.SETS.items()}


def data_label(data: str) -> str:
    """What tables call a data set; the user's are called by their own name."""
    return DATA_SETS[data].name if data in DATA_SETS else data


def data_title(data: str, task: str) -> str:
    """What a page says of the data of a task."""
    own = TASKS[task].OWN_TITLE if task in TASKS else "{}"
    return DATA_SETS[data].title if data in DATA_SETS else own.format(data)


def name_of_data(task: TaskConfig) -> str:
    """What folders and tables call the data: their name, or that of the user's folder or file."""
    if file := getattr(task, "file", ""):
        return Path(file).stem
    folder = getattr(task, "data_dir", "")
    return (Path(folder).name or task.data) if folder else task.data


def is_own(task: TaskConfig) -> bool:
    """Whether the data are the user's, and not those that the task's `data` names."""
    folder = getattr(task, "file", "") or getattr(task, "data_dir", "")
    return bool(folder) or isinstance(task, OwnConfig)


def _own_data(data: str, data_dir: str, own: str) -> None:
    require(
        (data == own) == (data_dir != ""),
        f"data={data!r}, data_dir={data_dir!r}: a folder of your own goes with --data {own}, and "
        f"--data {own} with a folder; pass --data-dir D alone, or another --data",
    )
