/* Theory of operation
 *
 * Linux hands a TUN program up to 64 KB of one TCP or UDP flow as a single packet, if told that the program can take
 * it apart (TSO, USO), and takes as much back, if told how to take it apart itself. Both save the way through the
 * stack for all packets but one. On the wire there are ordinary packets.
 *
 * Splitting makes of a super-packet what the kernel would: the headers again before each payload, with lengths,
 * IPv4 identifiers, sequence numbers and checksums of their own; FIN and PSH on the last only, CWR on the first
 * only (tcp_gso_segment() and __udp_gso_segment() of net/ipv4). The checksum field arrives holding the sum of the
 * pseudo-header; only the length in there has to be changed, so that routing headers need not be understood.
 *
 * Joining is the reverse and follows one rule: taken apart again, the super-packet gives what came, byte for byte.
 * So nothing may differ between the packets of a join but what splitting would make differ. One freedom is taken:
 * identifiers that are all the same (Linux sends 0 on unconnected UDP sockets) may come out counted, since those of
 * packets that must not be fragmented mean nothing (RFC 6864 section 4.1).
 *
 * Payloads are never copied: the results are lists of slices (struct iovec) of what was read.
 */

#include "offload.h"

#include <netinet/in.h>
#include <string.h>

/* split_begin() - look at what was read from a TUN device
 * @split:   set for SPLIT_SEGMENTS
 * @header:  what the kernel says of the packet; hdr_len is not looked at, as it is wrong for forwarded packets
 * @packet:  a whole packet; a checksum that was left open is completed if it stays whole
 * @bytes:   its length
 *
 * Return: whether it is to be sent as it is, in segments, or not at all
 */
enum split_verdict split_begin(struct split *split, const virtio_header *header, uint8_t *packet, size_t bytes)
{
    uint8_t kind = header->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
    size_t l4_offset = header->csum_start, checksum_offset = header->csum_offset;

    if (!(header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM))
        return kind == VIRTIO_NET_HDR_GSO_NONE ? SPLIT_WHOLE : SPLIT_MALFORMED;
    if (l4_offset < IPV4_HEADER_BYTES || l4_offset + checksum_offset + 2 > bytes)
        return SPLIT_MALFORMED;
    if (kind == VIRTIO_NET_HDR_GSO_NONE) {
        complete_checksum(packet + l4_offset, bytes - l4_offset, checksum_offset);
        return SPLIT_WHOLE;
    }
    bool is_tcp = kind == VIRTIO_NET_HDR_GSO_TCPV4 || kind == VIRTIO_NET_HDR_GSO_TCPV6;
    size_t least = is_tcp ? TCP_HEADER_BYTES : UDP_HEADER_BYTES;
    size_t ip_bytes = packet[0] >> 4 == 4 ? (packet[0] & 15) * 4u : IPV6_HEADER_BYTES;

    if ((!is_tcp && kind != VIRTIO_NET_HDR_GSO_UDP_L4) || checksum_offset != (is_tcp ? 16 : 6))
        return SPLIT_MALFORMED;
    if (l4_offset < ip_bytes || l4_offset + least > bytes || header->gso_size == 0)
        return SPLIT_MALFORMED;
    size_t l4_header_bytes = is_tcp ? (packet[l4_offset + 12] >> 4) * 4u : UDP_HEADER_BYTES;
    size_t headers_bytes = l4_offset + l4_header_bytes;
    if (l4_header_bytes < least || headers_bytes > HEADERS_MAX_BYTES || headers_bytes >= bytes)
        return SPLIT_MALFORMED;
    *split = (struct split){
        .packet = packet,
        .bytes = bytes,
        .l4_offset = l4_offset,
        .headers_bytes = headers_bytes,
        .payload_bytes = header->gso_size,
        .is_tcp = is_tcp,
    };
    return SPLIT_SEGMENTS;
}

/* split_segments() - Return: how many segments there are in all */
unsigned split_segments(const struct split *split)
{
    return (unsigned)((split->bytes - split->headers_bytes + split->payload_bytes - 1) / split->payload_bytes);
}

/* write_lengths() - let IP and UDP know the length of a segment
 * @split:    the super-packet
 * @headers:  a copy of its headers, for a segment
 * @bytes:    the length of the segment, headers included
 */
