/* Theory of operation
 *
 * A table answers two questions for each packet: who owns an inner address (the longest prefix that contains it), and
 * is the sender of a datagram a peer. Both are hash tables with open addressing in arrays of a fixed size. For the
 * longest prefix, the lengths that occur are tried, longest first: one or two in all networks that we know, so that
 * 10,000 peers cost what 2 cost.
 *
 * Tables are made in full by the main thread and then handed over (see tunnel.c); nothing is ever removed from one.
 *
 * The text is a line for each prefix: PREFIX ADDRESS:PORT, # begins a comment. On a command line, = stands for the
 * space. Errors are one sentence that names the text at fault.
 */

#include "peers.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define QUOTED_MAX 200 /* of a text at fault, so that a sentence stays one */

/* parse_digits() - read a number in decimal; Return: it, or -1 if it is none or above `most` */
long parse_digits(const char *text, long most)
{
    size_t digits = strspn(text, "0123456789");

    if (digits == 0 || digits > 9 || text[digits] != '\0')
        return -1;
    long number = strtol(text, NULL, 10);
    return number <= most ? number : -1;
}

/* parse_endpoint() - parse ADDRESS:PORT, an IPv6 address in brackets
 * @text:      the text
 * @endpoint:  set on success
 * @error:     takes ERROR_MAX_BYTES, a sentence on failure
 *
 * Return: whether it is one
 */
bool parse_endpoint(const char *text, union endpoint *endpoint, char *error)
{
    char address[INET6_ADDRSTRLEN] = "";
    const char *colon = strrchr(text, ':');
    bool is_ipv6 = text[0] == '[';
    size_t length = colon ? (size_t)(colon - text) : 0;
    long port = colon && strlen(colon) <= 6 ? parse_digits(colon + 1, 65535) : -1;

    memset(endpoint, 0, sizeof *endpoint);
    if (is_ipv6 && length > 2 && text[length - 1] == ']' && length - 2 < sizeof address)
        memcpy(address, text + 1, length - 2);
    else if (!is_ipv6 && length < sizeof address)
        memcpy(address, text, length);
    if (port > 0 && is_ipv6 && inet_pton(AF_INET6, address, &endpoint->ipv6.sin6_addr) == 1) {
        endpoint->ipv6.sin6_family = AF_INET6;
        endpoint->ipv6.sin6_port = htons((uint16_t)port);
        return true;
    }
    if (port > 0 && !is_ipv6 && inet_pton(AF_INET, address, &endpoint->ipv4.sin_addr) == 1) {
        endpoint->ipv4.sin_family = AF_INET;
        endpoint->ipv4.sin_port = htons((uint16_t)port);
        return true;
    }
    snprintf(error, ERROR_MAX_BYTES,
             "'%.*s' is no endpoint; expected ADDRESS:PORT such as 10.0.0.20:9000 or [fd00::20]:9000", QUOTED_MAX, text);
    return false;
}

/* has_host_bits() - see whether anything is set behind the prefix */
static bool has_host_bits(const struct prefix *prefix)
{
    for (unsigned bit = prefix->bits; bit < prefix->address_bytes * 8u; bit++)
        if (prefix->address[bit / 8] >> (7 - bit % 8) & 1)
            return true;
    return false;
}

static bool parse_prefix(const char *text, size_t length, struct prefix *prefix)
{
    char copy[INET6_ADDRSTRLEN + 8] = "";

    memset(prefix, 0, sizeof *prefix);
    if (length >= sizeof copy)
        return false;
    memcpy(copy, text, length);
    char *slash = strchr(copy, '/');
    if (!slash)
        return false;
    *slash = '\0';
    if (inet_pton(AF_INET, copy, prefix->address) == 1)
        prefix->address_bytes = 4;
    else if (inet_pton(AF_INET6, copy, prefix->address) == 1)
        prefix->address_bytes = 16;
    else
        return false;
    long bits = parse_digits(slash + 1, prefix->address_bytes * 8);
    if (bits < 0)
        return false;
    prefix->bits = (uint8_t)bits;
    return !has_host_bits(prefix);
}

/* parse_peer() - parse PREFIX=ADDRESS:PORT
 * @text:       the text
 * @separator:  what stands instead of =
 * @prefix:     set on success, but for its peer
 * @endpoint:   set on success
 * @error:      takes ERROR_MAX_BYTES, a sentence on failure
 *
 * Return: whether it is one
 */
