"""Weights arrive complete, in order, and as published."""

import multiprocessing as mp
import threading
from multiprocessing.connection import Connection

import numpy as np
import pytest

from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.common.weight_sync import LocalWeights, WeightPublisher, WeightSubscriber

pytestmark = pytest.mark.timeout(60)


def constant(value: float):
    def write(vector: np.ndarray) -> None:
        vector[:] = value

    return write


@pytest.mark.parametrize("serial", [True, False])
def test_the_newest_version_is_fetched(serial):
    publisher = LocalWeights(5) if serial else WeightPublisher(5)
    subscriber = publisher if serial else WeightSubscriber(publisher.block)
    vector = np.zeros(5, np.float32)
    assert subscriber.version == 0
    for version in (1, 2, 3):
        assert publisher.publish(constant(version)) == version
        assert subscriber.version == version
    assert subscriber.fetch(vector) == 3
    assert (vector == 3).all()


def keep_publishing(connection: Connection, n: int) -> None:
    publisher = WeightPublisher(50_000)
    publisher.publish(constant(1))
    publisher.block.send(connection)
    connection.recv()
    for version in range(2, n):
        publisher.publish(constant(version))
    connection.send("done")


def test_no_vector_is_torn(leaves_nothing):
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=keep_publishing, args=(theirs, 20_000), daemon=True)
    process.start()
    subscriber, vector = WeightSubscriber(SharedArrays.receive(ours)), np.zeros(50_000, np.float32)
    ours.send("go")
    versions = [0]
    while not ours.poll():
        versions.append(subscriber.fetch(vector))
        # Fetched weights are at least as new as their version, and never mixed
        assert (vector == vector[0]).all()
        assert vector[0] == versions[-1]
    assert (np.diff(versions) >= 0).all()
    assert len(set(versions)) > 10
    process.join()


def test_a_reader_that_is_lapped_reads_again():
    publisher = WeightPublisher(3)
    publisher.publish(constant(1))
    subscriber, vector = WeightSubscriber(publisher.block), np.zeros(3, np.float32)
    slots, reads = subscriber._slots, []

    class Slots:
        def __getitem__(self, slot):
            reads.append(slot)
            if len(reads) == 1:
                # While the first version is being read, writing of the third one starts in the same slot
                publisher.publish(constant(2))
                publisher.publish(constant(3))
            return slots[slot]

    subscriber._slots = Slots()
    assert subscriber.fetch(vector) == 3
    assert len(reads) == 2
    assert (vector == 3).all()


def test_publishing_is_seen_from_a_thread():
    publisher = WeightPublisher(2)
    thread = threading.Thread(target=lambda: publisher.publish(constant(4)))
    thread.start()
    thread.join()
    assert publisher.version == 1