static void write_lengths(const struct split *split, uint8_t *headers, size_t bytes)
{
    if (headers[0] >> 4 == 4) {
        write16(headers + 2, (uint16_t)bytes);
        write16(headers + 4, (uint16_t)(read16(headers + 4) + split->segments));
        write_ipv4_checksum(headers);
    } else {
        write16(headers + 4, (uint16_t)(bytes - IPV6_HEADER_BYTES));
    }
    if (!split->is_tcp)
        write16(headers + split->l4_offset + 4, (uint16_t)(bytes - split->l4_offset));
}

/* split_next() - make the next segment
 * @split:    the super-packet
 * @headers:  takes split->headers_bytes
 * @payload:  set to the rest of the segment, within the super-packet
 *
 * Return: whether there was another one
 */
bool split_next(struct split *split, uint8_t *headers, struct iovec *payload)
{
    size_t left_bytes = split->bytes - split->headers_bytes - split->done_bytes;
    size_t payload_bytes = left_bytes < split->payload_bytes ? left_bytes : split->payload_bytes;
    uint8_t *l4 = headers + split->l4_offset;
    size_t l4_header_bytes = split->headers_bytes - split->l4_offset;

    if (left_bytes == 0)
        return false;
    memcpy(headers, split->packet, split->headers_bytes);
    write_lengths(split, headers, split->headers_bytes + payload_bytes);
    if (split->is_tcp) {
        write32(l4 + 4, read32(l4 + 4) + (uint32_t)split->done_bytes);
        if (payload_bytes < left_bytes)
            l4[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
        if (split->segments)
            l4[13] &= (uint8_t)~TCP_CWR;
    }
    *payload = (struct iovec){(void *)(split->packet + split->headers_bytes + split->done_bytes), payload_bytes};
    /* The field holds the pseudo-header's sum, with the length of the whole: out with that, in with the segment's. */
    uint16_t whole = htons((uint16_t)(split->bytes - split->l4_offset));
    uint16_t part = htons((uint16_t)(l4_header_bytes + payload_bytes));
    uint64_t sum = sum_bytes((uint64_t)(uint16_t)~whole + part, l4, l4_header_bytes);
    uint16_t checksum = (uint16_t)~fold(sum_bytes(sum, payload->iov_base, payload_bytes));
    if (checksum == 0 && !split->is_tcp)
        checksum = 0xFFFF;
    memcpy(l4 + (split->is_tcp ? 16 : 6), &checksum, 2);
    split->done_bytes += payload_bytes;
    split->segments++;
    return true;
}

/* add_slice() - append a packet, which is known to fit */
static void add_slice(struct join *join, const struct segment *next)
{
    uint8_t *packet = (uint8_t *)next->packet;
    size_t payload_bytes = (size_t)next->bytes - next->payload_offset;

    join->packets[join->count] = (struct iovec){packet, next->bytes};
    join->slices[2 + join->count] = (struct iovec){packet + next->payload_offset, payload_bytes};
    join->bytes += payload_bytes;
    join->count++;
    if (next->protocol == IPPROTO_TCP) {
        uint8_t flags = packet[next->l4_offset + 13];

        join->next_sequence += (uint32_t)payload_bytes;
        join->headers[next->l4_offset + 13] |= flags & (TCP_FIN | TCP_PSH);
        join->is_closed |= (flags & (TCP_FIN | TCP_PSH)) != 0;
    }
    join->is_closed |= payload_bytes < (size_t)join->first.bytes - join->first.payload_offset;
}

/* join_begin() - begin a super-packet, which may stay one packet
 * @join:   set
 * @first:  its first packet, which has to stay where it is until all is written
 */
void join_begin(struct join *join, const struct segment *first)
{
    join->first = *first;
    join->count = 0;
    join->is_closed = false;
    join->bytes = first->payload_offset;
    memcpy(join->headers, first->packet, first->payload_offset);
    if (first->protocol == IPPROTO_TCP) {
        uint8_t flags = first->packet[first->l4_offset + 13];

        join->next_sequence = read32(first->packet + first->l4_offset + 4);
        join->is_closed = (flags & (TCP_SYN | TCP_RST | TCP_URG | TCP_CWR)) || !(flags & TCP_ACK);
    }
    join->is_closed |= first->bytes == first->payload_offset; /* a bare acknowledgement is not data */
    add_slice(join, first);
}

/* join_is_same_flow() - see whether two packets must not overtake each other; Return: same addresses and ports */
bool join_is_same_flow(const struct join *join, const struct segment *next)
{
    const uint8_t *a = join->first.packet, *b = next->packet;
    size_t l4_offset = next->l4_offset;
    size_t at = l4_offset == IPV4_HEADER_BYTES ? 12 : 8;

    return join->first.protocol == next->protocol && join->first.l4_offset == l4_offset &&
           memcmp(a + at, b + at, l4_offset + 4 - at) == 0; /* addresses end where the ports begin */
}

/* has_same_ip() - see whether splitting would give the next packet its IP header */
static bool has_same_ip(struct join *join, const struct segment *next)
{
    const uint8_t *a = join->headers, *b = next->packet;

    if (next->l4_offset == IPV6_HEADER_BYTES)
        return memcmp(a, b, 4) == 0 && a[7] == b[7]; /* version, class, flow label; hop limit */
    if (a[1] != b[1] || read16(a + 6) != read16(b + 6) || a[8] != b[8]) /* class, don't fragment, TTL */
        return false;
    bool may_not_fragment = a[6] & 0x40;
    bool is_counted = (uint16_t)(read16(a + 4) + join->count) == read16(b + 4);
    bool is_same = may_not_fragment && read16(a + 4) == read16(b + 4);
    if (join->count == 1)
        join->counts_identifiers = is_counted;
    return join->counts_identifiers ? is_counted : is_same;
}

/* join_add() - append a packet of the same flow
 * @join:  to which it is appended
 * @next:  a packet of which join_is_same_flow() is true, and which has to stay where it is until all is written
 *
 * Return: whether it could be appended
 */
bool join_add(struct join *join, const struct segment *next)
{
    const uint8_t *a = join->headers + next->l4_offset, *b = next->packet + next->l4_offset;
    size_t payload_bytes = (size_t)next->bytes - next->payload_offset;

    if (join->is_closed || join->count == JOIN_MAX_PACKETS || next->payload_offset != join->first.payload_offset)
        return false;
    if (payload_bytes == 0 || payload_bytes > (size_t)join->first.bytes - join->first.payload_offset)
        return false;
    if (join->bytes + payload_bytes > PACKET_MAX_BYTES || !has_same_ip(join, next))
        return false;
    if (next->protocol == IPPROTO_TCP) {
        size_t options_bytes = (size_t)next->payload_offset - next->l4_offset - TCP_HEADER_BYTES;

        if (read32(b + 4) != join->next_sequence || memcmp(a + 8, b + 8, 5)) /* acknowledged; length, reserved */
            return false;
        if ((a[13] ^ b[13]) & ~(TCP_FIN | TCP_PSH) || memcmp(a + 14, b + 14, 2) || memcmp(a + 18, b + 18, 2))
            return false;
        if (memcmp(a + TCP_HEADER_BYTES, b + TCP_HEADER_BYTES, options_bytes))
            return false;
    }
    add_slice(join, next);
    return true;
}

/* join_finish() - make headers of what was joined
 * @join:  of which slices[] is then what to write: a single packet as it came, several with one set of headers
 *
 * Return: how many slices there are
 */
unsigned join_finish(struct join *join)
{
    const struct segment *first = &join->first;
    uint8_t *l4 = join->headers + first->l4_offset;
    bool is_tcp = first->protocol == IPPROTO_TCP, is_ipv4 = first->l4_offset == IPV4_HEADER_BYTES;

    memset(&join->virtio, 0, sizeof join->virtio);
    join->slices[0] = (struct iovec){&join->virtio, sizeof join->virtio};
    if (join->count == 1) {
        join->slices[1] = join->packets[0];
        return 2;
    }
    join->virtio = (virtio_header){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = !is_tcp ? VIRTIO_NET_HDR_GSO_UDP_L4 : is_ipv4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6,
        .hdr_len = first->payload_offset,
        .gso_size = (uint16_t)(first->bytes - first->payload_offset),
        .csum_start = first->l4_offset,
        .csum_offset = is_tcp ? 16 : 6,
    };
    if (is_ipv4) {
        write16(join->headers + 2, (uint16_t)join->bytes);
        write_ipv4_checksum(join->headers);
    } else {
        write16(join->headers + 4, (uint16_t)(join->bytes - IPV6_HEADER_BYTES));
    }
    size_t l4_bytes = join->bytes - first->l4_offset;
    if (!is_tcp)
        write16(l4 + 4, (uint16_t)l4_bytes);
    uint16_t open = fold(sum_pseudo_header(join->headers, first->protocol, l4_bytes));
    memcpy(l4 + join->virtio.csum_offset, &open, 2);
    join->slices[1] = (struct iovec){join->headers, first->payload_offset};
    return 2 + join->count;
}
