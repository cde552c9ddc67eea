/* libFuzzer: whatever a TUN device hands out, splitting stays within it and loses no byte of payload.
 *
 * Input: a virtio header, then a packet.
 */

#include <stdlib.h>
#include <string.h>

#include "offload.h"

#define DEMAND(condition)  \
    do {                   \
        if (!(condition))  \
            abort();       \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t headers[HEADERS_MAX_BYTES], error[ICMP_ERROR_MAX_BYTES];
    virtio_header virtio;
    struct addresses addresses;
    struct split split;
    struct iovec payload;

    if (size < sizeof virtio || size > sizeof virtio + PACKET_MAX_BYTES)
        return 0;
    memcpy(&virtio, data, sizeof virtio);
    size_t bytes = size - sizeof virtio, carried = 0;
    uint8_t *packet = malloc(bytes ? bytes : 1); /* of exactly this size, so that the sanitizer sees one byte beyond */
    memcpy(packet, data + sizeof virtio, bytes);
    if (parse_addresses(packet, bytes, &addresses)) {
        DEMAND(encode_icmp_error(packet, bytes, TOO_BIG, 1400, error) <= sizeof error);
        DEMAND(encode_icmp_error(packet, bytes, NO_ROUTE, 0, error) <= sizeof error);
        if (split_begin(&split, &virtio, packet, bytes) == SPLIT_SEGMENTS) {
            unsigned expected = split_segments(&split);
            while (split_next(&split, headers, &payload)) {
                DEMAND(payload.iov_len > 0 && payload.iov_len <= split.payload_bytes);
                DEMAND((uint8_t *)payload.iov_base == packet + split.headers_bytes + carried);
                carried += payload.iov_len;
            }
            DEMAND(carried == bytes - split.headers_bytes && split.segments == expected);
        }
    }
    free(packet);
    return 0;
}
