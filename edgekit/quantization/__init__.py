"""Quantization: which operations run in int8, with which scales, and what that does to the numbers."""

from edgekit.quantization.ptq import float_form as float_form
from edgekit.quantization.ptq import prepare as prepare
from edgekit.quantization.ptq import quantize as quantize
from edgekit.quantization.ptq import ranges_of as ranges_of
from edgekit.quantization.ranges import Range as Range
from edgekit.quantization.simulation import KERNELS as KERNELS
from edgekit.quantization.simulation import Simulation as Simulation
