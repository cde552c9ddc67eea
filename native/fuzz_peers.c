/* libFuzzer: whatever stands in a file of peers, it is taken, or refused with a sentence; each prefix has its owner. */

#include <stdlib.h>
#include <string.h>

#include "peers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct table table;
    char error[ERROR_MAX_BYTES] = "", text[512], shown[ENDPOINT_MAX_BYTES];
    union endpoint endpoint, again;
    struct prefix prefix;
    size_t length = size < sizeof text ? size : sizeof text - 1;

    for (const uint8_t *line = data; length; line += length, size -= length) {
        const uint8_t *end = memchr(line, '\n', size);
        length = end ? (size_t)(end - line) + 1 : size;
        if (length >= sizeof text)
            break;
        memcpy(text, line, length);
        text[length] = '\0';
        text[strcspn(text, "\n")] = '\0';
        if (!parse_peer(text, ' ', &prefix, &endpoint, error)) {
            if (!error[0])
                abort();
            continue;
        }
        if (!parse_endpoint(show_endpoint(&endpoint, shown), &again, error) || memcmp(&endpoint, &again, sizeof again))
            abort();
        if (table_add(&table, &prefix, &endpoint, error) &&
            (!table_sender(&table, &endpoint) || !table_owner(&table, prefix.address, prefix.address_bytes)))
            abort();
    }
    table_clear(&table);
    return 0;
}