bool parse_peer(const char *text, char separator, struct prefix *prefix, union endpoint *endpoint, char *error)
{
    const char *at = strchr(text, separator);

    if (at && parse_prefix(text, (size_t)(at - text), prefix))
        return parse_endpoint(at + 1, endpoint, error);
    snprintf(error, ERROR_MAX_BYTES,
             "'%.*s' is no peer; expected PREFIX%cADDRESS:PORT, the prefix without host bits, such as"
             " 172.16.1.0/24%c10.0.0.20:9000",
             QUOTED_MAX, text, separator, separator);
    return false;
}

/* show_endpoint() - write an endpoint as the command line takes it; Return: text, of ENDPOINT_MAX_BYTES */
const char *show_endpoint(const union endpoint *endpoint, char *text)
{
    char address[INET6_ADDRSTRLEN];
    const uint8_t *bytes;

    endpoint_address(endpoint, &bytes);
    inet_ntop(endpoint->any.sa_family, bytes, address, sizeof address);
    const char *format = endpoint->any.sa_family == AF_INET6 ? "[%s]:%u" : "%s:%u";
    snprintf(text, ENDPOINT_MAX_BYTES, format, address, ntohs(endpoint->ipv4.sin_port));
    return text;
}

/* endpoint_bytes() - how long the socket address is */
size_t endpoint_bytes(const union endpoint *endpoint)
{
    return endpoint->any.sa_family == AF_INET6 ? sizeof endpoint->ipv6 : sizeof endpoint->ipv4;
}

/* endpoint_address() - the bytes of the IP address; Return: how many */
size_t endpoint_address(const union endpoint *endpoint, const uint8_t **address)
{
    if (endpoint->any.sa_family == AF_INET6) {
        *address = (const uint8_t *)&endpoint->ipv6.sin6_addr;
        return 16;
    }
    *address = (const uint8_t *)&endpoint->ipv4.sin_addr;
    return 4;
}

/* hash_address() - spread addresses; the multipliers are of splitmix64 (Steele, Lea, Flood 2014) */
static uint32_t hash_address(const uint8_t *address, size_t bytes, uint64_t salt)
{
    uint64_t words[2] = {0, 0};

    memcpy(words, address, bytes);
    uint64_t hash = words[0] * 0xBF58476D1CE4E5B9u ^ (words[1] + salt) * 0x94D049BB133111EBu;
    hash = (hash ^ hash >> 30) * 0xBF58476D1CE4E5B9u;
    return (uint32_t)(hash ^ hash >> 31);
}

static uint32_t hash_endpoint(const union endpoint *endpoint)
{
    const uint8_t *address;
    size_t bytes = endpoint_address(endpoint, &address);

    return hash_address(address, bytes, endpoint->ipv4.sin_port); /* at the same place in both families */
}

_Static_assert(offsetof(struct sockaddr_in, sin_port) == offsetof(struct sockaddr_in6, sin6_port), "one port");

static bool is_same_endpoint(const union endpoint *a, const union endpoint *b)
{
    const uint8_t *address_a, *address_b;

    if (a->any.sa_family != b->any.sa_family || a->ipv4.sin_port != b->ipv4.sin_port)
        return false;
    size_t bytes = endpoint_address(a, &address_a);
    endpoint_address(b, &address_b);
    return memcmp(address_a, address_b, bytes) == 0;
}

/* find_peer_slot() - Return: where the endpoint stands, or the free slot where it would */
static uint32_t *find_peer_slot(struct table *table, const union endpoint *endpoint)
{
    uint32_t at = hash_endpoint(endpoint);

    for (;; at++) {
        uint32_t *slot = &table->peer_slots[at & (2 * PEERS_MAX - 1)];

        if (*slot == 0 || is_same_endpoint(&table->peers[*slot - 1].endpoint, endpoint))
            return slot;
    }
}

/* find_prefix_slot() - the same of a prefix
 * @address:  16 bytes, 0 behind the prefix
 */
static uint32_t *find_prefix_slot(struct table *table, const uint8_t *address, size_t address_bytes, uint8_t bits)
{
    uint32_t at = hash_address(address, address_bytes, (uint64_t)bits << 8 | address_bytes);

    for (;; at++) {
        uint32_t *slot = &table->prefix_slots[at & (2 * PREFIXES_MAX - 1)];

        if (*slot == 0)
            return slot;
        const struct prefix *found = &table->prefixes[*slot - 1];
        if (found->bits == bits && found->address_bytes == address_bytes &&
            memcmp(found->address, address, address_bytes) == 0)
            return slot;
    }
}

