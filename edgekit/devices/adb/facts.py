"""What an Android device says of itself: what a latency must be quoted with, and whether it is fit to be measured.

Everything is read without root, and every part may be missing: versions of Android tell different things.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekit.devices.adb.client import Client
from edgekit.types import Step

PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "product": "ro.product.model",
    "soc_maker": "ro.soc.manufacturer",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "hardware": "ro.hardware",
    "abi": "ro.product.cpu.abi",
    "android": "ro.build.version.release",
    "api": "ro.build.version.sdk",
    "fingerprint": "ro.build.fingerprint",
}
_FACTS = "\n".join(f'echo "{name}=$(getprop {prop})"' for name, prop in PROPERTIES.items())
_CORES = """
echo "online=$(cat /sys/devices/system/cpu/online 2>/dev/null)"
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  f=$c/cpufreq
  echo "cpu${c##*cpu}=$(cat $f/cpuinfo_max_freq 2>/dev/null || echo 0) $(cat $f/scaling_governor 2>/dev/null)"
done
"""
_STATE = """
echo "khz=$(cat /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq 2>/dev/null | tr '\\n' ' ')"
echo "load=$(cut -d' ' -f1 /proc/loadavg 2>/dev/null)"
echo "low_power=$(settings get global low_power 2>/dev/null)"
echo "screen=$(dumpsys display 2>/dev/null | grep -m 1 -o 'mScreenState=[A-Z]*' | cut -d= -f2)"
"""
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
KINDS = ("cpu", "gpu", "battery", "skin", "usb", "power_amplifier")
"""Of temperatures, by the number that Android's HAL gives them; those behind are not told."""
MAX_BATTERY_CELSIUS, MIN_BATTERY_PERCENT = 37.0, 20
WAIT_SECS, LOOK_SECS = 300.0, 5.0
"""How long the gate waits for a phone to cool down (as MLPerf Mobile between its tests), and how often it looks."""


@dataclass(frozen=True, kw_only=True)
class Core:
    number: int
    max_khz: int
    governor: str = ""


def told(client: Client, script: str) -> dict[str, str]:
    """The lines NAME=VALUE that a script prints."""
    lines = client.shell(script, what="reading facts").out.splitlines()
    return {k.strip(): v.strip() for k, equals, v in (line.partition("=") for line in lines) if equals}


def properties(client: Client) -> dict[str, str]:
    return {k: v for k, v in told(client, _FACTS).items() if v}


def cores_of(client: Client) -> tuple[Core, ...]:
    """The cores that are switched on, the fastest first; of equals the last, since interrupts favour the first."""
    values = told(client, _CORES)
    online = ranges(values.pop("online", ""))
    found = []
    for name, value in values.items():
        khz, _, governor = value.partition(" ")
        if re.fullmatch(r"cpu\d+", name) and khz.isdigit():
            found.append(Core(number=int(name[3:]), max_khz=int(khz), governor=governor))
    on = [c for c in found if not online or c.number in online]
    return tuple(sorted(on, key=lambda c: (c.max_khz, c.number), reverse=True))


