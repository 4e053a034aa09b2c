"""Who may use a bench, and the command that serves it."""

from __future__ import annotations

import ast
import datetime
import importlib.util
import ipaddress
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers.benches import SHAPE, connect, once

from spikebridge.base.records import RunError, UsageError
from spikebridge.cli import bench
from spikebridge.cli.bench import Bench
from spikebridge.crossbar.bench import protocol
from spikebridge.crossbar.bench import server as serving
from spikebridge.crossbar.bench.client import RemoteArray, _Failure, _Link
from spikebridge.crossbar.bench.server import Server, serve
from spikebridge.crossbar.cells import CellArray, SimulatedArray

EXAMPLE = Path(__file__).parents[2] / "examples" / "lab_instrument.py"


# Who may use it.


def test_version_and_shape_must_agree(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'accumulation' has the shape \(4, 6\), expected \(2,\)"):
        connect(server, shape=(2,))
    monkeypatch.setattr(protocol, "VERSION", 2)
    with pytest.raises(UsageError, match=r"speaks version 1 .* its user version 2; install the sa"):
        connect(server)


def test_the_token_is_asked_for(array: SimulatedArray) -> None:
    with serve(array, token="correct-horse") as server:
        with connect(server, token="correct-horse") as remote:
            remote.pulse(once())
        for token in ("", "wrong", "correct-hors", "correct-horse1"):
            with pytest.raises(UsageError, match="the token is missing or wrong; pass the token"):
                connect(server, token=token)
        link = _Link(server.address, "wrong", None, 2**22, 5.0, 0.0)
        with pytest.raises(_Failure, match="the token is missing or wrong"):
            link.send(b"x" * 2**25)  # refused without being read
    for token in ("two words", "größe", "line\n"):
        with pytest.raises(UsageError, match="the token holds spaces") as caught:
            serve(array, token=token)
        assert token not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "lab.example"])
def test_beyond_loopback_it_takes_tls_and_a_token(
    array: SimulatedArray, host: str, pem: dict[str, Path]
) -> None:
    with pytest.raises(UsageError, match="it lacks a token and TLS: give a token, a certificate"):
        serve(array, host=host)
    with pytest.raises(UsageError, match="it lacks TLS"):
        serve(array, host=host, token="t")
    with pytest.raises(UsageError, match="it lacks a token:"):
        serve(array, host=host, certificate=pem["certificate"], key=pem["key"])
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    with pytest.raises(UsageError, match="beyond this machine a token and all commands would be"):
        RemoteArray(address, token="t")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A self-signed certificate for localhost and 127.0.0.1, its key, and a stranger's."""
    folder = tmp_path_factory.mktemp("pem")
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    paths = {}
    for which, names in {
        "": hosts,
        "other_": hosts,
        "else_": [x509.DNSName("lab.example")],
    }.items():
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public = made.public_bytes(serialization.Encoding.PEM)
        for what, content in (("certificate", public), ("key", private)):
            paths[which + what] = folder / f"{which}{what}.pem"
            paths[which + what].write_bytes(content)
    return paths


def test_tls(array: SimulatedArray, pem: dict[str, Path]) -> None:
    guards = {"token": "t", "certificate": pem["certificate"]}
    with serve(array, host="0.0.0.0", key=pem["key"], **guards) as server:  # type: ignore[arg-type]
        for host in ("localhost", "127.0.0.1"):
            with RemoteArray(f"{host}:{server.port}", **guards) as remote:  # type: ignore[arg-type]
                remote.pulse(once())
        local = f"localhost:{server.port}"
        with pytest.raises(UsageError, match="certificate is not trusted"):
            RemoteArray(local, token="t", certificate=pem["other_certificate"])
        with pytest.raises(RunError, match="with TLS where a certificate is given"):
            RemoteArray(local, token="t", retry_s=0)
    assert array.pulses.eq(2).all()
    elsewhere = {"certificate": pem["else_certificate"], "key": pem["else_key"]}
    with (
        serve(array, **elsewhere) as server,  # type: ignore[arg-type]
        pytest.raises(UsageError, match="certificate is not trusted"),
    ):
        RemoteArray(server.address, certificate=pem["else_certificate"])


