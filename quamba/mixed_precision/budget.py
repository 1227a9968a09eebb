"""What the weights of a model's blocks may take: mean bits, or megabytes, as a user writes it and as bytes."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ..errors import QuambaError

BITS, MEGABYTES = "bits", "MB"
MEGABYTE = 10**6
FORM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+) *(bits|mb)?", re.IGNORECASE)
DIGITS = 3  # behind the point of a budget that a message proposes


@dataclass(frozen=True)
class Budget:
    """`text` as given, `value` in `unit`: exact, so that a budget of just a model's size holds that model."""

    text: str
    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`5.5` and `5.5bits`: mean bits a weight; `40MB`: 40 * 10^6 bytes. Raises QuambaError for anything else."""
        match = FORM.fullmatch(text.strip())
        if match is None or (value := Fraction(match[1])) == 0:
            raise QuambaError(
                f"the budget {text!r} is no positive number: give mean bits a weight, such as 5.5 or 5.5bits, or the "
                "megabytes of all blocks' weights, such as 40MB"
            )
        return cls(text.strip(), value, MEGABYTES if (match[2] or "").lower() == "mb" else BITS)

    def limit(self, weight_count: int) -> int:
        """The bytes that so many weights may take."""
        return math.floor(self.value * (Fraction(weight_count, 8) if self.unit == BITS else MEGABYTE))

    def covering(self, size: int, weight_count: int) -> str:
        """The smallest budget in this unit, of few digits, that holds `size` bytes: `4.188bits`."""
        amount = Fraction(8 * size, weight_count) if self.unit == BITS else Fraction(size, MEGABYTE)
        return f"{math.ceil(amount * 10**DIGITS) / 10**DIGITS:.{DIGITS}f}{self.unit}"
