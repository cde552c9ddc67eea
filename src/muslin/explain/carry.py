"""Packets inside of packets: which outer packet a vxlan device or a TUN program makes, and who unpacks it.

Theory of operation: a vxlan device (RFC 7348) needs two answers that an agent writes down: which MAC the next hop has
(neighbour table), and behind which tunnel end that MAC is (the device's own FDB). The outer packet adds 14 bytes of
Ethernet, 8 of VXLAN, 8 of UDP and 20 or 40 of IP. The program behind a TUN device picks its peer by the longest prefix
that contains the inner destination; UDP and IP are all that it adds. The other side unpacks what comes to its port:
vxlan where VNI and MAC are its own, the program where the sender is a peer and the inner source is that peer's.
"""

from __future__ import annotations

from muslin.explain.frames import neighbour_of, state_name
from muslin.explain.lookup import inside
from muslin.explain.path import Carriage, Drop
from muslin.model.address import family_of, prefix_length
from muslin.wire.rtnetlink import LinkRecord, VxlanInfo
from muslin.wire.sight import Sight, TunnelProgram

ANY_MAC = "00:00:00:00:00:00"
VXLAN_BYTES = {4: 50, 6: 70}
UDP_BYTES = {4: 28, 6: 48}


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Address and port of ``10.0.0.10:9000`` or ``[fd00::1]:9000``."""
    address, _, port = endpoint.rpartition(":")
    return address.strip("[]"), int(port) if port.isdigit() else 0


def into_vxlan(sight: Sight, link: LinkRecord, next_hop: str) -> tuple[str, str, Carriage | Drop]:
    """(the inner MAC, words for the neighbour, what carries the packet or why nothing does)."""
    assert link.vxlan is not None
    neighbour = neighbour_of(sight, link.name, next_hop)
    if neighbour is None:
        sentence = f"{link.name} of {sight.netns} has no MAC for {next_hop}, and nobody on it can be asked"
        drop = Drop(
            cause="no-neighbour", netns=sight.netns, object=f"neighbour {next_hop} on {link.name}", sentence=sentence
        )
        return "", "", drop
    mac = neighbour.mac
    words = f"{next_hop} is {mac} ({state_name(neighbour.state)})"
    own = [one for one in sight.fdb if one.ifindex == link.ifindex and one.destination and not one.master_ifindex]
    entry = next((one for one in own if one.mac == mac), None) or next((one for one in own if one.mac == ANY_MAC), None)
    remote = entry.destination if entry else link.vxlan.remote
    if remote is None:
        sentence = f"{link.name} of {sight.netns} has no forwarding entry for {mac}, the MAC of {next_hop}"
        drop = Drop(cause="no-tunnel-entry", netns=sight.netns, object=f"fdb {mac} on {link.name}", sentence=sentence)
        return mac, words, drop
    how = f"fdb: {mac} is behind {remote}" if entry and entry.mac == mac else f"{remote} gets what is not known"
    carriage = Carriage(
        kind="vxlan",
        source=link.vxlan.local or "",
        destination=remote,
        port=link.vxlan.port,
        overhead_bytes=VXLAN_BYTES[family_of(remote)],
        how=how,
        vni=link.vxlan.vni,
    )
    return mac, words, carriage


def into_tun(sight: Sight, link: LinkRecord, destination: str) -> Carriage | Drop | None:
    """What the program behind a TUN device makes of the packet; None where a program that is not known holds it."""
    program = next((one for one in sight.tunnels if one.device == link.name), None)
    place = f"tunnel on {link.name}"
    if program is None:
        if link.lower_up:
            return None
        sentence = f"no program holds {link.name} of {sight.netns}: what is routed into it is lost"
        return Drop(cause="no-tunnel", netns=sight.netns, object=place, sentence=sentence)
    peers = [(prefix, endpoint) for prefix, endpoint in program.peers if inside(prefix, destination)]
    if not peers:
        sentence = f"the tunnel on {link.name} of {sight.netns} has no peer for {destination}"
        return Drop(cause="no-peer", netns=sight.netns, object=place, sentence=sentence)
    prefix, endpoint = max(peers, key=lambda peer: prefix_length(peer[0]))
    remote, port = split_endpoint(endpoint)
    return Carriage(
        kind="udp",
        source=split_endpoint(program.listen)[0],
        destination=remote,
        port=port,
        overhead_bytes=UDP_BYTES[family_of(remote)],
        how=f"the tunnel's peer for {prefix} is {endpoint}",
    )


def out_of_vxlan(sight: Sight, carriage: Carriage, mac: str) -> LinkRecord | Drop:
    """The vxlan device that unpacks a packet that arrived at this namespace."""
    devices = [link for link in sight.links if link.vxlan is not None and _hears(link.vxlan, carriage)]
    device = next((link for link in devices if link.vxlan and link.vxlan.vni == carriage.vni), None)
    if device is None or not device.up:
        what = f"{device.name} is down" if device else f"no vxlan device with VNI {carriage.vni}"
        sentence = f"{sight.netns} has nobody to unpack what comes to UDP port {carriage.port}: {what}"
        mend = f"ip link set {device.name} up" if device else ""
        place = f"link {device.name}" if device else f"vxlan {carriage.vni}"
        return Drop(cause="nobody-listens", netns=sight.netns, object=place, sentence=sentence, mend=mend)
    if device.mac != mac:
        sentence = f"{device.name} of {sight.netns} has the MAC {device.mac}, and the frame is for {mac}: another's"
        return Drop(cause="wrong-mac", netns=sight.netns, object=f"link {device.name}", sentence=sentence)
    return device


def _hears(vxlan: VxlanInfo, carriage: Carriage) -> bool:
    """Whether a device's socket gets this packet: it is of one family, so that two may share a VNI and a port."""
    own = vxlan.local or vxlan.remote
    family = family_of(own) if own else 4
    return vxlan.port == carriage.port and family == family_of(carriage.destination)