def test_what_cannot_be_served_is_said(
    server: Server, array: SimulatedArray, pem: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{server.port}; take a port"):
        serve(array, port=server.port)
    with pytest.raises(UsageError, match="port=99999: a port lies in 0 to 65535"):
        serve(array, port=99999)
    with pytest.raises(UsageError, match="TLS needs a certificate and its key"):
        serve(array, key=pem["key"])
    with pytest.raises(UsageError, match=r"certificate.pem: holds no PRIVATE KEY"):
        serve(array, certificate=pem["key"], key=pem["certificate"])
    with pytest.raises(UsageError, match=r"none.pem: cannot be read \(No such file"):
        serve(array, certificate=tmp_path / "none.pem", key=pem["key"])
    with pytest.raises(UsageError, match="Tensor is no CellArray; it lacks clock_s, g_max_uS"):
        serve(once())  # type: ignore[arg-type]
    for address in ("127.0.0.1", "localhost:", ":5", "localhost:http"):
        with pytest.raises(UsageError, match="give HOST:PORT"):
            RemoteArray(address)
    with pytest.raises(UsageError, match="give finite numbers of seconds"):
        RemoteArray("localhost:1", timeout_s=0)


def test_an_array_that_was_closed_says_so(server: Server) -> None:
    with connect(server) as remote:
        remote.pulse(once())
    remote.close()
    with pytest.raises(UsageError, match="this RemoteArray was closed"):
        remote.read()
    with pytest.raises(UsageError, match="this RemoteArray was closed"):
        _ = remote.clock_s


def test_without_grpc_the_error_says_what_to_install(
    array: SimulatedArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    for start in (lambda: serve(array), lambda: RemoteArray("localhost:1")):
        with pytest.raises(UsageError, match=r"pip install 'spikebridge\[remote\]'"):
            start()


# The command, and the example.


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    code = (
        "import signal, sys, tyro; from spikebridge.cli.bench import Bench\n"
        "assert 'torch' not in sys.modules\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may set it off
        "tyro.cli(Bench, config=(tyro.conf.OmitArgPrefixes,)).run()"
    )
    words = ["serve", "--shape", "4", "6", "--port", "0", "--token-file", "token"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        with RemoteArray(address, token="from-a-file", shape=SHAPE) as remote:
            remote.pulse(once())
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert "accumulation, (4, 6) cells, a token, no TLS; Ctrl-C stops" in told
    assert "from-a-file" not in told


SLOW = """
import time
from spikebridge.crossbar.cells import SimulatedArray
from spikebridge.crossbar.pcm import ACCUMULATION

class Slow(SimulatedArray):
    def reset(self, where=None):
        time.sleep(60)

def make():
    return Slow((4, 6), ACCUMULATION)
"""


def cut_off(remote: RemoteArray) -> None:
    with pytest.raises(RunError, match="may or may not have been carried out"):
        remote.reset()


def test_a_second_ctrl_c_ends_a_bench_that_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    code = (
        "import signal, sys; from spikebridge.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may set it off
        "sys.exit(main())"
    )
    words = ["bench", "serve", "--port", "0", "--instrument", "slow:make"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            address = process.stdout.readline().strip()
            assert address, process.stderr.read()
            with RemoteArray(address, timeout_s=20.0, retry_s=0.0) as remote:
                caller = threading.Thread(target=cut_off, args=(remote,))
                caller.start()
                while remote._open is None:
                    time.sleep(0.01)
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                told = ""
                while "Ctrl-C again stops at once" not in told:
                    told = process.stderr.readline()
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=30) == 130
                assert process.stderr.read() == "stopped; the command under way may be half done\n"
                caller.join(30)
        finally:
            process.kill()


def test_a_shape_beyond_messages_or_memory_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match=r"1,000,000,000,000 cells, .* divide the cells"):
        Bench("serve", shape=(10**6, 10**6)).run()

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("spikebridge.crossbar.cells.SimulatedArray", fails)
    with pytest.raises(UsageError, match=r"shape=\(4, 6\): the cells do not fit into the memory"):
        Bench("serve", shape=SHAPE).run()


def run_briefly(request: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[str, CellArray]:
    """Name and shape of what a command serves, before it is interrupted."""
    found = []

    def interrupted(self: Server, timeout_s: float | None = None) -> None:
        found.append(self._desk._array)
        raise KeyboardInterrupt

    monkeypatch.setattr(serving.Server, "wait", interrupted)
    request.run()
    return found[0].name, found[0].shape


def test_the_command_finds_arrays_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_chip.py").write_text(
        "from spikebridge.crossbar import cells, pcm\n"
        "def make(shape): return cells.SimulatedArray(shape, pcm.ITERATIVE)\n"
    )
    (tmp_path / "own_broken.py").write_text("import not_there_either\n")
    monkeypatch.setenv(bench.TOKEN, "secret-word")

    def briefly(instrument: str, shape: tuple[int, ...] = ()) -> Any:
        return run_briefly(Bench("serve", instrument, shape, port=0), monkeypatch)

    assert briefly("lab_instrument:connect") == ("ACME PS-12", (4, 3))
    assert briefly("own_chip:make", (2, 3)) == ("iterative", (2, 3))
    assert briefly("", (5,)) == ("accumulation", (5,))
    said = capsys.readouterr()
    assert said.out.count("127.0.0.1:") == 3
    assert "a token" in said.err
    assert "secret-word" not in said.err + said.out
    for name in ("lab_instrument", "own_chip"):
        del sys.modules[name]
    with pytest.raises(UsageError, match="there is no module nowhere; start in its folder"):
        briefly("nowhere:make")
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        briefly("own_broken:make")
    with pytest.raises(UsageError, match="own_chip has no build"):
        briefly("own_chip:build")
    with pytest.raises(UsageError, match="pass MODULE:FUNCTION of your own"):
        briefly("own_chip")
    with pytest.raises(UsageError, match="simulated cells need sides of at least 1"):
        briefly("")
    with pytest.raises(UsageError, match="pass --seed 0"):
        Bench("serve", shape=(1,), seed=-1).run()


def test_the_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(bench.TOKEN, raising=False)
    assert bench.read_token(None) == ""
    monkeypatch.setenv(bench.TOKEN, "env")
    assert bench.read_token(None) == "env"
    (tmp_path / "t").write_text(" file\n")
    assert bench.read_token(tmp_path / "t") == "file"
    (tmp_path / "t").write_text("\n")
    with pytest.raises(UsageError, match="is empty; `openssl rand"):
        bench.read_token(tmp_path / "t")
    with pytest.raises(UsageError, match="cannot be read as a token"):
        bench.read_token(tmp_path / "u")


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_instrument", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_in_40_lines(example: ModuleType) -> None:
    found = example.main([])
    assert found.shape == (4, 3)
    assert found.flatten()[5] == pytest.approx(0.1)
    assert found.eq(5).sum() == 11
    source = EXAMPLE.read_text(encoding="utf-8")
    (chip,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == "LabChip"]
    lines = source.splitlines()[chip.lineno - 1 : chip.end_lineno]
    assert sum(bool(line.strip()) for line in lines) <= 40


def test_errors_of_the_example_instrument_come_through(example: ModuleType) -> None:
    with serve(example.connect()) as server, connect(server) as remote:
        with pytest.raises(RuntimeError, match=r"the instrument reports no contact \(-200\)"):
            remote.reset()
        before = remote.clock_s
        remote.wait(0.01)
        assert remote.clock_s >= before + 0.01
        remote.read()
