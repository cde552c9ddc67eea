"""What is generated is what the generator makes, and the table of methods is what rpc.proto says."""

import subprocess
import sys
from pathlib import Path

import pytest

from muslin.model.secret import Secret
from muslin.store.etcd import EtcdOptions, EtcdStore
from muslin.store.etcd_api import methods
from muslin.store.etcd_api import rpc_pb2 as pb
from muslin.store.etcd_api.link import parse_endpoint
from muslin.store.etcd_api.methods import Method
from muslin.store.etcd_api.mirror import Mirror

SRC = Path(__file__).parents[3] / "src"
PROTO = "muslin/store/etcd_api/rpc.proto"
VALUE = b'{"PublicIP":"192.0.2.1"}'


def test_generated_files_are_what_the_generator_makes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(SRC), f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", PROTO], check=True)
    for name in ("rpc_pb2.py", "rpc_pb2.pyi"):
        made = (tmp_path / PROTO).with_name(name).read_text()
        assert made == (SRC / PROTO).with_name(name).read_text(), f"{name}: generate it as rpc.proto says"


def test_the_table_of_methods_is_what_the_proto_says() -> None:
    table = {
        method.path: (method.request.DESCRIPTOR, method.response.DESCRIPTOR, method.streams)
        for method in vars(methods).values()
        if isinstance(method, Method)
    }
    services = pb.DESCRIPTOR.services_by_name.values()
    assert table == {
        f"/{service.full_name}/{method.name}": (method.input_type, method.output_type, method.server_streaming)
        for service in services
        for method in service.methods
    }


def test_endpoints() -> None:
    assert parse_endpoint("http://127.0.0.1:4001") == ("127.0.0.1", 4001, False)
    assert parse_endpoint("https://[2001:db8::1]") == ("2001:db8::1", 2379, True)
    assert parse_endpoint("etcd.example:2379") == ("etcd.example", 2379, False)


@pytest.mark.parametrize("endpoint", ["", "unix:///run/etcd", "ftp://etcd", "http://"])
def test_what_is_no_endpoint_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        EtcdStore(EtcdOptions(endpoints=(endpoint,)))


def test_options_show_no_password() -> None:
    assert "horse" not in repr(EtcdOptions(username="root", password=Secret("correct horse")))


def make_pair(name: str, revision: int, *, value: bytes = VALUE, lease: int = 0) -> pb.KeyValue:
    return pb.KeyValue(key=f"/net/{name}".encode(), value=value, mod_revision=revision, lease=lease)


def test_a_mirror_follows_events_and_skips_foreign_keys() -> None:
    mirror = Mirror("/net", {7: 1000.0})
    pairs = [make_pair("config", 2, value=b"{}"), make_pair("subnets/10.5.0.0-24", 3, lease=7)]
    mirror.replace(pb.RangeResponse(header=pb.ResponseHeader(revision=9, cluster_id=1), kvs=pairs))
    events = [
        pb.Event(kv=make_pair("other", 10)),
        pb.Event(kv=make_pair("subnets/10.5.1.0-24", 11)),
        pb.Event(kv=make_pair("subnets/10.5.2.0-24", 12, lease=8)),
        pb.Event(kv=make_pair("subnets/\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), 13)),
        pb.Event(type=pb.Event.DELETE, kv=make_pair("config", 14)),
        pb.Event(type=pb.Event.DELETE, kv=make_pair("subnets/never-there", 15)),
    ]
    before = mirror.snapshot()
    mirror.apply(events)
    after = mirror.snapshot()
    assert (before.revision, before.config, len(before.leases)) == (9, b"{}", 1)
    assert (after.revision, after.config, len(after.leases), len(after.unreadable)) == (15, None, 3, 1)
    assert [lease.expires_at for lease in after.leases][:2] == [1000.0, None]
    assert after.leases[0] is before.leases[0]
