/* Between packets and super-packets: many packets of one flow that pass a TUN device as one. */

#ifndef MUSLIN_OFFLOAD_H
#define MUSLIN_OFFLOAD_H

#include <linux/virtio_net.h>
#include <sys/uio.h>

#include "packet.h"

/* As in linux/virtio_net.h since 6.2, and in virtio 1.3. */
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/* The 10 bytes before each packet of a TUN device with IFF_VNET_HDR. */
typedef struct virtio_net_hdr virtio_header;
_Static_assert(sizeof(virtio_header) == 10, "TUNSETVNETHDRSZ is 10 unless somebody sets it");

#define HEADERS_MAX_BYTES 192 /* of IP, its options or extension headers, and TCP: 40 and 60 are usual */

/* A super-packet that is taken apart, segment by segment. */
struct split {
    const uint8_t *packet;
    size_t bytes, l4_offset, headers_bytes, payload_bytes; /* the last: of each segment but the last */
    size_t done_bytes;                                     /* of the payload */
    unsigned segments;                                     /* so far */
    bool is_tcp;
};

enum split_verdict { SPLIT_MALFORMED, SPLIT_WHOLE, SPLIT_SEGMENTS };

enum split_verdict split_begin(struct split *split, const virtio_header *header, uint8_t *packet, size_t bytes);
unsigned split_segments(const struct split *split);
bool split_next(struct split *split, uint8_t *headers, struct iovec *payload);

#define JOIN_MAX_PACKETS 64 /* UDP_MAX_SEGMENTS of linux/udp.h before 6.9 */

/* Packets of one flow that are written as one. */
struct join {
    virtio_header virtio;
    uint8_t headers[IPV6_HEADER_BYTES + TCP_HEADER_MAX_BYTES];
    struct iovec slices[2 + JOIN_MAX_PACKETS]; /* the virtio header, the packet's headers, payloads */
    struct iovec packets[JOIN_MAX_PACKETS];    /* as they came */
    struct segment first;
    unsigned count;
    size_t bytes;             /* of the super-packet */
    uint32_t next_sequence;   /* TCP */
    bool counts_identifiers;  /* IPv4: each identifier is one more than the one before, as against all the same */
    bool is_closed;           /* a shorter packet, or TCP's PSH or FIN, was the last */
};

void join_begin(struct join *join, const struct segment *first);
bool join_is_same_flow(const struct join *join, const struct segment *next);
bool join_add(struct join *join, const struct segment *next);
unsigned join_finish(struct join *join);

#endif
