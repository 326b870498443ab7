"""Devices, precision and processes, as torchrun or one process has them; batch norms of all processes together."""

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from edgekit.errors import EnvironmentProblem
from edgekit.training.recipe import HardwareSection

if TYPE_CHECKING:
    from lightning_fabric import Fabric


PATIENCE = timedelta(hours=2)
"""Of a process for the others: the first looks at the data, and evaluates, while they wait."""


def fabric_of(hardware: HardwareSection, alone: bool = False) -> "Fabric":
    """Devices, precision and processes, as torchrun or one process has them; `alone` without the others.

    Raises `EnvironmentProblem`.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        raise EnvironmentProblem(
            "training needs the package lightning-fabric", "Type: pip install edgekit[train]"
        ) from error
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "hardware.device: there is no GPU that torch can use here", "Type hardware.device=auto"
        )
    world, local = (1 if alone else int(os.environ.get(n, "1")) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[hardware.precision]
    cuda = hardware.device == "cuda" or (hardware.device == "auto" and torch.cuda.is_available())
    if world > 1:
        _join("nccl" if cuda else "gloo", int(os.environ["RANK"]), world)
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def _join(backend: str, rank: int, world: int) -> None:
    """Find the other processes, under a name of this attempt.

    What torchrun starts again shares a store with those that died, and would wait for them at their old addresses.
    """
    if dist.is_initialized():
        return
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, is_master=keeps, wait_for_workers=False, timeout=PATIENCE)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    named = dist.PrefixStore(f"edgekit-{attempt}", store)
    dist.init_process_group(backend, store=named, rank=rank, world_size=world, timeout=PATIENCE)
