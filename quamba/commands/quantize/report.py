"""What main.py says of a run, below the table of its measurements."""

from collections.abc import Sequence
from pathlib import Path

from ...evaluation.summary import backend_line
from ...scheme.recipe import QuantizationRecipe
from ...scheme.simulation import Simulation


def report_lines(log: dict, blocks: Sequence[bool]) -> list[str]:
    """Return what was done, and where it is, a line each; `blocks`: which decoder layers have a Mamba block."""
    lines = []
    if log["recipe"]:
        lines.append(f"recipe      {QuantizationRecipe.from_dict(log['recipe']).describe(blocks)}")
    if simulation := log.get("simulation"):
        formats = Simulation.from_dict(simulation)
        lines.append(f"simulation  {formats.describe()}, computed in floats: sizes and speed are the float model's")
    if weights := log.get("weights"):
        lines.append(f"weights     {weights_line(weights)}")
    if calibration := log.get("calibration"):
        by_observer = {}
        for tap, name in calibration["observer"].items():
            by_observer.setdefault(name, []).append(tap)
        lines.append("observers   " + "; ".join(f"{name}: {', '.join(taps)}" for name, taps in by_observer.items()))
        lines.append(f"calibrated  on {calibration['tokens']} tokens in {calibration['seconds']:.1f} s")
        if (activations := log["args"]["save_activations"]) and Path(activations).is_dir():
            advice = "compare scales on them: python -m quamba observers --activations DIR"
            lines.append(f"activations {activations} ({advice})")
    lines.append(f"kernels     {backend_line(log['kernels'])}")
    if "saved" in log:
        nowhere = (
            "nowhere: see the error below" if log["args"]["pretrained_dir"] else "nowhere: give --pretrained_dir DIR"
        )
        lines.append(f"saved to    {log['saved'] or nowhere}")
    return lines


def weights_line(weights: dict) -> str:
    """Return what became of the weights: `alpha 0.05 to 0.60, output errors 0.81 of rounding to nearest; ...`."""
    reports = list(weights["reports"].values())
    alphas = [report["alpha"] for report in reports if report["alpha"] is not None]
    ratios = [report["error"] / report["nearest_error"] for report in reports if report["nearest_error"] > 0]
    flips = [sum(found["flips"] for found in report["flips"].values()) for report in reports if report["flips"]]
    parts = [f"alpha {min(alphas):.2f} to {max(alphas):.2f}"] if alphas else []
    parts += [f"output errors {sum(ratios) / len(ratios):.2f} of rounding to nearest"] if ratios else []
    parts += [f"{sum(flips)} flips"] if flips else []
    peak = f"peak {weights['peak_bytes'] / 1e9:.1f} GB"
    return f"{', '.join(parts)}; {weights['tokens']} tokens in {weights['seconds']:.1f} s, {peak}"
