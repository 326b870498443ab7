"""A phone that can be told what goes wrong: adb's wire protocol, a file system and processes that are Python objects.

It runs no command of anybody's: it knows the few scripts that edgekit sends, and refuses the others with code 127.
"""

import asyncio
import json
import re
import shlex
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

VERSION, MAX_DATA, CHUNK = 0x01000001, 1 << 20, 4096
BANNER = b"device::ro.product.name=fake;ro.product.model=Fake_1;ro.product.device=fake;features=shell_v2,cmd"
TMP = "/data/local/tmp"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
PROPERTIES = "manufacturer=Acme\nproduct=Fake 1\nabi=x86_64\nandroid=14\napi=34\nfingerprint=acme/fake:14/user\n"
CORES = "online=0-3\ncpu0=1800000 schedutil\ncpu1=1800000 schedutil\ncpu2=2800000 schedutil\ncpu3=3000000 schedutil\n"
THERMAL = (
    "Thermal Status: {status}\nCurrent temperatures from HAL:\n"
    "\tTemperature{{mValue=30.0, mType=0, mName=AP, mStatus=0}}\n"
)


class Unplugged(Exception):
    """The connection went while this was going on."""


@dataclass
class Faults:
    """What goes wrong. `runner` is what a process does at the request `at`: crash, hang, garbage, unplug, error."""

    unauthorized: bool = False
    offline: bool = False
    unplug_after_bytes: int | None = None
    lost_bytes: int = 0
    disk_bytes: int = 1 << 30
    runner: str = ""
    at: str = "run"
    thermal_status: int = 0
    battery: int = 290


@dataclass
class Process:
    """Something that runs in a folder; `killed` ends it."""

    pid: int
    cwd: str
    words: list[str]
    killed: asyncio.Event = field(default_factory=asyncio.Event)


class Stream:
    """One stream of a connection: bytes in both directions, one packet on its way at a time."""

    def __init__(self, connection: "Connection", own: int, other: int) -> None:
        self.connection, self.own, self.other = connection, own, other
        self.received: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.acknowledged = asyncio.Event()
        self.buffer = b""
        self.closed = False

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), CHUNK):
            if self.closed:
                raise Unplugged
            self.acknowledged.clear()
            await self.connection.send(b"WRTE", self.own, self.other, data[start : start + CHUNK])
            await self.acknowledged.wait()

    async def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            more = await self.received.get()
            if more is None:
                raise Unplugged
            self.buffer += more
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def close(self) -> None:
        self.closed = True
        self.acknowledged.set()
        self.received.put_nowait(None)


