/* Theory of operation
 *
 * Everything here is a function of bytes: packets come from strangers, so each function says what it needs of its
 * input, and never reads beyond the length that it is given. `parse_` functions judge, `encode_` and `write_` build.
 *
 * Checksums (RFC 1071) are sums of 16-bit words in whatever order the machine has them; the order cancels out as long
 * as the result is stored the same way. A sum is carried in 64 bits and folded at the end. Pieces of one sum must
 * begin at even offsets.
 *
 * Not handled: jumbograms (RFC 2675), IPv6 extension headers beyond being seen.
 */

#include "packet.h"

#include <netinet/in.h>
#include <string.h>

#define STEP_BYTES 64 /* of a sum: a cache line */
typedef uint64_t lanes __attribute__((vector_size(STEP_BYTES / 2), aligned(1), may_alias));

/* Where the compiler can, there is code for AVX2 beside the usual one, chosen as the program starts: it takes half of
 * the time. With a sanitizer that choice would come before the sanitizer is ready. */
#if defined(__has_feature)
#define IS_SANITIZED (__has_feature(address_sanitizer) || __has_feature(memory_sanitizer))
#elif defined(__SANITIZE_ADDRESS__)
#define IS_SANITIZED 1
#else
#define IS_SANITIZED 0
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !IS_SANITIZED
#define FOR_EACH_MACHINE __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_MACHINE
#endif

/* sum_steps() - the sum of whole steps
 * @steps:  at most 2^28, since a lane of 64 bits takes in 2^32 words of 32 bits before it could overflow
 *
 * Return: at most 2^35
 */
FOR_EACH_MACHINE static uint64_t sum_steps(const uint8_t *data, size_t steps)
{
    lanes low = {0}, high = {0}, more_low = {0}, more_high = {0};
    uint64_t sum = 0;

    for (; steps; steps--, data += STEP_BYTES) {
        lanes first = *(const lanes *)data, second = *(const lanes *)(data + sizeof(lanes));

        low += first & 0xFFFFFFFF;
        high += first >> 32;
        more_low += second & 0xFFFFFFFF;
        more_high += second >> 32;
    }
    low += high + more_low + more_high;
    for (size_t i = 0; i < sizeof low / sizeof low[0]; i++)
        sum += (low[i] & 0xFFFFFFFF) + (low[i] >> 32);
    return sum;
}

/* parse_addresses() - find source and destination
 * @packet:  what claims to be an IP packet
 * @bytes:   its length
 * @found:   set on success
 *
 * Looks at version and lengths only (RFC 791 section 3.1, RFC 8200 section 3); the kernel checks the rest.
 *
 * Return: whether it is exactly one whole packet
 */
bool parse_addresses(const uint8_t *packet, size_t bytes, struct addresses *found)
{
    if (bytes >= IPV4_HEADER_BYTES && packet[0] >> 4 == 4) {
        size_t header_bytes = (packet[0] & 15) * 4u, total_bytes = read16(packet + 2);

        *found = (struct addresses){packet + 12, packet + 16, 4};
        return IPV4_HEADER_BYTES <= header_bytes && header_bytes <= total_bytes && total_bytes == bytes;
    }
    if (bytes >= IPV6_HEADER_BYTES && packet[0] >> 4 == 6) {
        *found = (struct addresses){packet + 8, packet + 24, 16};
        return (size_t)IPV6_HEADER_BYTES + read16(packet + 4) == bytes;
    }
    return false;
}

/* parse_segment() - see whether a packet may be joined with others of its kind
 * @packet:  a whole packet, as parse_addresses() has it
 * @bytes:   its length
 * @found:   set on success
 *
 * Checksums are verified because joining replaces them: a damaged packet must stay one, for its receiver to see.
 *
 * Return: whether it is a plain TCP or UDP packet with right checksums
 */
bool parse_segment(const uint8_t *packet, size_t bytes, struct segment *found)
{
    uint8_t protocol, l4_offset;
    size_t l4_bytes, header_bytes;

    if (packet[0] == 0x45) {
        /* RFC 791: neither the reserved bit, nor more fragments, nor an offset */
        if (read16(packet + 6) & 0xBFFF || fold(sum_bytes(0, packet, IPV4_HEADER_BYTES)) != 0xFFFF)
            return false;
        protocol = packet[9];
        l4_offset = IPV4_HEADER_BYTES;
    } else if (packet[0] >> 4 == 6) {
        protocol = packet[6];
        l4_offset = IPV6_HEADER_BYTES;
    } else {
        return false;
    }
    const uint8_t *l4 = packet + l4_offset;
    l4_bytes = bytes - l4_offset;
    if (protocol == IPPROTO_TCP && l4_bytes >= TCP_HEADER_BYTES) {
        header_bytes = (l4[12] >> 4) * 4u;
        if (header_bytes < TCP_HEADER_BYTES || header_bytes > l4_bytes)
            return false;
    } else if (protocol == IPPROTO_UDP && l4_bytes >= UDP_HEADER_BYTES) {
        header_bytes = UDP_HEADER_BYTES;
        /* RFC 768: a checksum of 0 says that there is none; and UDP could end before IP does */
        if (read16(l4 + 6) == 0 || read16(l4 + 4) != l4_bytes)
            return false;
    } else {
        return false;
    }
    if (fold(sum_bytes(sum_pseudo_header(packet, protocol, l4_bytes), l4, l4_bytes)) != 0xFFFF)
        return false;
    *found = (struct segment){packet, (uint16_t)bytes, (uint16_t)(l4_offset + header_bytes), l4_offset, protocol};
    return true;
}