/* table_clear() - make a table empty, in time proportional to what is in it */
void table_clear(struct table *table)
{
    if (table->peers_count > PEERS_MAX / 16 || table->prefixes_count > PREFIXES_MAX / 16) {
        memset(table->peer_slots, 0, sizeof table->peer_slots);
        memset(table->prefix_slots, 0, sizeof table->prefix_slots);
    } else {
        /* All are found before any is freed: a chain of collisions must not be cut in between. */
        uint32_t *slots[PEERS_MAX / 16 + PREFIXES_MAX / 16];
        size_t count = 0;

        for (uint32_t i = 0; i < table->peers_count; i++)
            slots[count++] = find_peer_slot(table, &table->peers[i].endpoint);
        for (uint32_t i = 0; i < table->prefixes_count; i++) {
            const struct prefix *prefix = &table->prefixes[i];

            slots[count++] = find_prefix_slot(table, prefix->address, prefix->address_bytes, prefix->bits);
        }
        while (count)
            *slots[--count] = 0;
    }
    table->peers_count = table->prefixes_count = 0;
    memset(table->lengths_count, 0, sizeof table->lengths_count);
}

/* note_length() - remember that prefixes of this length occur, longest first */
static void note_length(struct table *table, const struct prefix *prefix)
{
    unsigned family = prefix->address_bytes == 16, count = table->lengths_count[family], at = 0;
    uint8_t *lengths = table->lengths[family];

    while (at < count && lengths[at] > prefix->bits)
        at++;
    if (at < count && lengths[at] == prefix->bits)
        return;
    memmove(lengths + at + 1, lengths + at, count - at);
    lengths[at] = prefix->bits;
    table->lengths_count[family]++;
}

static bool refuse_claim(const struct table *table, const struct prefix *prefix, uint32_t first,
                         const union endpoint *second, char *error)
{
    char address[INET6_ADDRSTRLEN], a[ENDPOINT_MAX_BYTES], b[ENDPOINT_MAX_BYTES];

    inet_ntop(prefix->address_bytes == 16 ? AF_INET6 : AF_INET, prefix->address, address, sizeof address);
    snprintf(error, ERROR_MAX_BYTES, "%s/%u is claimed by %s and %s; expected each prefix once", address, prefix->bits,
             show_endpoint(&table->peers[first].endpoint, a), show_endpoint(second, b));
    return false;
}

/* table_add() - let a peer own a prefix
 * @table:     to which it is added
 * @prefix:    which; its peer is not looked at
 * @endpoint:  of the peer
 * @error:     takes ERROR_MAX_BYTES, a sentence on failure
 *
 * Return: false if another peer owns it, or if the table is full
 */
bool table_add(struct table *table, const struct prefix *prefix, const union endpoint *endpoint, char *error)
{
    uint32_t *peer_slot = find_peer_slot(table, endpoint);
    uint32_t *prefix_slot = find_prefix_slot(table, prefix->address, prefix->address_bytes, prefix->bits);

    if (*prefix_slot) {
        uint32_t owner = table->prefixes[*prefix_slot - 1].peer;

        return *peer_slot == owner + 1 || refuse_claim(table, prefix, owner, endpoint, error);
    }
    if (table->prefixes_count == PREFIXES_MAX || (!*peer_slot && table->peers_count == PEERS_MAX)) {
        snprintf(error, ERROR_MAX_BYTES, "too many peers; expected at most %d, and %d prefixes", PEERS_MAX,
                 PREFIXES_MAX);
        return false;
    }
    if (!*peer_slot) {
        memset(&table->peers[table->peers_count], 0, sizeof table->peers[0]);
        table->peers[table->peers_count].endpoint = *endpoint;
        *peer_slot = ++table->peers_count;
    }
    struct prefix *added = &table->prefixes[table->prefixes_count];
    *added = *prefix;
    added->peer = *peer_slot - 1;
    *prefix_slot = ++table->prefixes_count;
    note_length(table, added);
    return true;
}

