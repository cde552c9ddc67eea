"""Where runtimes look, by the files of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from muslin.cli.cni_places import Places, find_places

PODMAN = "etc/containers/containers.conf"
CONTAINERD = "etc/containerd/config.toml"


def put(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def found(root: Path, **environment: str) -> tuple[list[str], list[str]]:
    """Directories of plugins and of networks, without the root."""
    places = find_places(root, environment)
    assert places.troubles == ()
    return [each.removeprefix(str(root)) for each in places.bin_dirs], [
        each.removeprefix(str(root)) for each in places.conf_dirs
    ]


def test_on_a_host_without_anything_it_is_the_usual_places(tmp_path: Path) -> None:
    assert found(tmp_path) == (["/opt/cni/bin"], ["/etc/cni/net.d"])


def test_usual_places_that_are_there_count(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/cni").mkdir(parents=True)
    assert found(tmp_path) == (["/usr/lib/cni"], ["/etc/cni/net.d"])
    (tmp_path / "opt/cni/bin").mkdir(parents=True)
    assert found(tmp_path) == (["/opt/cni/bin", "/usr/lib/cni"], ["/etc/cni/net.d"])


def test_of_podmans_list_the_first_directory_counts_and_of_its_files_the_last(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/containers/containers.conf", '[network]\ncni_plugin_dirs = ["/a"]')
    assert found(tmp_path) == (["/a"], ["/etc/cni/net.d"])
    put(tmp_path, PODMAN, '[network]\ncni_plugin_dirs = ["/b/", "/c"]\nnetwork_config_dir = "/d"')
    assert found(tmp_path) == (["/b"], ["/d", "/etc/cni/net.d"])
    put(tmp_path, f"{PODMAN}.d/10-x.conf", '[network]\nnetwork_config_dir = "/e"')
    assert found(tmp_path) == (["/b"], ["/e", "/etc/cni/net.d"])
    put(tmp_path, "only", '[network]\ncni_plugin_dirs = ["/f"]')
    assert found(tmp_path, CONTAINERS_CONF=str(tmp_path / "only")) == (["/f"], ["/etc/cni/net.d"])


def test_a_directory_of_netavark_is_not_for_cni(tmp_path: Path) -> None:
    put(tmp_path, PODMAN, '[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "/d"')
    assert found(tmp_path) == (["/opt/cni/bin"], ["/etc/cni/net.d"])


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (1, '[plugins.cri.cni]\nbin_dir = "/usr/lib/cni"\nconf_dir = "/x"'),
        (2, '[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "/usr/lib/cni"\nconf_dir = "/x"'),
        (3, "[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/usr/lib/cni', '/y']\nconf_dir = '/x'"),
    ],
)
def test_containerds_versions_say_it_in_different_tables(tmp_path: Path, version: int, text: str) -> None:
    put(tmp_path, CONTAINERD, f"version = {version}\n{text}\n[plugins.other]\ncni = 1")
    assert found(tmp_path) == (["/usr/lib/cni"], ["/x", "/etc/cni/net.d"])


def test_several_runtimes_are_all_served_and_each_place_once(tmp_path: Path) -> None:
    put(tmp_path, PODMAN, '[network]\ncni_plugin_dirs = ["/usr/lib/cni"]')
    put(tmp_path, CONTAINERD, '[plugins.x.cni]\nbin_dir = "/usr/lib/cni"\nconf_dir = "/etc/cni/net.d"')
    put(tmp_path, "etc/crio/crio.conf.d/x.conf", '[crio.network]\nplugin_dirs = ["/z"]\nnetwork_dir = "/w"')
    assert found(tmp_path) == (["/usr/lib/cni", "/z"], ["/etc/cni/net.d", "/w"])


@pytest.mark.parametrize(
    "text", ["", "network = 1", "[network]\ncni_plugin_dirs = 7", '[network]\ncni_plugin_dirs = ["relative", 1]']
)
def test_what_says_nothing_useful_counts_for_nothing(tmp_path: Path, text: str) -> None:
    for path in (PODMAN, CONTAINERD, "etc/crio/crio.conf"):
        put(tmp_path, path, text)
    assert found(tmp_path) == (["/opt/cni/bin"], ["/etc/cni/net.d"])


def test_a_file_that_cannot_be_understood_is_said_and_passed_over(tmp_path: Path) -> None:
    put(tmp_path, CONTAINERD, "version = ")
    places = find_places(tmp_path, {})
    assert str(tmp_path / CONTAINERD) in places.troubles[0]
    usual = Places(bin_dirs=(f"{tmp_path}/opt/cni/bin",), conf_dirs=(f"{tmp_path}/etc/cni/net.d",))
    assert (places.bin_dirs, places.conf_dirs) == (usual.bin_dirs, usual.conf_dirs)
