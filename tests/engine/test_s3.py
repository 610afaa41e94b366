"""The remote on S3, for real: moto's server on the loopback, a push from one clone, a restore into another."""

import socket
import subprocess
import sys
import time

import pytest
from tests.conftest import make_checkout
from tests.engine.test_versions import LAPTOP, cloned, commit, verdicts

pytest.importorskip("moto")
pytest.importorskip("dvc_s3")
pytestmark = pytest.mark.slow

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def server():
    """The address of an S3 server that lives as long as the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def test_push_from_one_clone_and_restore_into_another(server, tmp_path):
    import boto3

    boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    ).create_bucket(Bucket="trials")
    origin = make_checkout(tmp_path / "one" / "checkout", "first")
    origin.env |= KEYS
    origin.run(sys.executable, "-m", "dvc", "remote", "modify", "store", "url", "s3://trials/dvc")
    origin.run(sys.executable, "-m", "dvc", "remote", "modify", "store", "endpointurl", server)
    origin.snakemake(*LAPTOP)
    origin.papertrial("snapshot")
    commit(origin, "snapshot")
    assert not (tmp_path / "one" / "papertrial-store").exists()
    (tmp_path / "one" / "papertrial-store").mkdir()  # cloned() copies a local remote, which this clone has no use for
    clone = cloned(origin, tmp_path / "two")
    clone.env |= KEYS
    clone.papertrial("restore")
    assert clone.planned(*LAPTOP) == ["atlas"]
    clone.snakemake(*LAPTOP)
    assert verdicts(clone) == {"first": ("pulled", "replicated")}
