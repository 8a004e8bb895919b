"""`octoserve bench URL`: load a running endpoint, report throughput and the distribution of latency."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console
from rich.table import Table

from octoserve.cli.load import Load, Outcome
from octoserve.client.wire import headers_with
from octoserve.core.errors import SettingsError
from octoserve.security.trust import client_context

PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def bench(
    url: Annotated[str, typer.Argument(help="http://host:port, or the whole .../v2/models/M/infer")],
    model: Annotated[str, typer.Option(help="Model to ask; not needed where only one is ready")] = "",
    connections: Annotated[int, typer.Option("--connections", "-c", min=1, help="Concurrent connections")] = 16,
    duration: Annotated[float, typer.Option("--duration", "-d", min=0.1, help="Seconds to measure")] = 5.0,
    warm_up: Annotated[float, typer.Option(min=0.0, help="Seconds to load before measuring")] = 1.0,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Requests a second, evenly; without it as fast as answers come")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows in each made-up request")] = 1,
    body: Annotated[Path | None, typer.Option(help="File with the request body, instead of made-up inputs")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
    verify_slo: Annotated[
        bool, typer.Option(help="Whether the promise is kept at --rate, up to which rate, and what to set for replicas")
    ] = False,
    find: Annotated[bool, typer.Option(help="With --verify-slo: look for the highest rate")] = True,
    latency_p99: Annotated[
        str, typer.Option(help="With --verify-slo: 20ms, instead of what the service promises")
    ] = "",
    availability: Annotated[str, typer.Option(help="With --verify-slo: 99.9%, likewise")] = "",
    admin_url: Annotated[
        str, typer.Option(envvar="OCTOSERVE_ADMIN_URL", help="With --verify-slo: whom to ask what is promised")
    ] = "",
    token_file: Annotated[Path | None, typer.Option(help="A file with the admin token")] = None,
    ca: Annotated[str, typer.Option(envvar="OCTOSERVE_CA", help="For https: a PEM file of whom to trust")] = "",
    certificate: Annotated[str, typer.Option(help="For mutual TLS: a PEM file")] = "",
    certificate_key: Annotated[str, typer.Option(help="Its key, where that is in a file of its own")] = "",
    key_file: Annotated[
        Path | None, typer.Option(help="A file with the API key or token; without it OCTOSERVE_API_KEY")
    ] = None,
) -> None:
    """Load a running endpoint and report what it does.

    Latency is measured here, in one process that shares the machine: near its own limit (some 20,000
    requests a second) it measures itself. With --rate latency counts from when a request was due.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no address of a door; wanted for example http://127.0.0.1:8080")
    host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    tls = client_context(ca, certificate, certificate_key) if parts.scheme == "https" else None
    door = _Door(f"{parts.scheme}://{host}:{port}", tls, headers_with(_key(key_file), {}))
    base = door.base
    path = _path(door, parts.path, model)
    content = body.read_bytes() if body else _made_up(door, path, rows)
    said = "".join(f"{name}: {value}\r\n" for name, value in door.headers.items())
    request = (
        f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n{said}"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode("latin-1") + content
    if verify_slo:
        from octoserve.cli.bench_slo import Verify, model_of, promised, verify

        slo = promised(unquote(model_of(path)), latency_p99, availability, admin_url, token_file)
        wanted = Verify(
            url=base + path, host=host, port=port, request=request, slo=slo, connections=connections,
            duration=duration, warm_up=warm_up, rate=rate, find=find, as_json=as_json, tls=tls,
        )  # fmt: skip
        verify(wanted, lambda load, seconds, before: _run(load, seconds, before, base))
        return
    outcome = _run(Load(host, port, request, connections, rate, tls), duration, warm_up, base)
    if as_json:
        typer.echo(json.dumps(_summary(outcome, connections, rate)))
    else:
        _show(outcome, f"{base}{path}", connections, rate)
    if not outcome.latencies:
        raise typer.Exit(1)


def _run(load: Load, duration: float, warm_up: float, url: str) -> Outcome:
    import uvloop

    try:
        outcome: Outcome = uvloop.run(load.run(duration, warm_up))
    except OSError as error:
        raise SettingsError(f"cannot reach {url}: {error}; is the server running?") from None
    except asyncio.CancelledError:
        raise SettingsError("interrupted") from None
    return outcome


class _Door(NamedTuple):
    base: str
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]