def out_of_tunnel(sight: Sight, carriage: Carriage, source: str, inner_source: str) -> LinkRecord | Drop:
    """The TUN device whose program unpacks a packet that arrived at this namespace."""
    at = f"UDP port {carriage.port} of {carriage.destination}"
    program = _listener(sight, carriage)
    if program is None:
        sentence = f"nobody in {sight.netns} listens on {at}"
        told = "ICMP: port unreachable, to the other tunnel"
        place = f"tunnel at {carriage.destination}:{carriage.port}"
        return Drop(cause="nobody-listens", netns=sight.netns, object=place, sentence=sentence, told=told)
    device = sight.link(program.device)
    place = f"tunnel on {program.device}"
    if device is None or not device.up:
        sentence = f"{program.device} of {sight.netns} is down: its tunnel cannot hand anything over"
        mend = f"ip link set {program.device} up"
        return Drop(cause="link-down", netns=sight.netns, object=f"link {program.device}", sentence=sentence, mend=mend)
    senders = {split_endpoint(endpoint)[0] for _, endpoint in program.peers}
    if source not in senders:
        sentence = f"the tunnel in {sight.netns} takes packets of its peers only, and {source} is none"
        return Drop(cause="unknown-peer", netns=sight.netns, object=place, sentence=sentence)
    owned = [prefix for prefix, endpoint in program.peers if split_endpoint(endpoint)[0] == source]
    if inner_source != source and not any(inside(prefix, inner_source) for prefix in owned):
        sentence = f"the tunnel in {sight.netns} takes nothing from {inner_source} by the peer {source}"
        return Drop(cause="unknown-peer", netns=sight.netns, object=place, sentence=sentence)
    return device


def _listener(sight: Sight, carriage: Carriage) -> TunnelProgram | None:
    for one in sight.tunnels:
        address, port = split_endpoint(one.listen)
        if port == carriage.port and address in (carriage.destination, "0.0.0.0", "::"):
            return one
    return None
