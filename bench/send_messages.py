"""Puts the lines of a file into a new topic of four partitions. Runs in the environment of `queue_bare`.

python send_messages.py BROKER TOPIC FILE
"""

from __future__ import annotations

import sys

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4


def main(broker: str, topic: str, file: str) -> None:
    admin = AdminClient({"bootstrap.servers": broker})
    for made in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        made.result()
    producer = Producer(
        {"bootstrap.servers": broker, "linger.ms": 20, "compression.type": "lz4", "enable.idempotence": True}
    )
    failed = []

    def told(error: object, _: object) -> None:
        if error is not None:
            failed.append(error)

    with open(file, "rb") as lines:
        for number, line in enumerate(lines):
            while True:
                try:
                    producer.produce(topic, line.rstrip(), partition=number % PARTITIONS, on_delivery=told)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
    producer.flush(120)
    if failed or len(producer):
        raise SystemExit(f"not sent: {failed[:1] or len(producer)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
