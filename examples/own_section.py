"""A section of your own on the page of a run: a function of the loaded run.

spikebridge report RUN --section own_section:silent_neurons      in the folder of this file
"""

from spikebridge import Section


def silent_neurons(run) -> Section:
    """How many neurons said nothing in the examples that the run kept."""
    shares = {}
    for number, outputs in run.examples.y.items():  # (T, B, N)
        shares[number] = float((outputs == 0).all((0, 1)).mean())
    text = ", ".join(f"{share:.0%} of layer {number}" for number, share in shares.items())
    return Section("Silent neurons", f"Without a spike in the examples: {text}.", ())