/* read_traffic_class() - DSCP and ECN of a packet that parse_addresses() has passed; Return: the 8 bits */
uint8_t read_traffic_class(const uint8_t *packet)
{
    return packet[0] >> 4 == 4 ? packet[1] : (uint8_t)(read16(packet) >> 4);
}

/* mark_congestion() - let a packet out of its tunnel, with the congestion that it met there (RFC 6040 section 4.2)
 * @packet:               a whole packet
 * @outer_traffic_class:  of the datagram that it came in; its DSCP is ignored (RFC 2983's pipe model)
 *
 * Return: whether the packet may go on; one that met congestion and cannot say so is dropped
 */
bool mark_congestion(uint8_t *packet, uint8_t outer_traffic_class)
{
    enum { NOT_ECT, ECT1, ECT0, CE };
    uint8_t outer = outer_traffic_class & 3, inner = read_traffic_class(packet) & 3;

    if (outer == NOT_ECT || outer == ECT0 || inner == CE)
        return true;
    if (inner == NOT_ECT)
        return outer != CE;
    if (outer == ECT1 && inner == ECT1)
        return true;
    if (packet[0] >> 4 == 4) {
        packet[1] = (uint8_t)((packet[1] & ~3) | outer);
        /* RFC 1624: the header's sum changes by as much as its word does, so that a wrong one stays wrong */
        uint32_t sum = (uint16_t)~read16(packet + 10) + (uint32_t)(outer - inner + 0xFFFF);
        sum = (sum & 0xFFFF) + (sum >> 16);
        write16(packet + 10, (uint16_t)~((sum & 0xFFFF) + (sum >> 16)));
    } else {
        packet[1] = (uint8_t)((packet[1] & ~0x30) | outer << 4);
    }
    return true;
}

/* may_complain4() - see whether an ICMP error may be about this packet (RFC 1122 section 3.2.2)
 *
 * No error about an error, about a later fragment, or from or to what is no single host.
 */
static bool may_complain4(const uint8_t *packet, size_t bytes)
{
    size_t header_bytes = (packet[0] & 15) * 4u;

    if (read16(packet + 6) & 0x1FFF)
        return false;
    if (packet[9] == IPPROTO_ICMP && bytes > header_bytes) {
        uint8_t type = packet[header_bytes];

        if (type == 3 || type == 4 || type == 5 || type == 11 || type == 12)
            return false;
    }
    return packet[12] != 0 && packet[12] != 127 && packet[12] < 224 && packet[16] < 224;
}

/* may_complain6() - the same of ICMPv6 (RFC 4443 section 2.4) */
static bool may_complain6(const uint8_t *packet, size_t bytes)
{
    static const uint8_t unspecified[16];

    if (packet[6] == IPPROTO_ICMPV6 && (bytes == IPV6_HEADER_BYTES || packet[IPV6_HEADER_BYTES] < 0x80))
        return false;
    return memcmp(packet + 8, unspecified, 16) && packet[8] != 0xFF && packet[24] != 0xFF;
}

static size_t encode_icmp4_error(const uint8_t *packet, size_t bytes, enum complaint what, unsigned mtu_bytes,
                                 uint8_t *error)
{
    const size_t quoted_max = 576 - 28; /* RFC 1812 section 4.3.2.3: as much as fits in 576 bytes */
    size_t quoted = bytes < quoted_max ? bytes : quoted_max;
    uint8_t *icmp = error + IPV4_HEADER_BYTES;

    memset(error, 0, IPV4_HEADER_BYTES + 8);
    error[0] = 0x45;
    write16(error + 2, (uint16_t)(IPV4_HEADER_BYTES + 8 + quoted));
    error[6] = 0x40; /* don't fragment */
    error[8] = 64;   /* RFC 1700: the default TTL */
    error[9] = IPPROTO_ICMP;
    memcpy(error + 12, packet + 16, 4);
    memcpy(error + 16, packet + 12, 4);
    write_ipv4_checksum(error);
    icmp[0] = 3; /* destination unreachable (RFC 792) */
    icmp[1] = what == TOO_BIG ? 4 : 1;
    if (what == TOO_BIG)
        write16(icmp + 6, (uint16_t)(mtu_bytes < 68 ? 68 : mtu_bytes)); /* RFC 1191 section 4; 68: RFC 791 */
    memcpy(icmp + 8, packet, quoted);
    complete_checksum(icmp, 8 + quoted, 2);
    return IPV4_HEADER_BYTES + 8 + quoted;
}

