"""An Android phone on a cable or in the network, through the user's own `adb`."""

from edgekit.devices.adb.device import Adb as Adb