def _key(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--key-file {file}: cannot read it: {error}") from None


def _path(door: _Door, path: str, model: str) -> str:
    if path.endswith("/infer"):
        return path
    if not model:
        ready = sorted({entry["name"] for entry in _ask(door, "/v2/repository/index", {"ready": True})})
        if len(ready) != 1:
            raise SettingsError(f"which model? --model takes one of: {', '.join(ready) or '(none is ready)'}")
        model = ready[0]
    return f"/v2/models/{model}/infer"


def _ask(door: _Door, path: str, body: Any = None) -> Any:
    data, base = None if body is None else json.dumps(body).encode(), door.base
    try:
        request = urllib.request.Request(base + path, data, dict(door.headers))
        with urllib.request.urlopen(request, timeout=10, context=door.tls) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise SettingsError(f"{base}{path} answers {error.code}: {error.read(500).decode(errors='replace')}") from None
    except OSError as error:
        raise SettingsError(f"cannot reach {base}: {error}; is the server running?") from None


def _made_up(door: _Door, path: str, rows: int) -> bytes:
    """Inputs after the model's metadata: 0.5, 1, true or "a" for each element."""
    metadata = _ask(door, path.removesuffix("/infer"))
    inputs = []
    for spec in metadata["inputs"]:
        shape = [1 if d < 0 else d for d in spec["shape"]]
        if shape and spec["shape"][0] < 0:
            shape[0] = rows
        datatype = spec["datatype"]
        value: Any = 1
        if datatype == "BYTES":
            value = "a"
        elif datatype == "BOOL":
            value = True
        elif "FP" in datatype:
            value = 0.5
        data = [value] * math.prod(shape)
        inputs.append({"name": spec["name"], "datatype": datatype, "shape": shape, "data": data})
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def _summary(outcome: Outcome, connections: int, rate: float | None) -> dict[str, Any]:
    total = sum(outcome.statuses.values())
    return {
        "seconds": round(outcome.seconds, 3),
        "connections": connections,
        "rate_wanted": rate,
        "requests": total,
        "requests_per_second": round(outcome.statuses[200] / outcome.seconds, 1),
        "statuses": {str(k): v for k, v in sorted(outcome.statuses.items())},
        "broken_connections": outcome.broken,
        "unanswered": outcome.unanswered,
        "latency_ms": {
            **{f"p{q * 100:g}": round(outcome.percentile(q) * 1000, 3) for q in PERCENTILES},
            "max": round(max(outcome.latencies, default=float("nan")) * 1000, 3),
        }
        if outcome.latencies
        else {},
    }


def _show(outcome: Outcome, url: str, connections: int, rate: float | None) -> None:
    console = Console(highlight=False)
    summary = _summary(outcome, connections, rate)
    pace = f"{rate:g} requests/s wanted" if rate else "as fast as answers come"
    console.print(f"[bold]{url}[/]\n{connections} connections, {summary['seconds']:g} s, {pace}")
    console.print(f"[bold green]{summary['requests_per_second']:,.0f}[/] answers/s")
    if outcome.latencies:
        table = Table(box=None, pad_edge=False)
        for name in summary["latency_ms"]:
            table.add_column(name, justify="right")
        table.add_row(*(f"{value:.2f} ms" for value in summary["latency_ms"].values()))
        console.print(table)
        _histogram(console, outcome)
    failed = {k: v for k, v in summary["statuses"].items() if k != "200"}
    if failed or outcome.broken or outcome.unanswered:
        console.print(
            f"[bold red]not answered with 200:[/] statuses {failed or 'none'}, {outcome.broken} connections broken, "
            f"{outcome.unanswered} unanswered"
        )
        if failed:
            console.print(outcome.sample[:300].decode(errors="replace"), markup=False)


def _histogram(console: Console, outcome: Outcome) -> None:
    """Bars over logarithmic bins, from the fastest answer to the slowest."""
    low, high = max(min(outcome.latencies), 1e-6), max(outcome.latencies)
    bins = 12
    step = math.log(high / low) / bins if high > low else 1.0
    counts = [0] * bins
    for latency in outcome.latencies:
        counts[min(bins - 1, int(math.log(max(latency, low) / low) / step))] += 1
    most = max(counts)
    for i, count in enumerate(counts):
        bar = "█" * round(40 * count / most) or ("▏" if count else "")
        console.print(f"  ≤ {low * math.exp(step * (i + 1)) * 1000:9.2f} ms  [cyan]{bar}[/] {count or ''}")
