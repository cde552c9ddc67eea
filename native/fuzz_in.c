/* libFuzzer: whatever peers send, what is joined gives the same packets again when it is split.
 *
 * Input: packets, each behind its length in two bytes. "The same" but for the identifiers of IPv4 packets that must not
 * be fragmented (see offload.c), and the header's checksum that goes with them. Checksums are made right for half of the
 * inputs (first byte), since chance would hardly ever find a right one.
 */

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "offload.h"

#define DEMAND(condition)  \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)
#define PACKETS_MAX 100

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* heal() - give a packet right checksums, as far as it has any */
static void heal(uint8_t *packet, size_t bytes)
{
    size_t l4_offset = packet[0] >> 4 == 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
    uint8_t protocol = packet[0] >> 4 == 4 ? packet[9] : packet[6];
    size_t at = protocol == IPPROTO_TCP ? 16 : 6, l4_bytes = bytes - l4_offset;

    if (packet[0] >> 4 == 4)
        write_ipv4_checksum(packet);
    if (bytes < l4_offset || l4_bytes < at + 2 || (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP))
        return;
    uint16_t start = fold(sum_pseudo_header(packet, protocol, l4_bytes));
    memcpy(packet + l4_offset + at, &start, 2);
    complete_checksum(packet + l4_offset, l4_bytes, at);
}

/* forget_identifier() - where it means nothing */
static void forget_identifier(uint8_t *packet)
{
    if (packet[0] >> 4 == 4 && packet[6] & 0x40) {
        write16(packet + 4, 0);
        write_ipv4_checksum(packet);
    }
}

static void compare(struct join *join)
{
    static uint8_t whole[PACKET_MAX_BYTES + 1], again[PACKET_MAX_BYTES], came[PACKET_MAX_BYTES];
    unsigned slices = join_finish(join), count = 0;
    size_t bytes = 0;
    struct split split;
    struct iovec payload;

    for (unsigned i = 1; i < slices; i++) {
        DEMAND(bytes + join->slices[i].iov_len <= PACKET_MAX_BYTES);
        memcpy(whole + bytes, join->slices[i].iov_base, join->slices[i].iov_len);
        bytes += join->slices[i].iov_len;
    }
    if (join->count == 1)
        return;
    DEMAND(bytes == join->bytes && split_begin(&split, &join->virtio, whole, bytes) == SPLIT_SEGMENTS);
    for (; split_next(&split, again, &payload); count++) {
        DEMAND(count < join->count);
        size_t length = split.headers_bytes + payload.iov_len;
        memcpy(again + split.headers_bytes, payload.iov_base, payload.iov_len);
        DEMAND(length == join->packets[count].iov_len);
        memcpy(came, join->packets[count].iov_base, length);
        forget_identifier(again);
        forget_identifier(came);
        DEMAND(!memcmp(again, came, length));
    }
    DEMAND(count == join->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct join join;
    uint8_t *packets[PACKETS_MAX];
    unsigned count = 0;
    bool is_open = false, heals = size && data[0] & 1;

    for (size_t at = 1; at + 2 <= size && count < PACKETS_MAX;) {
        size_t bytes = read16(data + at);
        struct addresses addresses;
        struct segment segment;

        at += 2;
        bytes = bytes < size - at ? bytes : size - at;
        uint8_t *packet = packets[count++] = malloc(bytes ? bytes : 1);
        memcpy(packet, data + at, bytes);
        at += bytes;
        if (!parse_addresses(packet, bytes, &addresses))
            continue;
        if (heals)
            heal(packet, bytes);
        mark_congestion(packet, data[0] >> 1);
        if (!parse_segment(packet, bytes, &segment))
            continue;
        if (is_open && join_is_same_flow(&join, &segment) && join_add(&join, &segment))
            continue;
        if (is_open)
            compare(&join);
        join_begin(&join, &segment);
        is_open = true;
    }
    if (is_open)
        compare(&join);
    while (count)
        free(packets[--count]);
    return 0;
}
