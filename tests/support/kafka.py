"""A real Apache Kafka for tests: one Java process in KRaft mode on free loopback ports, its data in a folder of its
own, or the broker that OCTOSERVE_TEST_KAFKA names (`host:port`).

There is one for a whole test run (`shared`); a test that stops and starts its broker makes one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from support import kafka_jars
from support.supervised import until

_JAVA = ["-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
_CLUSTER = "4L6g3nShT-eMCtK--X86sw"
_SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={protocol}://127.0.0.1:{port}
inter.broker.listener.name={protocol}
controller.listener.names=CONTROLLER
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:PLAINTEXT
log.dirs={folder}/data
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.session.timeout.ms=3000
group.consumer.heartbeat.interval.ms=500
"""
_SASL = """
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \\
  username="broker" password="{password}" user_broker="{password}" user_octoserve="{password}";
"""
PASSWORD = "s3cr3t-Pa55/word"
"""With a character that has to be percent-encoded, so that tests see whether errors show it in either form."""


def missing() -> str:
    """Why there is no Kafka to test with; empty if there is one."""
    if os.environ.get("OCTOSERVE_TEST_KAFKA"):
        return ""
    if not shutil.which("java"):
        return "no Kafka: neither OCTOSERVE_TEST_KAFKA nor `java` (Debian's package openjdk-17-jre-headless)"
    reason = kafka_jars.missing()
    return f"no Kafka: OCTOSERVE_TEST_KAFKA is not set, and there are {reason}" if reason else ""


class Kafka:
    """A broker of this test run. `sasl`: whether clients say who they are (octoserve, PASSWORD)."""

    def __init__(self, sasl: bool = False) -> None:
        self._jars = kafka_jars.jars()
        self._folder = Path(tempfile.mkdtemp(prefix="octoserve-kafka-"))
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            self.port, controller = one.getsockname()[1], two.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.protocol = "SASL_PLAINTEXT" if sasl else "PLAINTEXT"
        text = _SETTINGS.format(port=self.port, controller=controller, folder=self._folder, protocol=self.protocol)
        if sasl:
            text += _SASL.format(password=PASSWORD)
        self._settings = self._folder / "server.properties"
        self._settings.write_text(text)
        formatted = self._run(["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._settings)])
        assert formatted.wait(120) == 0, self._said()
        self.start()

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["java", *_JAVA, "-cp", f"{self._jars}/*", *command],
            cwd=self._folder, stdout=(self._folder / "said").open("ab"), stderr=subprocess.STDOUT,
            preexec_fn=ends_with_us if sys.platform == "linux" else None,
        )  # fmt: skip

    def _said(self) -> str:
        return (self._folder / "said").read_text(errors="replace")[-3000:]

    def start(self) -> None:
        """Until it answers."""
        self.process = self._run(["kafka.Kafka", str(self._settings)])
        until(self._answers, 120, "Kafka")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"Kafka ended: {self._said()}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """At once, as a crash."""
        self.process.kill()
        self.process.wait(20)

    def pause(self) -> None:
        """It answers nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ended, its data removed."""
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def ends_with_us() -> None:
    """The broker is killed with the test run, however that ends: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@cache
def shared() -> str:
    """`host:port` of the run's one broker; skips the test that asks where there is none."""
    given = os.environ.get("OCTOSERVE_TEST_KAFKA")
    if given:
        return given
    if reason := missing():
        pytest.skip(reason)
    broker = Kafka()
    atexit.register(broker.close)
    return broker.address


@contextlib.contextmanager
def own(sasl: bool = False) -> Iterator[Kafka]:
    """A broker that a test may stop."""
    if not shutil.which("java") or kafka_jars.missing():
        pytest.skip(f"no Kafka of the test's own: java is wanted; {kafka_jars.missing()}")
    broker = Kafka(sasl)
    try:
        yield broker
    finally:
        broker.close()


def topic(prefix: str = "t") -> str:
    """A name that no other test has."""
    return f"{prefix}-{uuid4().hex[:12]}"


def read(address: str, name: str, isolation: str = "read_committed") -> list[Any]:
    """Every message of a topic, as its readers see it: confluent_kafka's, in each partition's order."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    reader = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"reader-{uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
        }
    )
    try:
        partitions = reader.list_topics(name, 30).topics[name].partitions
        reader.assign([TopicPartition(name, number, OFFSET_BEGINNING) for number in partitions])
        left, found = set(partitions), []
        for _ in range(600):
            if not left:
                return found
            for message in reader.consume(1000, 0.1):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
        raise AssertionError(f"{name}: the end of {sorted(left)} never came")
    finally:
        reader.close()
