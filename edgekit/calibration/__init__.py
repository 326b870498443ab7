"""Photos to calibrate an int8 model with: chosen, prepared as the model wants them, and questioned."""

from edgekit.calibration.photos import CalibrationSet as CalibrationSet
from edgekit.calibration.photos import calibration_set as calibration_set
