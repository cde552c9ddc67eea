/* Pure questions about the bytes of one packet. No function here has a side effect but on what it is given. */

#ifndef MUSLIN_PACKET_H
#define MUSLIN_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACKET_MAX_BYTES 65535   /* the largest IPv4 packet: its length field has 16 bits (RFC 791 section 3.1) */
#define IPV4_HEADER_BYTES 20     /* without options */
#define IPV4_HEADER_MAX_BYTES 60 /* 15 words of 4 bytes */
#define IPV6_HEADER_BYTES 40     /* RFC 8200 section 3 */
#define TCP_HEADER_BYTES 20      /* without options */
#define TCP_HEADER_MAX_BYTES 60
#define UDP_HEADER_BYTES 8
#define ICMP_ERROR_MAX_BYTES 1280 /* an ICMPv6 error stays within the smallest MTU (RFC 4443 section 3.1) */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_CWR 0x80

/* The addresses of a packet. */
struct addresses {
    const uint8_t *source, *destination; /* in the packet */
    size_t bytes;                        /* of each: 4 or 16 */
};

/* A whole TCP or UDP packet in plain IP: no options of IPv4, no extension header, no fragment, checksums right. */
struct segment {
    const uint8_t *packet;
    uint16_t bytes, payload_offset; /* of the packet; the payload goes to its end */
    uint8_t l4_offset, protocol;
};

/* What is to be said of a packet that could not be carried. */
enum complaint { NO_ROUTE, TOO_BIG };

bool parse_addresses(const uint8_t *packet, size_t bytes, struct addresses *found);
bool parse_segment(const uint8_t *packet, size_t bytes, struct segment *found);
uint8_t read_traffic_class(const uint8_t *packet);
bool mark_congestion(uint8_t *packet, uint8_t outer_traffic_class);
size_t encode_icmp_error(const uint8_t *packet, size_t bytes, enum complaint what, unsigned mtu_bytes, uint8_t *error);

uint64_t sum_bytes(uint64_t sum, const uint8_t *data, size_t bytes);
uint64_t sum_pseudo_header(const uint8_t *packet, uint8_t protocol, size_t l4_bytes);
uint16_t fold(uint64_t sum);
void complete_checksum(uint8_t *data, size_t bytes, size_t checksum_offset);
void write_ipv4_checksum(uint8_t *packet);

static inline uint16_t read16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static inline void write16(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static inline uint32_t read32(const uint8_t *at)
{
    return (uint32_t)read16(at) << 16 | read16(at + 2);
}

static inline void write32(uint8_t *at, uint32_t value)
{
    write16(at, (uint16_t)(value >> 16));
    write16(at + 2, (uint16_t)value);
}

#endif
