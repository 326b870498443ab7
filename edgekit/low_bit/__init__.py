"""Weights and activations of 2 to 8 bits, learned and simulated in torch."""

from edgekit.low_bit.learning import LowBitOptions as LowBitOptions
from edgekit.low_bit.learning import learn as learn
from edgekit.low_bit.program import written as written
from edgekit.low_bit.scheme import PROTOCOLS as PROTOCOLS
from edgekit.low_bit.scheme import is_low_bit as is_low_bit
from edgekit.low_bit.scheme import place as place
from edgekit.low_bit.scheme import scheme_of as scheme_of
from edgekit.low_bit.student import Student as Student