/* add_text() - add one peer, of the command line or of a file */
static bool add_text(struct table *table, const union endpoint *listen, const char *text, char separator, char *error)
{
    char ours[ENDPOINT_MAX_BYTES], theirs[ENDPOINT_MAX_BYTES];
    struct prefix prefix;
    union endpoint endpoint;

    if (!parse_peer(text, separator, &prefix, &endpoint, error))
        return false;
    if (endpoint.any.sa_family != listen->any.sa_family) {
        snprintf(error, ERROR_MAX_BYTES, "%s and --listen %s differ; expected both IPv4 or both IPv6",
                 show_endpoint(&endpoint, theirs), show_endpoint(listen, ours));
        return false;
    }
    return table_add(table, &prefix, &endpoint, error);
}

/* squeeze() - cut a comment off and make each run of white space one space, none at the ends */
static void squeeze(char *line)
{
    char *to = line;

    line[strcspn(line, "#")] = '\0';
    for (const char *from = line; *from; from++) {
        if (!isspace((unsigned char)*from))
            *to++ = *from;
        else if (to != line && to[-1] != ' ')
            *to++ = ' ';
    }
    if (to != line && to[-1] == ' ')
        to--;
    *to = '\0';
}

/* load_lines() - add what stands in an open file */
static bool load_lines(struct table *table, const union endpoint *listen, const char *path, int fd, char *error)
{
    static char buffer[65536];
    char line[LINE_MAX_BYTES], what[ERROR_MAX_BYTES];
    size_t filled = 0;
    unsigned number = 1;

    for (;;) {
        ssize_t got = read(fd, buffer, sizeof buffer);

        if (got < 0) {
            snprintf(error, ERROR_MAX_BYTES, "cannot read the peers from %.200s: %s", path, strerror(errno));
            return false;
        }
        for (ssize_t i = 0; i <= got; i++) {
            bool is_end = got == 0 || (i < got && buffer[i] == '\n');

            if (!is_end) {
                if (i < got && filled < sizeof line - 1)
                    line[filled++] = buffer[i] ? buffer[i] : '?';
                continue;
            }
            line[filled] = '\0';
            squeeze(line);
            if (line[0] && !add_text(table, listen, line, ' ', what)) {
                snprintf(error, ERROR_MAX_BYTES, "line %u of %.200s: %.350s", number, path, what);
                return false;
            }
            filled = 0;
            number++;
            if (got == 0)
                return true;
        }
    }
}

/* table_load() - add what stands in a file of peers
 * @table:   to which it is added
 * @listen:  this node; a peer must be of its family
 * @path:    of the file
 * @error:   takes ERROR_MAX_BYTES, a sentence on failure
 *
 * Return: false at the first line that cannot be taken, the table then holding those before
 */
bool table_load(struct table *table, const union endpoint *listen, const char *path, char *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        snprintf(error, ERROR_MAX_BYTES, "cannot read the peers from %.200s: %s", path, strerror(errno));
        return false;
    }
    bool is_loaded = load_lines(table, listen, path, fd, error);
    close(fd);
    return is_loaded;
}

/* table_add_text() - add a peer of the command line, PREFIX=ADDRESS:PORT; Return: whether it could be taken */
bool table_add_text(struct table *table, const union endpoint *listen, const char *text, char *error)
{
    return add_text(table, listen, text, '=', error);
}

/* table_owner() - find the peer with the longest prefix that contains an address; Return: NULL if there is none */
struct peer *table_owner(struct table *table, const uint8_t *address, size_t address_bytes)
{
    unsigned family = address_bytes == 16;
    uint8_t masked[16];

    for (unsigned i = 0; i < table->lengths_count[family]; i++) {
        unsigned bits = table->lengths[family][i], whole = bits / 8;

        memcpy(masked, address, whole);
        memset(masked + whole, 0, sizeof masked - whole);
        if (bits % 8)
            masked[whole] = address[whole] & (uint8_t)(0xFF00 >> bits % 8);
        uint32_t *slot = find_prefix_slot(table, masked, address_bytes, (uint8_t)bits);
        if (*slot)
            return &table->peers[table->prefixes[*slot - 1].peer];
    }
    return NULL;
}

/* table_sender() - find the peer that a datagram comes from; Return: NULL if it is a stranger */
struct peer *table_sender(struct table *table, const union endpoint *endpoint)
{
    uint32_t *slot = find_peer_slot(table, endpoint);

    return *slot ? &table->peers[*slot - 1] : NULL;
}