def ranges(text: str) -> frozenset[int]:
    """ "0-3,6" as numbers."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d{1,4})(?:-(\d{1,4}))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def device_facts(values: Mapping[str, str], serial: str, on: tuple[Core, ...], cpus: tuple[int, ...]) -> dict[str, str]:
    """What stands beside a latency; what the device does not tell is left out."""
    get = values.get
    maker, product = get("manufacturer", ""), get("product", "")
    governors = dict.fromkeys(c.governor for c in on if c.number in cpus or not cpus)
    found = {
        "kind": "adb",
        "address": f"adb:{serial}",
        "model": product if product.lower().startswith(maker.lower()) else f"{maker} {product}".strip(),
        "system": f"Android {get('android', '?')}" + (f" (API {get('api')})" if get("api") else ""),
        "cpu": " ".join(filter(None, (get("soc_maker"), get("soc")))) or get("platform") or get("hardware") or "",
        "machine": get("abi", ""),
        "cores": str(len(on)),
        "max_khz": " ".join(str(c.max_khz) for c in sorted(on, key=lambda c: c.number) if c.max_khz),
        "governor": ",".join(filter(None, governors)),
        "fingerprint": get("fingerprint", ""),
        "pinned_to": ",".join(map(str, cpus)),
    }
    return {k: v for k, v in found.items() if v}


def state(client: Client) -> dict[str, str]:
    """Heat, battery, clocks and load now."""
    values = {k: v for k, v in told(client, _STATE).items() if v and v != "null"}
    values |= thermal(client.shell("dumpsys thermalservice 2>/dev/null", what="reading temperatures").out)
    return values | battery(client.shell("dumpsys battery 2>/dev/null", what="reading the battery").out)


def thermal(text: str) -> dict[str, str]:
    """Of `dumpsys thermalservice` (Android 10 and newer): the status, and the hottest sensor of each kind.

    Temperatures are of the HAL's block: the cached ones are older.
    """
    found = {}
    if match := re.search(r"Thermal Status:\s*(\d{1,2})\b", text):
        found["thermal_status"] = match[1]
    _, _, block = text.partition("Current temperatures from HAL:")
    hottest: dict[str, float] = {}
    for line in block.splitlines():
        match = re.search(r"Temperature\{mValue=(-?\d+(?:\.\d+)?), mType=(\d+),", line)
        if match and int(match[2]) < len(KINDS):
            kind = KINDS[int(match[2])]
            hottest[kind] = max(float(match[1]), hottest.get(kind, -273.0))
        elif re.search(r"^\s*Current \w+", line):
            break
    return found | {f"{kind}_celsius": f"{celsius:g}" for kind, celsius in hottest.items()}


def battery(text: str) -> dict[str, str]:
    """Of `dumpsys battery`: percent, temperature, and whether it is being charged."""
    values = dict(re.findall(r"(?m)^\s*([\w ]+?): (\S+)\s*$", text))
    found = {}
    level, scale = values.get("level", ""), values.get("scale", "100")
    if level.isdigit() and scale.isdigit() and int(scale):
        found["battery_percent"] = str(round(100 * int(level) / int(scale)))
    if re.fullmatch(r"-?\d{1,5}", values.get("temperature", "")):
        found["battery_celsius"] = f"{int(values['temperature']) / 10:g}"
    if values.get("status") in ("1", "2", "3", "4", "5"):
        found["charging"] = "yes" if values["status"] in ("2", "5") else "no"
    return found


def unfit(now: Mapping[str, str]) -> list[str]:
    """Why a device in this state would not show what it can do; [] where it would, or does not tell."""
    reasons = []
    status = now.get("thermal_status", "0")
    if status != "0":
        name = THERMAL[int(status)] if int(status) < len(THERMAL) else "unknown"
        reasons.append(f"its thermal status is {status} ({name})")
    if float(now.get("battery_celsius", 0)) > MAX_BATTERY_CELSIUS:
        reasons.append(f"its battery has {now['battery_celsius']} °C (more than {MAX_BATTERY_CELSIUS:g})")
    return reasons


def gate(look: Callable[[], Mapping[str, str]], on_step: Step) -> tuple[str, ...]:
    """Wait until the device is cool, up to a limit; warnings where it is not, or saves power."""
    began = time.monotonic()
    now = look()
    while (reasons := unfit(now)) and time.monotonic() - began < WAIT_SECS:
        waited_secs = round(time.monotonic() - began)
        on_step(f"waiting: {reasons[0]}", waited_secs, round(WAIT_SECS))
        time.sleep(min(LOOK_SECS, WAIT_SECS))
        now = look()
    waited = f" after {time.monotonic() - began:.0f} s of waiting" if reasons else ""
    found = [f"degraded: {' and '.join(reasons)}{waited}: let it cool down"] if reasons else []
    if now.get("low_power") == "1":
        found.append("degraded: it saves power (battery saver is on): switch that off")
    elif int(now.get("battery_percent", 100)) < MIN_BATTERY_PERCENT and now.get("charging") != "yes":
        found.append(f"degraded: its battery is at {now['battery_percent']} %: phones slow down when it is low")
    return tuple(found)