class Connection:
    """adb's packets: CNXN, AUTH, OPEN, OKAY, WRTE, CLSE."""

    def __init__(self, phone: "FakePhone", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.phone, self.reader, self.writer = phone, reader, writer
        self.streams: dict[int, Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def send(self, name: bytes, first: int, second: int, data: bytes = b"") -> None:
        command = int.from_bytes(name, "little")
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with suppress(ConnectionError):
            self.writer.write(head + data)
            await self.writer.drain()

    async def serve(self) -> None:
        try:
            while True:
                head = struct.unpack("<6I", await self.reader.readexactly(24))
                data = await self.reader.readexactly(head[3])
                await self._take(head[0].to_bytes(4, "little"), head[1], head[2], data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for stream in self.streams.values():
                stream.close()
            self.writer.close()

    async def _take(self, name: bytes, first: int, second: int, data: bytes) -> None:
        if name in (b"CNXN", b"AUTH"):
            if self.phone.faults.unauthorized and name == b"AUTH" and first == 3:
                return  # its public key: somebody would have to accept it
            if self.phone.faults.unauthorized:
                await self.send(b"AUTH", 1, 0, b"t" * 20)
            elif not self.phone.faults.offline:
                await self.send(b"CNXN", VERSION, MAX_DATA, BANNER)
        elif name == b"OPEN":
            stream = Stream(self, len(self.streams) + 1, first)
            self.streams[stream.own] = stream
            await self.send(b"OKAY", stream.own, first)
            task = asyncio.create_task(self._run(stream, data.rstrip(b"\0").decode()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif name == b"WRTE" and second in self.streams:
            self.streams[second].received.put_nowait(data)
            await self.send(b"OKAY", second, first)
        elif name == b"OKAY" and second in self.streams:
            self.streams[second].acknowledged.set()
        elif name == b"CLSE" and second in self.streams and not self.streams[second].closed:
            self.streams[second].close()
            await self.send(b"CLSE", second, first)

    async def _run(self, stream: Stream, service: str) -> None:
        with suppress(Unplugged):
            if service == "sync:":
                await self.phone.sync(stream)
            elif service.startswith("shell,v2"):
                await self.phone.shell(stream, service.partition(":")[2])
        if not stream.closed:
            await self.send(b"CLSE", stream.own, stream.other)


class FakePhone:
    """`files` and `processes` are what is on it; `unplug` and `plug` are the cable."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = {TMP}
        self.processes: dict[int, Process] = {}
        self.scripts: list[str] = []
        self.requests: list[str] = []
        self.tool_output: Callable[[list[str]], tuple[int, str]] = lambda words: (127, "")
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()

    @property
    def left(self) -> list[str]:
        """Everything of ours that is on it now: files, folders, processes."""
        folders = sorted(self.folders - {TMP})
        return [*sorted(self.files), *folders, *(f"process {p.words}" for p in self.processes.values())]

    # The cable

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self._connections.add(connection)
        with suppress(asyncio.CancelledError):
            await connection.serve()
        self._connections.discard(connection)

    def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.writer.transport.abort()

    def plug(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self.plug()
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _end(self) -> None:
        self._cut()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Its files

    async def sync(self, stream: Stream) -> None:
        while True:
            head = await stream.read(8)
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"QUIT":
                return
            text = (await stream.read(size)).decode()
            if name == b"STAT":
                found = self.files.get(text)
                mode = 0o40755 if text in self.folders else 0 if found is None else 0o100755
                await stream.write(b"STAT" + struct.pack("<3I", mode, len(found or b""), 0))
            elif name == b"SEND":
                await self._receive(stream, text.rpartition(",")[0])
            elif name == b"RECV":
                if text not in self.files:
                    await self._fail(stream, "No such file or directory")
                    continue
                content = self.files[text]
                for start in range(0, len(content), 60000):
                    part = content[start : start + 60000]
                    await stream.write(b"DATA" + struct.pack("<I", len(part)) + part)
                await stream.write(b"DONE" + struct.pack("<I", 0))

    async def _receive(self, stream: Stream, path: str) -> None:
        content = bytearray()
        while True:
            head = await stream.read(8)
            if head[:4] != b"DATA":
                break
            content += await stream.read(int.from_bytes(head[4:], "little"))
            limit = self.faults.unplug_after_bytes
            if limit is not None and len(content) >= limit:
                self.files[path] = bytes(content)
                self._cut()
                raise Unplugged
        room = self.faults.disk_bytes - sum(map(len, self.files.values()))
        self.files[path] = bytes(content)[: max(0, min(room, len(content) - self.faults.lost_bytes))]
        if len(content) > room:
            await self._fail(stream, "couldn't write file: No space left on device")
        elif path.rpartition("/")[0] not in self.folders:
            await self._fail(stream, "couldn't create file: No such file or directory")
        else:
            await stream.write(b"OKAY" + struct.pack("<I", 0))

    async def _fail(self, stream: Stream, text: str) -> None:
        await stream.write(b"FAIL" + struct.pack("<I", len(text)) + text.encode())

    # Its shell

    async def shell(self, stream: Stream, line: str) -> None:
        match = re.fullmatch(r"\((.*)\n\); code=\$\?; echo; echo (\S+)\$code", line, re.S)
        script = match[1] if match else line
        self.scripts.append(script)
        if started := re.match(r"\s*cd (\S+) && exec (.*)", script, re.S):
            code, out = await self._start(stream, started[1], shlex.split(started[2]))
        else:
            code, out = self._answer(script)
        end = f"\n{match[2]}{code}\n" if match else ""
        await self._say(stream, STDOUT, (out + end).encode())
        await self._say(stream, EXIT, bytes([0 if match else code]))

    async def _say(self, stream: Stream, kind: int, data: bytes) -> None:
        if data:
            await stream.write(bytes([kind]) + struct.pack("<I", len(data)) + data)

    def _answer(self, script: str) -> tuple[int, str]:
        words = shlex.split(script, comments=False) if "\n" not in script else []
        canned = {
            "ro.product.model": PROPERTIES,
            "cpuinfo_max_freq": CORES,
            "scaling_cur_freq": "khz=1000000\nload=0.10\nlow_power=0\n",
            "dumpsys thermalservice": THERMAL.format(status=self.faults.thermal_status),
            "dumpsys battery": f"  level: 80\n  scale: 100\n  status: 3\n  temperature: {self.faults.battery}\n",
        }
        for part, text in canned.items():
            if part in script:
                return 0, text
        if "/proc/[0-9]*" in script:
            return self._clean(script)
        if script == "date +%s":
            return 0, f"{time.time():.0f}\n"
        if script.startswith("date +%s; ls "):
            names = {path.removeprefix(f"{TMP}/").partition("/")[0] for path in self.folders - {TMP}}
            return 0, "\n".join([f"{time.time():.0f}", *sorted(names), ""])
        if words[:1] == ["mkdir"]:
            self.folders.add(words[1])
            return 0, ""
        if words[:1] in (["chmod"], ["taskset"]):
            return 0, ""
        if words[:2] == ["stat", "-c"]:
            return 0, "".join(f"{len(self.files[w])} {w}\n" for w in words[3:] if w in self.files)
        return 127, f"the fake phone does not know: {script}\n"

    def _clean(self, script: str) -> tuple[int, str]:
        match = re.search(r"in (\S+)\|", script)
        assert match
        folder = match[1]
        for process in list(self.processes.values()):
            if f"{process.cwd}/".startswith(f"{folder}/"):
                process.killed.set()
                del self.processes[process.pid]
        if "rm -rf" in script:
            self.files = {k: v for k, v in self.files.items() if not k.startswith(f"{folder}/")}
            self.folders = {f for f in self.folders if not f"{f}/".startswith(f"{folder}/")}
        return 0, ""

    # What runs on it

    async def _start(self, stream: Stream, cwd: str, words: list[str]) -> tuple[int, str]:
        process = Process(1000 + len(self.scripts), cwd, words)
        self.processes[process.pid] = process
        is_runner = words[0].endswith("/ld.so")
        task = asyncio.create_task(self._serve(stream, process) if is_runner else self._tool(process))
        killed = asyncio.create_task(process.killed.wait())
        try:
            await asyncio.wait({task, killed}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                self.processes.pop(process.pid, None)
                return task.result()
            return 137, ""
        finally:
            for t in (task, killed):
                t.cancel()

    async def _tool(self, process: Process) -> tuple[int, str]:
        words = process.words
        words = words[next(n for n, w in enumerate(words) if "/tool/" in w and "=" not in w) :]
        self.requests.append(shlex.join(words))
        if self.faults.runner == "hang" and "--help" not in words:
            await asyncio.Event().wait()
        if self.faults.runner == "unplug" and "--help" not in words:
            self._cut()
        return self.tool_output(words)

    async def _serve(self, stream: Stream, process: Process) -> tuple[int, str]:
        """A runner as `devices._base` describes it."""
        await self._say(stream, STDOUT, b"{}\n")
        waiting = b""
        while True:
            try:
                head = await stream.read(5)
                data = await stream.read(int.from_bytes(head[1:], "little"))
            except Unplugged:
                if self.faults.runner == "hang":
                    await asyncio.Event().wait()
                return 0, ""
            if head[0] == CLOSE_STDIN:
                return 0, ""
            if head[0] == STDIN:
                *lines, waiting = (waiting + data).split(b"\n")
                for line in lines:
                    code = await self._request(stream, process, line.decode())
                    if code is not None:
                        return code, ""

    async def _request(self, stream: Stream, process: Process, request: str) -> int | None:
        self.requests.append(request)
        what, *words = request.split()
        fault = self.faults.runner if what == self.faults.at else ""
        if fault == "crash":
            await self._say(stream, STDERR, b"kernel: something is wrong\n")
            return 139
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "unplug":
            self._cut()
            await asyncio.Event().wait()
        answers = {
            "load": {"load_ms": 5.0, "first_ms": 2.0, "runtime": "ExecuTorch 1.5.1"},
            "run": {"us": [1000.0] * int(words[0]) if what == "run" else [], "preempted": 0, "waited_secs": 0.0},
            "memory": {"peak_mib": 20.0, "before_mib": 5.0},
        }
        text = "\x00\xff{not an answer" if fault == "garbage" else json.dumps(answers[what])
        if fault == "error":
            text = json.dumps({"error": "no memory", "hint": "Free memory.", "code": 1})
        await self._say(stream, STDOUT, text.encode("latin-1") + b"\n")
        return None
