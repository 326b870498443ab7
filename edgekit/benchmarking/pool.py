"""The machines of a Ray cluster and the devices that they offer."""

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from edgekit.errors import EnvironmentProblem


def resource_of(device: str) -> str:
    """The custom resource that a machine with this device offers."""
    return f"device:{device}"


def needs_resource(device: str) -> bool:
    """Any machine is itself, and any can emulate; a phone hangs on one."""
    return device != "host" and not device.startswith("qemu")


class Pool:
    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray

    def nodes(self) -> list[dict[str, Any]]:
        """The machines that are there now and do work."""
        return [n for n in self._ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]

    def offering(self, resource: str) -> list[dict[str, Any]]:
        return [n for n in self.nodes() if n["Resources"].get(resource, 0) > 0]

    def check_devices(self, devices: Iterable[str]) -> None:
        """Raises `EnvironmentProblem` for a device that no machine of the cluster offers."""
        for device in devices:
            if needs_resource(device) and not self.offering(resource_of(device)):
                raise EnvironmentProblem(
                    f"no machine of the Ray cluster has the device {device}",
                    "On the machine that it is attached to, type: ray start --address=HEAD:6379"
                    f""" --resources='{{"{resource_of(device)}": 1}}'""",
                )
        if not self.nodes():
            raise EnvironmentProblem("no machine of the Ray cluster has a CPU to work with", "Type ray start on one.")