static size_t encode_icmp6_error(const uint8_t *packet, size_t bytes, enum complaint what, unsigned mtu_bytes,
                                 uint8_t *error)
{
    const size_t quoted_max = ICMP_ERROR_MAX_BYTES - IPV6_HEADER_BYTES - 8;
    size_t quoted = bytes < quoted_max ? bytes : quoted_max;
    uint8_t *icmp = error + IPV6_HEADER_BYTES;

    memset(error, 0, IPV6_HEADER_BYTES + 8);
    error[0] = 0x60;
    write16(error + 4, (uint16_t)(8 + quoted));
    error[6] = IPPROTO_ICMPV6;
    error[7] = 64;
    memcpy(error + 8, packet + 24, 16);
    memcpy(error + 24, packet + 8, 16);
    if (what == TOO_BIG) {
        icmp[0] = 2;                                                  /* RFC 4443 section 3.2 */
        write32(icmp + 4, mtu_bytes < 1280 ? 1280 : mtu_bytes);       /* 1280: RFC 8200 section 5 */
    } else {
        icmp[0] = 1; /* destination unreachable; 3: address unreachable (RFC 4443 section 3.1) */
        icmp[1] = 3;
    }
    memcpy(icmp + 8, packet, quoted);
    uint16_t start = fold(sum_pseudo_header(error, IPPROTO_ICMPV6, 8 + quoted));
    memcpy(icmp + 2, &start, 2);
    complete_checksum(icmp, 8 + quoted, 2);
    return IPV6_HEADER_BYTES + 8 + quoted;
}

/* encode_icmp_error() - build the packet that tells a sender why its packet did not get through
 * @packet:     a whole packet
 * @bytes:      its length
 * @what:       what is wrong
 * @mtu_bytes:  for TOO_BIG: the largest packet that does fit
 * @error:      takes up to ICMP_ERROR_MAX_BYTES
 *
 * Its source is the far end's address: the kernel would throw away the node's own as forged when it comes in through
 * the TUN device, and the far end's passes a strict rp_filter.
 *
 * Return: the length of the error, 0 if none may be sent about this packet
 */
size_t encode_icmp_error(const uint8_t *packet, size_t bytes, enum complaint what, unsigned mtu_bytes, uint8_t *error)
{
    if (packet[0] >> 4 == 4)
        return may_complain4(packet, bytes) ? encode_icmp4_error(packet, bytes, what, mtu_bytes, error) : 0;
    return may_complain6(packet, bytes) ? encode_icmp6_error(packet, bytes, what, mtu_bytes, error) : 0;
}

/* sum_bytes() - add data to a sum of 16-bit words; a last odd byte counts as one followed by 0
 * @sum:    what was summed up before
 * @data:   bytes
 * @bytes:  how many, at most 2^20
 *
 * Return: the new sum, not folded
 */
uint64_t sum_bytes(uint64_t sum, const uint8_t *data, size_t bytes)
{
    size_t steps = bytes / STEP_BYTES;

    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    if (steps)
        sum += sum_steps(data, steps);
    data += steps * STEP_BYTES;
    for (bytes -= steps * STEP_BYTES; bytes >= 4; data += 4, bytes -= 4) {
        uint32_t word;

        memcpy(&word, data, 4);
        sum += word;
    }
    uint32_t rest = 0;
    memcpy(&rest, data, bytes);
    return sum + rest;
}

/* sum_pseudo_header() - the sum over what TCP, UDP and ICMPv6 protect of IP
 * @packet:    an IP packet without extension headers
 * @protocol:  of its payload
 * @l4_bytes:  the length of its payload
 *
 * Return: the sum (RFC 9293 section 3.1, RFC 8200 section 8.1), not folded
 */
uint64_t sum_pseudo_header(const uint8_t *packet, uint8_t protocol, size_t l4_bytes)
{
    uint8_t rest[8] = {0, 0, 0, 0, 0, 0, 0, protocol};

    write32(rest, (uint32_t)l4_bytes);
    return packet[0] >> 4 == 4 ? sum_bytes(sum_bytes(0, rest, 8), packet + 12, 8)
                               : sum_bytes(sum_bytes(0, rest, 8), packet + 8, 32);
}

/* fold() - make 16 bits of a sum; Return: the words' sum, in the order of the machine, 0xFFFF if all is right */
uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

/* complete_checksum() - do what was left to a network card
 * @data:             from where the checksum counts, its own field holding what was summed up before
 * @bytes:            to where
 * @checksum_offset:  of the field; 6 is UDP's, in which 0 would mean that there is none
 */
void complete_checksum(uint8_t *data, size_t bytes, size_t checksum_offset)
{
    uint16_t checksum = (uint16_t)~fold(sum_bytes(0, data, bytes));

    if (checksum == 0 && checksum_offset == 6)
        checksum = 0xFFFF;
    memcpy(data + checksum_offset, &checksum, 2);
}

/* write_ipv4_checksum() - set the checksum of a header, options included */
void write_ipv4_checksum(uint8_t *packet)
{
    write16(packet + 10, 0);
    complete_checksum(packet, (packet[0] & 15) * 4u, 10);
}
