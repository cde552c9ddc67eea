/* Who is behind which addresses: the table of peers, and the text that it is made of. */

#ifndef MUSLIN_PEERS_H
#define MUSLIN_PEERS_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PEERS_MAX 32768    /* a network of 172.16.0.0/12 in subnets of /27, and more than any flannel has */
#define PREFIXES_MAX 65536 /* two families a peer */
#define ERROR_MAX_BYTES 600
#define ENDPOINT_MAX_BYTES (INET6_ADDRSTRLEN + 8) /* brackets, a colon, five digits, and the end of the string */

/* Where a tunnel is on the underlay. */
union endpoint {
    struct sockaddr any;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
};

/* What each direction counts of one peer; only its own thread writes. */
struct peer_books {
    _Atomic uint64_t packets_to, bytes_to, too_big, send_failed;
    _Atomic uint64_t packets_from, bytes_from, bad_source, malformed, congested, tun_failed;
};

struct peer {
    union endpoint endpoint;
    struct peer_books books;
    struct peer_books carried; /* from before the peers were read again; the main thread's */
};

struct prefix {
    uint8_t address[16]; /* IPv4: the first 4 bytes */
    uint8_t bits;
    uint8_t address_bytes; /* 4 or 16 */
    uint32_t peer;
};

/* Zero-initialised is empty. A table never changes once the threads know it. */
struct table {
    uint32_t peers_count, prefixes_count;
    uint8_t lengths_count[2], lengths[2][129]; /* by family, IPv4 first: the prefix lengths in use, longest first */
    struct peer peers[PEERS_MAX];
    struct prefix prefixes[PREFIXES_MAX];
    uint32_t peer_slots[2 * PEERS_MAX]; /* open hashing: 0 is free, else one more than an index */
    uint32_t prefix_slots[2 * PREFIXES_MAX];
};

_Static_assert((PEERS_MAX & (PEERS_MAX - 1)) == 0 && (PREFIXES_MAX & (PREFIXES_MAX - 1)) == 0, "for hashing");

long parse_digits(const char *text, long most);
bool parse_endpoint(const char *text, union endpoint *endpoint, char *error);
bool parse_peer(const char *text, char separator, struct prefix *prefix, union endpoint *endpoint, char *error);
const char *show_endpoint(const union endpoint *endpoint, char *text);
size_t endpoint_bytes(const union endpoint *endpoint);
size_t endpoint_address(const union endpoint *endpoint, const uint8_t **address);

void table_clear(struct table *table);
bool table_add(struct table *table, const struct prefix *prefix, const union endpoint *endpoint, char *error);
bool table_add_text(struct table *table, const union endpoint *listen, const char *text, char *error);
bool table_load(struct table *table, const union endpoint *listen, const char *path, char *error);
struct peer *table_owner(struct table *table, const uint8_t *address, size_t address_bytes);
struct peer *table_sender(struct table *table, const union endpoint *endpoint);

#endif
